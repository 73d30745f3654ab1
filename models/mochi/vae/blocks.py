"""Building blocks of the decoder: causal convolution, residual block, upsampling block.

Names in the checkpoint and formulas: Diffusers ``autoencoder_kl_mochi.py`` and, for the convolution,
``autoencoder_kl_cogvideox.py``. Activations x_BTHWC are row-major bfloat16, fractured as an `Extent` says, channels
whole on every chip (legend in `models.parallel.halo`). Every call frees the activations it was given.
"""

from dataclasses import dataclass, field

import ttnn

from models.layers.conv3d import Conv3d
from models.layers.group_norm import FrameGroupNorm, GroupSums
from models.layers.module import Module
from models.parallel import Mesh, gather
from models.parallel.halo import HEIGHT, TIME, WIDTH, Extent, HaloExchange, take_frames, write

_PAST = 2
_HALOS = {TIME: (_PAST, 0), HEIGHT: (1, 1), WIDTH: (1, 1)}


@dataclass
class Shared:
    """What all blocks of a decoder use: the mesh, halos, and group sums."""

    mesh: Mesh
    halo: HaloExchange = field(init=False)
    sums: GroupSums = field(init=False)

    def __post_init__(self) -> None:
        self.halo = HaloExchange(self.mesh)
        self.sums = GroupSums(self.mesh)

    def release(self) -> None:
        """Free the tables and masks that were made on the way."""
        self.halo.release()
        self.sums.release()


class Past:
    """The causal state between chunks of frames: per convolution the last two frames it has seen.

    Its tensors are allocated before any chunk is decoded, so that they do not lie scattered between the activations.
    """

    def __init__(self) -> None:
        self._frames: dict[int, ttnn.Tensor] = {}
        self._written: set[int] = set()
        self.more = False

    def allocate(self, conv: "CausalConv3d", extent: Extent) -> None:
        """Make room for what one convolution carries over, its input being of ``extent``."""
        shape = ttnn.Shape(conv.past_shape(extent))
        device = conv.mesh.device
        buffer = ttnn.allocate_tensor_on_device(shape, ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT, device)
        self._frames[id(conv)] = buffer

    def earlier(self, conv: "CausalConv3d") -> ttnn.Tensor | None:
        """What the convolution carried over from the chunk before; None in the first chunk. Not to be freed."""
        return self._frames[id(conv)] if id(conv) in self._written else None

    def keep(self, conv: "CausalConv3d", last: ttnn.Tensor) -> None:
        """Carry over ``last`` (freed)."""
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
    """3x3x3 convolution of a frame and the two before it; edges are repeated in time (backwards) and in space."""

    def __init__(self, shared: Shared, name: str, in_channels: int, out_channels: int) -> None:
        super().__init__(shared.mesh)
        self.halo = shared.halo
        self.conv = Conv3d(shared.mesh, f"{name}.conv", in_channels, out_channels)

    def __call__(self, x_BTHWC: ttnn.Tensor, extent: Extent, past: Past) -> ttnn.Tensor:
        """x [1, T, H, W, C] -> [1, T, H, W, out], both fractured as ``extent`` says."""
        padded = (
            self._split_time(x_BTHWC, extent, past)
            if extent.time.shards > 1
            else self._whole_time(x_BTHWC, extent, past)
        )
        space = (int(extent.height.shards == 1), int(extent.width.shards == 1))
        out = self.conv(padded, space=space)
        ttnn.deallocate(padded)
        return out

    def past_shape(self, extent: Extent) -> list[int]:
        """Shape of what is carried over per chip: two frames, with halos in space where time is split."""
        around = 2 if extent.time.shards > 1 else 0
        rows, columns = (size.local + around * (size.shards > 1) for size in (extent.height, extent.width))
        return [1, _PAST, rows, columns, self.conv.in_channels]

    def _whole_time(self, x: ttnn.Tensor, extent: Extent, past: Past) -> ttnn.Tensor:
        """Pad x, whose frames all lie on each chip, by the past and by the neighbours' rows and columns."""
        carried = past.earlier(self)
        earlier = carried if carried is not None else _twice_the_first(x)
        last = _last(earlier, x) if past.more else None
        if self.halo.makes_front(extent):
            padded = self.halo.pad(x, extent, _HALOS, front=_PAST)
            ttnn.deallocate(x)
            write(padded, self.halo.pad(earlier, extent, _HALOS), TIME, 0)
        else:
            whole = ttnn.concat([earlier, x], dim=TIME)
            ttnn.deallocate(x)
            padded = self.halo.pad(whole, extent, _HALOS)
            if padded is not whole:
                ttnn.deallocate(whole)
        if carried is None:
            ttnn.deallocate(earlier)
        if last is not None:
            past.keep(self, last)
        return padded

    def _split_time(self, x: ttnn.Tensor, extent: Extent, past: Past) -> ttnn.Tensor:
        """Pad x, whose frames lie on several chips: the past comes from the chip before, on the first from ``past``."""
        padded = self.halo.pad(x, extent, _HALOS)
        ttnn.deallocate(x)
        earlier = past.earlier(self)
        if earlier is not None:
            repeated = take_frames(padded, 0, _PAST)
            padded = self.halo.overwrite(padded, earlier, repeated, TIME, 0, extent.time.axis, 0)
        if past.more:
            past.keep(self, self._last_of_all(padded, extent))
        return padded

    def _last_of_all(self, padded: ttnn.Tensor, extent: Extent) -> ttnn.Tensor:
        """The last two frames of the last shard, on every chip."""
        assert extent.time.axis is not None
        frames = padded.shape[TIME]
        mine = take_frames(padded, frames - _PAST, frames)
        ends = gather(mine, self.mesh, dim=TIME, over=extent.time.axis)
        last = take_frames(ends, ends.shape[TIME] - _PAST, ends.shape[TIME])
        ttnn.deallocate(mine)
        ttnn.deallocate(ends)
        return last


def _twice_the_first(x: ttnn.Tensor) -> ttnn.Tensor:
    first = take_frames(x, 0, 1)
    both = ttnn.concat([first, first], dim=TIME)
    ttnn.deallocate(first)
    return both


def _last(earlier: ttnn.Tensor, x: ttnn.Tensor) -> ttnn.Tensor:
    frames = x.shape[TIME]
    if frames >= _PAST:
        return take_frames(x, frames - _PAST, frames)
    kept = take_frames(earlier, frames, _PAST)
    both = ttnn.concat([kept, x], dim=TIME)
    ttnn.deallocate(kept)
    return both


class ResBlock(Module):
    """``x + conv2(silu(norm2(conv1(silu(norm1(x))))))``."""

    def __init__(self, shared: Shared, prefix: str, channels: int) -> None:
        super().__init__(shared.mesh)
        self.prefix = prefix
        self.norm1 = FrameGroupNorm(shared.mesh, "norm1.norm_layer", channels, shared.sums)
        self.conv1 = CausalConv3d(shared, "conv1", channels, channels)
        self.norm2 = FrameGroupNorm(shared.mesh, "norm2.norm_layer", channels, shared.sums)
        self.conv2 = CausalConv3d(shared, "conv2", channels, channels)

    def convolutions(self) -> list[CausalConv3d]:
        """Its causal convolutions."""
        return [self.conv1, self.conv2]

    def __call__(self, x_BTHWC: ttnn.Tensor, extent: Extent, past: Past) -> ttnn.Tensor:
        """x [1, T, H, W, C] -> the same shape and placement."""
        hidden = self.conv1(self.norm1(x_BTHWC, extent), extent, past)
        hidden = self.conv2(self.norm2(hidden, extent, consume=True), extent, past)
        out = ttnn.add(x_BTHWC, hidden)
        ttnn.deallocate(x_BTHWC)
        ttnn.deallocate(hidden)
        return out


class UpBlock(Module):
    """Residual blocks, then a projection whose channels become frames, rows and columns."""

    def __init__(
        self, shared: Shared, prefix: str, in_channels: int, out_channels: int, layers: int, time: int, space: int
    ) -> None:
        super().__init__(shared.mesh)
        self.prefix = prefix
        self.factors = (time, space, space)
        self.out_channels = out_channels
        self.resnets = [ResBlock(shared, f"resnets.{index}.", in_channels) for index in range(layers)]
        expanded = out_channels * time * space * space

        def reorder(weight, bias):
            """Channels ordered (C, t, h, w), as Diffusers unpatchifies them, to (t, h, w, C)."""
            parts = (out_channels, time, space, space)
            return weight.unflatten(0, parts).movedim(0, 3).flatten(0, 3), bias.unflatten(0, parts).movedim(
                0, 3
            ).flatten()

        self.proj = Conv3d(
            shared.mesh, "proj", in_channels, expanded, (1, 1, 1), fold=reorder, shape=(expanded, in_channels)
        )

    def __call__(self, x_BTHWC: ttnn.Tensor, extent: Extent, past: Past) -> tuple[ttnn.Tensor, Extent]:
        """x [1, T, H, W, C] -> [1, t T, s H, s W, out] and its extent."""
        for block in self.resnets:
            x_BTHWC = block(x_BTHWC, extent, past)
        expanded = self.proj(x_BTHWC)
        ttnn.deallocate(x_BTHWC)
        _, frames, rows, columns, _ = expanded.shape
        time, space, _ = self.factors
        parts = ttnn.reshape(expanded, [frames, rows, columns, time, space, space, self.out_channels])
        ttnn.deallocate(expanded)
        spread = ttnn.permute(parts, [0, 3, 1, 4, 2, 5, 6])
        ttnn.deallocate(parts)
        shape = [1, frames * time, rows * space, columns * space, self.out_channels]
        return ttnn.reshape(spread, shape), extent.times(*self.factors)
