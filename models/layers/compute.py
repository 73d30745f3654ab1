"""Compute settings shared by the layers."""

import ttnn


def accurate() -> ttnn.WormholeComputeKernelConfig:
    """HiFi4 with float32 accumulation: for norms and small one-off projections."""
    return matrix(ttnn.MathFidelity.HiFi4)


def matrix(fidelity: ttnn.MathFidelity = ttnn.MathFidelity.HiFi2) -> ttnn.WormholeComputeKernelConfig:
    """Float32 accumulation at a fidelity; at HiFi2 the first operand loses its last bit, at HiFi4 neither does."""
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=fidelity,
        math_approx_mode=False,
        fp32_dest_acc_en=True,
        packer_l1_acc=True,
    )


def bfloat16_accumulation() -> ttnn.WormholeComputeKernelConfig:
    """HiFi2 with results in bfloat16 between the steps: what ttnn's streaming attention kernel wants."""
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity.HiFi2,
        math_approx_mode=False,
        fp32_dest_acc_en=False,
        packer_l1_acc=True,
    )
