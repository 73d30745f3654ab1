"""Elementwise ops against PyTorch, with other data on every chip."""

import pytest
import torch
import ttnn

from tests.mock.golden.chips import bf16, tf32
from tests.support import pairs

BINARY = {
    "add": torch.add,
    "subtract": torch.subtract,
    "multiply": torch.multiply,
    "rsub": lambda a, b: b - a,
}


# The matrix engine keeps 11 bits of the larger operand of a sum before it rounds to bfloat16: an operand of 4 to 8.
ADDED = 2**-8

SHAPES = [
    ((1, 2, 32, 64), (1, 2, 32, 64)),
    ((1, 1, 40, 64), (1, 1, 1, 64)),  # a row to all rows
    ((1, 1, 40, 64), (1, 1, 40, 1)),  # a column to all columns
    ((1, 1, 40, 1), (1, 1, 1, 64)),  # both
    ((1, 2, 32, 64), (1, 1, 1, 1)),
    ((1, 1, 1, 64), (1, 2, 33, 64)),
]


@pytest.mark.parametrize(("name", "shapes", "dtype"), pairs(list(BINARY), SHAPES, [ttnn.bfloat16, ttnn.float32]))
def test_binary_with_broadcasting(chips, name, shapes, dtype):
    left, right = shapes
    a, b = chips.random(*left, seed="a", dtype=dtype), chips.random(*right, seed="b", dtype=dtype)
    out = getattr(ttnn, name)(chips.put(a, dtype), chips.put(b, dtype))
    exact = name == "multiply" or dtype == ttnn.float32  # in the vector unit
    chips.check(out, BINARY[name], a, b, dtype=dtype, atol=0.0 if exact else ADDED)


@pytest.mark.parametrize("name", ["add", "subtract", "multiply"])
def test_binary_with_a_number(chips, name):
    a = chips.random(1, 1, 33, 40, dtype=ttnn.float32)
    chips.check(getattr(ttnn, name)(chips.put(a, ttnn.float32), 0.3), lambda x: BINARY[name](x, torch.tensor(0.3)), a)
    a = chips.random(1, 1, 33, 40)
    packed = bf16(torch.tensor(0.3))
    atol = 0.0 if name == "multiply" else ADDED
    chips.check(getattr(ttnn, name)(chips.put(a), 0.3), lambda x: BINARY[name](x, packed), a, atol=atol)


def test_operators(chips):
    a, b = chips.random(1, 1, 32, 32, seed=1), chips.random(1, 1, 32, 32, seed=2)
    x, y = chips.put(a), chips.put(b)
    chips.check(x + y, torch.add, a, b, atol=ADDED)
    chips.check(x * y, torch.mul, a, b)
    chips.check(x - y, torch.sub, a, b, atol=ADDED)
    chips.check(1 - x, lambda v: 1 - v, a, atol=ADDED)


@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.float32])
def test_mixed_dtypes(chips, dtype):
    a, b = chips.random(1, 1, 32, 64), chips.random(1, 1, 1, 64, dtype=ttnn.float32)
    x, y = chips.put(a), chips.put(b, ttnn.float32)
    # The matrix engine adds what the vector engine would multiply; it reads float32 as TF32.
    chips.check(ttnn.add(x, y, dtype=dtype), lambda p, q: p + tf32(q), a, b, dtype=dtype, atol=ADDED)
    chips.check(ttnn.subtract(y, x, dtype=dtype), lambda p, q: tf32(q) - p, a, b, dtype=dtype, atol=ADDED)
    chips.check(ttnn.multiply(x, y, dtype=dtype), torch.mul, a, b, dtype=dtype)


@pytest.mark.parametrize("name", ["eq", "ne", "gt", "ge", "lt", "le"])
def test_comparisons(chips, name):
    a, b = ([v.round() for v in chips.random(1, 1, 32, 64, seed=s)] for s in "ab")
    out = getattr(ttnn, name)(chips.put(a), chips.put(b))
    chips.check(out, lambda p, q: getattr(torch, name)(p, q).float(), a, b)


def test_in_place(chips):
    a, b = chips.random(1, 1, 32, 32, seed=1), chips.random(1, 1, 32, 32, seed=2)
    for name, reference in (("add_", torch.add), ("subtract_", torch.sub), ("multiply_", torch.mul)):
        x = chips.put(a)
        getattr(ttnn, name)(x, chips.put(b))
        chips.check(x, reference, a, b, atol=0.0 if name == "multiply_" else ADDED)


@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.float32])
@pytest.mark.parametrize("name", ["silu", "tanh", "cos", "sin", "abs"])
def test_unary(chips, name, dtype):
    a = [8 * x for x in chips.random(1, 2, 40, 40, dtype=dtype)]
    reference = torch.nn.functional.silu if name == "silu" else getattr(torch, name)
    chips.check(getattr(ttnn, name)(chips.put(a, dtype)), reference, a, dtype=dtype)


def test_where_selects_and_leaves_no_trace_of_what_it_does_not_take(chips):
    a, taken = chips.random(1, 1, 32, 64), (chips.random(1, 1, 32, 64, seed=1) > 0).float()
    hidden = a.masked_fill(taken == 0, torch.nan)
    out = ttnn.where(chips.put(taken, ttnn.float32), chips.put(hidden, ttnn.float32), 0.0)
    chips.check(out, lambda v, t: torch.where(t != 0, v, 0.0), hidden, taken, dtype=ttnn.float32)


def test_typecast(chips):
    a = chips.random(1, 1, 40, 40, dtype=ttnn.float32)
    x = chips.put(a, ttnn.float32)
    half = ttnn.typecast(x, ttnn.bfloat16)
    chips.check(half, lambda v: v, a, dtype=ttnn.bfloat16)
    chips.check(ttnn.typecast(half, ttnn.float32), bf16, a, dtype=ttnn.float32)


def test_typecast_to_block_floats_shares_exponents(chips):
    a = chips.random(1, 1, 32, 32, dtype=ttnn.float32)
    for value in a:
        value[..., 0, 0] = 1000.0  # 16 columns share its exponent: the rest of them lose most of their bits
    out = chips.get(ttnn.typecast(chips.put(a, ttnn.float32), ttnn.bfloat8_b))
    for actual, value in zip(out, a, strict=True):
        step = 2.0 ** (9 - 6)
        assert torch.all((actual[..., 0, 1:16] / step) % 1 == 0)
        assert (actual[..., 0, :16] - value[..., 0, :16]).abs().max() <= step / 2
        assert (actual[..., 1:, :] - value[..., 1:, :]).abs().max() < 0.05


def test_arguments_that_change_values_are_not_ignored(chips):
    x = chips.same(torch.ones(1, 1, 32, 32))
    with pytest.raises(RuntimeError, match=r"ttnn\.multiply at .*activations=.* is not covered"):
        ttnn.multiply(x, x, activations=[ttnn.UnaryWithParam(ttnn.UnaryOpType.RELU)])
    with pytest.raises(RuntimeError, match="approximate tanh is not covered"):
        ttnn.tanh(x, fast_and_approximate_mode=True)
