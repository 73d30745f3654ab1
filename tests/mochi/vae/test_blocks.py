"""Residual and upsampling blocks against Diffusers', and seams one by one."""

import pytest
import torch

from models.layers.staging import frames_of, put
from models.mochi.vae.blocks import CausalConv3d, Past, ResBlock, Shared, UpBlock
from models.mochi.vae.split import Split
from models.reference.metrics import relative_rmse
from models.reference.random_weights import randomize_
from tests.layers.test_group_norm import gather, scatter
from tests.support import StateDict, check, in_both, randn

# (mesh, split): time, rows and columns over either axis, with more shards than positions among them.
PLACES = [
    ("1x1sp0tp1", "none"),
    ("1x2sp0tp1", "t1"),
    ("2x4sp0tp1", "t0h1"),
    ("2x4sp0tp1", "h0t1"),
    ("2x4sp0tp1", "w0h1"),
    ("1x8sp0tp1", "h1"),
    ("4x8sp1tp0", "h0w1"),
    ("4x8sp1tp0", "t0w1"),
]
SIZE = (5, 6, 7)
places = pytest.mark.parametrize(("mesh", "split"), PLACES, indirect=["mesh"])


def place(mesh, split: str, x_BTHWC: torch.Tensor):
    extent = Split.parse(split).extent(mesh, *list(x_BTHWC.shape)[1:4])
    return scatter(mesh, x_BTHWC, extent, filling=3.0), extent


def to_torch_order(x_BTHWC):
    return x_BTHWC.permute(0, 4, 1, 2, 3)


def made(kind, *sizes, **options):
    from diffusers.models.autoencoders import autoencoder_kl_mochi

    module = getattr(autoencoder_kl_mochi, kind)(*sizes, **options).eval()
    randomize_(module, seed=2)
    return module


def both(kind, x, *sizes, **options):
    """The reference's output [1, T, H, W, C] in float32 and in bfloat16."""

    def run(dtype, x):
        return made(kind, *sizes, **options).to(dtype)(to_torch_order(x))[0].permute(0, 2, 3, 4, 1)

    return in_both(run, x)


@places
@pytest.mark.parametrize("channels", [32, 64])
def test_res_block(mesh, split, channels):
    x = randn(1, *SIZE, channels, seed=1)
    exact, rounded = both("MochiResnetBlock3D", x, channels)
    ours = ResBlock(Shared(mesh), "", channels)
    ours.load(StateDict(made("MochiResnetBlock3D", channels)))
    device, extent = place(mesh, split, x)
    out = gather(mesh, ours(device, extent, Past()), extent)
    for frame in range(SIZE[0]):
        check(out[:, frame], exact[:, frame], rounded[:, frame], max_rmse=0.015)


@places
@pytest.mark.parametrize("factors", [(3, 2), (1, 2)], ids=str)
def test_up_block(mesh, split, factors):
    time, space = factors
    x = randn(1, *SIZE, 64, seed=1)
    options = {"num_layers": 1, "temporal_expansion": time, "spatial_expansion": space}
    exact, rounded = both("MochiUpBlock3D", x, 64, 32, **options)
    ours = UpBlock(Shared(mesh), "", 64, 32, 1, time, space)
    ours.load(StateDict(made("MochiUpBlock3D", 64, 32, **options)))
    device, extent = place(mesh, split, x)
    out, extent = ours(device, extent, Past())
    assert (extent.time.real, extent.height.real, extent.width.real) == (5 * time, 6 * space, 7 * space)
    check(gather(mesh, out, extent), exact, rounded, max_rmse=0.015)


def conv_error_by_place(mesh, split) -> dict[str, float]:
    """Relative RMSE of a causal convolution at every single frame, row and column."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d

    reference = CogVideoXCausalConv3d(32, 32, 3, pad_mode="replicate")
    randomize_(reference, seed=2)
    x = randn(1, *SIZE, 32, seed=1).bfloat16().float()
    with torch.no_grad():
        exact = reference(to_torch_order(x))[0].permute(0, 2, 3, 4, 1)
    ours = CausalConv3d(Shared(mesh), "conv", 32, 32)
    ours.load(StateDict(reference, "conv."))
    device, extent = place(mesh, split, x)
    padded = ours.room(extent)
    put(padded, frames_of(device), ours.border(extent).origin)
    out = gather(mesh, ours(padded, extent, Past()), extent)
    return {
        f"{name} {index}": relative_rmse(exact.select(dim, index), out.select(dim, index))
        for dim, name in ((1, "frame"), (2, "row"), (3, "column"))
        for index in range(exact.shape[dim])
    }


@places
def test_every_seam_of_a_convolution(mesh, split):
    errors = conv_error_by_place(mesh, split)
    assert max(errors.values()) < 0.005, errors


BROKEN = [
    ("2x4sp0tp1", "t0h1", 2, {"row"}),
    ("2x4sp0tp1", "t0h1", 1, {"frame"}),
    ("2x4sp0tp1", "w0h1", 3, {"column"}),
    ("1x8sp0tp1", "h1", 2, {"row"}),
]


@pytest.mark.parametrize(("mesh", "split", "dim", "hit"), BROKEN, indirect=["mesh"])
def test_a_broken_halo_is_seen(mesh, split, dim, hit, monkeypatch):
    """With zeros for what a neighbour sends, the seam test fails, and at the seams first."""
    import ttnn

    exchange = ttnn.experimental.neighbor_pad_async

    def broken(x, dims, before, after, *args, **options):
        padded = exchange(x, dims, before, after, *args, **options)
        place = dim - 1
        if dims != [place]:
            return padded
        width = before[0]
        begin, end = [0] * 4, list(padded.shape)
        end[place] = width
        zeros = ttnn.multiply(ttnn.slice(padded, begin, end), 0.0)
        begin[place], end[place] = width, padded.shape[place]
        return ttnn.concat([zeros, ttnn.slice(padded, begin, end)], dim=place)

    monkeypatch.setattr(ttnn.experimental, "neighbor_pad_async", broken)
    errors = conv_error_by_place(mesh, split)
    ordered = sorted(errors, key=errors.__getitem__)
    assert errors[ordered[-1]] > 0.1
    assert {ordered[-1].split()[0]} == hit
