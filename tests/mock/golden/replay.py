"""Replay of kernel vectors on an open mesh: the same ops on the same inputs.

A file holds cases. A case is calls of ops on named tensors, with arguments as JSON: a dict of one key that starts with $
stands for what JSON cannot say.
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import ttnn
from safetensors import safe_open

VECTORS = Path(__file__).with_name("vectors")


@dataclass(frozen=True)
class Case:
    """One case of one chip, and where its tensors are."""

    file: Path
    name: str
    spec: dict[str, Any]

    @property
    def outputs(self) -> dict[str, torch.Tensor]:
        """What the kernels gave, by name."""
        with safe_open(self.file, "pt") as tensors:
            return {name: tensors.get_tensor(output["tensor"]) for name, output in self.spec["outputs"].items()}

    def inputs(self) -> dict[str, torch.Tensor]:
        """The tensors before they are packed for the device."""
        with safe_open(self.file, "pt") as tensors:
            return {name: tensors.get_tensor(given["tensor"]) for name, given in self.spec["inputs"].items()}

    def run(self, mesh: ttnn.MeshDevice) -> dict[str, torch.Tensor]:
        """What the ops give on `mesh`, by name."""
        known: dict[str, Any] = {}
        for name, value in self.inputs().items():
            given = self.spec["inputs"][name]
            layout = getattr(ttnn, given.get("layout", "TILE") + "_LAYOUT")
            known[name] = ttnn.from_torch(value, dtype=getattr(ttnn, given["dtype"]), layout=layout, device=mesh)
        for call in self.spec["calls"]:
            args = [decoded(value, known, mesh) for value in call["args"]]
            kwargs = {key: decoded(value, known, mesh) for key, value in call["kwargs"].items()}
            result = op(call["op"])(*args, **kwargs)
            results = result if isinstance(result, (list, tuple)) else [result]
            known.update(zip(call["out"], results, strict=False))
        return {name: ttnn.to_torch(known[name]) for name in self.spec["outputs"]}


def one_chip() -> Iterator[Case]:
    """All cases of one chip."""
    for file in sorted((VECTORS / "one_chip").glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name, spec in json.loads(tensors.metadata()["cases"]).items():
                yield Case(file, name, spec)


def op(name: str) -> Callable[..., Any]:
    """The op of that full name."""
    found: Any = ttnn
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def decoded(value: Any, known: dict[str, Any], mesh: ttnn.MeshDevice) -> Any:
    """An argument from its JSON form."""
    if isinstance(value, list):
        return [decoded(part, known, mesh) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "$tensor":
        return known[inner]
    if kind == "$tuple":
        return tuple(decoded(part, known, mesh) for part in inner)
    return _KINDS[kind](inner, mesh)


def _semaphores(count: int, mesh: ttnn.MeshDevice) -> list[Any]:
    grid = mesh.compute_with_storage_grid_size()
    cores = ttnn.CoreRangeSet([ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(grid.x - 1, grid.y - 1))])
    return [ttnn.create_global_semaphore(mesh, cores, 0) for _ in range(count)]


def _config(make: Callable[..., Any]) -> Callable[[dict[str, Any], ttnn.MeshDevice], Any]:
    def build(fields: dict[str, Any], mesh: ttnn.MeshDevice) -> Any:
        return make(**{name: _field(name, value) for name, value in fields.items()})

    return build


def _field(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name.endswith("fidelity"):
        return getattr(ttnn.MathFidelity, value)
    if name == "compute_with_storage_grid_size":
        return ttnn.CoreCoord(*value)
    return getattr(ttnn, value) if name in ("weights_dtype", "output_layout") else value


_KINDS: dict[str, Callable[[Any, ttnn.MeshDevice], Any]] = {
    "$dtype": lambda name, _: getattr(ttnn, name),
    "$layout": lambda name, _: getattr(ttnn, name + "_LAYOUT"),
    "$memory": lambda name, _: getattr(ttnn, name),
    "$mesh": lambda _, mesh: mesh,
    "$semaphores": _semaphores,
    "$topology": lambda name, _: getattr(ttnn.Topology, name),
    "$gelu": lambda name, _: getattr(ttnn.GeluVariant, name),
    "$unary": lambda name, _: [ttnn.UnaryWithParam(getattr(ttnn.UnaryOpType, name))],
    "$float32": lambda value, _: struct.unpack("f", struct.pack("f", value))[0],
    "$compute": _config(ttnn.WormholeComputeKernelConfig),
    "$minimal_matmul": _config(ttnn.MinimalMatmulConfig),
    "$sdpa": _config(ttnn.SDPAProgramConfig),
    "$conv3d": _config(ttnn.Conv3dConfig),
}
