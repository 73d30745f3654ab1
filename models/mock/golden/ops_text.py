"""Golden rules of the ops that only the text encoder uses."""

import torch
import ttnn

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
)
def softmax(input_tensor, dim: int = -1, *, numeric_stable: bool = True):
    """Compute softmax over the logical columns."""
    if dim not in (-1, input_tensor.ndim - 1):
        raise ValueError(f"softmax over dim {dim} is not covered by this golden: the last one is")
    return torch.softmax(input_tensor, dim=-1)
