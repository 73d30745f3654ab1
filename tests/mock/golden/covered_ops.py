"""The ops that have a test of their golden values, by name, so that another test can ask for the rest."""

from collections.abc import Iterable

_TRANSFORMER = ("", "joint_", "ring_joint_")
COVERED = {
    *(f"ttnn.{name}" for name in ("add", "subtract", "multiply", "rsub", "add_", "subtract_", "multiply_")),
    *(f"ttnn.{name}" for name in ("eq", "ne", "gt", "ge", "lt", "le")),
    *(f"ttnn.{name}" for name in ("silu", "tanh", "cos", "sin", "typecast")),
    *(f"ttnn.{name}" for name in ("linear", "matmul", "mean", "sum", "rms_norm")),
    *(f"ttnn.{norm}_norm_{when}_all_gather" for norm in ("rms", "layer") for when in ("pre", "post")),
    *(f"ttnn.{name}" for name in ("slice", "squeeze", "concat", "reshape", "permute", "pad", "copy", "clone")),
    *(f"ttnn.{name}" for name in ("to_layout", "to_memory_config", "tilize", "untilize", "reallocate")),
    *(f"ttnn.{name}" for name in ("embedding", "gelu", "softmax")),
    *(f"ttnn.{name}" for name in ("zeros", "ones", "full")),
    *(f"ttnn.{name}" for name in ("all_gather", "reduce_scatter", "all_reduce", "mesh_partition")),
    *(f"ttnn.experimental.{name}" for name in ("all_gather_async", "reduce_scatter_minimal_async")),
    *(f"ttnn.experimental.{name}" for name in ("nlp_create_qkv_heads", "nlp_concat_heads", "rotary_embedding_llama")),
    *(f"ttnn.experimental.{name}" for name in ("minimal_matmul", "minimal_matmul_split")),
    *(f"ttnn.experimental.{name}" for name in ("all_gather_minimal_matmul_async", "dit_fused_distributed_rmsnorm")),
    *(f"ttnn.transformer.{kind}scaled_dot_product_attention" for kind in _TRANSFORMER),
}


def uncovered(ops_seen: Iterable[str]) -> set[str]:
    """Those of ``ops_seen`` (an engine's) whose golden values no test compares with PyTorch's."""
    return set(ops_seen) - COVERED
