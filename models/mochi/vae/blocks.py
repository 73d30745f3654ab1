"""Building blocks of the decoder: causal convolution, residual block, upsampling block.

Checkpoint names and formulas are those of Diffusers `autoencoder_kl_mochi.py` and, for the convolution,
`autoencoder_kl_cogvideox.py`. The surplus frames of Genmo's way are those of genmoai/mochi `vae/models.py`
(`DepthToSpaceTime`). Activations x_BTHWC are row-major bfloat16 and fractured as an `Extent` says. Every chip
holds all channels (legend in `models.parallel.halo`). Every call frees the activations that it is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial

import ttnn

from models.conversion import UPSAMPLING_CONV3D_BIAS, UPSAMPLING_CONV3D_WEIGHT
from models.layers.conv3d import Conv3d, Fold
from models.layers.group_norm import FrameGroupNorm, GroupSums
from models.layers.module import Module
from models.layers.staging import frames_of, parts, put, take, then
from models.parallel import Mesh, gather
from models.parallel.halo import TIME, Border, Extent, HaloExchange, read
from models.parallel.rows import copy_rows

_PAST = 2


@dataclass
class Shared:
    """Objects that all blocks of a decoder share: the mesh, the halo exchange and the group sums."""

    mesh: Mesh
    halo: HaloExchange = field(init=False)
    sums: GroupSums = field(init=False)

    def __post_init__(self) -> None:
        self.halo = HaloExchange(self.mesh)
        self.sums = GroupSums(self.mesh)

    def release(self) -> None:
        """Free the tables and masks that the calls made."""
        self.halo.release()
        self.sums.release()


class Past:
    """The causal state between chunks of frames: for each convolution the last two frames that it has seen.

    Its tensors are allocated before any chunk is decoded, so that they are not scattered between the activations in
    DRAM. `starts` says whether the present chunk is the first of the video, `more` whether another follows.
    """

    def __init__(self) -> None:
        self._frames: dict[int, ttnn.Tensor] = {}
        self._written: set[int] = set()
        self.starts = True
        self.more = False

    def allocate(self, conv: CausalConv3d, extent: Extent) -> None:
        """Allocate the state that one convolution carries over, for an input of `extent`."""
        shape = ttnn.Shape(conv.past_shape(extent))
        device = conv.mesh.device
        buffer = ttnn.allocate_tensor_on_device(shape, ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT, device)
        self._frames[id(conv)] = buffer

    def earlier(self, conv: CausalConv3d) -> ttnn.Tensor | None:
        """Return the convolution's state from the previous chunk, or None in the first chunk.

        The caller must not free it.
        """
        return self._frames[id(conv)] if id(conv) in self._written else None

    def keep(self, conv: CausalConv3d, last: ttnn.Tensor) -> None:
        """Carry `last` over to the next chunk; `last` is freed."""
        ttnn.copy(last, self._frames[id(conv)])
        ttnn.deallocate(last)
        self._written.add(id(conv))

    def release(self) -> None:
        """Free the frames."""
        for tensor in self._frames.values():
            ttnn.deallocate(tensor)
        self._frames.clear()
        self._written.clear()


class CausalConv3d(Module):
    """3x3x3 convolution of a frame and the two frames before it.

    Edges are repeated in time (backwards) and in space.
    """

    def __init__(self, shared: Shared, name: str, in_channels: int, out_channels: int) -> None:
        super().__init__(shared.mesh)
        self.halo = shared.halo
        self.conv = Conv3d(shared.mesh, f"{name}.conv", in_channels, out_channels)

    @staticmethod
    def border(extent: Extent) -> Border:
        """Return the border that the convolution reads around a shard.

        It is two frames, and one row or column on each side in split dims.
        """
        height, width = ((1, 1) if size.shards > 1 else (0, 0) for size in (extent.height, extent.width))
        return Border((_PAST, 0), height, width)

    def room(self, extent: Extent) -> ttnn.Tensor:
        """Allocate the input with its border: [T, H, W, C] per chip.

        Write the shard into it from the border's origin on.
        """
        return self.halo.room(extent, self.border(extent), self.conv.in_channels)

    def __call__(self, padded_THWC: ttnn.Tensor, extent: Extent, past: Past) -> ttnn.Tensor:
        """Fill the border and convolve.

        Args:
            padded_THWC: tensor of `room` with the shard written into it, fractured as `extent` says. It is freed.
            extent: the sizes without borders.
            past: state left by the previous chunk.

        Returns:
            [1, T, H, W, out], fractured as `extent` says.
        """
        border = self.border(extent)
        if extent.time.shards > 1:
            self._fill_split_time(padded_THWC, extent, border, past)
        else:
            self._fill_whole_time(padded_THWC, extent, border, past)
        out = self.conv(
            ttnn.reshape(padded_THWC, [1, *padded_THWC.shape]),
            space=(int(extent.height.shards == 1), int(extent.width.shards == 1)),
        )
        ttnn.deallocate(padded_THWC)
        return out

    def past_shape(self, extent: Extent) -> list[int]:
        """Return the shape per chip of the carried-over state: two frames, with borders in space if time is split."""
        border = self.border(extent) if extent.time.shards > 1 else Border()
        return [_PAST, *border.around(extent, self.conv.in_channels)[1:]]

    def _fill_whole_time(self, padded: ttnn.Tensor, extent: Extent, border: Border, past: Past) -> None:
        """Fill the border if each chip holds all frames.

        The past is written before the frames first; then the borders in space are filled.
        """
        earlier = past.earlier(self)
        if earlier is not None:
            put(padded, earlier, (0, *border.origin[1:]), keep=True)
        else:
            first = self._frames(padded, extent, border, _PAST, _PAST + 1)
            for frame in range(_PAST):
                put(padded, first, (frame, *border.origin[1:]), keep=True)
            ttnn.deallocate(first)
        if past.more:
            frames = padded.shape[0]
            past.keep(self, self._frames(padded, extent, border, frames - _PAST, frames))
        self.halo.fill(padded, extent, border)

    def _fill_split_time(self, padded: ttnn.Tensor, extent: Extent, border: Border, past: Past) -> None:
        """Fill the border if frames are split over chips.

        The past comes from the previous chip, on the first chip from `past`.
        """
        self.halo.fill(padded, extent, border)
        earlier = past.earlier(self)
        if earlier is not None:
            self.halo.overwrite(padded, earlier, TIME, 0, extent.time.axis, 0)
        if past.more:
            past.keep(self, self._last_of_all(padded, extent))

    @staticmethod
    def _frames(padded: ttnn.Tensor, extent: Extent, border: Border, start: int, stop: int) -> ttnn.Tensor:
        """Copy frames `start` to `stop` without their borders in space."""
        _, row, column = border.origin
        ends = [stop, row + extent.height.local, column + extent.width.local, padded.shape[-1]]
        return copy_rows(padded, [start, row, column, 0], ends)

    def _last_of_all(self, padded: ttnn.Tensor, extent: Extent) -> ttnn.Tensor:
        """Return the last two frames of the last shard, on every chip."""
        assert extent.time.axis is not None
        frames = padded.shape[0]
        mine = read(padded, TIME, frames - _PAST, frames)
        ends = then(gather, mine, dim=0, over=extent.time.axis)
        return then(read, ends, TIME, ends.shape[0] - _PAST, ends.shape[0])


class ResBlock(Module):
    """The residual block `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, then SiLU if `active`."""

    def __init__(self, shared: Shared, prefix: str, channels: int, *, active: bool = False) -> None:
        super().__init__(shared.mesh)
        self.prefix = prefix
        self.norm1 = FrameGroupNorm(shared.mesh, "norm1.norm_layer", channels, shared.sums)
        self.conv1 = CausalConv3d(shared, "conv1", channels, channels)
        self.norm2 = FrameGroupNorm(shared.mesh, "norm2.norm_layer", channels, shared.sums)
        self.conv2 = CausalConv3d(shared, "conv2", channels, channels)
        self.activations = [ttnn.UnaryWithParam(ttnn.UnaryOpType.SILU)] if active else []

    def convolutions(self) -> list[CausalConv3d]:
        """Return the block's causal convolutions."""
        return [self.conv1, self.conv2]

    def __call__(self, x_BTHWC: ttnn.Tensor, extent: Extent, past: Past) -> ttnn.Tensor:
        """Run the block on x [1, T, H, W, C]. The result has the same shape and placement."""
        padded = self._normed(self.norm1, self.conv1, x_BTHWC, extent)
        hidden = self.conv1(padded, extent, past)
        padded = then(partial(self._normed, self.norm2, self.conv2), hidden, extent)
        hidden = self.conv2(padded, extent, past)
        out = ttnn.add(x_BTHWC, hidden, activations=self.activations)
        ttnn.deallocate(x_BTHWC)
        ttnn.deallocate(hidden)
        return out

    @staticmethod
    def _normed(norm: FrameGroupNorm, conv: CausalConv3d, x_BTHWC: ttnn.Tensor, extent: Extent) -> ttnn.Tensor:
        padded = conv.room(extent)
        norm(x_BTHWC, extent, padded, conv.border(extent).origin)
        return padded


class UpBlock(Module):
    """Residual blocks, then a projection whose channels become frames, rows and columns.

    Args:
        shared: of the decoder.
        prefix: of the block's names in the checkpoint.
        in_channels: channels of the block's input.
        out_channels: channels of its output.
        layers: number of residual blocks.
        time: frames that a frame becomes.
        space: rows and columns that a row and a column become.
        surplus: number of frames at the output's beginning that are none of the video's, to be taken off as Genmo does;
            0 to keep them, as Diffusers does.
    """

    def __init__(
        self,
        shared: Shared,
        prefix: str,
        in_channels: int,
        out_channels: int,
        layers: int,
        time: int,
        space: int,
        surplus: int = 0,
    ) -> None:
        super().__init__(shared.mesh)
        self.halo = shared.halo
        self.surplus = surplus
        self.prefix = prefix
        self.factors = (time, space, space)
        self.out_channels = out_channels
        self.resnets = [ResBlock(shared, f"resnets.{index}.", in_channels) for index in range(layers)]
        expanded = out_channels * time * space * space

        def reorder(weight, bias):
            """Reorder the channels from (C, t, h, w), as Diffusers unpatchifies them, to (t, h, w, C)."""
            parts = (out_channels, time, space, space)
            return weight.unflatten(0, parts).movedim(0, 3).flatten(0, 3), bias.unflatten(0, parts).movedim(
                0, 3
            ).flatten()

        self.proj = Conv3d(
            shared.mesh,
            "proj",
            in_channels,
            expanded,
            (1, 1, 1),
            fold=Fold(reorder, UPSAMPLING_CONV3D_WEIGHT, UPSAMPLING_CONV3D_BIAS, f"{time}x{space}x{space} positions"),
            shape=(expanded, in_channels),
        )

    def __call__(self, x_BTHWC: ttnn.Tensor, extent: Extent, past: Past) -> tuple[ttnn.Tensor, Extent]:
        """Map x [1, T, H, W, C] to [1, t T, s H, s W, out]; also return the new extent.

        With `surplus`, the first t - 1 frames of the video are dropped. Where time is split, shards must stay equal:
        all surplus frames are then overwritten with the first real one. That is the same to whatever comes after:
        causal convolutions see a repeated first frame, as they do at the beginning of a trimmed stream, and so they
        make every surplus frame equal to the first real one again.
        """
        for block in self.resnets:
            x_BTHWC = block(x_BTHWC, extent, past)
        expanded = then(self.proj, x_BTHWC)
        trims = self.surplus > 0 and self.factors[0] > 1 and past.starts
        dropped = self.factors[0] - 1 if trims and extent.time.shards == 1 else 0
        if math.prod(self.factors) > 1:
            expanded = then(self._spread, expanded, dropped)
        extent = extent.times(*self.factors)
        if trims and not dropped:
            self._repeat_first(expanded, extent)
        return expanded, replace(extent, time=extent.time.without_first(dropped))

    def _repeat_first(self, x_BTHWC: ttnn.Tensor, extent: Extent) -> None:
        """Overwrite the surplus frames, which are all on the first shard of time, with the first real frame."""
        frames = frames_of(x_BTHWC)
        first = read(frames, TIME, self.surplus, self.surplus + 1)
        repeated = ttnn.concat([first] * self.surplus, dim=0) if self.surplus > 1 else first
        self.halo.overwrite(frames, repeated, TIME, 0, extent.time.axis, 0)
        for tensor in {id(first): first, id(repeated): repeated}.values():
            ttnn.deallocate(tensor)

    def _spread(self, expanded_BTHWC: ttnn.Tensor, dropped: int) -> ttnn.Tensor:
        """Turn channels ordered (t, s, s, C) into frames, rows and columns, part by part in L1.

        The first `dropped` frames, at most t - 1, are not written.
        """
        expanded = frames_of(expanded_BTHWC)
        frames, rows, columns, _ = expanded.shape
        time, space, _ = self.factors
        shape = [frames * time - dropped, rows * space, columns * space, self.out_channels]
        out = ttnn.allocate_tensor_on_device(ttnn.Shape(shape), expanded.dtype, ttnn.ROW_MAJOR_LAYOUT, self.mesh.device)
        for part in parts(expanded):
            count, height = part.shape
            split = [count, height, columns, time, space, space, self.out_channels]
            spread = then(ttnn.permute, then(ttnn.reshape, take(expanded, part), split), [0, 3, 1, 4, 2, 5, 6])
            value = ttnn.reshape(spread, [count * time, height * space, *shape[2:]])
            start = part.frames[0] * time - dropped
            if start < 0:
                begin = [-start, 0, 0, 0]
                value = then(copy_rows, value, begin, list(value.shape), memory_config=ttnn.L1_MEMORY_CONFIG)
            put(out, value, (max(start, 0), part.rows[0] * space, 0))
        return ttnn.reshape(out, [1, *shape])
