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

from models.mock.golden.rounding import half_away, power, round_to, significant, to_tf32
from models.mock.golden.sums import Phases, accumulated, exact, summed

_SRC_A_HIGH, _SRC_A_ALL = 4, 9
_SRC_B_HIGH = 6
# Exponent of a phase's product below that of the whole operands' product.
_BELOW = (0, 5, 7, 12)
_FIDELITIES = (ttnn.MathFidelity.LoFi, ttnn.MathFidelity.HiFi2, ttnn.MathFidelity.HiFi3, ttnn.MathFidelity.HiFi4)
TILE = 32


def truncate(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Cut the mantissas of float32 values off after `bits` bits, the implicit bit not counted."""
    return (value.contiguous().view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    config: ttnn.WormholeComputeKernelConfig,
    fidelity: ttnn.MathFidelity | None = None,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `a @ b` as the matrix engine multiplies at `config`'s fidelity, or at `fidelity` if given.

    `start` is what the register holds before. Sums are float32, or bfloat16 if the config does not set
    `fp32_dest_acc_en`; see `sums`.
    """
    fidelity = fidelity or config.math_fidelity
    if not config.fp32_dest_acc_en or exact():
        a, b = to_tf32(a), to_tf32(b)
        phases = [(y, x, below) for x, y, below in _phases(b, a, fidelity)]
        return summed(a, b, phases, float32=config.fp32_dest_acc_en, start=start)
    out = start
    for source_a, source_b in factors(b, a, fidelity):
        part = torch.matmul(source_b, source_a)
        out = part if out is None else out + part
    assert out is not None
    return out


def times(
    source_a: torch.Tensor, source_b: torch.Tensor, fidelity: ttnn.MathFidelity, *, float32: bool = True
) -> torch.Tensor:
    """Return the elementwise product in the matrix engine, of SrcA and SrcB, before it is packed.

    A float32 register holds it exactly; a bfloat16 one is rounded after each phase. Source: wheel,
    `tt_metal/tt-llk/tt_llk_wormhole_b0/llk_lib/llk_math_eltwise_binary.h`: the phases are those of a product of
    matrices.
    """
    if float32:
        (x, y), *rest = factors(source_a, source_b, fidelity)
        out = x * y
        for x, y in rest:
            out = out + x * y
        return out
    phases = _phases(to_tf32(source_a), to_tf32(source_b), fidelity)
    out = significant(phases[0][0] * phases[0][1], 8)
    for x, y, _ in phases[1:]:
        out = accumulated(out, [x * y], torch.frexp(x * y).exponent - 1, float32=False)
    return out


def plus(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the elementwise sum in the matrix engine, before it is packed.

    Both operands are cut to TF32, and the smaller one is rounded half away from zero to the position of the larger
    one's last bit. Source: outputs of the kernels (`tests/mock/golden/vectors`); wheel,
    `tt_metal/tt-llk/tt_llk_wormhole_b0/llk_lib/llk_math_eltwise_binary.h` (ELWADD, ELWSUB).
    """
    a, b = to_tf32(a), to_tf32(b)
    largest = torch.maximum(a.abs(), b.abs())
    exponent = torch.frexp(largest).exponent.clamp(-100, 127) - 11
    per_unit = power(-exponent)
    return (half_away(a * per_unit) + half_away(b * per_unit)) * power(exponent)


def factors(
    source_a: torch.Tensor, source_b: torch.Tensor, fidelity: ttnn.MathFidelity
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the fewest pairs of SrcA and SrcB whose products make the sum of all phases."""
    if fidelity == ttnn.MathFidelity.LoFi:
        return [(truncate(source_a, _SRC_A_HIGH), truncate(source_b, _SRC_B_HIGH))]
    a_all = truncate(source_a, _SRC_A_ALL)
    if fidelity == ttnn.MathFidelity.HiFi4:
        return [(a_all, to_tf32(source_b))]
    b_high = truncate(source_b, _SRC_B_HIGH)
    if fidelity == ttnn.MathFidelity.HiFi2:
        return [(a_all, b_high)]
    return [(a_all, b_high), (truncate(source_a, _SRC_A_HIGH), to_tf32(source_b) - b_high)]


def _phases(source_a: torch.Tensor, source_b: torch.Tensor, fidelity: ttnn.MathFidelity) -> Phases:
    """Return the operands of each phase, SrcA first."""
    count = _FIDELITIES.index(fidelity) + 1
    a_high, b_high = truncate(source_a, _SRC_A_HIGH), truncate(source_b, _SRC_B_HIGH)
    phases = [(a_high, b_high)]
    if count > 1:
        a_low = truncate(source_a, _SRC_A_ALL) - a_high
        phases.append((a_low, b_high))
    if count > 2:
        b_low = source_b - b_high
        phases += [(a_high, b_low), (a_low, b_low)]
    return [(x, y, below) for (x, y), below in zip(phases[:count], _BELOW, strict=False)]


def register(value: torch.Tensor, config: ttnn.WormholeComputeKernelConfig) -> torch.Tensor:
    """Round to what the destination register holds: float32, or bfloat16 without `fp32_dest_acc_en`."""
    return value if config.fp32_dest_acc_en else significant(value, 8)


def added_in_l1(
    held: torch.Tensor | None, value: torch.Tensor, config: ttnn.WormholeComputeKernelConfig
) -> torch.Tensor:
    """Add the register to what L1 holds, as the packer does: float32, or bfloat16 half to even."""
    if held is None:
        return value
    total = held + value
    return total if config.fp32_dest_acc_en else round_to(total, ttnn.bfloat16)
