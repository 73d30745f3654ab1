"""What kernels get wrong or hang on is refused on every mock mesh, with the kernel's file and line."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import ttnn

from models.mock import golden
from models.mock.limits import KernelLimit, _fused_norm, _ring_attention
from tests.mock.golden.test_golden_fused import CONFIG, semaphores

NORM = ttnn.experimental.dit_fused_distributed_rmsnorm


# A dry run of its own: where golden execution is at work in a process, it sees the ops of all meshes.
DRY_RUN = """
import sys
from models.device import open_mesh
with open_mesh("1x1", "dry-run") as opened:
    from tests.mock.test_limits import norm
    norm(opened.device, 64, 4, 32, rotate=True)
    norm(opened.device, 40, 4, 32, rotate=True)
"""


@pytest.fixture
def device(open_layout):
    """A chip of a mock mesh. Silicon would run what is refused here, and hang."""
    device = open_layout("1x1sp0tp1").device
    if golden.active() is None:
        pytest.skip("this machine has cards: these calls hang on them")
    return device


def put(device, *shape: int):
    return ttnn.from_torch(torch.ones(shape), dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=device)


def norm(device, rows: int, heads: int, width: int, *, rotate: bool = False, config=CONFIG):
    table = put(device, 1, heads, rows, width) if rotate else None
    return NORM(
        put(device, 1, 1, rows, heads * width),
        None,
        device,
        semaphores(device, 1),
        weight=put(device, 1, 1, 1, heads * width),
        num_heads_per_device=heads,
        per_head_norm=True,
        transformation_mat=put(device, 1, 1, 32, 32) if rotate else None,
        rope_cos=table,
        rope_sin=table,
        compute_kernel_config=config,
    )


@pytest.mark.parametrize(("heads", "width"), [(32, 64), (24, 96), (64, 32), (16, 160)])
def test_heads_that_are_taken_one_by_one_are_whole_blocks(device, heads, width):
    """The kernel was run with these heads: it did not end. 12 heads of 160 (60 tiles) were right."""
    with pytest.raises(KernelLimit, match=r"test_limits\.py:\d+: it never ends: .* works head by head, .*: 566 to 714"):
        norm(device, 64, heads, width)
    assert list(norm(device, 45, 12, 160).shape) == [1, 12, 45, 160]


@pytest.mark.parametrize(("heads", "width", "refused"), [(2, 32, 2), (3, 64, 6), (6, 32, 6), (4, 32, 0), (12, 32, 0)])
def test_tiles_of_heads_are_whole_blocks(device, heads, width, refused):
    """The kernel was run with 2, 3, 6, 4 and 12 tiles: it ended with the last two only."""
    if not refused:
        assert list(norm(device, 45, heads, width).shape) == [1, heads, 45, width]
        return
    with pytest.raises(KernelLimit, match=rf"test_limits\.py:\d+: it never ends: {refused} tiles .*compute\.cpp: 539 "):
        norm(device, 45, heads, width)


def test_a_block_is_twice_as_long_in_bfloat16(device):
    config = ttnn.WormholeComputeKernelConfig(math_fidelity=ttnn.MathFidelity.HiFi4, fp32_dest_acc_en=False)
    with pytest.raises(KernelLimit, match=r"4 tiles of heads .* no multiple of the 8"):
        norm(device, 32, 4, 32, config=config)


def test_a_rotation_needs_whole_tiles(device):
    assert list(norm(device, 64, 4, 32, rotate=True).shape) == [1, 4, 64, 32]
    with pytest.raises(KernelLimit, match=r"rotation would be wrong: 40 rows .*_reader\.cpp: 456"):
        norm(device, 40, 4, 32, rotate=True)


@pytest.mark.parametrize(("chips", "fine"), [(1, True), (2, True), (3, False), (5, False), (8, True)])
def test_chips_in_pairs(chips, fine):
    x, mesh = SimpleNamespace(shape=[1, 1, 45, 128]), SimpleNamespace(shape=(1, chips))
    found = _fused_norm(x, 1, mesh, compute_kernel_config=CONFIG)
    assert (found is None) == fine
    assert fine or f"does not compile for {chips} chips" in str(found)


@pytest.mark.parametrize(
    ("rows", "chips", "topology", "wrong"),
    [
        (64, 2, ttnn.Topology.Linear, None),
        (64, 4, ttnn.Topology.Ring, None),
        (64, 2, ttnn.Topology.Ring, "never ends on a ring of two"),
        (40, 2, ttnn.Topology.Linear, "leave out the last of 40 rows"),
    ],
)
def test_ring_attention(rows, chips, topology, wrong):
    q, mesh = SimpleNamespace(shape=[1, 2, rows, 32]), SimpleNamespace(shape=(chips, 1))
    found = _ring_attention(q, q, q, cluster_axis=0, mesh_device=mesh, topology=topology)
    assert found is None if wrong is None else wrong in str(found)


def test_a_dry_run_is_held_to_them_too():
    done = subprocess.run([sys.executable, "-c", DRY_RUN], capture_output=True, text=True, check=False)
    assert "KernelLimit: ttnn.experimental.dit_fused_distributed_rmsnorm at " in done.stderr
    assert "its rotation would be wrong: 40 rows are not whole tiles" in done.stderr


def test_direct_sockets(device):
    with pytest.raises(KernelLimit, match=r"send_direct_async at .*writes to wrong cores.*_writer\.cpp: 145"):
        ttnn.experimental.send_direct_async(put(device, 1, 1, 32, 32), None)


def test_the_line_named_is_the_callers_under_a_trace(device):
    from models.performance.trace import trace

    with trace(device), pytest.raises(KernelLimit, match=r"test_limits\.py:\d+: it never ends"):
        norm(device, 32, 3, 32)
