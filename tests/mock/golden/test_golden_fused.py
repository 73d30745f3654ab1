"""Fused ops against their parts in PyTorch, with other data on every chip."""

import pytest
import torch
import ttnn

from tests.mock.golden.chips import COLS, ROWS, group

CONFIG = ttnn.WormholeComputeKernelConfig(
    math_fidelity=ttnn.MathFidelity.HiFi4, math_approx_mode=False, fp32_dest_acc_en=True, packer_l1_acc=True
)
EXPERIMENTAL = ttnn.experimental


def blocks(rows: int = 8) -> ttnn.MinimalMatmulConfig:
    return ttnn.MinimalMatmulConfig(
        M_block_size=2,
        K_block_size=2,
        N_block_size=2,
        subblock_h=1,
        subblock_w=2,
        compute_with_storage_grid_size=ttnn.CoreCoord(8, rows),
    )


def semaphores(device, count: int) -> list:
    cores = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(7, 7))})
    return [ttnn.create_global_semaphore(device, cores, 0) for _ in range(count)]


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """Tile by tile, in the plainest way: even tiles are gates, odd tiles are what they gate."""
    tiles = x.split(32, dim=-1)
    return torch.cat([torch.nn.functional.silu(g) * u for g, u in zip(tiles[0::2], tiles[1::2], strict=True)], dim=-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_minimal_matmul(chips, bias, gated):
    x, w, b = chips.random(1, 1, 70, 64), chips.random(1, 1, 64, 128), chips.random(1, 1, 1, 128)
    out = EXPERIMENTAL.minimal_matmul(
        chips.put(x),
        chips.put(w),
        bias_tensor=chips.put(b) if bias else None,
        config=blocks(),
        compute_kernel_config=CONFIG,
        fuse_swiglu=gated,
    )

    def reference(x, w, b):
        y = x @ w + (b if bias else 0)
        return swiglu(y) if gated else y

    # 11 bits of sums of up to 32, of which SwiGLU multiplies two.
    chips.check(out, reference, x, w, b, atol=2**-6 * (16 if gated else 1))


def test_minimal_matmul_split(chips):
    x, w = chips.random(1, 1, 64, 64), chips.random(1, 1, 64, 192)
    parts = EXPERIMENTAL.minimal_matmul_split(
        chips.put(x), chips.put(w), chunks=3, dim=-1, config=blocks(), compute_kernel_config=CONFIG
    )
    for index, part in enumerate(parts):
        chips.check(part, lambda x, w, i=index: (x @ w)[..., 64 * i : 64 * (i + 1)], x, w, atol=1e-2)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("chunks", "gated"), [(1, False), (3, False), (1, True)])
def test_all_gather_minimal_matmul(chips, device_2x4, axis, chunks, gated):
    size = (ROWS, COLS)[axis]
    x, w, b = chips.random(1, 1, 64, 64), chips.random(1, 1, 64 * size, 192), chips.random(1, 1, 1, 192)
    buffer = chips.same(torch.zeros(1, 1, 64, 64 * size))
    parts = EXPERIMENTAL.all_gather_minimal_matmul_async(
        chips.put(x),
        chips.put(w),
        bias_tensor=chips.put(b),
        config=blocks(7),
        multi_device_global_semaphore=semaphores(device_2x4, 2),
        persistent_output_buffer=buffer,
        topology=ttnn.Topology.Linear,
        cluster_axis=axis,
        num_workers_per_link=8,
        num_buffers_per_channel=8,
        chunks=chunks,
        fuse_swiglu=gated,
        compute_kernel_config=CONFIG,
    )
    whole = [torch.cat([x[i] for i in group(chip, axis)], dim=-1) for chip in range(ROWS * COLS)]
    for index, part in enumerate(parts):

        def reference(x, w, b, i=index):
            y = x @ w + b
            return swiglu(y) if gated else y.chunk(chunks, dim=-1)[i]

        # 11 bits of sums of up to 64, of which SwiGLU multiplies two.
        chips.check(part, reference, whole, w, b, atol=2**-5 * (32 if gated else 1))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_fused_rmsnorm_over_a_row(chips, device_2x4, axis):
    x, w = chips.random(1, 1, 77, 64), chips.random(1, 1, 1, 64, dtype=ttnn.float32)
    device_x, device_w = chips.put(x), chips.put(w, ttnn.float32)
    stats = None
    if axis is not None:
        stats = EXPERIMENTAL.dit_fused_distributed_rmsnorm_create_stats_buffer(
            device_x, axis, device_2x4, weight=device_w
        )
    out = EXPERIMENTAL.dit_fused_distributed_rmsnorm(
        device_x,
        axis,
        device_2x4,
        semaphores(device_2x4, 1),
        topology=ttnn.Topology.Linear,
        epsilon=0.1,
        weight=device_w,
        persistent_output_buffer=stats,
        compute_kernel_config=CONFIG,
    )
    lines = [[chip] if axis is None else group(chip, axis) for chip in range(ROWS * COLS)]
    rows = [torch.cat([x[i] for i in line], dim=-1) for line in lines]
    chips.check(
        out,
        lambda x, row, w: x * torch.rsqrt(row.square().mean(-1, keepdim=True) + 0.1) * w,
        x,
        rows,
        w,
        atol=1e-3,
    )


@pytest.mark.parametrize("rotate", [False, True])
def test_fused_rmsnorm_over_heads(chips, device_2x4, rotate):
    heads, width, rows = 4, 64, 64 if rotate else 45
    x, w = chips.random(1, 1, rows, heads * width), chips.random(1, 1, 1, heads * width)
    cos = chips.random(1, heads, rows, width, seed="cos")
    sin = chips.random(1, heads, rows, width, seed="sin")
    turn = torch.zeros(1, 1, 32, 32)
    for even in range(0, 32, 2):
        turn[..., even + 1, even], turn[..., even, even + 1] = -1, 1
    out = EXPERIMENTAL.dit_fused_distributed_rmsnorm(
        chips.put(x),
        None,
        device_2x4,
        semaphores(device_2x4, 1),
        epsilon=0.1,
        weight=chips.put(w),
        num_heads_per_device=heads,
        per_head_norm=True,
        transformation_mat=chips.same(turn) if rotate else None,
        rope_cos=chips.put(cos) if rotate else None,
        rope_sin=chips.put(sin) if rotate else None,
        compute_kernel_config=CONFIG,
    )

    def reference(x, w, cos, sin):
        split = x.reshape(1, rows, heads, width).transpose(1, 2)
        weight = w.reshape(1, heads, 1, width)
        y = split * torch.rsqrt(split.square().mean(-1, keepdim=True) + 0.1) * weight
        if not rotate:
            return y
        even, odd = y[..., 0::2], y[..., 1::2]
        return y * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin

    # Values of up to 16 are cut to TF32 three times on their way.
    chips.check(out, reference, x, w, cos, sin, atol=3 * 2**-10 * 16)
