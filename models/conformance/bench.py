"""A case, the bench that it runs on, and its outputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import ttnn

from models.device import OpenMesh
from models.layers import Chunks, Module
from models.parallel import Layout, Mesh

Kind = Literal["small", "shape", "whole"]
NUMBERS = torch.float64


@dataclass(frozen=True)
class Output:
    """A result on the mesh, and what it should be.

    Attributes:
        tensor: on the device, or a host tensor.
        exact: gives the exact result over all chips in float64; None where golden execution alone can tell.
        sp: dim of the result that SP splits; each chip of SP has all of it if None.
        tp: the same for TP.
        axes: dims that the mesh axes split, in place of `sp` and `tp`.
        rows: of dim 2 of each chip's part, those that are compared; all if None.
    """

    tensor: ttnn.Tensor | torch.Tensor
    exact: Callable[[], torch.Tensor] | None
    sp: int | None = None
    tp: int | None = None
    axes: dict[int, int] = field(default_factory=dict)
    rows: Sequence[int] | None = None


class Weights:
    """Random weights for a module: values from a seed, as a checkpoint that holds just what the module needs."""

    def __init__(self, module: Module, seed: int = 0, scale: float = 0.05) -> None:
        self._shapes = {
            prefix + name: shape for _, prefix, p in module.parameters() for name, shape in p.sources.items()
        }
        self._seed, self._scale = seed, scale

    def keys(self):
        """Return the names."""
        return self._shapes.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._shapes[key])

    def tensor(self, key: str) -> torch.Tensor:
        """Return a tensor, whose values bfloat16 holds."""
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) + self._seed)
        mean = 1.0 if len(self._shapes[key]) == 1 else 0.0
        return (mean + self._scale * torch.randn(self._shapes[key], generator=generator)).bfloat16().float()


class Bench:
    """An open mesh in a layout, and inputs that are the same in every process."""

    def __init__(self, mesh: Mesh, case: str, *, opened: OpenMesh, tokens: int, chunks: Chunks | None = None) -> None:
        """Prepare a case.

        Args:
            mesh: the mesh.
            case: name, from which the inputs are made.
            opened: what the mesh lies on.
            tokens: visual tokens of the video whose shapes are the real ones.
            chunks: of attention; by rule if None.
        """
        self.chunks = chunks
        self.mesh = mesh
        self.opened = opened
        self.tokens = tokens
        self._generator = torch.Generator().manual_seed(zlib.crc32(case.encode()))

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Return normally distributed values that `dtype` holds, in float64."""
        return torch.randn(*shape, generator=self._generator).to(dtype).to(NUMBERS)

    def big(self, *shape: int) -> torch.Tensor:
        """Return random values in bfloat16, of a large shape."""
        return torch.randn(*shape, generator=self._generator, dtype=torch.float32).bfloat16()

    def up(
        self,
        x: torch.Tensor,
        dtype: ttnn.DataType = ttnn.bfloat16,
        *,
        sp: int | None = None,
        tp: int | None = None,
        layout: ttnn.Layout = ttnn.TILE_LAYOUT,
    ) -> ttnn.Tensor:
        """Upload x: dim `sp` split over SP, dim `tp` over TP."""
        host = x.to(torch.bfloat16 if dtype == ttnn.bfloat16 else torch.float32)
        return self.mesh.upload(host, dtype=dtype, sp=sp, tp=tp, layout=layout)

    def actual(self, output: Output) -> torch.Tensor:
        """Return what every chip has, stacked."""
        if isinstance(output.tensor, torch.Tensor):
            return output.tensor[None]
        parts = [ttnn.to_torch(part) for part in ttnn.get_device_tensors(ttnn.from_device(output.tensor))]
        if output.rows is not None:
            parts = [part[:, :, output.rows] for part in parts]
        return torch.stack(parts)

    def expected(self, output: Output) -> torch.Tensor | None:
        """Return what every chip should have, stacked."""
        if output.exact is None:
            return None
        whole = output.exact()
        if isinstance(output.tensor, torch.Tensor):
            return whole[None]
        dims: dict[int, int | None] = {**output.axes} or {self.mesh.sp.index: output.sp, self.mesh.tp.index: output.tp}
        rows, columns = self.mesh.layout.mesh_shape
        parts = []
        for row in range(rows):
            for column in range(columns):
                part = whole
                for axis, (index, size) in enumerate(((row, rows), (column, columns))):
                    dim = dims.get(axis)
                    if dim is not None and size > 1:
                        part = part.chunk(size, dim)[index]
                parts.append(part)
        return torch.stack(parts)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: of the case.
        op: ttnn's name of what it exercises.
        rule: what golden execution assumes there.
        run: runs it on a bench.
        limit: largest relative error; 0 for bit-exact.
        avoid: names of `models.machine.ways` that avoid the op; `capture` or `links` for those.
        needs: why a layout cannot run it, as a function of the layout; None where it can.
        kind: `small`, `shape` (the real shapes; no golden execution), `whole`.
    """

    name: str
    op: str
    rule: str
    run: Callable[[Bench], list[Output]]
    limit: float
    avoid: tuple[str, ...] = ()
    needs: Callable[[Layout], str | None] = lambda layout: None
    kind: Kind = "small"


CASES: dict[str, Case] = {}


def case(name: str, op: str, rule: str, limit: float, **options) -> Callable:
    """Enter a function into `CASES`."""

    def enter(run: Callable[[Bench], list[Output]]) -> Callable[[Bench], list[Output]]:
        CASES[name] = Case(name, op, rule, run, limit, **options)
        return run

    return enter


def needs_tp(layout: Layout) -> str | None:
    """Say that a case needs several chips of TP."""
    return None if layout.tp > 1 else "needs TP above 1"


def needs_sp(layout: Layout) -> str | None:
    """Say that a case needs several chips of SP."""
    return None if layout.sp > 1 else "needs SP above 1"


def without_tp(layout: Layout) -> str | None:
    """Say that a case needs TP to be 1."""
    return None if layout.tp == 1 else "needs TP of 1"


def without_sp(layout: Layout) -> str | None:
    """Say that a case needs SP to be 1."""
    return None if layout.sp == 1 else "needs SP of 1"
