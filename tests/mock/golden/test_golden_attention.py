"""Attention against a softmax written out in PyTorch, with other data on every chip."""

import pytest
import torch
import ttnn

from models.mock.golden.ops_attention import _attention, approximate_exp
from models.reference.metrics import pcc, relative_rmse
from tests.mock.golden.chips import ROWS, group

SCALE = 0.25  # exact in float32, which the bindings insist on
# Scores of standard deviation 1.4 and probabilities are bfloat16 between the steps, as in the kernels: outputs of
# standard deviation 1 are off by 2 x 2^-9 of a score, in the mean over keys, and by 3 standard deviations at most.
ATOL = 0.03
EXACT = ttnn.MathFidelity.HiFi4
# The older kernel keeps the logarithms of sums, of up to 8, in bfloat16 between the turns of a ring: each merges with a
# share that is off by 2^-6 x 1/4.
TURNS = 2


def config(fidelity=EXACT, *, streaming=False):
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=fidelity, math_approx_mode=False, fp32_dest_acc_en=not streaming, packer_l1_acc=True
    )


def softmax_attention(q, k, v, scale=SCALE):
    return torch.softmax(q @ k.mT * scale, dim=-1) @ v


def program(rows=8, fidelity=None):
    return ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=ttnn.CoreCoord(8, rows),
        q_chunk_size=32,
        k_chunk_size=32,
        exp_approx_mode=False,
        matmul_math_fidelity=fidelity,
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
    out = ttnn.transformer.scaled_dot_product_attention(
        chips.put(q), chips.put(k), chips.put(v), is_causal=False, compute_kernel_config=config()
    )
    chips.check(out, lambda q, k, v: softmax_attention(q, k, v, 32**-0.5), q, k, v, atol=ATOL)


def test_the_scale_between_chunks_has_seven_bits(chips):
    """The first chunk of keys has score 0, the second 56: exp(-56 x scale) of the first chunk's share is kept.

    The kernel holds the scale of that factor in a bfloat16 tile (`_exact`). The streaming kernel does too, but its sums
    are too coarse to show it.
    """
    scale = 0.09997558593750  # of 8 bits after the 1 and more; bfloat16 cuts it to 0.099609375
    q, k, v = (torch.zeros(1, 2, rows, 32) for rows in (32, 64, 64))
    q[..., 0], k[..., 32:, 0], v[..., :32, :] = 1, 56, 1
    out = ttnn.transformer.scaled_dot_product_attention(
        *(chips.put([x] * 8) for x in (q, k, v)),
        is_causal=False,
        scale=scale,
        program_config=program(),
        compute_kernel_config=config(),
    )
    found = float(chips.get(out)[0].mean())
    kept = found / (1 - found)
    cut, whole = (float(torch.exp(torch.tensor(-56 * s))) for s in (0.099609375, scale))
    assert abs(kept - cut) < 0.4 * abs(cut - whole)


@pytest.mark.parametrize(("rows", "chunk"), [(32, 32), (7, 32), (78, 32), (78, 96)])
def test_causal_attention(chips, rows, chunk):
    """Each query sees the keys up to its own, in one chunk of keys or several, whatever the last tile holds."""
    q, k, v = ([torch.cat([x, x + 1], dim=0) for x in values] for values in heads(chips, rows, "causal"))
    settings = ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=ttnn.CoreCoord(8, 8),
        q_chunk_size=chunk,
        k_chunk_size=chunk,
        exp_approx_mode=False,
    )
    out = ttnn.transformer.scaled_dot_product_attention(
        chips.put(q), chips.put(k), chips.put(v), scale=SCALE, program_config=settings, compute_kernel_config=config()
    )

    def expected(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE)

    chips.check(out, expected, q, k, v, atol=ATOL)


def test_attention_that_is_not_covered_is_refused(chips):
    q, k, v = (chips.put(x) for x in heads(chips, 32, "causal"))
    with pytest.raises(RuntimeError, match="causal attention in the streaming kernel"):
        ttnn.transformer.scaled_dot_product_attention(q, k, v, compute_kernel_config=config(streaming=True))
    with pytest.raises(RuntimeError, match="causal attention without a program_config"):
        ttnn.transformer.scaled_dot_product_attention(q, k, v, compute_kernel_config=config())
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


def ring(chips, visual, text, *, tokens, axis, settings=None, fidelity=None):
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
        program_config=program(grid.y - 1, fidelity),
        scale=SCALE,
        compute_kernel_config=settings or config(),
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
        chips.check(joint, softmax_attention, text[0], keys, values, atol=TURNS * ATOL)
    chips.check(spatial, softmax_attention, q, keys, values, atol=TURNS * ATOL)
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
    # 2^-9 of rounding in the output, twice; a bit of the first operand less; four bits of the second one left.
    assert 0.002 < errors[EXACT] < 0.01
    assert errors[EXACT] < errors[ttnn.MathFidelity.HiFi2] < 0.02
    # LoFi also cuts the factor of each of the seven chunks to 7 bits and the output to 5 (kernels, two chunks: 0.054).
    assert 0.02 < errors[ttnn.MathFidelity.LoFi] < 0.12


def test_the_approximate_exponential():
    """Within 3%, zero where the truth is next to nothing, and bit by bit what the kernel's integers give."""
    x = -torch.logspace(-3, 1.9, 2000)
    ratio = approximate_exp(x, 1.0) / torch.exp(x)
    assert 0.965 < ratio.min() < 0.98
    assert 1.02 < ratio.max() < 1.031
    assert approximate_exp(torch.tensor([-89.0, -1e4, -torch.inf]), 1.0).tolist() == [0.0, 0.0, 0.0]
    # exp(0): 32501 of 32768 steps, of which the last bit is lost: 127 exponents are 32512, so it is below 1.
    assert approximate_exp(torch.zeros(1), SCALE).item() == torch.tensor(32500 << 15, dtype=torch.int32).view(
        torch.float32
    )
    assert torch.equal(approximate_exp(x, 0.5), approximate_exp(x / 2, 1.0))


def test_only_float32_sums_choose_the_kernel(chips):
    """ttnn's own word for it: a fidelity of the products alone is the streaming kernel's, and is refused by the other.

    That attention in bfloat16 sums streams, in any chunks, is what the times and the golden rest on.
    """
    visual, text = heads(chips, 32, "visual"), heads(chips, 32, "text")
    fidelity = ttnn.MathFidelity.HiFi2
    ring(chips, visual, text, tokens=64, axis=0, settings=config(streaming=True), fidelity=fidelity)
    with pytest.raises(RuntimeError, match="needs the streaming compute path"):
        ring(chips, visual, text, tokens=64, axis=0, fidelity=fidelity)


@pytest.mark.parametrize(("missing", "text_rows"), [(0, 32), (20, 77), (5, 0)])
def test_streaming_ring_attention(chips, missing, text_rows):
    visual = heads(chips, 32, "visual")
    text = heads(chips, text_rows, "text") if text_rows else [None, None, None]
    tokens = 32 * ROWS - missing
    (spatial, joint, _), _ = ring(
        chips, visual, text, tokens=tokens, axis=0, settings=config(ttnn.MathFidelity.HiFi2, streaming=True)
    )
    q, *kv = visual
    keys, values = ([torch.cat([x[i] for i in group(c, 0)], 2)[:, :, :tokens] for c in range(8)] for x in kv)
    if text_rows:
        keys, values = joined(keys, text[1]), joined(values, text[2])
        chips.check(joint, softmax_attention, text[0], keys, values, atol=5 * ATOL)
    chips.check(spatial, softmax_attention, q, keys, values, atol=5 * ATOL)
    errors = [
        relative_rmse(softmax_attention(*parts), actual)
        for actual, parts in zip(chips.get(spatial), zip(q, keys, values, strict=True), strict=True)
    ]
    assert 0.008 < max(errors) < 0.05, "the exponential is approximate"


@pytest.mark.parametrize(
    ("keys", "chunk", "published"),
    [
        # tt-metal models/tt_dit/models/minimax_h3_wormhole/sdpa.md: PCC on a Wormhole Galaxy, a ring of 8, heads of
        # 128, HiFi2, bfloat16. Its op shares the streaming inner loop. Normal random inputs are our reading.
        (8 * 3424, 256, 0.99975),
        (8 * 4096, 512, 0.99972),
    ],
)
def test_streaming_attention_is_as_exact_as_silicon(keys, chunk, published):
    """The only accuracy of this kernel that is published from Wormhole, at its length: 64 of the queries."""
    generator = torch.Generator().manual_seed(keys)
    q, k, v = (torch.randn(1, 1, n, 128, generator=generator).bfloat16().float() for n in (64, keys, keys))
    chunks = ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=ttnn.CoreCoord(8, 8), q_chunk_size=256, k_chunk_size=chunk
    )
    scale = 128**-0.5
    out = _attention(q, k, v, scale, chunks, config(ttnn.MathFidelity.HiFi2, streaming=True))
    ours = pcc(softmax_attention(q, k, v, scale), out)
    # We round every sum to bfloat16, as the documents say; a little less exact than the card is.
    assert published - 2e-4 < ours < published + 5e-5
