"""DRAM that decoding needs, and the number of latent frames that are decoded at a time.

All levels of a chunk are decoded before the next chunk begins. Each convolution carries over its last two input frames,
so the result is the same as without chunks (`models.mochi.vae.blocks.Past`).
"""

from collections.abc import Iterator
from dataclasses import replace

import ttnn

from models.machine.errors import InputError
from models.mochi.vae.config import DecoderConfig
from models.mochi.vae.split import Split
from models.parallel import Mesh
from models.parallel.halo import Extent

_BF16 = 2
# Bytes of one output pixel. A row-major page is read in whole DRAM words, so 3 output channels take 64 bytes.
_PIXEL_BYTES = 64
# Fraction of the free DRAM that tensors may take. The rest is for fragmentation and small tables.
USABLE = 0.88


def dram_free(mesh: Mesh) -> int:
    """Return the free DRAM bytes of one chip."""
    view = ttnn.get_memory_view(mesh.device, ttnn.BufferType.DRAM)
    return view.total_bytes_free_per_bank * view.num_banks


def levels(config: DecoderConfig, extent: Extent) -> Iterator[tuple[Extent, int, int, int]]:
    """Yield each level of the decoder, the latent's first.

    A level is (extent, channels, number of residual blocks, values per position after the level's projection).
    """
    channels, layers = config.decoder_block_out_channels[::-1], config.layers_per_block[::-1]
    factors = list(zip(config.temporal_expansions[::-1], config.spatial_expansions[::-1], strict=True))
    for index, width in enumerate(channels):
        blocks = layers[0] + layers[1] if index == 0 else layers[index + 1]
        last = index == len(factors)
        time, space = (1, 1) if last else factors[index]
        yield extent, width, blocks, width if last else time * space * space * channels[index + 1]
        extent = extent.times(time, space, space)


def peak_bytes(config: DecoderConfig, extent: Extent, *, chunked: bool) -> int:
    """Return the largest number of DRAM bytes of activations that a chip holds at once.

    All of `extent` is decoded in one go. In a residual block the activations are its input, a convolution's padded
    input, and either the source of that input or the convolution's output. At the end of a level they are the
    projection, twice. One more tensor of the largest size is added, because a tensor needs one contiguous block, and
    live tensors fragment DRAM. With `chunked` the carried frames of all convolutions are added.
    """
    peak = carried = 0
    for size, channels, blocks, expanded in levels(config, extent):
        time, rows, columns = (dim.local for dim in (size.time, size.height, size.width))
        high, wide = rows + 2 * (size.height.shards > 1), columns + 2 * (size.width.shards > 1)
        whole = time * rows * columns * channels * _BF16
        padded = (time + 2) * high * wide * channels * _BF16
        peak = max(peak, 2 * whole + 2 * padded, 3 * time * rows * columns * expanded * _BF16)
        carried += 2 * blocks * 2 * high * wide * channels * _BF16
    pixels = time * rows * columns * _PIXEL_BYTES
    return max(peak, whole + pixels) + (carried if chunked else 0)


def chunk_frames(config: DecoderConfig, split: Split, mesh: Mesh, size: tuple[int, int, int], free: int) -> int:
    """Return the number of latent frames to decode at a time so that `free` bytes suffice.

    It is all of them, or that of equal chunks.

    Raises:
        ValueError: even the shortest chunk does not fit.
    """
    frames, rows, columns = size
    whole = split.extent(mesh, frames, rows, columns)
    usable = int(free * USABLE)
    if peak_bytes(config, whole, chunked=False) <= usable:
        return frames
    shards = whole.time.shards
    least = 2 if shards > 1 else 1

    def needed(local: int) -> int:
        time = replace(whole.time, real=local * shards, local=local)
        return peak_bytes(config, replace(whole, time=time), chunked=True)

    fitting = [local for local in range(least, whole.time.local) if needed(local) <= usable]
    if not fitting:
        raise InputError(
            f"latents of {frames}x{rows}x{columns} split {split} do not fit: {least} frames a chip take "
            f"{needed(least) / 1e9:.1f} GB and {usable / 1e9:.1f} GB are free; use a smaller size or a larger mesh"
        )
    chunks = -(-whole.time.local // fitting[-1])
    return max(-(-whole.time.local // chunks), least) * shards
