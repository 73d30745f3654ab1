"""Stages of the encoder: downsampling, then residual blocks, each perhaps followed by attention over time.

Checkpoint names and formulas are those of Diffusers `autoencoder_kl_mochi.py` (`MochiDownBlock3D`, `MochiMidBlock3D`).
Shapes, placements and the freeing of activations are those of `models.mochi.vae.blocks`.
"""

from __future__ import annotations

from math import prod

import ttnn

from models.conversion import DOWNSAMPLING_CONV3D_BIAS, DOWNSAMPLING_CONV3D_WEIGHT
from models.layers.conv3d import Conv3d, Fold
from models.layers.module import Module
from models.layers.staging import frames_of, parts, put, take, then
from models.mochi.vae.blocks import CausalConv3d, Past, ResBlock, Shared
from models.mochi.vae.temporal import PixelAttention
from models.parallel.halo import Extent

# Parts in L1 while channels are gathered: two at once, whose pages differ in size, so that neither fits into the hole
# that an earlier one of the same bytes left.
_LIVE = 3


class Stage(Module):
    """Residual blocks at one resolution, each followed by attention over time if `attends`."""

    def __init__(self, shared: Shared, prefix: str, channels: int, layers: int, *, attends: bool) -> None:
        super().__init__(shared.mesh)
        self.prefix = prefix
        self.resnets = [ResBlock(shared, f"resnets.{index}.", channels) for index in range(layers)]
        self.attentions = [
            PixelAttention(shared, f"norms.{index}", f"attentions.{index}", channels)
            for index in range(layers if attends else 0)
        ]

    def convolutions(self) -> list[CausalConv3d]:
        """Return the causal convolutions of its blocks."""
        return [conv for block in self.resnets for conv in block.convolutions()]

    def __call__(self, x_BTHWC: ttnn.Tensor, extent: Extent, past: Past) -> ttnn.Tensor:
        """Run the blocks on x [1, T, H, W, C]. The result has the same shape and placement."""
        for index, block in enumerate(self.resnets):
            x_BTHWC = block(x_BTHWC, extent, past)
            if self.attentions:
                x_BTHWC = self.attentions[index](x_BTHWC, extent)
        return x_BTHWC


class Downsampling(Module):
    """Convolution whose kernel is its stride (t, s, s), as space-to-depth and a 1x1x1 convolution.

    In time it is causal: before the first frame that frame is repeated t - 1 times. So the first output is made of the
    first frame alone, and each other one of the next t frames.
    """

    def __init__(self, shared: Shared, name: str, in_channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__(shared.mesh)
        self.factors = (time, space, space)
        gathered = in_channels * prod(self.factors)

        def reorder(weight, bias):
            """Flatten the kernel [O, C, t, s, s] to [O, (t, s, s, C)], the order of the gathered channels."""
            return weight.movedim(1, -1).flatten(1), bias

        self.conv = Conv3d(
            shared.mesh,
            f"{name}.conv",
            gathered,
            out_channels,
            (1, 1, 1),
            fold=Fold(
                reorder,
                DOWNSAMPLING_CONV3D_WEIGHT,
                DOWNSAMPLING_CONV3D_BIAS,
                f"{time}x{space}x{space} positions",
            ),
            shape=(out_channels, in_channels, *self.factors),
        )

    def __call__(self, x_BTHWC: ttnn.Tensor, *, starts: bool = True) -> ttnn.Tensor:
        """Map x [1, T, H, W, C] to [1, T', H / s, W / s, out].

        Args:
            x_BTHWC: the frames, 1 + t k of them if the video `starts` here, else t k.
            starts: whether the first frame is that of the video.
        """
        return then(self.conv, then(self._gather, x_BTHWC, starts))

    def _gather(self, x_BTHWC: ttnn.Tensor, starts: bool) -> ttnn.Tensor:
        """Turn frames, rows and columns into channels ordered (t, s, s, C), part by part in L1."""
        x = frames_of(x_BTHWC)
        frames, rows, columns, channels = x.shape
        time, space, _ = self.factors
        first = int(starts)
        shape = [first + (frames - first) // time, rows // space, columns // space, channels * prod(self.factors)]
        out = ttnn.allocate_tensor_on_device(ttnn.Shape(shape), x.dtype, ttnn.ROW_MAJOR_LAYOUT, self.mesh.device)
        if starts:
            still = ttnn.slice(x, [0, 0, 0, 0], [1, rows, columns, channels]) if frames > 1 else x
            for part in parts(still, rows=space, live=_LIVE * time):
                taken = take(still, part)
                repeated = (
                    ttnn.concat([taken] * time, dim=0, memory_config=ttnn.L1_MEMORY_CONFIG) if time > 1 else taken
                )
                put(out, self._folded(repeated), (0, part.rows[0] // space, 0))
                if repeated is not taken:
                    ttnn.deallocate(taken)
            if still is not x:
                ttnn.deallocate(still)
        for part in parts(x, rows=space, frames=time, first=first, live=_LIVE):
            value = self._folded(take(x, part))
            put(out, value, (first + (part.frames[0] - first) // time, part.rows[0] // space, 0))
        return ttnn.reshape(out, [1, *shape])

    def _folded(self, x_THWC: ttnn.Tensor) -> ttnn.Tensor:
        """Return a part [t k, h, W, C] as [k, h / s, W / s, (t, s, s, C)]; x is freed."""
        frames, rows, columns, channels = x_THWC.shape
        time, space, _ = self.factors
        if prod(self.factors) == 1:
            return x_THWC
        split = [frames // time, time, rows // space, space, columns // space, space, channels]
        moved = then(ttnn.permute, ttnn.reshape(x_THWC, split), [0, 2, 4, 1, 3, 5, 6])
        return then(
            ttnn.reshape, moved, [frames // time, rows // space, columns // space, channels * prod(self.factors)]
        )


class DownBlock(Module):
    """Downsampling, then a stage. `factors` are its strides in time, rows and columns."""

    def __init__(
        self,
        shared: Shared,
        prefix: str,
        in_channels: int,
        out_channels: int,
        layers: int,
        time: int,
        space: int,
        *,
        attends: bool,
    ) -> None:
        super().__init__(shared.mesh)
        self.prefix = prefix
        self.factors = (time, space, space)
        self.conv_in = Downsampling(shared, "conv_in", in_channels, out_channels, time, space)
        self.stage = Stage(shared, "", out_channels, layers, attends=attends)
