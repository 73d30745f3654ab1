"""Sizes of a converted set of weights, computed from shapes alone, without weights or a mesh device."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import ttnn

from models.machine.ways import FUSED, Ways
from models.parallel import TILE, Mesh, round_up
from models.parallel.mesh import Axis
from weight_cache.precision import set_precision, stored_precision

if TYPE_CHECKING:
    from models.layers import Module, Parameter
    from models.parallel import Layout

_BYTES = {ttnn.bfloat16: 2, ttnn.float32: 4}
# bfloat8_b has a byte per value, and one exponent for each 16 values of a row.
_BF8_TILE = TILE * TILE + TILE * TILE // 16
# Bytes that ttnn writes before the data: an upper bound, measured on ttnn 0.81.1.
_HEADER = 8192


class NamedMesh(Mesh):
    """A mesh without a device. It can declare a model and convert its weights, but not run it."""

    def __init__(self, layout: Layout, ways: Ways = FUSED) -> None:
        """Derive everything from the layout.

        The grid is the smallest of a Wormhole. It decides the order of the weights of convolutions, never their size.
        """
        self.layout = layout
        self.ways = ways
        self.grid = (8, 8)
        self.sp = Axis(layout.sp_axis, layout.sp)
        self.tp = Axis(layout.tp_axis, layout.tp)

    def relaid(self, layout: Layout) -> NamedMesh:
        """Return the same mesh in another layout."""
        return NamedMesh(layout, self.ways)


@dataclass(frozen=True)
class Plan:
    """Sizes of an entry: of its files, of the weights on one chip, and per dtype the number of tensors and bytes."""

    component: str
    layout: str
    precision: str
    tensors: int
    parameters: int
    disk_bytes: int
    chip_bytes: int
    by_dtype: dict[str, dict[str, int]]
    largest_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the plan as text lines."""
        kinds = ", ".join(
            f"{v['tensors']} {name} ({v['disk_bytes'] / 1e9:.3f} GB)" for name, v in self.by_dtype.items()
        )
        return [
            f"{self.component}  {self.layout}  {self.precision}: {self.tensors} tensors of "
            f"{self.parameters / 1e9:.3f} billion parameters",
            f"  on disk   {self.disk_bytes / 1e9:9.3f} GB   {kinds}",
            f"  per chip  {self.chip_bytes / 1e9:9.3f} GB",
        ]


def chip_shape(parameter: Parameter, mesh: Mesh) -> list[int]:
    """Return the shape of a parameter on one chip."""
    shape = list(parameter.shape)
    for axis, dim in ((mesh.sp, parameter.sp), (mesh.tp, parameter.tp)):
        if dim is not None:
            shape[dim] //= axis.size
    return shape


def chip_bytes(parameter: Parameter, mesh: Mesh) -> int:
    """Return the bytes of a parameter on one chip, with tiles padded."""
    shape = chip_shape(parameter, mesh)
    if parameter.layout == ttnn.TILE_LAYOUT:
        shape = [1] * (2 - len(shape)) + shape
        shape[-2:] = [round_up(size, TILE) for size in shape[-2:]]
    values = prod(shape)
    if parameter.dtype == ttnn.bfloat8_b:
        return values // (TILE * TILE) * _BF8_TILE
    return values * _BYTES[parameter.dtype]


def data_bytes(parameter: Parameter, mesh: Mesh) -> int:
    """Return the bytes of the values in a parameter's file.

    Each distinct shard counts once, however many chips hold it.
    """
    shards = 1
    for axis, dim in ((mesh.sp, parameter.sp), (mesh.tp, parameter.tp)):
        if dim is not None:
            shards *= axis.size
    return chip_bytes(parameter, mesh) * shards


def disk_bytes(parameter: Parameter, mesh: Mesh) -> int:
    """Return an upper bound of the bytes of a parameter's file."""
    return data_bytes(parameter, mesh) + _HEADER


def plan(module: Module, component: str, precision: str) -> Plan:
    """Plan the entry of a newly declared module for `component` of a checkpoint.

    Raises:
        ValueError: there is no such precision.
    """
    precision = stored_precision(component, precision)
    set_precision(module, precision)
    mesh = module.mesh
    found = [parameter for _, _, parameter in module.parameters()]
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for parameter in found:
        count[parameter.dtype.name] += 1
        size[parameter.dtype.name] += disk_bytes(parameter, mesh)
    return Plan(
        component,
        str(mesh.layout),
        precision,
        len(found),
        sum(prod(shape) for parameter in found for shape in parameter.sources.values()),
        sum(size.values()),
        sum(chip_bytes(parameter, mesh) for parameter in found),
        {name: {"tensors": count[name], "disk_bytes": size[name]} for name in sorted(count)},
        max(4 * prod(parameter.shape) for parameter in found),
    )
