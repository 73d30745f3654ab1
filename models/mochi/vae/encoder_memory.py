"""DRAM that encoding needs, and the frames that the stage at full resolution makes at a time.

Attention over time needs all frames of a stage at once. The stages before the first attention do not: their
convolutions carry over the last two frames (`models.mochi.vae.blocks.Past`). In Mochi 1 this is the stage at full
resolution, whose activations are the largest by far.
"""

from __future__ import annotations

from dataclasses import replace

from models.machine.errors import InputError
from models.mochi.vae.config import EncoderConfig
from models.mochi.vae.memory import USABLE
from models.mochi.vae.temporal import BAND_BYTES, band_row_bytes
from models.parallel.halo import Extent

_BF16 = 2
# Channels of an uploaded pixel: the features, as whole tiles.
_FEATURES = 32
# Bytes of the host's memory that the features of a chunk's pixels may take, of all chips together.
_HOST_BYTES = 1 << 30


def _positions(extent: Extent) -> int:
    return extent.time.local * extent.height.local * extent.width.local


def stage_bytes(extent: Extent, channels: int, *, attends: bool) -> int:
    """Return the largest number of DRAM bytes that a stage's activations take on a chip at once.

    In a residual block they are its input, a convolution's padded input, and either the source of that input or the
    convolution's output; one more of the largest is added, as in `models.mochi.vae.memory.peak_bytes`. In attention
    they are x, its norm and what a band of rows takes.
    """
    high, wide = (size.local + 2 * (size.shards > 1) for size in (extent.height, extent.width))
    whole = _positions(extent) * channels * _BF16
    padded = (extent.time.local + 2) * high * wide * channels * _BF16
    bands = max(BAND_BYTES, band_row_bytes(extent.time.local, extent.width.local, channels))
    return max(2 * whole + 2 * padded, (3 * whole + bands) if attends else 0)


def first_bytes(config: EncoderConfig, extents: list[Extent], outputs: int) -> int:
    """Return the DRAM bytes of the stage at full resolution and of its downsampling to `outputs` frames at a time."""
    first = extents[0]
    channels = config.encoder_block_out_channels
    chunked = len(extents) > 1 and outputs < extents[1].time.local
    if chunked:
        frames = outputs * config.temporal_expansions[0]
        first = replace(first, time=replace(first.time, real=frames, local=frames))
    stage = stage_bytes(first, channels[0], attends=config.add_attention_block[0])
    features = _positions(first) * (_FEATURES + channels[0]) * _BF16
    # The downsampling reads the stage's output, gathers it and makes its own.
    gathered = 2 * _positions(first) * channels[0] * _BF16
    held = 0
    if len(extents) > 1:
        made = replace(extents[1], time=replace(extents[1].time, local=outputs))
        gathered += _positions(made) * channels[1] * _BF16
        if chunked:
            high, wide = (size.local + 2 for size in (first.height, first.width))
            held = 2 * config.layers_per_block[0] * 2 * high * wide * channels[0] * _BF16
            held += _positions(extents[1]) * channels[1] * _BF16
    return max(stage, features, gathered) + held


def rest_bytes(config: EncoderConfig, extents: list[Extent]) -> int:
    """Return the DRAM bytes of the stages after the first, which have all frames at once."""
    channels, attends = config.encoder_block_out_channels, config.add_attention_block
    stages = [
        stage_bytes(extent, width, attends=attend)
        for extent, width, attend in zip(extents[1:], channels[1:], attends[1:], strict=False)
    ]
    downs = [
        2 * _positions(extent) * width * _BF16 + _positions(extents[index + 2]) * channels[index + 2] * _BF16
        for index, (extent, width) in enumerate(zip(extents[1:-1], channels[1:-1], strict=True))
    ]
    last = stage_bytes(extents[-1], channels[-1], attends=attends[-1])
    return max([*stages, *downs, last])


def peak_bytes(config: EncoderConfig, extents: list[Extent], outputs: int) -> int:
    """Return the largest number of DRAM bytes of activations that a chip holds at once."""
    return max(first_bytes(config, extents, outputs), rest_bytes(config, extents))


def chunk_outputs(config: EncoderConfig, extents: list[Extent], free: int) -> int:
    """Return how many frames after the first downsampling to make at a time so that `free` bytes suffice.

    It is all of them, or that of nearly equal chunks. Where there can be chunks, the features of a chunk's pixels also
    take at most 1 GiB of the host.

    Raises:
        InputError: the video does not fit in the shortest chunks either.
    """
    usable = int(free * USABLE)
    whole = extents[min(1, len(extents) - 1)].time.local
    can_chunk = len(extents) > 1 and not config.add_attention_block[0]
    fitting = [
        count
        for count in (range(1, whole + 1) if can_chunk else (whole,))
        if peak_bytes(config, extents, count) <= usable
    ]
    if not fitting:
        frames, rows, columns = (size.real for size in (extents[0].time, extents[0].height, extents[0].width))
        needed = peak_bytes(config, extents, 1 if can_chunk else whole)
        raise InputError(
            f"a video of {columns}x{rows} with {frames} frames does not fit the encoder: it takes {needed / 1e9:.1f} "
            f"GB a chip and {usable / 1e9:.1f} GB are free; use a smaller size, fewer frames or a larger mesh"
        )
    most = fitting[-1]
    if can_chunk:
        frame = extents[0].height.padded * extents[0].width.padded * _FEATURES * _BF16
        most = max(min(most, _HOST_BYTES // (frame * config.temporal_expansions[0])), 1)
    chunks = -(-whole // most)
    return -(-whole // chunks)
