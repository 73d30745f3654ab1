"""Halos against padding of the whole video, at every seam and edge, and sizes that do not divide."""

import pytest
import torch

from models.layers.staging import frames_of, put
from models.parallel.halo import HEIGHT, TIME, WIDTH, Border, HaloExchange, ShardedDim, read, write
from tests.layers.test_group_norm import dims_of, extent_of, scatter
from tests.support import pairs, randn

MESHES = ["1x2sp0tp1", "2x4sp0tp1", "1x8sp0tp1", "4x8sp1tp0", "2x4sp0tp1-plain-halo"]
BORDER = Border((2, 0), (1, 1), (1, 1))


def padded(mesh, x, extent, border=BORDER):
    """The shards of x with their borders filled."""
    halo = HaloExchange(mesh)
    room = halo.room(extent, border, x.shape[-1])
    put(room, frames_of(scatter(mesh, x, extent, filling=9.0)), border.origin)
    halo.fill(room, extent, border)
    return room


def shards(mesh, x):
    import ttnn

    return [ttnn.to_torch(part).float() for part in ttnn.get_device_tensors(ttnn.from_device(x))]


def position(mesh, index: int, dim: ShardedDim) -> int:
    if dim.axis is None:
        return 0
    row, column = divmod(index, mesh.layout.mesh_shape[1])
    return (row, column)[dim.axis.index]


@pytest.mark.parametrize(
    ("mesh", "split", "sizes"),
    pairs(MESHES, ["th", "ht", "hw", "wh", "tw", "wt"], [(4, 6, 10), (16, 9, 13), (17, 16, 8)]),
    indirect=["mesh"],
)
def test_halo(mesh, split, sizes):
    """Every real position, and every halo that a convolution at a real position can see, is exact."""
    extent = extent_of(mesh, split, *sizes)
    x = randn(1, *sizes, 32, seed=1).bfloat16().float()
    if extent.time.axis is not None and extent.time.local < 2:
        with pytest.raises(ValueError, match="wider than a shard"):
            padded(mesh, x, extent)
        return
    halos = {dim: BORDER[dim] if extent[dim].axis is not None else (0, 0) for dim in (TIME, HEIGHT, WIDTH)}
    border = Border(halos[TIME], halos[HEIGHT], halos[WIDTH])
    for index, shard in enumerate(shards(mesh, padded(mesh, x, extent, border))):
        wanted, reach = x, []
        for dim in (TIME, HEIGHT, WIDTH):
            before, after = halos[dim]
            start = position(mesh, index, extent[dim]) * extent[dim].local
            real = min(extent[dim].local, extent[dim].real - start)
            places = torch.arange(start - before, start + max(real, 0) + after).clamp(0, extent[dim].real - 1)
            reach.append(len(places) if real > 0 else 0)
            wanted = wanted.index_select(dim, places[: reach[-1]])
        assert torch.equal(shard[: reach[0], : reach[1], : reach[2]], wanted[0]), f"chip {index}"


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_halo_wider_than_a_shard(mesh):
    extent = extent_of(mesh, "ht", 4, 2, 2)
    with pytest.raises(ValueError, match="halo of 2 is wider than a shard of 1"):
        padded(mesh, randn(1, 4, 2, 2, 32), extent)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_read_and_write(mesh):
    extent = extent_of(mesh, "", 3, 4, 5)
    x = randn(1, 3, 4, 5, 32).bfloat16().float()
    device = frames_of(scatter(mesh, x, extent))
    write(device, read(device, TIME, 2, 3), TIME, 0)
    assert torch.equal(shards(mesh, device)[0], x[0, [2, 1, 2]])
    assert torch.equal(shards(mesh, read(device, WIDTH, 0, 5))[0], x[0, [2, 1, 2]])
    assert dims_of(extent) == {}
