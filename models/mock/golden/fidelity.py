"""Which mantissa bits of its operands the matrix engine multiplies, at each math fidelity.

The multipliers of Wormhole take at most 5 bits of one operand (SrcA: the implicit one and four of the mantissa) and 7
of the other (SrcB: the implicit one and six) at a time. A fidelity is how many of these products are summed: LoFi takes
the high parts alone, HiFi2 adds SrcA's next five bits, HiFi3 adds SrcB's remaining bits times SrcA's high part, HiFi4
adds the product of both low parts. SrcA's last TF32 bit takes part in none.

Source: tt-isa-documentation ``WormholeB0/TensixTile/TensixCoprocessor/SrcASrcB.md``, "Fidelity phases
(floating-point)". In a matrix product the first operand goes to SrcB and the second to SrcA: wheel,
``tt_metal/tt-llk/tt_llk_wormhole_b0/llk_lib/llk_unpack_AB_matmul.h``.
"""

import torch
import ttnn

from models.mock.golden.rounding import to_tf32

_SRC_A_HIGH, _SRC_A_ALL = 4, 9
_SRC_B_HIGH = 6


def truncate(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Cut the mantissas of float32 values off behind ``bits`` bits, the implicit one not counted."""
    return (value.contiguous().view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def product(a: torch.Tensor, b: torch.Tensor, config: ttnn.WormholeComputeKernelConfig | None) -> torch.Tensor:
    """``a @ b`` as the matrix engine multiplies at ``config``'s fidelity, accumulated in float32.

    Without a config every bit that TF32 has is multiplied. Not modelled: accumulation in bfloat16, which is what a
    config without ``fp32_dest_acc_en`` asks for.
    """
    a, b = to_tf32(a), to_tf32(b)
    if config is None:
        return torch.matmul(a, b)
    fidelity = config.math_fidelity
    if fidelity == ttnn.MathFidelity.LoFi:
        return torch.matmul(truncate(a, _SRC_B_HIGH), truncate(b, _SRC_A_HIGH))
    b = truncate(b, _SRC_A_ALL)
    if fidelity == ttnn.MathFidelity.HiFi4:
        return torch.matmul(a, b)
    high = truncate(a, _SRC_B_HIGH)
    out = torch.matmul(high, b)
    if fidelity == ttnn.MathFidelity.HiFi3:
        out = out + torch.matmul(a - high, truncate(b, _SRC_A_HIGH))
    return out
