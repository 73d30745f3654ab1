"""Group norm of every frame of a video whose rows and columns are sharded. Chips exchange sums, not activations.

ttnn's `dit_fused_distributed_groupnorm` is not used. It takes one frame per call, needs tiled activations and whole
tiles of positions per chip, and counts padding as data.

The norm here has three steps. First it sums each frame per group and gets the means. Then it subtracts the means and
sums the difference and its square. Both sums are made from row-major activations and summed over the chips that share
the frame (32 and then 64 numbers per frame). Last it applies one mean, one scale and one shift per frame and channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ttnn

from models.conversion import GROUP_NORM
from models.layers import compute
from models.layers.module import Module, Parameter
from models.layers.staging import frames_of, parts, put, take, take_frames, then
from models.parallel import Mesh, all_reduce
from models.parallel.halo import HEIGHT, WIDTH, Extent, ShardedDim, upload

# Approximate number of positions added in one bfloat16 sum. Sums of different positions are then added in float32, so
# that their rounding errors cancel.
_POSITIONS = 1024


class FrameGroupNorm(Module):
    """The layer `silu(group_norm(x))` per frame, with statistics over the real positions of a frame on all chips.

    Without `silu` it is the norm alone.

    Formula: `(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias` per group (arXiv:1803.08494), as in
    Diffusers' `MochiChunkedGroupNorm3D`, whose GroupNorm has `eps` 1e-5.

    There are two passes because the mean of a group may be many times its spread. Then `mean(x^2) - mean^2` of bfloat16
    sums is mostly rounding error, and so is `x * scale` before the mean is subtracted. The first pass therefore
    computes a first mean. The second pass subtracts it and corrects it. The result subtracts it too.
    """

    def __init__(
        self, mesh: Mesh, name: str, channels: int, sums: GroupSums, *, eps: float = 1e-5, silu: bool = True
    ) -> None:
        super().__init__(mesh)
        self.channels, self.sums, self.eps = channels, sums, eps
        self.activations = [ttnn.UnaryWithParam(ttnn.UnaryOpType.SILU)] if silu else []

        def row(vector):
            return vector[None, None, None]

        self.weight = Parameter({f"{name}.weight": (channels,)}, row, dtype=ttnn.float32, conversion=GROUP_NORM)
        self.bias = Parameter({f"{name}.bias": (channels,)}, row, dtype=ttnn.float32, conversion=GROUP_NORM)

    def __call__(
        self, x_BTHWC: ttnn.Tensor, extent: Extent, out_THWC: ttnn.Tensor, origin: Sequence[int] = (0, 0, 0)
    ) -> None:
        """Write the norm of x into a larger tensor, in the form that the next convolution takes as input.

        Args:
            x_BTHWC: [1, T, H, W, C] bfloat16 per chip, fractured as `extent` says.
            extent: sizes and placement of x.
            out_THWC: [T', H', W', C]; the result is written from frame, row and column `origin` on. It may be x's own
                buffer.
            origin: frame, row and column where the result begins.
        """
        count = extent.height.real * extent.width.real * self.channels // self.sums.groups
        mean_11TG = ttnn.multiply(self.sums(x_BTHWC, extent), 1.0 / count)
        centre = _per_frame(self.sums.spread(mean_11TG, self.channels))
        scale, shift = self._affine(ttnn.multiply(self.sums.centred(x_BTHWC, extent, centre), 1.0 / count))
        x_THWC = frames_of(x_BTHWC)
        for part in parts(x_THWC):
            of_centre, of_scale, of_shift = (take_frames(table, part) for table in (centre, scale, shift))
            centred = then(ttnn.subtract, take(x_THWC, part), of_centre)
            normed = then(ttnn.add, then(ttnn.multiply, centred, of_scale), of_shift, activations=self.activations)
            put(out_THWC, normed, [start + first for start, first in zip(origin, part.begin, strict=True)])

    def _affine(self, moments: ttnn.Tensor) -> tuple[ttnn.Tensor, ttnn.Tensor]:
        """Return scale and shift, each [T, 1, 1, C] float32, row-major.

        `moments` [1, 2, T, G] holds the means of y and y^2, where y is the centred x.
        """
        frames, groups = moments.shape[2], self.sums.groups
        mean = ttnn.slice(moments, [0, 0, 0, 0], [1, 1, frames, groups])
        square = ttnn.slice(moments, [0, 1, 0, 0], [1, 2, frames, groups])
        variance = ttnn.relu(ttnn.subtract(square, ttnn.multiply(mean, mean)))
        inverse = ttnn.rsqrt(ttnn.add(variance, self.eps))
        pair = ttnn.concat([inverse, ttnn.multiply(mean, inverse)], dim=1)
        spread = ttnn.multiply(self.sums.spread(pair, self.channels), self.weight.tensor)
        scale = ttnn.slice(spread, [0, 0, 0, 0], [1, 1, frames, self.channels])
        offset = ttnn.slice(spread, [0, 1, 0, 0], [1, 2, frames, self.channels])
        return _per_frame(scale), _per_frame(ttnn.subtract(self.bias.tensor, offset))


def _per_frame(table_11TC: ttnn.Tensor) -> ttnn.Tensor:
    """Reshape [1, 1, T, C] to [T, 1, 1, C], row-major."""
    frames, channels = list(table_11TC.shape)[2:]
    return ttnn.reshape(ttnn.to_layout(table_11TC, ttnn.ROW_MAJOR_LAYOUT), [frames, 1, 1, channels])


class GroupSums:
    """Sums per frame and group over chips, and the expansion of group values to channels.

    All norms of a model share it.
    """

    def __init__(self, mesh: Mesh, groups: int = 32) -> None:
        self.mesh, self.groups = mesh, groups
        self._tables: dict[tuple, ttnn.Tensor] = {}

    def __call__(self, x_BTHWC: ttnn.Tensor, extent: Extent) -> ttnn.Tensor:
        """Sum x [1, T, H, W, C] per chip, fractured as `extent` says, to [1, 1, T, G] float32.

        The sums are over the real positions of whole frames. They are replicated over the axes that split rows and
        columns.
        """
        return self._sums(x_BTHWC, extent, None)

    def centred(self, x_BTHWC: ttnn.Tensor, extent: Extent, centre_THWC: ttnn.Tensor) -> ttnn.Tensor:
        """Sum y and y^2 to [1, 2, T, G] float32, where y is x minus `centre_THWC` [T, 1, 1, C] float32.

        Shapes and placements are otherwise those of `__call__`.
        """
        return self._sums(x_BTHWC, extent, centre_THWC)

    def _sums(self, x_BTHWC: ttnn.Tensor, extent: Extent, centre: ttnn.Tensor | None) -> ttnn.Tensor:
        _, frames, _, columns, channels = x_BTHWC.shape
        bands = _bands(extent.height, columns)
        pool = self._pool(channels, extent.height, bands)
        tables = self._band_sums(frames_of(x_BTHWC), extent, bands, centre)
        pooled = [self._pooled(table, frames, pool) for table in tables]
        sums = pooled[0] if len(pooled) == 1 else ttnn.concat(pooled, dim=1)
        for dim in (HEIGHT, WIDTH):
            axis = extent[dim].axis
            if axis is not None:
                sums = all_reduce(sums, over=axis)
        return sums

    def _band_sums(self, x: ttnn.Tensor, extent: Extent, bands: int, centre: ttnn.Tensor | None) -> list[ttnn.Tensor]:
        """Sum each band of rows per channel, to tables [T * bands, 1, 1, C] bfloat16, row-major.

        Without `centre` there is one table, of x. With it there are two, of y and of y^2, where y is x minus `centre`.
        """
        frames, rows, columns, channels = x.shape
        band = rows // bands
        shape = ttnn.Shape([frames * bands, 1, 1, channels])
        tables = [
            ttnn.allocate_tensor_on_device(shape, x.dtype, ttnn.ROW_MAJOR_LAYOUT, self.mesh.device)
            for _ in range(1 if centre is None else 2)
        ]
        done = 0
        for part in parts(x, rows=band):
            staged = take(x, part)
            if centre is not None:
                staged = then(ttnn.subtract, staged, take_frames(centre, part))
            if extent.width.is_uneven:
                staged = then(ttnn.multiply, staged, self._column_mask(extent.width, channels))
            blocks = math.prod(part.shape) // band
            flat = ttnn.reshape(staged, [blocks, 1, band * columns, channels])
            put(tables[0], _sum(flat), (done, 0, 0))
            if centre is not None:
                ttnn.square(flat, output_tensor=flat)
                put(tables[1], _sum(flat), (done, 0, 0))
            ttnn.deallocate(flat)
            done += blocks
        return tables

    def spread(self, values_1KTG: ttnn.Tensor, channels: int) -> ttnn.Tensor:
        """Expand values per group [1, K, T, G] float32 to values per channel [1, K, T, C] float32.

        The matrix engine reads float32 with 10 bits of mantissa, so each value enters as two bfloat16 parts.
        """
        high = ttnn.typecast(values_1KTG, ttnn.bfloat16)
        rest = ttnn.subtract(values_1KTG, ttnn.typecast(high, ttnn.float32))
        parts = ttnn.concat([high, ttnn.typecast(rest, ttnn.bfloat16)], dim=3)
        return ttnn.linear(
            parts, self._spreader(channels), dtype=ttnn.float32, compute_kernel_config=compute.accurate()
        )

    def _pooled(self, sums: ttnn.Tensor, frames: int, pool: ttnn.Tensor) -> ttnn.Tensor:
        """Sum [T * bands, 1, 1, C] over bands and over the channels of a group, to [1, 1, T, G] float32.

        `sums` is freed.
        """
        rows = then(ttnn.to_layout, ttnn.reshape(sums, [1, 1, frames, pool.shape[0]]), ttnn.TILE_LAYOUT)
        ttnn.deallocate(sums)
        return then(ttnn.linear, rows, pool, dtype=ttnn.float32, compute_kernel_config=compute.accurate())

    def _pool(self, channels: int, height: ShardedDim, bands: int) -> ttnn.Tensor:
        """Return the table [bands * C, G] per chip that sums real bands and the channels of a group.

        It is 1 where a band holds real rows and a channel belongs to the group, else 0.
        """
        import torch

        key = ("pool", channels, height, bands)
        if key not in self._tables:
            group = torch.arange(channels) // (channels // self.groups)
            member = torch.nn.functional.one_hot(group, self.groups).float()
            starts = torch.arange(height.shards * bands) * (height.local // bands)
            host = ((starts < height.real)[:, None, None] * member).flatten(0, 1)
            dims = {height.axis.index: 0} if height.axis is not None else {}
            self._tables[key] = upload(self.mesh, host, dims, layout=ttnn.TILE_LAYOUT)
        return self._tables[key]

    def _spreader(self, channels: int) -> ttnn.Tensor:
        """Return the table [2 G, C]: 1 where a channel belongs to the group, for both parts of a value, else 0."""
        import torch

        key = ("spread", channels)
        if key not in self._tables:
            group = torch.arange(channels) // (channels // self.groups)
            member = torch.nn.functional.one_hot(group, self.groups).float().T
            self._tables[key] = upload(self.mesh, torch.cat([member, member]), {}, layout=ttnn.TILE_LAYOUT)
        return self._tables[key]

    def _column_mask(self, width: ShardedDim, channels: int) -> ttnn.Tensor:
        """Return the table [1, 1, 1, W, C] per chip: 1 at real columns, 0 at padding."""
        import torch

        key = ("columns", width, channels)
        if key not in self._tables:
            real = (torch.arange(width.padded) < width.real).float()
            host = real[None, None, None, :, None].expand(1, 1, 1, -1, channels)
            dims = {width.axis.index: 3} if width.axis is not None else {}
            self._tables[key] = upload(self.mesh, host.contiguous(), dims)
        return self._tables[key]

    def release(self) -> None:
        """Free the tables."""
        for table in self._tables.values():
            ttnn.deallocate(table)
        self._tables.clear()


def _sum(x: ttnn.Tensor) -> ttnn.Tensor:
    """Sum [B, 1, positions, C] over positions, to [B, 1, 1, C]."""
    return ttnn.sum(
        x, dim=2, keepdim=True, memory_config=ttnn.DRAM_MEMORY_CONFIG, compute_kernel_config=compute.accurate()
    )


def _bands(height: ShardedDim, columns: int) -> int:
    """Return the number of bands of rows per shard.

    It is the smallest number that keeps at most about `_POSITIONS` positions in a band. No band holds both real rows
    and padding.
    """
    unit = math.gcd(height.local, height.last_size) if height.is_uneven else height.local
    for rows in range(unit, 0, -1):
        if unit % rows == 0 and rows * columns <= _POSITIONS:
            return height.local // rows
    return height.local
