"""Golden rules of per-device ops for which ttnn has no golden function, or one that is not what the kernel does."""

import torch

from models.mock.golden.rounding import to_tf32
from models.mock.golden.rules import local_rule

_TRANSFORMER = "ttnn/operations/experimental/transformer"


@local_rule(
    "ttnn.experimental.nlp_create_qkv_heads",
    source=f"{_TRANSFORMER}/nlp_create_qkv_heads docstring and "
    "tests/ttnn/nightly/unit_tests/operations/experimental/test_nlp_create_qkv_heads.py",
)
def nlp_create_qkv_heads(
    x, input_kv=None, *, num_heads: int, num_kv_heads: int | None = None, transpose_k_heads: bool = True
):
    """Split fused ``[q | k | v]`` columns of [B, 1, S, 3 heads d] into three [B, heads, S, d]."""
    kv_heads = num_kv_heads or num_heads
    if input_kv is not None:
        raise ValueError("input_kv is not covered by this golden")
    width = x.shape[-1] // (num_heads + 2 * kv_heads)
    q, k, v = x.split([num_heads * width, kv_heads * width, kv_heads * width], dim=-1)

    def heads(part: torch.Tensor, count: int) -> torch.Tensor:
        batch, _, rows, _ = part.shape
        return part.reshape(batch, rows, count, width).transpose(1, 2)

    k_heads = heads(k, kv_heads)
    return heads(q, num_heads), k_heads.transpose(2, 3) if transpose_k_heads else k_heads, heads(v, kv_heads)


@local_rule(
    "ttnn.experimental.nlp_concat_heads",
    source="tests/ttnn/nightly/unit_tests/operations/experimental/test_nlp_concat_heads.py",
)
def nlp_concat_heads(x):
    """[B, heads, S, d] -> [B, 1, S, heads d]."""
    batch, heads, rows, width = x.shape
    return x.transpose(1, 2).reshape(batch, 1, rows, heads * width)


@local_rule(
    "ttnn.experimental.rotary_embedding_llama",
    source=f"{_TRANSFORMER}/rotary_embedding_llama/device/kernels/compute/rotary_embedding_llama.cpp",
)
def rotary_embedding_llama(x, cos, sin, trans_mat, *, is_decode_mode: bool = False):
    """``x cos + (x @ trans_mat) sin``, the 32x32 ``trans_mat`` applied to each tile's columns.

    The kernel packs the rotated tile and both products to intermediate buffers of the input's dtype (bfloat16)
    before it adds them; the golden rounds there too.
    """
    if is_decode_mode:
        raise ValueError("decode mode is not covered by this golden")

    def packed(value: torch.Tensor) -> torch.Tensor:
        return value.to(torch.bfloat16).to(torch.float32)

    tile = trans_mat.reshape(32, 32)
    rotated = packed((x.unflatten(-1, (-1, 32)) @ tile).flatten(-2))
    return packed(x * cos) + packed(rotated * sin)


@local_rule(
    "ttnn.linear",
    source="ttnn.linear's own golden function; operand precision from tech_reports/matrix_engine (Float32 -> Tf32)",
)
def linear(
    a,
    b,
    *,
    bias=None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    activation=None,
    dtype=None,
    **options,
):
    """``activation(a @ b + bias)`` with float32 operands cut to the matrix engine's 10 mantissa bits."""
    if any(value is not None for value in options.values()):
        raise ValueError(f"options not covered by this golden: {sorted(options)}")
    a, b = (
        to_tf32(a.transpose(-2, -1) if transpose_a else a),
        to_tf32(b.transpose(-2, -1) if transpose_b else b),
    )
    out = torch.matmul(a, b)
    if bias is not None:
        out = out + bias.reshape(-1, bias.shape[-1])[0]
    if activation is None:
        return out
    if activation not in ("silu", "gelu", "relu"):
        raise ValueError(f"activation {activation!r} is not covered by this golden")
    return getattr(torch.nn.functional, activation)(out)


@local_rule("ttnn.matmul", source="as ttnn.linear")
def matmul(a, b, *, transpose_a: bool = False, transpose_b: bool = False, dtype=None, **options):
    """``a @ b``; see `linear`."""
    return linear(a, b, transpose_a=transpose_a, transpose_b=transpose_b, dtype=dtype, **options)
