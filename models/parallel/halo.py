"""Dims of a video that are sharded in order, and the halos that neighbouring shards exchange.

Legend of the shape suffixes here and in the VAE: B batch (always 1), T frames, H rows, W columns, C channels of one
chip's shard. `x_BTHWC` and its view `x_THWC` are row-major, the layout that ttnn's 3D convolution reads.

All shards of a dim have the same size. If the real size does not divide, the last shards end in padding or hold only
padding. Values in padding have no meaning, with one exception: a convolution can see the first row of padding, and
`HaloExchange` makes that row equal to the true edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import ttnn

from models.machine.errors import InputError
from models.parallel.collectives import gather
from models.parallel.mesh import Axis, Mesh
from models.parallel.rows import copy_rows, write_rows

# Positions of the sharded dims in x_BTHWC.
TIME, HEIGHT, WIDTH = 1, 2, 3


@dataclass(frozen=True)
class ShardedDim:
    """One dim over all shards: `real` positions, stored as `local` positions per shard.

    It is split over `axis`, or not split if None.
    """

    real: int
    local: int
    axis: Axis | None = None

    @classmethod
    def split(cls, real: int, axis: Axis | None, *, minimum: int = 1) -> ShardedDim:
        """Split `real` positions into equal shards of at least `minimum`. An axis of size 1 splits nothing."""
        if axis is None or axis.size == 1:
            return cls(real, real)
        return cls(real, max(-(-real // axis.size), minimum), axis)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return self.axis.size if self.axis is not None else 1

    @property
    def padded(self) -> int:
        """Number of positions stored over all shards."""
        return self.local * self.shards

    @property
    def is_uneven(self) -> bool:
        """Whether the shards hold padding."""
        return self.padded != self.real

    @property
    def last_shard(self) -> int:
        """Index of the last shard that holds a real position."""
        return (self.real - 1) // self.local

    @property
    def last_size(self) -> int:
        """Number of real positions in `last_shard`."""
        return self.real - self.last_shard * self.local

    def times(self, factor: int) -> ShardedDim:
        """Return the dim after each position became `factor` positions."""
        return replace(self, real=self.real * factor, local=self.local * factor)

    def without_first(self, count: int) -> ShardedDim:
        """Return the dim without its first `count` positions; it must not be split unless `count` is 0."""
        assert not count or self.shards == 1
        return replace(self, real=self.real - count, local=self.local - count)


@dataclass(frozen=True)
class Extent:
    """Sizes and shards of a video: frames, rows, columns."""

    time: ShardedDim
    height: ShardedDim
    width: ShardedDim

    def __getitem__(self, dim: int) -> ShardedDim:
        return {TIME: self.time, HEIGHT: self.height, WIDTH: self.width}[dim]

    def times(self, time: int, height: int, width: int) -> Extent:
        """Return the extent after an upsampling by these factors."""
        return Extent(self.time.times(time), self.height.times(height), self.width.times(width))


@dataclass(frozen=True)
class Border:
    """Numbers of positions around a shard that belong to its neighbours: (before, after) in time, rows and columns."""

    time: tuple[int, int] = (0, 0)
    height: tuple[int, int] = (0, 0)
    width: tuple[int, int] = (0, 0)

    def __getitem__(self, dim: int) -> tuple[int, int]:
        return {TIME: self.time, HEIGHT: self.height, WIDTH: self.width}[dim]

    @property
    def origin(self) -> tuple[int, int, int]:
        """Frame, row and column where the shard itself begins."""
        return self.time[0], self.height[0], self.width[0]

    def around(self, extent: Extent, channels: int) -> list[int]:
        """Return the shape [T, H, W, C] of a shard with its border."""
        return [*(extent[dim].local + sum(self[dim]) for dim in (TIME, HEIGHT, WIDTH)), channels]


class HaloExchange:
    """The exchange that fills the borders of a video's shards with their neighbours' values.

    Only the halos are read and sent.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._masks: dict[tuple[int, int, int], ttnn.Tensor] = {}

    def room(self, extent: Extent, border: Border, channels: int) -> ttnn.Tensor:
        """Allocate bfloat16 shards with their borders, [T, H, W, C]. Their values are undefined.

        Raises:
            ValueError: a halo is wider than a shard.
        """
        for dim in (TIME, HEIGHT, WIDTH):
            size, halo = extent[dim], max(border[dim])
            if size.shards > 1 and halo > size.local:
                raise InputError(
                    f"a halo of {halo} is wider than a shard of {size.local} ({size.real} positions over "
                    f"{size.shards} chips): split this dim less"
                )
        shape = ttnn.Shape(border.around(extent, channels))
        return ttnn.allocate_tensor_on_device(shape, ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT, self.mesh.device)

    def fill(self, padded_THWC: ttnn.Tensor, extent: Extent, border: Border) -> None:
        """Fill the borders in the split dims, in place.

        Before the first and after the last real position the edge is repeated exactly, on whatever chip the last
        position is. The borders of dims that are not split stay as they are. Fill those in time before the call,
        because the halos in space include them.

        Args:
            padded_THWC: [T, H, W, C] of each shard with its border, fractured as `extent` says.
            extent: the sizes without borders.
            border: widths of the borders. In time there is only a border before; in space it is one row or column.
        """
        for dim in (TIME, HEIGHT, WIDTH):
            before, after = border[dim]
            if extent[dim].shards == 1 or not before + after:
                continue
            self._exchange(padded_THWC, extent, border, dim)
            if after and extent[dim].is_uneven:
                self._repeat_edge(padded_THWC, dim, before, extent[dim])

    def _exchange(self, padded: ttnn.Tensor, extent: Extent, border: Border, dim: int) -> None:
        """Send both ends of every shard along `dim` and write the received ends to the borders."""
        (before, after), size = border[dim], extent[dim].local
        first = read(padded, dim, before, before + max(after, 1))  # An edge repeats the first position too.
        last = read(padded, dim, before + size - max(before, 1), before + size)
        ends = ttnn.concat([first, last], dim=dim - 1)
        axis = extent[dim].axis
        assert axis is not None
        if not self.mesh.fuses("halo"):
            self._exchange_plainly(padded, ends, extent, border, dim)
            for tensor in (first, last, ends):
                ttnn.deallocate(tensor)
            return
        padded_ends = ttnn.experimental.neighbor_pad_async(
            ends,
            [dim - 1],
            [before],
            [after],
            "replicate",
            [axis.index],
            self.mesh.semaphores("halo", 1),
            self.mesh.semaphores("halo barrier", 1),
            num_links=[_links(list(ends.shape), dim - 1, axis)],
            topology=ttnn.Topology.Linear,  # The first and the last chip have no common border.
        )
        if before:
            write(padded, read(padded_ends, dim, 0, before), dim, 0)
        if after:
            end = padded_ends.shape[dim - 1]
            write(padded, read(padded_ends, dim, end - after, end), dim, before + size)
        for tensor in (first, last, ends, padded_ends):
            ttnn.deallocate(tensor)

    def _exchange_plainly(
        self, padded: ttnn.Tensor, ends: ttnn.Tensor, extent: Extent, border: Border, dim: int
    ) -> None:
        """Gather the ends of all shards; each shard takes its neighbours' and writes them to its borders."""
        (before, after), size, axis = border[dim], extent[dim].local, extent[dim].axis
        assert axis is not None
        stored, final = ends.shape[dim - 1], ends.shape[dim - 1] * axis.size
        every = gather(ends, dim=dim - 1, over=axis)
        if before:
            # Shard i gets the last positions of shard i - 1, and the first shard its own first position.
            parts = [read(every, dim, 0, 1)] * before
            parts += [read(every, dim, at - before, at) for at in range(stored, final, stored)]
            write(padded, _own_part(parts, dim, axis), dim, 0)
        if after:
            parts = [read(every, dim, at, at + after) for at in range(stored, final, stored)]
            parts += [read(every, dim, final - 1, final)] * after
            write(padded, _own_part(parts, dim, axis), dim, before + size)
        ttnn.deallocate(every)

    def _repeat_edge(self, padded: ttnn.Tensor, dim: int, before: int, size: ShardedDim) -> None:
        """Overwrite the first position after the real end with the last real position, on the chip that holds it."""
        source = before + size.last_size - 1
        edge = read(padded, dim, source, source + 1)
        self.overwrite(padded, edge, dim, source + 1, size.axis, size.last_shard)
        ttnn.deallocate(edge)

    def overwrite(
        self, x_THWC: ttnn.Tensor, new: ttnn.Tensor, dim: int, start: int, axis: Axis | None, shard: int
    ) -> None:
        """Write `new` into x in place, from position `start` of `dim` on, on the chips of one `shard`.

        The other chips write their old values back. The choice is made by products with 0 and 1 and one sum, which are
        exact.
        """
        here, elsewhere = (self._mask(axis, shard, x_THWC.shape[-1], value) for value in (1, 0))
        old = read(x_THWC, dim, start, start + new.shape[dim - 1])
        chosen, kept = ttnn.multiply(new, here), ttnn.multiply(old, elsewhere)
        write(x_THWC, ttnn.add(chosen, kept), dim, start)
        for tensor in (old, chosen, kept):
            ttnn.deallocate(tensor)

    def _mask(self, axis: Axis | None, shard: int, channels: int, value: int) -> ttnn.Tensor:
        """Return the mask [1, 1, 1, C]: `value` on the chips of `shard` along `axis`, 1 - `value` on the others."""
        import torch

        assert axis is not None
        key = (axis.index, shard * 2 + value, channels)
        if key not in self._masks:
            host = torch.full((axis.size, 1, 1, channels), float(1 - value))
            host[shard] = float(value)
            self._masks[key] = upload(self.mesh, host, {axis.index: 0})
        return self._masks[key]

    def release(self) -> None:
        """Free the masks."""
        for mask in self._masks.values():
            ttnn.deallocate(mask)
        self._masks.clear()


def _own_part(parts: list[ttnn.Tensor], dim: int, axis: Axis) -> ttnn.Tensor:
    """Join equal parts for all shards along `dim` and take each shard's own."""
    whole = ttnn.concat(parts, dim=dim - 1)
    return ttnn.mesh_partition(whole, dim - 1, cluster_axis=axis.index)


def _links(shape: list[int], dim: int, axis: Axis) -> int:
    """Return the number of links among which the op can share a halo.

    The op shares the dims before `dim`, or the positions if there are no such dims.
    """
    return min(axis.links, math.prod(shape[:dim]) if dim else math.prod(shape[1:-1]))


def upload(
    mesh: Mesh,
    host,
    dims: Mapping[int, int],
    *,
    dtype: ttnn.DataType = ttnn.bfloat16,
    layout: ttnn.Layout = ttnn.ROW_MAJOR_LAYOUT,
) -> ttnn.Tensor:
    """Upload a host tensor to the mesh.

    `dims` gives the dim of the tensor that each mesh axis splits, by axis index.
    """
    return mesh.upload(host, dtype=dtype, layout=layout, sp=dims.get(mesh.sp.index), tp=dims.get(mesh.tp.index))


def download(mesh: Mesh, x: ttnn.Tensor, dims: Mapping[int, int]):
    """Download a tensor to the host. `dims` gives the dim of the tensor that each mesh axis splits, by axis index."""
    return mesh.download(x, sp=dims.get(mesh.sp.index), tp=dims.get(mesh.tp.index))


def dims_of(extent: Extent) -> dict[int, int]:
    """Return the dim of x_BTHWC that each mesh axis splits, by axis index, as `upload` and `download` take it."""
    return {axis.index: dim for dim in (TIME, HEIGHT, WIDTH) if (axis := extent[dim].axis) is not None}


def read(x_THWC: ttnn.Tensor, dim: int, start: int, stop: int) -> ttnn.Tensor:
    """Copy positions `start` to `stop` of `dim` of each shard."""
    begin, end = [0] * 4, list(x_THWC.shape)
    if (start, stop) == (0, end[dim - 1]):
        return ttnn.clone(x_THWC)  # A slice of everything would be x itself, and freed with it.
    begin[dim - 1], end[dim - 1] = start, stop
    return copy_rows(x_THWC, begin, end)


def write(x_THWC: ttnn.Tensor, part: ttnn.Tensor, dim: int, start: int) -> None:
    """Write `part` into x in place, from position `start` of `dim` on; `part` is freed."""
    begin = [0] * 4
    begin[dim - 1] = start
    write_rows(x_THWC, part, begin)
    ttnn.deallocate(part)
