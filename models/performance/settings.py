"""Settings of an op, read from the arguments of the call: math fidelity, cores, links, operand types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ttnn

from models.performance.counts import Call, element_bytes


@dataclass(frozen=True)
class Settings:
    """Settings that the cost model needs besides bytes and FLOPs. A setting is None if the call does not give it.

    Attributes:
        fidelity: name of the math fidelity, such as HiFi2.
        cores: number of cores of the op's own grid.
        links: number of Ethernet links used per direction.
        operand_bytes: mean bytes per element of the two matrix operands.
        float32_sums: whether products accumulate in float32 (None: the op's default). It decides between attention's
            kernels.
    """

    fidelity: str | None = None
    cores: int | None = None
    links: int | None = None
    operand_bytes: float | None = None
    float32_sums: bool | None = None

    @classmethod
    def of(cls, call: Call) -> Settings:
        """Read the settings of one call."""
        config = call.kwargs.get("compute_kernel_config")
        own = getattr(call.kwargs.get("program_config"), "matmul_math_fidelity", None)
        fidelity = own if own is not None else getattr(config, "math_fidelity", None)
        return cls(
            fidelity=fidelity.name if fidelity is not None else None,
            cores=_cores(call.kwargs),
            links=_links(call.kwargs),
            operand_bytes=_operand_bytes(call.inputs),
            float32_sums=getattr(config, "fp32_dest_acc_en", None),
        )


def _cores(arguments: dict[str, Any]) -> int | None:
    for name in ("program_config", "config"):
        grid = getattr(arguments.get(name), "compute_with_storage_grid_size", None)
        if grid is not None:
            return grid.x * grid.y
    return None


def _links(arguments: dict[str, Any]) -> int | None:
    links = arguments.get("num_links", arguments.get("num_preferred_links"))
    return min(links) if isinstance(links, (list, tuple)) else links


def _operand_bytes(inputs: list[ttnn.Tensor]) -> float | None:
    if len(inputs) < 2:
        return None
    return (element_bytes(inputs[0].dtype) + element_bytes(inputs[1].dtype)) / 2
