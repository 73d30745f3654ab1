"""Group norm of frames on the mesh against torch's, for every way of splitting a frame."""

import pytest
import torch

from models.layers.group_norm import FrameGroupNorm, GroupSums
from models.layers.staging import frames_of
from models.parallel.halo import Extent, ShardedDim, download, upload
from tests.support import StateDict, check, in_both, pairs, randn

MESHES = ["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "1x8sp0tp1", "4x8sp1tp0"]


def extent_of(mesh, split: str, frames: int, rows: int, columns: int) -> Extent:
    axes = {mesh.sp.index: mesh.sp, mesh.tp.index: mesh.tp}

    def dim(name, real):
        index = split.find(name)
        return ShardedDim.split(real, axes[index] if index >= 0 else None)

    return Extent(dim("t", frames), dim("h", rows), dim("w", columns))


def dims_of(extent: Extent) -> dict[int, int]:
    return {extent[dim].axis.index: dim for dim in (1, 2, 3) if extent[dim].axis is not None}


def scatter(mesh, x_BTHWC, extent: Extent, filling: float = 0.0):
    import torch.nn.functional as F

    pads = [0, 0]
    for dim in (3, 2, 1):
        pads += [0, extent[dim].padded - x_BTHWC.shape[dim]]
    return upload(mesh, F.pad(x_BTHWC, pads, value=filling), dims_of(extent))


def gather(mesh, x, extent: Extent):
    whole = download(mesh, x, dims_of(extent)).float()
    return whole[:, : extent.time.real, : extent.height.real, : extent.width.real]


def norm(channels: int) -> torch.nn.GroupNorm:
    torch.manual_seed(3)
    layer = torch.nn.GroupNorm(32, channels)
    torch.nn.init.normal_(layer.weight, 1.0, 0.5)
    torch.nn.init.normal_(layer.bias, 0.0, 0.5)
    return layer


def as_images(x_BTHWC):
    return x_BTHWC[0].permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("mesh", "split", "sizes"),
    pairs(MESHES, ["th", "ht", "hw", "wh"], [(3, 6, 10, 64), (4, 9, 13, 32)]),
    indirect=["mesh"],
)
def test_group_norm(mesh, split, sizes):
    """Uneven rows and columns, shards without real ones, and garbage in the padding."""
    *size, channels = sizes
    extent = extent_of(mesh, split, *size)
    x = randn(1, *sizes, seed=1) * 2 + 0.7

    def run(dtype, x):
        layer = norm(channels).to(dtype)
        return torch.nn.functional.silu(layer(as_images(x)))

    exact, rounded = in_both(run, x)
    ours = FrameGroupNorm(mesh, "norm_layer", channels, GroupSums(mesh))
    ours.load(StateDict(norm(channels), "norm_layer."))
    device = scatter(mesh, x, extent, filling=50.0)
    ours(device, extent, frames_of(device))
    out = gather(mesh, device, extent)
    for frame in range(size[0]):
        check(as_images(out)[frame], exact[frame], rounded[frame], min_pcc=0.9999, max_rmse=0.01)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "2x4sp0tp1"], indirect=True)
def test_a_mean_many_times_the_spread(mesh):
    """One channel a group, 60 times as far from zero as it varies: sums of squares in bfloat16 would be rounding."""
    size, channels = (2, 16, 24), 32
    extent = extent_of(mesh, "hw", *size)
    x = (randn(1, *size, channels, seed=1) * 0.05 + 3).bfloat16().float()
    exact, rounded = in_both(lambda dtype, x: torch.nn.functional.silu(norm(channels).to(dtype)(as_images(x))), x)
    ours = FrameGroupNorm(mesh, "norm_layer", channels, GroupSums(mesh))
    ours.load(StateDict(norm(channels), "norm_layer."))
    device = scatter(mesh, x, extent)
    ours(device, extent, frames_of(device))
    check(as_images(gather(mesh, device, extent)), exact, rounded, min_pcc=0.9999, max_rmse=0.01)
