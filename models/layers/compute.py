"""Compute settings shared by the layers."""

import ttnn


def accurate() -> ttnn.WormholeComputeKernelConfig:
    """HiFi4 with float32 accumulation: for norms and small one-off projections."""
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity.HiFi4,
        math_approx_mode=False,
        fp32_dest_acc_en=True,
        packer_l1_acc=True,
    )


def matrix() -> ttnn.WormholeComputeKernelConfig:
    """HiFi2 with float32 accumulation: bfloat16 operands lose nothing but the last bits of one of them."""
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity.HiFi2,
        math_approx_mode=False,
        fp32_dest_acc_en=True,
        packer_l1_acc=True,
    )
