"""Mesh placement and collectives: the right axis, the right order, nothing on an axis of size 1."""

import pytest
import torch
import ttnn

from models.parallel import Layout, Mesh, all_reduce, gather, reduce_scatter

LAYOUTS = ["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "2x4sp1tp0", "4x8sp1tp0"]


def ramp(*shape: int) -> torch.Tensor:
    """Small integers, exact in bfloat16 and different everywhere that matters."""
    return (torch.arange(torch.tensor(shape).prod()) % 251).reshape(shape).float()


@pytest.mark.parametrize("mesh", LAYOUTS, indirect=True)
def test_upload_and_download(mesh):
    x = ramp(1, 1, 256, 256)
    for sp, tp in ((None, None), (2, None), (None, 3), (2, 3), (3, 2)):
        tensor = mesh.upload(x, sp=sp, tp=tp)
        assert torch.equal(mesh.download(tensor, sp=sp, tp=tp).float(), x), (sp, tp)


@pytest.mark.parametrize("mesh", LAYOUTS, indirect=True)
def test_gather_joins_shards_in_order(mesh):
    x = ramp(1, 1, 256, 256)
    shards = mesh.upload(x, sp=2, tp=3)
    over_tp = gather(shards, dim=3, over=mesh.tp)
    assert torch.equal(mesh.download(over_tp, sp=2).float(), x)
    over_sp = gather(shards, dim=2, over=mesh.sp)
    assert torch.equal(mesh.download(over_sp, tp=3).float(), x)


@pytest.mark.parametrize("mesh", LAYOUTS, indirect=True)
def test_reductions_sum_over_one_axis_only(mesh):
    x = ramp(mesh.tp.size, 1, 32, 256) % 7
    partial = mesh.upload(x, tp=0)
    expected = x.sum(dim=0, keepdim=True)
    assert torch.equal(mesh.download(all_reduce(partial, over=mesh.tp)).float(), expected)
    scattered = reduce_scatter(partial, dim=3, over=mesh.tp)
    assert torch.equal(mesh.download(scattered, tp=3).float(), expected)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_an_axis_of_one_chip_is_a_no_op(mesh):
    x = mesh.upload(ramp(1, 1, 32, 32))
    assert gather(x, dim=3, over=mesh.tp) is x
    assert reduce_scatter(x, dim=3, over=mesh.tp) is x
    assert all_reduce(x, over=mesh.tp) is x


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_upload_refuses_uneven_splits(mesh):
    with pytest.raises(ValueError, match=r"dim 3 of shape \(1, 1, 32, 66\) does not split over TP=4"):
        mesh.upload(torch.zeros(1, 1, 32, 66), tp=3)


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_layout_of_another_mesh_is_refused(mesh):
    with pytest.raises(ValueError, match="layout 4x8sp1tp0 is not for the open mesh 2x4"):
        Mesh(mesh.device, Layout.parse("4x8sp1tp0"))


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_persistent_resources_alternate(mesh):
    """Two buffers in turn, so that a chip that is one collective ahead does not overwrite what another still reads."""

    def k():
        return mesh.buffer("k", (1, 2, 64, 32), ttnn.bfloat16)

    first, second = k(), k()
    assert first is not second
    assert k() is first
    assert k() is second
    other = mesh.buffer("v", (1, 2, 64, 32), ttnn.bfloat16)
    assert other is not first
    assert other is not second
    assert mesh.semaphores("ring", 2) is not mesh.semaphores("ring", 2)
    mesh.release()
    assert not first.is_allocated()
    assert k().is_allocated()
