"""Matrix products, heads and the rotary embedding against PyTorch, with other data on every chip."""

import pytest
import torch
import ttnn

from models.mock.golden.fidelity import truncate
from tests.mock.golden.chips import bf16, tf32

CONFIG = ttnn.WormholeComputeKernelConfig(
    math_fidelity=ttnn.MathFidelity.HiFi4, math_approx_mode=False, fp32_dest_acc_en=True, packer_l1_acc=True
)


@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.float32])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_linear(chips, dtype, activation):
    x, w, b = chips.random(1, 2, 40, 64), chips.random(1, 1, 64, 96), chips.random(1, 1, 1, 96)
    out = ttnn.linear(
        chips.put(x), chips.put(w), bias=chips.put(b), activation=activation, dtype=dtype, compute_kernel_config=CONFIG
    )

    def reference(x, w, b):
        y = tf32(x @ w) + b
        return y if activation is None else torch.nn.functional.silu(y)

    # 11 bits of sums of up to 32, and an activation of them rounded to the output's dtype.
    chips.check(out, reference, x, w, b, dtype=dtype, atol=2**-6 if dtype == ttnn.float32 else 2**-4)


def test_linear_without_bias_is_a_float32_sum(chips):
    x, w = chips.random(1, 1, 32, 256), chips.random(1, 1, 256, 32)
    out = ttnn.linear(chips.put(x), chips.put(w), dtype=ttnn.float32, compute_kernel_config=CONFIG)
    chips.check(out, torch.matmul, x, w, dtype=ttnn.float32, atol=1e-4)


@pytest.mark.parametrize("op", [ttnn.linear, ttnn.matmul])
def test_float32_operands_are_read_as_tf32(chips, op):
    x, w = chips.random(1, 1, 32, 64, dtype=ttnn.float32), chips.random(1, 1, 64, 32, dtype=ttnn.float32)
    out = op(chips.put(x, ttnn.float32), chips.put(w, ttnn.float32), compute_kernel_config=CONFIG)
    # The second operand goes to SrcA, whose multipliers never see the last bit of TF32.
    chips.check(out, lambda a, b: tf32(a) @ truncate(b, 9), x, w, dtype=ttnn.float32, atol=1e-5)
    exact = [a @ b for a, b in zip(x, w, strict=True)]
    assert max((a - b).abs().max() for a, b in zip(chips.get(out), exact, strict=True)) > 1e-3


def test_matmul_transposed(chips):
    x, w = chips.random(1, 1, 64, 32), chips.random(1, 1, 96, 64)
    out = ttnn.matmul(chips.put(x), chips.put(w), transpose_a=True, transpose_b=True, compute_kernel_config=CONFIG)
    chips.check(out, lambda a, b: a.mT @ b.mT, x, w, atol=1e-3)


def test_an_activation_in_the_program_config_is_refused(chips):
    x = chips.same(torch.ones(1, 1, 32, 32))
    config = ttnn.MatmulMultiCoreReuseMultiCast1DProgramConfig(
        compute_with_storage_grid_size=(1, 1),
        in0_block_w=1,
        out_subblock_h=1,
        out_subblock_w=1,
        per_core_M=1,
        per_core_N=1,
        fuse_batch=True,
        fused_activation=ttnn.UnaryWithParam(ttnn.UnaryOpType.RELU),
        mcast_in0=True,
    )
    with pytest.raises(RuntimeError, match=r"ttnn\.linear at .*activation in the program config"):
        ttnn.linear(x, x, program_config=config)


def test_create_heads(chips):
    qkv = chips.random(1, 1, 40, 3 * 2 * 32)
    outputs = ttnn.experimental.nlp_create_qkv_heads(
        chips.put(qkv), num_heads=2, num_kv_heads=2, transpose_k_heads=False
    )
    for part, out in enumerate(outputs):
        chips.check(out, lambda x, p=part: x[0].unflatten(-1, (3, 2, 32))[:, :, p].transpose(1, 2), qkv)
    _, k, _ = ttnn.experimental.nlp_create_qkv_heads(chips.put(qkv), num_heads=2)
    chips.check(k, lambda x: x[0].unflatten(-1, (3, 2, 32))[:, :, 1].permute(0, 2, 3, 1), qkv)


def test_concat_heads(chips):
    x = chips.random(1, 2, 40, 32)
    out = ttnn.experimental.nlp_concat_heads(chips.put(x))
    chips.check(out, lambda v: v.transpose(1, 2).reshape(1, 1, 40, 64), x)


def test_rotary_embedding_turns_pairs(chips):
    x, angle = chips.random(1, 2, 64, 64), chips.random(1, 2, 64, 32, seed="angle")
    cos, sin = ([bf16(f(a)).repeat_interleave(2, -1) for a in angle] for f in (torch.cos, torch.sin))
    rotate = torch.zeros(1, 1, 32, 32)
    for pair in range(0, 32, 2):
        rotate[0, 0, pair + 1, pair], rotate[0, 0, pair, pair + 1] = -1.0, 1.0
    out = ttnn.experimental.rotary_embedding_llama(
        chips.put(x), chips.put(cos), chips.put(sin), chips.same(rotate), is_decode_mode=False
    )

    def reference(x, cos, sin):
        a, b = x[..., ::2], x[..., 1::2]
        c, s = cos[..., ::2], sin[..., ::2]
        turned = torch.stack([bf16(a * c) - bf16(b * s), bf16(b * c) + bf16(a * s)], dim=-1)
        return turned.flatten(-2)

    # Both products, of up to 4, are rounded phase by phase in a bfloat16 register, and then their sum.
    chips.check(out, reference, x, cos, sin, atol=2**-4)
