"""Reductions and norms against PyTorch, with other data on every chip."""

import pytest
import torch
import ttnn

from models.mock.golden.rules import RULES
from tests.mock.golden.chips import bf16, group, position

CONFIG = ttnn.WormholeComputeKernelConfig(
    math_fidelity=ttnn.MathFidelity.HiFi4, math_approx_mode=False, fp32_dest_acc_en=True, packer_l1_acc=True
)
# Values of up to 8 that are cut to TF32 three times on their way.
CUTS = 3 * 2**-10 * 8
LINE = {"cluster_axis": 1, "topology": ttnn.Topology.Linear}


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dim", [2, 3, -1, (2, 3)])
@pytest.mark.parametrize("name", ["mean", "sum"])
def test_reductions_count_real_rows_only(chips, name, dim, keepdim):
    dtype = ttnn.float32 if name == "sum" else ttnn.bfloat16
    x = chips.random(1, 2, 77, 40, dtype=dtype)
    out = getattr(ttnn, name)(chips.put(x, dtype), dim=dim, keepdim=keepdim, compute_kernel_config=CONFIG)
    atol = 1e-5 if name == "sum" else 2**-8  # a mean's scaler is cut to bfloat16
    chips.check(out, lambda v: getattr(v, name)(dim=dim, keepdim=keepdim), x, dtype=dtype, atol=atol)


def test_a_mean_of_float32_is_refused(chips):
    """No vector says what its scaler is cut to."""
    x = chips.same(torch.ones(1, 1, 32, 32), ttnn.float32)
    with pytest.raises(RuntimeError, match="mean of float32 is not covered"):
        ttnn.mean(x, dim=-1)


def test_norms_without_a_float32_register_are_refused(chips):
    x = chips.same(torch.ones(1, 1, 32, 32))
    with pytest.raises(RuntimeError, match="without a compute config"):
        ttnn.rms_norm_pre_all_gather(x)


def test_reduction_scalar(chips):
    x = chips.random(1, 1, 32, 64, dtype=ttnn.float32)
    out = ttnn.sum(chips.put(x, ttnn.float32), dim=-1, keepdim=True, scalar=0.25)
    chips.check(out, lambda v: v.sum(-1, keepdim=True) * 0.25, x, atol=1e-5)


@pytest.mark.parametrize("weight_dtype", [ttnn.bfloat16, ttnn.float32])
def test_rms_norm(chips, weight_dtype):
    x, w, b = chips.random(1, 2, 40, 64), chips.random(1, 1, 1, 64, dtype=weight_dtype), chips.random(1, 1, 1, 64)
    out = ttnn.rms_norm(
        chips.put(x), weight=chips.put(w, weight_dtype), bias=chips.put(b), epsilon=0.1, compute_kernel_config=CONFIG
    )

    def reference(x, w, b):
        return torch.nn.functional.rms_norm(x, (64,), w.reshape(-1), eps=0.1) + b

    chips.check(out, reference, x, w, b, atol=CUTS)


def whole_rows(values, axis=1):
    """Each chip's values joined with those of the chips on its line."""
    return [torch.cat([values[j] for j in group(i, axis)], dim=-1) for i in range(8)]


def own_columns(chip_values, width):
    return [value[..., position(i, 1) * width :][..., :width] for i, value in enumerate(chip_values)]


@pytest.mark.parametrize("stats_dtype", [ttnn.bfloat16, ttnn.float32])
def test_distributed_rms_norm(chips, stats_dtype):
    x, w = chips.random(1, 1, 40, 64), chips.random(1, 1, 1, 64, dtype=ttnn.float32)
    tensor = chips.put(x)
    stats = ttnn.rms_norm_pre_all_gather(tensor, dtype=stats_dtype, compute_kernel_config=CONFIG)
    assert stats.dtype == stats_dtype
    stats = ttnn.all_gather(stats, dim=3, **LINE)
    out = ttnn.rms_norm_post_all_gather(
        tensor, stats, epsilon=0.5, weight=chips.put(w, ttnn.float32), compute_kernel_config=CONFIG
    )
    normed = own_columns([torch.nn.functional.rms_norm(row, (256,), eps=0.5) for row in whole_rows(x)], 64)
    chips.check(out, lambda n, w: n * w, normed, w, atol=CUTS if stats_dtype == ttnn.float32 else 3e-2)


def test_distributed_layer_norm(chips):
    x = [v + 1.0 for v in chips.random(1, 1, 40, 64)]
    x = [bf16(v) for v in x]
    w, b = (chips.random(1, 1, 1, 64, seed=s, dtype=ttnn.float32) for s in "wb")
    tensor = chips.put(x)
    stats = ttnn.layer_norm_pre_all_gather(tensor, dtype=ttnn.float32, compute_kernel_config=CONFIG)
    stats = ttnn.all_gather(stats, dim=3, **LINE)
    out = ttnn.layer_norm_post_all_gather(
        tensor,
        stats,
        epsilon=0.5,
        weight=chips.put(w, ttnn.float32),
        bias=chips.put(b, ttnn.float32),
        compute_kernel_config=CONFIG,
    )
    normed = own_columns([torch.nn.functional.layer_norm(row, (256,), eps=0.5) for row in whole_rows(x)], 64)
    chips.check(out, lambda n, w, b: n * w + b, normed, w, b, atol=CUTS)


def test_a_norm_without_its_gather_is_another_norm(chips):
    x = [v * (1 + i) for i, v in enumerate(chips.random(1, 1, 32, 64))]
    tensor = chips.put(x)
    stats = ttnn.rms_norm_pre_all_gather(tensor, dtype=ttnn.float32, compute_kernel_config=CONFIG)
    local = chips.get(ttnn.rms_norm_post_all_gather(tensor, stats, epsilon=1e-6, compute_kernel_config=CONFIG))
    right = own_columns([torch.nn.functional.rms_norm(row, (256,), eps=1e-6) for row in whole_rows(x)], 64)
    assert max((a - b).abs().max() for a, b in zip(local, right, strict=True)) > 0.1


def test_ttnns_own_distributed_goldens_agree(chips):
    """Where ttnn has a golden function for the same op, the two describe one kernel."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 32, 64, generator=random)
    stats = torch.rand(1, 1, 32, 4 * 32, generator=random) * 100
    for name in ("rms_norm_pre_all_gather", "layer_norm_pre_all_gather"):
        theirs = getattr(ttnn, name).golden_function(x, dtype=ttnn.float32)
        ours = RULES[f"ttnn.{name}"].function(x, compute_kernel_config=CONFIG)
        # A sum of 64 numbers of both signs: each is read with 10 bits by the kernel, with all by ttnn's golden.
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=64 * 2**-11)
    for name in ("rms_norm_post_all_gather", "layer_norm_post_all_gather"):
        theirs = getattr(ttnn, name).golden_function(x, stats, epsilon=200.0)
        ours = RULES[f"ttnn.{name}"].function(x, stats, epsilon=200.0, compute_kernel_config=CONFIG)
        torch.testing.assert_close(ours, theirs, rtol=4e-3, atol=1e-3)
