"""Each op that can be avoided, avoided alone: a block against the same reference."""

import pytest
import ttnn

from models.machine.ops import add_hook, remove_hook
from models.machine.ways import ALTERNATIVES
from tests.mochi.transformer.test_block import CONFIG, SMALL, reference, run_block

# Ops of a block, and the mesh on which it uses them.
MESHES = {"joint-attention": "1x8sp0tp1", "all-reduce": None, "halo": None}
OPS = [op for op in ALTERNATIVES if MESHES.get(op, "") is not None]


def used(mesh, length: int = 45, **options) -> set[str]:
    """Names of the ops that a block calls; its result is compared with the reference."""
    seen = set()

    def around(call, operation, *args, **kwargs):
        seen.add(operation.python_fully_qualified_name)
        return call(operation, *args, **kwargs)

    add_hook(around)
    try:
        run_block(mesh, lambda dtype: reference(dtype, **SMALL), CONFIG, 0, length, **options)
    finally:
        remove_hook(around)
    return seen


@pytest.mark.parametrize("op", OPS)
def test_a_block_without_the_op(open_layout, op):
    layout = MESHES.get(op, "2x4sp0tp1" if op not in ("head-norm", "rotation") else "2x2sp0tp1")
    fused, plain = used(open_layout(layout)), used(open_layout(f"{layout}-plain-{op}"))
    shared = {"ttnn.experimental.dit_fused_distributed_rmsnorm"} if op in ("norm", "head-norm") else set()
    for name in set(ALTERNATIVES[op].ops) - shared - {"ttnn.experimental.minimal_matmul_split"}:
        assert name in fused
        assert name not in plain
    assert fused != plain, "the avoided op changes which ops there are"


@pytest.mark.parametrize("length", [1, 45, 256])
@pytest.mark.parametrize("layout", ["2x4sp0tp1", "2x4sp1tp0"])
def test_attention_without_its_ring(open_layout, layout, length):
    """With bfloat8_b keys too, and tokens that end in the middle of a shard."""
    mesh = open_layout(f"{layout}-plain-ring-attention")
    assert "ttnn.transformer.scaled_dot_product_attention" in used(mesh, length)
    used(mesh, length, grid=(2, 7, 5), precision="default", max_rmse=0.05, margin=3, min_pcc=0.998)


@pytest.mark.parametrize("layout", ["2x4sp0tp1", "1x8sp0tp1"])
def test_sums_of_chips(open_layout, layout):
    """Composed and fused sums are the sum, whatever its dim and type."""
    import torch

    from models.parallel import all_reduce, reduce_scatter
    from tests.support import randn

    fused, plain = open_layout(layout), open_layout(f"{layout}-plain")
    x = randn(fused.tp.size, 1, 40, 256, seed=1).bfloat16()
    for dtype, limit in ((ttnn.bfloat16, 0.01), (ttnn.float32, 1e-3)):
        for mesh in (fused, plain):
            up = mesh.upload(x, dtype=dtype, tp=0)
            whole = mesh.download(all_reduce(up, over=mesh.tp)).float()
            parts = mesh.download(reduce_scatter(up, dim=3, over=mesh.tp), tp=3).float()
            for y in (whole, parts):
                assert y.shape == (1, 1, 40, 256)
                assert (y - x.float().sum(0, keepdim=True)).norm() <= limit * y.norm()
    assert isinstance(whole, torch.Tensor)
