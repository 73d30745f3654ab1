"""Golden rules of the ops that only the text encoder uses."""

import torch
import ttnn

from models.mock.golden.fidelity import plus, times
from models.mock.golden.ops_norm import row_sums
from models.mock.golden.rounding import to_tf32
from models.mock.golden.rules import local_rule


@local_rule("ttnn.embedding", source="ttnn/operations/embedding/device/kernels/dataflow/embeddings_tilize.cpp")
def embedding(input_tensor, weight):
    """Return rows of the table by index: [B, L] -> [B, L, width]."""
    return weight.reshape(-1, weight.shape[-1])[input_tensor.long()]


@local_rule(
    "ttnn.gelu",
    source="tt_metal/hw/ckernels/wormhole_b0/metal/llk_api/llk_sfpu/ckernel_sfpu_gelu.h: calculate_gelu_tanh",
)
def gelu(input_tensor, *, variant=ttnn.GeluVariant.Accurate):
    """Return GELU by the error function, or in its tanh form."""
    if variant == ttnn.GeluVariant.FastLut:
        raise ValueError("the piecewise linear GELU is not covered by this golden")
    return torch.nn.functional.gelu(input_tensor, approximate="tanh" if variant == ttnn.GeluVariant.Tanh else "none")


@local_rule(
    "ttnn.softmax",
    source="ttnn/operations/normalization/softmax/device/kernels/attention/compute/softmax_large_tensor.cpp: padded "
    "columns of the last tile are masked, the maximum is subtracted",
    dtypes=True,
)
def softmax(input_tensor, dim: int = -1, *, numeric_stable: bool = True, compute_kernel_config=None, dtypes: list):
    """Compute softmax over the logical columns of float32 values.

    All but the exponential and the inverse is of the matrix engine.
    """
    if dim not in (-1, input_tensor.ndim - 1) or not numeric_stable:
        raise ValueError(f"softmax over dim {dim}, or not stable, is not covered by this golden")
    if dtypes[0] != ttnn.float32 or compute_kernel_config is None or not compute_kernel_config.fp32_dest_acc_en:
        raise ValueError("softmax of other types than float32, or without fp32_dest_acc_en, is not covered")
    highest = to_tf32(input_tensor).amax(-1, keepdim=True)
    weights = torch.exp(plus(input_tensor, -highest))
    return times(weights, 1 / row_sums(weights), compute_kernel_config.math_fidelity)
