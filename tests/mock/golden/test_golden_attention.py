"""Attention against a softmax written out in PyTorch, with other data on every chip."""

import pytest
import torch
import ttnn

from models.reference.metrics import relative_rmse
from tests.mock.golden.chips import ROWS, group

SCALE = 0.25  # exact in float32, which the bindings insist on
# Scores of standard deviation 1.4 and probabilities are bfloat16 between the steps, as in the kernels: outputs of
# standard deviation 1 are off by 2 x 2^-9 of a score, in the mean over keys, and by 3 standard deviations at most.
ATOL = 0.03
EXACT = ttnn.MathFidelity.HiFi4


def config(fidelity=EXACT):
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=fidelity, math_approx_mode=False, fp32_dest_acc_en=True, packer_l1_acc=True
    )


def softmax_attention(q, k, v, scale=SCALE):
    return torch.softmax(q @ k.mT * scale, dim=-1) @ v


def program(rows=8):
    return ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=ttnn.CoreCoord(8, rows), q_chunk_size=32, k_chunk_size=32, exp_approx_mode=False
    )


def heads(chips, rows, seed, count=2, width=32):
    return [chips.random(1, count, rows, width, seed=(seed, kind)) for kind in "qkv"]


def joined(a, b):
    return [torch.cat([p, q], dim=2) for p, q in zip(a, b, strict=True)]


@pytest.mark.parametrize(("q_rows", "k_rows"), [(32, 32), (1, 78), (40, 40)])
def test_attention(chips, q_rows, k_rows):
    q, _, _ = heads(chips, q_rows, "q")
    _, k, v = heads(chips, k_rows, "kv")
    out = ttnn.transformer.scaled_dot_product_attention(
        chips.put(q), chips.put(k), chips.put(v), is_causal=False, scale=SCALE, compute_kernel_config=config()
    )
    chips.check(out, softmax_attention, q, k, v, atol=ATOL)


def test_default_scale_is_that_of_the_padded_head(chips):
    q, k, v = heads(chips, 32, "scale", width=32)
    out = ttnn.transformer.scaled_dot_product_attention(chips.put(q), chips.put(k), chips.put(v), is_causal=False)
    chips.check(out, lambda q, k, v: softmax_attention(q, k, v, 32**-0.5), q, k, v, atol=ATOL)


def test_causal_attention_is_refused(chips):
    q, k, v = (chips.put(x) for x in heads(chips, 32, "causal"))
    with pytest.raises(RuntimeError, match="causal attention"):
        ttnn.transformer.scaled_dot_product_attention(q, k, v)
    mask = chips.same(torch.zeros(1, 1, 32, 32))
    with pytest.raises(RuntimeError, match=r"argument attn_mask=ttnn\.Tensor\(\[1, 1, 32, 32\] .* is not covered"):
        ttnn.transformer.scaled_dot_product_attention(q, k, v, is_causal=False, attn_mask=mask)


@pytest.mark.parametrize(("rows", "text_rows"), [(64, 32), (50, 77), (33, 1)])
def test_joint_attention(chips, rows, text_rows):
    visual, text = heads(chips, rows, "visual"), heads(chips, text_rows, "text")
    spatial, joint = ttnn.transformer.joint_scaled_dot_product_attention(
        *(chips.put(x) for x in visual + text),
        joint_strategy="rear",
        scale=SCALE,
        program_config=program(),
        compute_kernel_config=config(),
    )
    whole = [joined(a, b) for a, b in zip(visual, text, strict=True)]
    chips.check(spatial, lambda q, k, v: softmax_attention(q, k, v)[:, :, :rows], *whole, atol=ATOL)
    chips.check(joint, lambda q, k, v: softmax_attention(q, k, v)[:, :, rows:], *whole, atol=ATOL)


def ring(chips, visual, text, *, tokens, axis):
    _, count, rows, width = visual[0][0].shape
    size = ROWS if axis == 0 else 4
    shape = ttnn.Shape([1, count, rows * size, width])
    buffers = [ttnn.allocate_tensor_on_device(shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, chips.device) for _ in range(2)]
    grid = chips.device.compute_with_storage_grid_size()
    cores = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(grid.x - 1, grid.y - 1))})
    return ttnn.transformer.ring_joint_scaled_dot_product_attention(
        *(chips.put(x) for x in visual),
        *(chips.put(x) if x else None for x in text),
        persistent_output_buffer_k=buffers[0],
        persistent_output_buffer_v=buffers[1],
        joint_strategy="rear",
        logical_n=tokens,
        program_config=program(grid.y - 1),
        scale=SCALE,
        compute_kernel_config=config(),
        dim=2,
        multi_device_global_semaphore=[ttnn.create_global_semaphore(chips.device, cores, 0) for _ in range(2)],
        num_links=1,
        cluster_axis=axis,
        mesh_device=chips.device,
        topology=ttnn.Topology.Linear,
        ccl_core_grid_offset=ttnn.CoreCoord(0, grid.y - 1),
    ), buffers


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("missing", "text_rows"), [(0, 32), (20, 77), (45, 7), (5, 0)])
def test_ring_attention_sees_all_real_keys_and_no_padding(chips, axis, missing, text_rows):
    """Keys of the whole line and the text, less ``missing`` rows of padding at the line's end."""
    visual = heads(chips, 32, "visual")
    text = heads(chips, text_rows, "text") if text_rows else [None, None, None]
    tokens = 32 * (ROWS if axis == 0 else 4) - missing
    for values in visual[1:]:
        for chip, value in enumerate(values):
            first = 32 * group(chip, axis).index(chip)
            value[:, :, max(0, tokens - first) :] = 1e4  # padding that would show
    (spatial, joint, scratch), _ = ring(chips, visual, text, tokens=tokens, axis=axis)

    def line(values, chip):
        return torch.cat([values[i] for i in group(chip, axis)], dim=2)[:, :, :tokens]

    q, k, v = visual
    keys, values = [line(k, i) for i in range(8)], [line(v, i) for i in range(8)]
    if text_rows:
        keys, values = joined(keys, text[1]), joined(values, text[2])
        chips.check(joint, softmax_attention, text[0], keys, values, atol=ATOL)
    chips.check(spatial, softmax_attention, q, keys, values, atol=ATOL)
    assert all(torch.isnan(part).all() for part in chips.get(scratch))


def test_ring_attention_leaves_its_buffers_unreadable(chips):
    (_, _, _), buffers = ring(chips, heads(chips, 32, "v"), heads(chips, 32, "t"), tokens=64, axis=0)
    with pytest.raises(RuntimeError, match="left its scratch values there"):
        ttnn.add(buffers[0], 1.0)


@pytest.mark.parametrize("keys", [32, 200])
def test_rounding_is_that_of_the_kernels(chips, keys):
    """Close to the exact result with the roundings that the kernels make, and clearly off it without them."""
    q = heads(chips, 32, "round")[0]
    _, k, v = heads(chips, keys, "round keys")
    errors = {}
    for fidelity in (EXACT, ttnn.MathFidelity.HiFi2, ttnn.MathFidelity.LoFi):
        out = ttnn.transformer.scaled_dot_product_attention(
            chips.put(q),
            chips.put(k),
            chips.put(v),
            is_causal=False,
            scale=SCALE,
            program_config=program(),
            compute_kernel_config=config(fidelity),
        )
        pairs = zip(chips.get(out), zip(q, k, v, strict=True), strict=True)
        errors[fidelity] = max(
            relative_rmse(softmax_attention(*(p.double() for p in parts)), actual.double()) for actual, parts in pairs
        )
    # 2^-9 of rounding in output and probabilities; a bit of the first operand less; four bits of the second one left.
    assert 0.002 < errors[EXACT] < 0.01
    assert errors[EXACT] < errors[ttnn.MathFidelity.HiFi2] < 0.02
    assert 0.02 < errors[ttnn.MathFidelity.LoFi] < 0.08
