"""Dims of a video that are sharded in order, and the halos that neighbouring shards exchange.

Legend of shape suffixes here and in the VAE: B batch (always 1), T frames, H rows, W columns, C channels of one chip's
shard. ``x_BTHWC`` is row-major, the layout that ttnn's 3D convolution reads. Shards have equal sizes; where the real
size does not divide, the last shards end in padding, or hold nothing else. What lies in padding is never meaningful:
`HaloExchange` makes the one row of it that a convolution can see equal to the true edge.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import ttnn

from models.parallel.mesh import Axis, Mesh

# Position of the sharded dims in x_BTHWC.
TIME, HEIGHT, WIDTH = 1, 2, 3


@dataclass(frozen=True)
class ShardedDim:
    """One dim over all shards: ``real`` positions, ``local`` of them stored per shard, split over ``axis`` (or not)."""

    real: int
    local: int
    axis: Axis | None = None

    @classmethod
    def split(cls, real: int, axis: Axis | None, *, minimum: int = 1) -> "ShardedDim":
        """Split ``real`` positions into equal shards of at least ``minimum``; an axis of size 1 splits nothing."""
        if axis is None or axis.size == 1:
            return cls(real, real)
        return cls(real, max(-(-real // axis.size), minimum), axis)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return self.axis.size if self.axis is not None else 1

    @property
    def padded(self) -> int:
        """Positions stored over all shards."""
        return self.local * self.shards

    @property
    def is_uneven(self) -> bool:
        """Whether there is padding."""
        return self.padded != self.real

    @property
    def last_shard(self) -> int:
        """The last shard that holds a real position."""
        return (self.real - 1) // self.local

    @property
    def last_size(self) -> int:
        """Real positions of `last_shard`."""
        return self.real - self.last_shard * self.local

    def times(self, factor: int) -> "ShardedDim":
        """The dim after each position became ``factor``."""
        return replace(self, real=self.real * factor, local=self.local * factor)


@dataclass(frozen=True)
class Extent:
    """Sizes and shards of a video: frames, rows, columns."""

    time: ShardedDim
    height: ShardedDim
    width: ShardedDim

    def __getitem__(self, dim: int) -> ShardedDim:
        return {TIME: self.time, HEIGHT: self.height, WIDTH: self.width}[dim]

    def times(self, time: int, height: int, width: int) -> "Extent":
        """The extent after an upsampling."""
        return Extent(self.time.times(time), self.height.times(height), self.width.times(width))


class HaloExchange:
    """Pads the shards of a video by what their neighbours hold; only the halos travel."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._masks: dict[tuple[int, int, int], ttnn.Tensor] = {}

    def pad(
        self, x_BTHWC: ttnn.Tensor, extent: Extent, halos: Mapping[int, tuple[int, int]], front: int = 0
    ) -> ttnn.Tensor:
        """Pad the split dims named in ``halos`` by (before, after) positions of the neighbours.

        Beyond the first and the last real position the edge is repeated, exactly, wherever the last one lies. Dims
        that are not split are left as they are, but for ``front``.

        Args:
            x_BTHWC: [1, T, H, W, C] of each shard, fractured as ``extent`` says.
            extent: its sizes.
            halos: per dim of x how much to add. In time only what comes before; in space one row or column.
            front: room for so many frames before the first of each shard, zeros; only where rows are split and time
                is not (see `makes_front`).

        Returns:
            The padded shards, a new tensor; ``x_BTHWC`` itself where nothing is split.

        Raises:
            ValueError: a halo is wider than a shard.
        """
        wanted = {dim: halo for dim, halo in sorted(halos.items()) if extent[dim].shards > 1}
        if not wanted:
            return x_BTHWC
        for dim, (before, after) in wanted.items():
            if max(before, after) > extent[dim].local:
                raise ValueError(
                    f"a halo of {max(before, after)} is wider than a shard of {extent[dim].local} "
                    f"({extent[dim].real} positions over {extent[dim].shards} chips): split this dim less"
                )
        padded = self._exchange(x_BTHWC, extent, wanted, front)
        for dim, (before, after) in wanted.items():
            if after and extent[dim].is_uneven:
                padded = self._repeat_edge(padded, dim, before, extent[dim])
        return padded

    @staticmethod
    def makes_front(extent: Extent) -> bool:
        """Whether `pad` can make room for frames in the same pass: the exchange of rows can, that of columns cannot."""
        return extent.time.shards == 1 and extent.height.shards > 1

    def _exchange(self, x: ttnn.Tensor, extent: Extent, halos: dict[int, tuple[int, int]], front: int) -> ttnn.Tensor:
        # Without the batch dim, frames are the outermost one, whose halo the op can send over several links. Together
        # with another dim's it would keep all of it in L1, and room for frames in front is made with the batch only.
        without = int(list(halos) == [TIME])
        shape = list(x.shape)[without:]
        dims = [dim - without for dim in halos]
        padded = ttnn.experimental.neighbor_pad_async(
            ttnn.reshape(x, shape),
            dims,
            [before for before, _ in halos.values()],
            [after for _, after in halos.values()],
            "replicate",
            [self._axis(extent[dim]).index for dim in halos],
            self.mesh.semaphores("halo", 2)[: len(dims)],
            self.mesh.semaphores("halo barrier", 1),
            num_links=[_links(shape, dim - without, self._axis(extent[dim])) for dim in halos],
            topology=self.mesh.topology,
            **({"t_front_pad": front} if front else {}),
        )
        return ttnn.reshape(padded, [1, *padded.shape][-5:])

    def _repeat_edge(self, padded: ttnn.Tensor, dim: int, before: int, size: ShardedDim) -> ttnn.Tensor:
        """Overwrite the first position past the real end by the last real one, on the chip where that lies."""
        source = before + size.last_size - 1
        edge = _take(padded, dim, source, source + 1)
        beyond = _take(padded, dim, source + 1, source + 2)
        padded = self.overwrite(padded, edge, beyond, dim, source + 1, size.axis, size.last_shard)
        ttnn.deallocate(edge)
        return padded

    def overwrite(
        self,
        x: ttnn.Tensor,
        new: ttnn.Tensor,
        old: ttnn.Tensor,
        dim: int,
        start: int,
        axis: Axis | None,
        shard: int,
    ) -> ttnn.Tensor:
        """Write ``new`` into x from position ``start`` of ``dim`` on the chips of one ``shard``, in place.

        ``old`` (freed) is what lies there: the other chips write it back. The choice is made by products with 0 and 1
        and one sum, which are exact.
        """
        here, elsewhere = (self._mask(axis, shard, x.shape[-1], value) for value in (1, 0))
        chosen = ttnn.add(ttnn.multiply(new, here), ttnn.multiply(old, elsewhere))
        ttnn.deallocate(old)
        return write(x, chosen, dim, start)

    def _mask(self, axis: Axis | None, shard: int, channels: int, value: int) -> ttnn.Tensor:
        """[1, 1, 1, 1, C]: ``value`` on the chips of ``shard`` along ``axis``, 1 - value on the others."""
        import torch

        assert axis is not None
        key = (axis.index, shard * 2 + value, channels)
        if key not in self._masks:
            host = torch.full((axis.size, 1, 1, 1, channels), float(1 - value))
            host[shard] = float(value)
            self._masks[key] = upload(self.mesh, host, {axis.index: 0})
        return self._masks[key]

    @staticmethod
    def _axis(size: ShardedDim) -> Axis:
        assert size.axis is not None
        return size.axis

    def release(self) -> None:
        """Free the masks."""
        for mask in self._masks.values():
            ttnn.deallocate(mask)
        self._masks.clear()


def _links(shape: list[int], dim: int, axis: Axis) -> int:
    """Links that the op can share a halo among: by what lies before ``dim``, or by positions where nothing does."""
    return min(axis.links, math.prod(shape[:dim]) if dim else math.prod(shape[1:-1]))


def upload(
    mesh: Mesh,
    host,
    dims: Mapping[int, int],
    *,
    dtype: ttnn.DataType = ttnn.bfloat16,
    layout: ttnn.Layout = ttnn.ROW_MAJOR_LAYOUT,
) -> ttnn.Tensor:
    """Put a host tensor on the mesh, ``dims`` saying which of its dims each mesh axis splits, by axis index."""
    return mesh.upload(host, dtype=dtype, layout=layout, sp=dims.get(mesh.sp.index), tp=dims.get(mesh.tp.index))


def download(mesh: Mesh, x: ttnn.Tensor, dims: Mapping[int, int]):
    """Bring a tensor to the host, ``dims`` saying which of its dims each mesh axis splits, by axis index."""
    return mesh.download(x, sp=dims.get(mesh.sp.index), tp=dims.get(mesh.tp.index))


def write(x_BTHWC: ttnn.Tensor, part: ttnn.Tensor, dim: int, start: int) -> ttnn.Tensor:
    """Write ``part`` (freed) into x from position ``start`` of ``dim``, in place; returns x."""
    shape = list(x_BTHWC.shape)
    begin = [0] * 4
    end = shape[1:]
    begin[dim - 1], end[dim - 1] = start, start + part.shape[dim]
    ttnn.experimental.slice_write(
        ttnn.reshape(part, list(part.shape)[1:]), ttnn.reshape(x_BTHWC, shape[1:]), begin, end, [1] * 4
    )
    ttnn.deallocate(part)
    return x_BTHWC


def _take(x: ttnn.Tensor, dim: int, start: int, stop: int) -> ttnn.Tensor:
    if (start, stop) == (0, x.shape[dim]):
        return ttnn.clone(x)  # A slice of everything would be x itself, and freed with it.
    begin, end = [0] * len(x.shape), list(x.shape)
    begin[dim], end[dim] = start, stop
    return ttnn.slice(x, begin, end)


def take_frames(x_BTHWC: ttnn.Tensor, start: int, stop: int) -> ttnn.Tensor:
    """Copy frames ``start`` to ``stop`` of each shard."""
    return _take(x_BTHWC, TIME, start, stop)
