"""Compute settings that the layers share."""

import ttnn


def accurate() -> ttnn.WormholeComputeKernelConfig:
    """Return HiFi4 with float32 accumulation, for norms and small projections that run once."""
    return matrix(ttnn.MathFidelity.HiFi4)


def matrix(fidelity: ttnn.MathFidelity = ttnn.MathFidelity.HiFi2) -> ttnn.WormholeComputeKernelConfig:
    """Return float32 accumulation at a fidelity.

    At HiFi2 the first operand loses its last bit. At HiFi4 neither operand loses a bit.
    """
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=fidelity,
        math_approx_mode=False,
        fp32_dest_acc_en=True,
        packer_l1_acc=True,
    )


def bfloat16_accumulation() -> ttnn.WormholeComputeKernelConfig:
    """Return HiFi2 with bfloat16 results between the steps, as ttnn's streaming attention kernel needs it."""
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity.HiFi2,
        math_approx_mode=False,
        fp32_dest_acc_en=False,
        packer_l1_acc=True,
    )
