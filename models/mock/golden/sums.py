"""Sums of products as the matrix engine makes them, bit by bit, and a fast form of them for large products.

An instruction multiplies 16 elements of the inner dimension, in two groups of 8. Each product (5 by 7 bits) is aligned to
the largest exponent of its group and rounded half away from zero at 2^-10 of it. Both sums and the destination register
are aligned to the largest exponent among them, at 2^-23 (float32 register) or 2^-10 (bfloat16): the sums rounded half up,
the register half away from zero. The result is rounded half away from zero to 24 or 8 bits.

Source: outputs of the kernels on the functional simulator (`tests/mock/golden/vectors`), which this form reproduces bit by
bit. The order of phases and tiles: wheel, `tt_metal/tt-llk/tt_llk_wormhole_b0/llk_lib/llk_math_matmul.h`.
"""

import torch

from models.mock.golden.rounding import half_away, significant

EXACT_MULTIPLICATIONS = 2**15
"""Products with more multiplications than this are summed in the fast form.

Golden execution runs whole models, and the exact form takes about fifty times as long.
"""

Phases = list[tuple[torch.Tensor, torch.Tensor, int]]
"""Per fidelity phase both operands, and the exponent of their product below that of the whole operands' product."""

_GROUP, _DEPTH, _TILE = 8, 16, 32
_KEPT = 10  # Bits behind the largest exponent of a group.
_ABSENT = -100.0  # Exponent of zero: below that of any product, and 2 to its negative is a float32.


def summed(
    a: torch.Tensor, b: torch.Tensor, phases: Phases, *, float32: bool, start: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `start` plus the sum over the phases of `a @ b`, in a float32 or bfloat16 register.

    `a` and `b` are the whole operands, which alone decide how products are aligned.
    """
    multiplications = a.numel() * b.shape[-1]
    if multiplications <= EXACT_MULTIPLICATIONS:
        return exact(a, b, phases, float32=float32, start=start)
    return fast(phases, float32=float32, start=start)


def fast(phases: Phases, *, float32: bool, start: torch.Tensor | None = None) -> torch.Tensor:
    """Sum in float32, or in a bfloat16 register per instruction, without the rounding within groups.

    That rounding adds noise of 3.5e-4 of the result and no bias.
    """
    out = torch.zeros(()) if start is None else start
    if float32:
        return sum((torch.matmul(x, y) for x, y, _ in phases), start=out)
    inner = phases[0][0].shape[-1]
    for tile in range(0, inner, _TILE):
        for x, y, _ in phases:
            for start in range(tile, min(tile + _TILE, inner), _DEPTH):
                part = slice(start, start + _DEPTH)
                out = significant(out + torch.matmul(x[..., part], y[..., part, :]), 8)
    return out


def exact(
    a: torch.Tensor, b: torch.Tensor, phases: Phases, *, float32: bool, start: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum bit by bit as the matrix engine does."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns, inner = a.shape[-2], b.shape[-1], a.shape[-1]
    wanted = (-inner) % _TILE

    def groups(x: torch.Tensor, *, first: bool, value: float = 0.0) -> torch.Tensor:
        """Give [batch, rows, groups, 1, 8] of the first operand and [batch, 1, groups, columns, 8] of the second."""
        x = x if first else x.mT
        x = torch.nn.functional.pad(x, (0, wanted), value=value).expand(*batch, *x.shape[-2:-1], -1)
        x = x.reshape(-1, x.shape[-2], (inner + wanted) // _GROUP, _GROUP)
        return x[:, :, :, None] if first else x.transpose(1, 2)[:, None]

    ea, eb = groups(_exponent(a), first=True, value=_ABSENT), groups(_exponent(b), first=False, value=_ABSENT)
    top = _largest(ea, eb)
    parts = [(groups(x, first=True), groups(y, first=False), below) for x, y, below in phases]
    sums = [_group_sums(x, y, top - below) for x, y, below in parts]
    first = torch.zeros(()) if start is None else start
    out = first.double().expand(*batch, rows, columns).reshape(-1, rows, columns)
    for tile in range(0, top.shape[2], _TILE // _GROUP):
        for (_, _, below), terms in zip(parts, sums, strict=True):
            for at in (tile, tile + 2):
                pair = slice(at, at + 2)
                out = _accumulated(out, terms[:, :, pair], top[:, :, pair] - below, float32=float32)
    return out.float().reshape(*batch, rows, columns)


def _largest(ea: torch.Tensor, eb: torch.Tensor) -> torch.Tensor:
    """Return the largest exponent of the products of each group: [batch, rows, groups, columns]."""
    top = ea[..., 0] + eb[..., 0]
    for j in range(1, _GROUP):
        top = torch.maximum(top, ea[..., j] + eb[..., j])
    return top.clamp(min=_ABSENT)


def _group_sums(x: torch.Tensor, y: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """Return the sum of each group's products, each rounded at 2^-10 of the largest exponent."""
    scale = _power(_KEPT - top)
    total = torch.zeros(())
    for j in range(_GROUP):
        total = total + half_away(x[..., j] * y[..., j] * scale)
    return total.double() * _power((top - _KEPT).double())


def _accumulated(out: torch.Tensor, terms: torch.Tensor, tops: torch.Tensor, *, float32: bool) -> torch.Tensor:
    """Add two group sums [batch, rows, 2, columns] to the register."""
    top = torch.maximum(tops.amax(2).double(), _exponent(out))
    behind, bits = (23, 24) if float32 else (_KEPT, 8)
    unit = _power(top - behind)
    added = torch.floor(terms / unit[:, :, None] + 0.5).sum(2)
    return significant((added + half_away(out / unit)) * unit, bits)


def _exponent(x: torch.Tensor) -> torch.Tensor:
    """Return the exponents of `x` as floats; zeros have a very low one."""
    exponent = (torch.frexp(x).exponent - 1).to(x.dtype)
    return torch.where(x == 0, torch.full_like(exponent, _ABSENT), exponent)


def _power(exponent: torch.Tensor) -> torch.Tensor:
    return torch.exp2(exponent)
