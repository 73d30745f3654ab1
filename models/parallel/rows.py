"""Copies between row-major activations x_THWC, in calls that ttnn's kernels handle correctly.

ttnn's slices distribute rows to the cores, and some cores get one row more than the others. In ttnn 0.81.1 a core moves
its rows in groups through a buffer whose size fits the groups of the cores with more rows. If a core with fewer rows
has groups of another size, its last group would run over the end of the buffer (`slice_program_factory_rm.cpp`: 128,
274, 352, and `slice_write_rm_interleaved_program_factory.cpp`, which does the same). This happens only for hundreds of
short rows (64 or 192 bytes) on each core. Such a copy is cut in two.
"""

import math
from collections.abc import Sequence

import ttnn

from models.parallel.mesh import TILE, round_up

# Largest size in bytes of a group of rows.
_GROUP_BYTES = 4096


def copy_rows(
    x: ttnn.Tensor, begin: Sequence[int], end: Sequence[int], *, memory_config: ttnn.MemoryConfig | None = None
) -> ttnn.Tensor:
    """Copy the box from `begin` to `end` of x [T, H, W, C], with whole rows of C, to new memory."""
    spans = _spans([stop - start for start, stop in zip(begin, end, strict=True)], x)
    pieces = []
    for dim, first, last in spans:
        start, stop = list(begin), list(end)
        start[dim], stop[dim] = begin[dim] + first, begin[dim] + last
        pieces.append(ttnn.slice(x, start, stop, memory_config=memory_config))
    if len(pieces) == 1:
        return pieces[0]
    whole = ttnn.concat(pieces, dim=spans[0][0], memory_config=memory_config)
    for piece in pieces:
        ttnn.deallocate(piece)
    return whole


def write_rows(x: ttnn.Tensor, value: ttnn.Tensor, begin: Sequence[int]) -> None:
    """Write `value` [t, h, w, C] into x [T, H, W, C] in place, from `begin` on; `value` is not freed."""
    sizes = list(value.shape)
    for dim, first, last in (spans := _spans(sizes, value)):
        start, stop = [0] * 4, list(sizes)
        start[dim], stop[dim] = first, last
        piece = value if len(spans) == 1 else ttnn.slice(value, start, stop)
        there = [offset + inner for offset, inner in zip(begin, start, strict=True)]
        ends = [offset + size for offset, size in zip(there, piece.shape, strict=True)]
        ttnn.experimental.slice_write(piece, x, there, ends, [1] * 4)
        if piece is not value:
            ttnn.deallocate(piece)


def _spans(sizes: list[int], x: ttnn.Tensor) -> list[tuple[int, int, int]]:
    """Return the one or two pieces in which [t, h, w, C] is copied, each as (dim, start, stop).

    Raises:
        ValueError: no cut in two works.
    """
    grid = x.device().compute_with_storage_grid_size()
    stride, cores = round_up(sizes[3] * x.element_size(), 32), grid.x * grid.y
    if fits(math.prod(sizes[:3]), stride, cores):
        return [(0, 0, sizes[0])]
    for dim in range(3):
        for cut in range(sizes[dim] - 1, 0, -1):
            rest = math.prod(sizes[:3]) // sizes[dim]
            if fits(cut * rest, stride, cores) and fits((sizes[dim] - cut) * rest, stride, cores):
                return [(dim, 0, cut), (dim, cut, sizes[dim])]
    raise ValueError(f"rows of {sizes} cannot be copied: choose another size of video")


def fits(rows: int, stride: int, cores: int) -> bool:
    """Return whether every core moves its share of `rows` rows of `stride` bytes within its buffer."""
    fewer, more = rows // cores, -(-rows // cores)
    buffer = 2 * _group(more, stride)
    group = _group(fewer, stride) if fewer else buffer
    return buffer % group == 0 or round_up(fewer, TILE) <= buffer


def _group(rows: int, stride: int) -> int:
    """Return the rows that a core with `rows` rows moves at a time.

    `rows` is first rounded up to whole tiles. The result is its largest divisor whose bytes fit `_GROUP_BYTES`.
    """
    padded = round_up(rows, TILE)
    return max(size for size in range(1, max(_GROUP_BYTES // stride, 1) + 1) if padded % size == 0)
