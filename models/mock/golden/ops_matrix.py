"""Golden rules of matrix products, attention heads and the rotary embedding."""

from collections.abc import Callable

import torch
import ttnn

from models.mock.golden.fidelity import TILE, added_in_l1, plus, product, register, times
from models.mock.golden.rounding import packed
from models.mock.golden.rules import local_rule

_TRANSFORMER = "ttnn/operations/experimental/transformer"
_MATMUL = (
    "ttnn/operations/matmul/device/kernels/compute/bmm_large_block_zm_fused_bias_activation.cpp (wheel); "
    "TF32 operands: upstream tech_reports/matrix_engine/matrix_engine.md"
)


@local_rule(
    "ttnn.experimental.nlp_create_qkv_heads",
    source=f"{_TRANSFORMER}/nlp_create_qkv_heads/device/kernels (wheel); upstream "
    "tests/ttnn/nightly/unit_tests/operations/experimental/test_nlp_create_qkv_heads.py",
)
def nlp_create_qkv_heads(
    input, input_kv=None, *, num_heads: int, num_kv_heads: int | None = None, transpose_k_heads: bool = True
):
    """Split fused `[q | k | v]` columns of [B, 1, S, 3 heads d] into three [B, heads, S, d]."""
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if input_kv is not None:
        raise ValueError("input_kv is not covered by this golden")
    width = input.shape[-1] // (num_heads + 2 * kv_heads)
    q, k, v = input.split([num_heads * width, kv_heads * width, kv_heads * width], dim=-1)

    def heads(part: torch.Tensor, count: int) -> torch.Tensor:
        batch, _, rows, _ = part.shape
        return part.reshape(batch, rows, count, width).transpose(1, 2)

    k_heads = heads(k, kv_heads)
    return heads(q, num_heads), k_heads.transpose(2, 3) if transpose_k_heads else k_heads, heads(v, kv_heads)


@local_rule(
    "ttnn.experimental.nlp_concat_heads",
    source=f"{_TRANSFORMER}/nlp_concat_heads/device/kernels (wheel); upstream "
    "tests/ttnn/nightly/unit_tests/operations/experimental/test_nlp_concat_heads.py",
)
def nlp_concat_heads(input_tensor):
    """Reshape [B, heads, S, d] to [B, 1, S, heads d]."""
    batch, heads, rows, width = input_tensor.shape
    return input_tensor.transpose(1, 2).reshape(batch, 1, rows, heads * width)


@local_rule(
    "ttnn.experimental.rotary_embedding_llama",
    source=f"{_TRANSFORMER}/rotary_embedding_llama/device/kernels/compute/rotary_embedding_llama.cpp",
)
def rotary_embedding_llama(
    input_tensor, cos_cache, sin_cache, trans_mat, *, is_decode_mode: bool = False, compute_kernel_config=None
):
    """Return `x cos + (x @ trans_mat) sin`, where the 32x32 `trans_mat` is applied to the columns of each tile.

    The default config is HiFi4 with a bfloat16 register. The kernel packs the rotated tile and both products to
    intermediate buffers of the input's dtype (bfloat16) before it adds them. The golden rounds at the same places.
    """
    if is_decode_mode:
        raise ValueError("decode mode is not covered by this golden")
    if compute_kernel_config is not None:
        raise ValueError("a compute config is not covered by this golden: the op's default is")

    def stored(value: torch.Tensor) -> torch.Tensor:
        return packed(value, ttnn.bfloat16)

    tile = trans_mat.reshape(32, 32)
    rotated = stored((input_tensor.unflatten(-1, (-1, 32)) @ tile).flatten(-2))
    by_cos = times(input_tensor, cos_cache, ttnn.MathFidelity.HiFi4, float32=False)
    by_sin = times(rotated, sin_cache, ttnn.MathFidelity.HiFi4, float32=False)
    return plus(stored(by_cos), stored(by_sin))


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
}


def _default_config(dtype: ttnn.DataType) -> ttnn.WormholeComputeKernelConfig:
    """Return what the op computes with if it is given no config: upstream matmul/device/matmul_device_operation.cpp."""
    exact = dtype == ttnn.float32
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity.HiFi4 if exact else ttnn.MathFidelity.HiFi2,
        math_approx_mode=False,
        fp32_dest_acc_en=exact,
        packer_l1_acc=True,
    )


def _product(a: torch.Tensor, b: torch.Tensor, config, program_config, *, biased: bool) -> torch.Tensor:
    """Multiply block by block of the inner dimension.

    The packer adds up the blocks' sums. Without a bias the last block continues in the register what the others gave.
    The host chooses the blocks: of 4, 2 or 1 tiles in the kernels that were run.
    """
    tiles = -(-a.shape[-1] // TILE)
    width = getattr(program_config, "in0_block_w", None) or next(w for w in (4, 2, 1) if tiles % w == 0)
    blocks = list(zip(a.split(width * TILE, -1), b.split(width * TILE, -2), strict=True))
    out = None
    for index, (x, y) in enumerate(blocks):
        if out is not None and (not config.packer_l1_acc or (index == len(blocks) - 1 and not biased)):
            out = product(x, y, config, start=out)
        else:
            out = added_in_l1(out, product(x, y, config), config)
    assert out is not None
    return out


def _linear(
    a, b, bias, transpose_a: bool, transpose_b: bool, activation, program_config, config, dtype, dtypes: list
) -> torch.Tensor:
    if getattr(program_config, "fused_activation", None) is not None:
        raise ValueError("an activation in the program config is not covered by this golden")
    dtype = dtype or dtypes[0]
    config = config or _default_config(dtype)
    a = a.transpose(-2, -1) if transpose_a else a
    b = b.transpose(-2, -1) if transpose_b else b
    out = _product(a, b, config, program_config, biased=bias is not None)
    if bias is not None:
        if bias.numel() != bias.shape[-1]:
            raise ValueError(f"bias of shape {tuple(bias.shape)} is not one row")
        out = register(plus(out, bias.reshape(-1)), config)
    if activation is None:
        return out
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not covered by this golden")
    return _ACTIVATIONS[activation](packed(out, dtype))


@local_rule("ttnn.linear", source=_MATMUL, dtypes=True)
def linear(
    input_tensor_a,
    input_tensor_b,
    *,
    bias=None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    activation=None,
    program_config=None,
    compute_kernel_config=None,
    dtype=None,
    dtypes: list,
):
    """Return `activation(a @ b + bias)`.

    The math fidelity decides which bits are multiplied (`fidelity.product`). The bias is added in the matrix engine
    (`fidelity.plus`). An activation by name is an op of its own on the output as it is stored.
    """
    a, b = input_tensor_a, input_tensor_b
    config, program = compute_kernel_config, program_config
    return _linear(a, b, bias, transpose_a, transpose_b, activation, program, config, dtype, dtypes)


@local_rule("ttnn.matmul", source=_MATMUL, dtypes=True)
def matmul(
    input_tensor_a,
    input_tensor_b,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    activation=None,
    program_config=None,
    compute_kernel_config=None,
    dtype=None,
    dtypes: list,
):
    """Return `activation(a @ b)`; see `linear`."""
    a, b = input_tensor_a, input_tensor_b
    config, program = compute_kernel_config, program_config
    return _linear(a, b, None, transpose_a, transpose_b, activation, program, config, dtype, dtypes)
