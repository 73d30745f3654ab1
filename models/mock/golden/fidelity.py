"""Mantissa bits of its operands that the matrix engine multiplies, at each math fidelity.

The multipliers of Wormhole take at most 5 bits of one operand (SrcA: the implicit bit and four of the mantissa) and 7
bits of the other (SrcB: the implicit bit and six) at a time. The fidelity is the number of these products that are
summed. LoFi takes only the high parts. HiFi2 adds SrcA's next five bits. HiFi3 adds SrcB's remaining bits times SrcA's
high part. HiFi4 adds the product of both low parts. SrcA's last TF32 bit takes part in no product.

Source: tt-isa-documentation `WormholeB0/TensixTile/TensixCoprocessor/SrcASrcB.md`, "Fidelity phases (floating-point)".
In a matrix product the first operand goes to SrcB and the second to SrcA: wheel,
`tt_metal/tt-llk/tt_llk_wormhole_b0/llk_lib/llk_unpack_AB_matmul.h`.
"""

import torch
import ttnn

from models.mock.golden.rounding import to_tf32

_SRC_A_HIGH, _SRC_A_ALL = 4, 9
_SRC_B_HIGH = 6
_DEPTH = 16  # Elements of the inner dimension in one instruction.
TILE = 32


def truncate(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Cut the mantissas of float32 values off after `bits` bits, the implicit bit not counted."""
    return (value.contiguous().view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    config: ttnn.WormholeComputeKernelConfig | None,
    fidelity: ttnn.MathFidelity | None = None,
) -> torch.Tensor:
    """Return `a @ b` as the matrix engine multiplies at `config`'s fidelity, or at `fidelity` if given.

    Sums are float32, or bfloat16 if the config does not set `fp32_dest_acc_en`. Without a config all bits of TF32 are
    multiplied.
    """
    a, b = to_tf32(a), to_tf32(b)
    if config is None:
        return torch.matmul(a, b)
    fidelity = fidelity or config.math_fidelity
    return _in_float32(a, b, fidelity) if config.fp32_dest_acc_en else _in_bfloat16(a, b, fidelity)


def _in_float32(a: torch.Tensor, b: torch.Tensor, fidelity: ttnn.MathFidelity) -> torch.Tensor:
    """Sum the products of the phases in float32, where their order does not matter."""
    a_high = truncate(a, _SRC_B_HIGH)
    if fidelity == ttnn.MathFidelity.LoFi:
        return torch.matmul(a_high, truncate(b, _SRC_A_HIGH))
    b_all = truncate(b, _SRC_A_ALL)
    if fidelity == ttnn.MathFidelity.HiFi4:
        return torch.matmul(a, b_all)
    out = torch.matmul(a_high, b_all)
    if fidelity == ttnn.MathFidelity.HiFi3:
        out = out + torch.matmul(a - a_high, truncate(b, _SRC_A_HIGH))
    return out


def _in_bfloat16(a: torch.Tensor, b: torch.Tensor, fidelity: ttnn.MathFidelity) -> torch.Tensor:
    """Sum the products of the phases in a bfloat16 accumulator `Dst`: each instruction rounds its sum.

    An instruction multiplies 16 elements of the inner dimension. The phases run one after another within a 32 x 32
    tile. Source: tt-isa-documentation `WormholeB0/TensixTile/TensixCoprocessor/MVMUL.md` (functional model, "a rough
    guide") and `MatrixUnit.md` ("real hardware rounds": to nearest here).
    """
    a_high, b_high = truncate(a, _SRC_B_HIGH), truncate(b, _SRC_A_HIGH)
    a_low, b_low = a - a_high, truncate(b, _SRC_A_ALL) - b_high
    names = [ttnn.MathFidelity.LoFi, ttnn.MathFidelity.HiFi2, ttnn.MathFidelity.HiFi3, ttnn.MathFidelity.HiFi4]
    phases = [(a_high, b_high), (a_high, b_low), (a_low, b_high), (a_low, b_low)][: names.index(fidelity) + 1]
    inner = a.shape[-1]
    out = torch.zeros(())
    for tile in range(0, inner, TILE):
        for x, y in phases:
            for start in range(tile, min(tile + TILE, inner), _DEPTH):
                part = slice(start, start + _DEPTH)
                out = (out + torch.matmul(x[..., part], y[..., part, :])).to(torch.bfloat16).to(torch.float32)
    return out
