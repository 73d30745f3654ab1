"""Parts of activations: they cover everything once, fit L1, and leave results as they are."""

import pytest
import torch
import ttnn

from models.layers import staging
from models.layers.group_norm import FrameGroupNorm, GroupSums
from models.layers.staging import frames_of, l1_share, parts, take
from models.mochi.vae.blocks import Past, Shared, UpBlock
from models.parallel import Mesh
from tests.layers.test_group_norm import extent_of, gather, norm, scatter
from tests.support import StateDict, randn

C = 64


def small_l1(monkeypatch, nbytes: int) -> None:
    monkeypatch.setattr(staging, "l1_share", lambda device, live: nbytes)


def room(mesh, *shape: int) -> ttnn.Tensor:
    return ttnn.allocate_tensor_on_device(ttnn.Shape(list(shape)), ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT, mesh.device)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
@pytest.mark.parametrize(
    ("frames", "rows", "share", "unit", "shapes"),
    [
        (7, 6, 100, 1, [(7, 6)]),
        (7, 6, 18, 1, [(3, 6), (3, 6), (1, 6)]),
        (2, 6, 5, 1, [(1, 3)] * 4),
        (1, 6, 5, 2, [(1, 4), (1, 2)]),
        (1, 6, 1, 3, [(1, 3)] * 2),
    ],
)
def test_parts(mesh, monkeypatch, frames, rows, share, unit, shapes):
    """Whole frames where one fits, else multiples of rows; ``share`` in rows."""
    small_l1(monkeypatch, share * 5 * C * 2)
    x = room(mesh, frames, rows, 5, C)
    found = list(parts(x, rows=unit))
    assert [part.shape for part in found] == shapes
    covered = [(f, r) for part in found for f in range(*part.frames) for r in range(*part.rows)]
    assert covered == [(f, r) for f in range(frames) for r in range(rows)]


@pytest.mark.alone
@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_two_parts_fit_beside_each_other(mesh):
    """The largest part that the rule allows, and a result of the same size, with room for circular buffers."""
    row = 1024 * C * 2
    shape = [1, l1_share(mesh.device) // row, 1024, C]
    x = mesh.upload(torch.zeros(shape, dtype=torch.bfloat16), layout=ttnn.ROW_MAJOR_LAYOUT)
    first = next(parts(x))
    assert first.shape == (1, shape[1])
    staged = take(x, first)
    result = ttnn.add(staged, staged)
    assert staged.memory_config().buffer_type == result.memory_config().buffer_type == ttnn.BufferType.L1


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "2x4sp0tp1"], indirect=True)
@pytest.mark.parametrize("rows", [7, 2], ids=["frames", "rows"])
def test_same_norm_in_parts(mesh: Mesh, monkeypatch, rows):
    """Frames one by one, and frames that do not fit: bit for bit what one part gives."""
    extent = extent_of(mesh, "wh", 3, 9, 13)
    x = randn(1, 3, 9, 13, C, seed=1)
    layer = FrameGroupNorm(mesh, "norm_layer", C, GroupSums(mesh))
    layer.load(StateDict(norm(C), "norm_layer."))

    def run():
        device = scatter(mesh, x, extent, filling=5.0)
        layer(device, extent, frames_of(device))
        return gather(mesh, device, extent)

    whole = run()
    small_l1(monkeypatch, min(rows, extent.height.local) * extent.width.local * C * 2)
    assert torch.equal(run(), whole)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_same_upsampling_in_parts(mesh: Mesh, monkeypatch):
    extent = extent_of(mesh, "th", 2, 4, 5)
    block = UpBlock(Shared(mesh), "", C, 32, 0, 3, 2)
    torch.manual_seed(1)
    block.load(StateDict(torch.nn.ModuleDict({"proj": torch.nn.Linear(C, 32 * 12)})))
    x = randn(1, 2, 4, 5, C, seed=1)

    def run():
        out, bigger = block(scatter(mesh, x, extent), extent, Past())
        return gather(mesh, out, bigger)

    whole = run()
    small_l1(monkeypatch, 5 * 32 * 12 * 2)
    assert torch.equal(run(), whole)
