"""Elementwise work on activations that do not fit L1, done part by part in L1 so that DRAM is read and written once.

An op on a whole activation reads it from DRAM and writes its result there. A chain of ops on a part in L1 costs one
read and one write of DRAM in all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ttnn

from models.parallel.rows import copy_rows, write_rows

# Bytes of L1 that stay free for the circular buffers of the ops that work on a part. The elementwise ops and the sums
# of `models.layers` use at most 3 buffers of 64 KiB, as ttnn allocates them. As much again stays free.
_CIRCULAR_BUFFERS = 384 * 1024
# Number of parts in L1 at once: the input and the output of an op.
_LIVE = 2


@dataclass(frozen=True)
class Part:
    """A range of frames and a range of rows of a shard x_BTHWC, each (start, stop)."""

    frames: tuple[int, int]
    rows: tuple[int, int]

    @property
    def begin(self) -> tuple[int, int, int]:
        """First frame, row and column of the part."""
        return self.frames[0], self.rows[0], 0

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of frames and rows."""
        return self.frames[1] - self.frames[0], self.rows[1] - self.rows[0]


def frames_of(x_BTHWC: ttnn.Tensor) -> ttnn.Tensor:
    """View x [1, T, H, W, C] as [T, H, W, C], the form that `take` and `put` use."""
    return ttnn.reshape(x_BTHWC, list(x_BTHWC.shape)[1:])


def l1_share(device: ttnn.MeshDevice, live: int = _LIVE) -> int:
    """Return the bytes that one of `live` parts may take of a chip's L1, over all its cores."""
    view = ttnn.get_memory_view(device, ttnn.BufferType.L1)
    return (view.total_bytes_per_bank - _CIRCULAR_BUFFERS) // live * view.num_banks


def parts(x_THWC: ttnn.Tensor, *, rows: int = 1, frames: int = 1, first: int = 0, live: int = _LIVE) -> Iterator[Part]:
    """Cut x [T, H, W, C], row-major, into parts that fit L1 `live` times, in order of frames and rows.

    The rule: a part holds as many multiples of `frames` whole frames as fit, and parts have nearly equal sizes. If not
    even one of them fits, a part holds as many multiples of `rows` rows of it as fit, at least one. `rows` must divide
    H, and `frames` the frames from `first` on, where the parts begin.
    """
    total, height, width, channels = x_THWC.shape
    share = l1_share(x_THWC.device(), live)
    row = width * channels * x_THWC.element_size() * frames
    at_once = share // (row * height)
    groups = (total - first) // frames
    if at_once:
        for start, stop in _spans(groups, at_once):
            yield Part((first + start * frames, first + stop * frames), (0, height))
        return
    for start in range(first, total, frames):
        for top, bottom in _spans(height // rows, max(share // (row * rows), 1)):
            yield Part((start, start + frames), (top * rows, bottom * rows))


def _spans(size: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut `size` into the fewest spans of at most `most`. All spans but the last have the same size."""
    if not size:
        return
    step = -(-size // -(-size // most))
    for start in range(0, size, step):
        yield start, min(start + step, size)


def take(x_THWC: ttnn.Tensor, part: Part) -> ttnn.Tensor:
    """Copy a part [t, h, W, C] of x to L1."""
    begin = [*part.begin, 0]
    end = [part.frames[1], part.rows[1], *list(x_THWC.shape)[2:]]
    return copy_rows(x_THWC, begin, end, memory_config=ttnn.L1_MEMORY_CONFIG)


def put(x_THWC: ttnn.Tensor, value: ttnn.Tensor, begin: Sequence[int], *, keep: bool = False) -> None:
    """Write `value` [t, h, w, C] into x in place, from frame, row and column `begin` on.

    `value` is freed unless `keep` is set.
    """
    write_rows(x_THWC, value, [*begin, 0])
    if not keep:
        ttnn.deallocate(value)


def take_frames(table_T11C: ttnn.Tensor, part: Part) -> ttnn.Tensor:
    """Return the rows [t, 1, 1, C] of a table that belong to the frames of a part.

    If these are all rows, it is the table itself.
    """
    start, stop = part.frames
    return ttnn.slice(table_T11C, [start, 0, 0, 0], [stop, 1, 1, table_T11C.shape[-1]])


def then(step: Callable[..., ttnn.Tensor], value: ttnn.Tensor, *others, **options) -> ttnn.Tensor:
    """Return `step(value, *others, **options)` and free `value`."""
    result = step(value, *others, **options)
    ttnn.deallocate(value)
    return result
