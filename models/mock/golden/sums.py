"""Sums of products as the matrix engine makes them, bit by bit, and a fast form of them.

An instruction multiplies 16 elements of the inner dimension, in two groups of 8. Each product (5 by 7 bits) is aligned
to the largest exponent of its group and rounded half away from zero at 2^-10 of it. Both sums and the destination
register are aligned to the largest exponent among them, at 2^-23 (float32 register) or 2^-10 (bfloat16): the sums
rounded half up, the register half away from zero. The result is rounded half away from zero to 24 or 8 bits.

Source: outputs of the kernels on the functional simulator (`tests/mock/golden/vectors`), which this form reproduces bit
by bit. The order of phases and tiles: wheel, `tt_metal/tt-llk/tt_llk_wormhole_b0/llk_lib/llk_math_matmul.h`.

The fast form leaves out the rounding within groups: noise of 3.5e-4 of the result, without bias. Golden execution takes
it unless `exact_sums` says otherwise. Bit by bit, one short video with the tiny model would take minutes in place of
seconds.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from models.mock.golden.rounding import half_away, power, significant

Phases = list[tuple[torch.Tensor, torch.Tensor, int]]
"""Per fidelity phase both operands, and the exponent of their product below that of the whole operands' product."""

_GROUP, _DEPTH, _TILE = 8, 16, 32
_KEPT = 10  # Bits behind the largest exponent of a group.
_EXPONENT = 0x7F800000  # Bits of a float32.
_ABSENT = -100  # Exponent of zero: below that of any product, and 2 to its negative is a float32.
_forms = [False]  # Whether sums are exact; the innermost `exact_sums` is the last.


@contextlib.contextmanager
def exact_sums() -> Iterator[None]:
    """Make golden execution sum bit by bit."""
    _forms.append(True)
    try:
        yield
    finally:
        _forms.pop()


def exact() -> bool:
    """Return whether sums are exact now."""
    return _forms[-1]


def summed(
    a: torch.Tensor, b: torch.Tensor, phases: Phases, *, float32: bool, start: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `start` plus the sum over the phases of `a @ b`, in a float32 or bfloat16 register.

    `a` and `b` are the whole operands, which alone decide how products are aligned. Without exact sums the register is
    bfloat16: PyTorch sums in float32.
    """
    if exact():
        return _exact(a, b, phases, float32=float32, start=start)
    assert not float32
    return _in_bfloat16(phases, start)


def _in_bfloat16(phases: Phases, start: torch.Tensor | None) -> torch.Tensor:
    """Sum in float32 within an instruction, and round nearly as `accumulated` does."""
    inner = phases[0][0].shape[-1]
    out = start
    for tile in range(0, inner, _TILE):
        for x, y, _ in phases:
            for at in range(tile, min(tile + _TILE, inner), _DEPTH):
                part = slice(at, at + _DEPTH)
                term = torch.matmul(x[..., part], y[..., part, :])
                out = torch.zeros_like(term) if out is None else out
                # The exponent's bits of the larger one, and below them what 2^-10 of it is.
                largest = torch.maximum(out.abs(), term.abs()).view(torch.int32) & _EXPONENT
                unit = (largest - (_KEPT << 23)).clamp(min=1 << 23).view(torch.float32)
                out = significant(torch.floor(term / unit + 0.5) * unit + out, 8)
    assert out is not None
    return out


def accumulated(out: torch.Tensor, terms: Sequence[torch.Tensor], top: torch.Tensor, *, float32: bool) -> torch.Tensor:
    """Add terms to the register. `top` is the largest exponent that they were aligned to."""
    top = torch.maximum(top, _exponent(out))
    behind, bits = (23, 24) if float32 else (_KEPT, 8)
    per_unit, unit = power(behind - top, out.dtype), power(top - behind, out.dtype)
    total = half_away(out * per_unit)
    for term in terms:
        total = total + torch.floor(term * per_unit + 0.5)
    return significant(total * unit, bits)


def _exact(
    a: torch.Tensor, b: torch.Tensor, phases: Phases, *, float32: bool, start: torch.Tensor | None
) -> torch.Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns, inner = a.shape[-2], b.shape[-1], a.shape[-1]
    missing = (-inner) % _TILE

    def groups(x: torch.Tensor, *, first: bool, value: float = 0) -> torch.Tensor:
        """Give [batch, rows, groups, 1, 8] of the first operand and [batch, 1, groups, columns, 8] of the second."""
        x = x if first else x.mT
        x = torch.nn.functional.pad(x, (0, missing), value=value).expand(*batch, *x.shape[-2:-1], -1)
        x = x.reshape(-1, x.shape[-2], (inner + missing) // _GROUP, _GROUP)
        return x[:, :, :, None] if first else x.transpose(1, 2)[:, None]

    ea, eb = groups(_exponent(a), first=True, value=_ABSENT), groups(_exponent(b), first=False, value=_ABSENT)
    top = _largest(ea, eb)
    parts = [(groups(x, first=True), groups(y, first=False), below) for x, y, below in phases]
    sums = [_group_sums(x, y, top - below) for x, y, below in parts]
    first = torch.zeros(()) if start is None else start
    out = first.double().expand(*batch, rows, columns).reshape(-1, rows, columns)
    for tile in range(0, top.shape[2], _TILE // _GROUP):
        for (_, _, below), terms in zip(parts, sums, strict=True):
            for at in (tile, tile + _DEPTH // _GROUP):
                both = [terms[:, :, at], terms[:, :, at + 1]]
                highest = torch.maximum(top[:, :, at], top[:, :, at + 1]) - below
                out = accumulated(out, both, highest, float32=float32)
    return out.float().reshape(*batch, rows, columns)


def _largest(ea: torch.Tensor, eb: torch.Tensor) -> torch.Tensor:
    """Return the largest exponent of the products of each group: [batch, rows, groups, columns]."""
    top = ea[..., 0] + eb[..., 0]
    for j in range(1, _GROUP):
        top = torch.maximum(top, ea[..., j] + eb[..., j])
    return top.clamp(min=_ABSENT)


def _group_sums(x: torch.Tensor, y: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """Return the sum of each group's products, each rounded at 2^-10 of the largest exponent."""
    scale = power(_KEPT - top, torch.float32)
    total = half_away(x[..., 0] * y[..., 0] * scale)
    for j in range(1, _GROUP):
        total = total + half_away(x[..., j] * y[..., j] * scale)
    return total.double() * power(top - _KEPT, torch.float64)


def _exponent(x: torch.Tensor) -> torch.Tensor:
    """Return the exponents of `x`; zeros have a very low one."""
    exponent = torch.frexp(x).exponent - 1
    return torch.where(x == 0, torch.full_like(exponent, _ABSENT), exponent)
