"""Ops that only move values, exactly, with other data on every chip."""

import pytest
import torch
import ttnn

DTYPES = [ttnn.bfloat16, ttnn.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ((0, 0, 5, 0), (1, 2, 6, 64)),  # one row inside a tile
        ((0, 0, 33, 0), (1, 2, 70, 64)),
        ((0, 1, 0, 32), (1, 2, 70, 64)),
        ((0, 1, 7, 3), (1, 2, 41, 50)),
    ],
)
def test_slice(chips, start, end, dtype):
    x = chips.random(1, 2, 70, 64, dtype=dtype)
    window = tuple(slice(a, b) for a, b in zip(start, end, strict=True))
    chips.check(ttnn.slice(chips.put(x, dtype), start, end), lambda v: v[window], x, dtype=dtype)


def test_slice_of_several_dims_and_indexing(chips):
    x = chips.random(3, 2, 40, 64)
    tensor = chips.put(x)
    out = ttnn.slice(tensor, [1, 0, 0, 0], [2, 2, 1, 64])
    chips.check(out, lambda v: v[1:2, :, :1], x)
    chips.check(tensor[1:3, 0, 4:9], lambda v: v[1:3, 0, 4:9], x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_concat_of_unaligned_parts(chips, dim, dtype):
    shapes = [[1, 2, 40, 50], [1, 2, 40, 50]]
    shapes[0][dim] = 1
    a, b = (chips.random(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
    out = ttnn.concat([chips.put(a, dtype), chips.put(b, dtype)], dim=dim)
    chips.check(out, lambda p, q: torch.cat([p, q], dim=dim), a, b, dtype=dtype)


@pytest.mark.parametrize("shape", [(1, 2, 32, 64), (64, 64), (1, 64, 2, 32), (1, 1, 128, 32), (1, 64, 64, 1)])
def test_reshape(chips, shape):
    x = chips.random(1, 1, 64, 64)
    chips.check(ttnn.reshape(chips.put(x), shape), lambda v: v.reshape(shape), x)
    chips.check(chips.put(x).reshape(shape), lambda v: v.reshape(shape), x)


def test_permute_and_transpose(chips):
    x = chips.random(1, 40, 2, 32)
    tensor = chips.put(x)
    chips.check(ttnn.permute(tensor, (0, 2, 1, 3)), lambda v: v.permute(0, 2, 1, 3), x)
    chips.check(ttnn.permute(tensor, (0, 1, 3, 2)), lambda v: v.permute(0, 1, 3, 2), x)


def test_layouts_copies_and_padding(chips):
    x = chips.random(1, 1, 64, 64)
    tensor = chips.put(x)
    rows = ttnn.to_layout(tensor, ttnn.ROW_MAJOR_LAYOUT)
    assert rows.layout == ttnn.ROW_MAJOR_LAYOUT
    for out in (
        rows,
        ttnn.to_layout(rows, ttnn.TILE_LAYOUT),
        ttnn.tilize(rows),
        ttnn.untilize(tensor),
        ttnn.to_memory_config(tensor, ttnn.L1_MEMORY_CONFIG),
        ttnn.clone(tensor),
        ttnn.reallocate(ttnn.clone(tensor)),
    ):
        chips.check(out, lambda v: v, x)
    padded = ttnn.pad(tensor, [(0, 0), (0, 1), (0, 32), (0, 0)], 2.0)
    chips.check(padded, lambda v: torch.nn.functional.pad(v, (0, 0, 0, 32, 0, 1), value=2.0), x)


@pytest.mark.parametrize(("make", "value"), [("zeros", 0.0), ("ones", 1.0), ("full", 2.5)])
def test_filled(chips, make, value):
    extra = (value,) if make == "full" else ()
    shape = (1, 1, 40, 40)
    out = getattr(ttnn, make)(shape, *extra, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=chips.device)
    chips.check(out, lambda v: torch.full(shape, value), [torch.zeros(1)] * 8)
