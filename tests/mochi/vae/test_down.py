"""Stages of the encoder against Diffusers', layer by layer, and attention over time pixel by pixel."""

import pytest
import torch

from models.mochi.vae import temporal
from models.mochi.vae.blocks import Past, Shared
from models.mochi.vae.down import DownBlock, Downsampling, Stage
from models.mochi.vae.temporal import PixelAttention, bands
from models.parallel.halo import ShardedDim
from tests.layers.test_group_norm import gather
from tests.mochi.vae.test_blocks import both, made, place, to_torch_order
from tests.support import StateDict, check, in_both, randn

# (mesh, split): rows and columns over either axis, with more shards than positions among them.
PLACES = [
    ("1x1sp0tp1", "none"),
    ("1x2sp0tp1", "w1"),
    ("2x4sp0tp1", "h0w1"),
    ("2x4sp0tp1", "w0h1"),
    pytest.param("1x8sp0tp1", "h1", marks=pytest.mark.full),
    pytest.param("4x8sp1tp0", "h0w1", marks=pytest.mark.full),
]
places = pytest.mark.parametrize(("mesh", "split"), PLACES, indirect=["mesh"])
SIZE = (5, 6, 7)


def attention_of(channels: int) -> torch.nn.Module:
    """One layer of attention of Diffusers' middle block, with its norm and the sum."""
    block = made("MochiMidBlock3D", channels, num_layers=1)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norms, self.attentions = block.norms, block.attentions

        def forward(self, x_BCTHW):
            normed = self.norms[0](x_BCTHW)
            flat = normed.permute(0, 3, 4, 2, 1).flatten(0, 2)
            out = self.attentions[0](flat).unflatten(0, (1, *x_BCTHW.shape[3:]))
            return x_BCTHW + out.permute(0, 4, 3, 1, 2)

    return Layer()


def attended(mesh, split, size, channels):
    """Outputs [1, T, H, W, C] of ours, of PyTorch in float32 and in bfloat16, each less the input."""
    x = randn(1, *size, channels, seed=1)

    def run(dtype, x):
        return attention_of(channels).to(dtype)(to_torch_order(x)).permute(0, 2, 3, 4, 1)

    exact, rounded = in_both(run, x)
    ours = PixelAttention(Shared(mesh), "norms.0", "attentions.0", channels)
    ours.load(StateDict(attention_of(channels)))
    device, extent = place(mesh, split, x)
    return gather(mesh, ours(device, extent), extent), exact, rounded


@places
@pytest.mark.parametrize("channels", [32, 96])
def test_attention_over_time(mesh, split, channels):
    out, exact, rounded = attended(mesh, split, SIZE, channels)
    for frame in range(SIZE[0]):
        check(out[:, frame], exact[:, frame], rounded[:, frame], max_rmse=0.015)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
@pytest.mark.parametrize("size", [(1, 4, 6), (33, 3, 4), pytest.param((300, 2, 2), marks=pytest.mark.full)], ids=str)
def test_numbers_of_frames(mesh, size):
    """A single frame, more than a tile of them, and more than a chunk of attention."""
    out, exact, rounded = attended(mesh, "w1", size, 64)
    for frame in {0, size[0] // 2, size[0] - 1}:
        check(out[:, frame], exact[:, frame], rounded[:, frame], max_rmse=0.015)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_bands_of_rows_change_nothing(mesh, monkeypatch):
    whole = attended(mesh, "none", SIZE, 32)[0]
    monkeypatch.setattr(temporal, "BAND_BYTES", 2 * temporal.band_row_bytes(SIZE[0], SIZE[2], 32))
    assert list(bands(SIZE[0], SIZE[1], SIZE[2], 32)) == [(0, 2), (2, 4), (4, 6)]
    assert torch.equal(attended(mesh, "none", SIZE, 32)[0], whole)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_no_frame_sees_a_later_one(mesh):
    """With another last frame, all frames before it stay as they are to the bit."""
    ours = PixelAttention(Shared(mesh), "norms.0", "attentions.0", 32)
    ours.load(StateDict(attention_of(32)))
    outs = []
    for change in (0.0, 1.0):
        x = randn(1, *SIZE, 32, seed=1)
        x[:, -1] += change * randn(1, *SIZE[1:], 32, seed=2)
        device, extent = place(mesh, "none", x)
        outs.append(gather(mesh, ours(device, extent), extent))
    assert torch.equal(outs[0][:, :-1], outs[1][:, :-1])
    assert not torch.equal(outs[0][:, -1], outs[1][:, -1])


def with_frames(extent, frames):
    from dataclasses import replace

    return replace(extent, time=ShardedDim(frames, frames))


@places
@pytest.mark.parametrize(("time", "space"), [(1, 2), (2, 2), (3, 2), (2, 1)])
def test_downsampling(mesh, split, time, space):
    """Sizes in whole shards of latent pixels, as the encoder has them; three outputs in time."""
    from models.mochi.vae.encoder import _smaller
    from models.mochi.vae.split import Split

    frames = 1 + 2 * time
    x = randn(1, frames, 6 * space, 5 * space, 32, seed=1)
    options = {"num_layers": 0, "temporal_expansion": time, "spatial_expansion": space}
    exact, rounded = both("MochiDownBlock3D", x, 32, 64, **options)
    ours = Downsampling(Shared(mesh), "conv_in", 32, 64, time, space)
    ours.load(StateDict(made("MochiDownBlock3D", 32, 64, **options)))
    from tests.layers.test_group_norm import scatter

    extent = Split.parse(split).extent(mesh, frames, 6, 5).times(1, space, space)
    device = scatter(mesh, x, extent, filling=3.0)
    smaller = _smaller(extent, time, space)
    out = gather(mesh, ours(device), smaller)
    assert out.shape == exact.shape
    for frame in range(exact.shape[1]):
        check(out[:, frame], exact[:, frame], rounded[:, frame], max_rmse=0.01)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_downsampling_part_by_part(mesh, monkeypatch):
    """Where a frame does not fit L1, rows are taken in turn; without the first frame there is no repetition."""
    from models.layers import staging

    frames, time = 7, 3
    x = randn(1, frames, 8, 6, 32, seed=1)
    ours = Downsampling(Shared(mesh), "conv_in", 32, 32, time, 2)
    options = {"num_layers": 0, "temporal_expansion": time, "spatial_expansion": 2}
    ours.load(StateDict(made("MochiDownBlock3D", 32, 32, **options)))
    outs = [gather(mesh, ours(place(mesh, "none", x)[0]), place(mesh, "none", x[:, :3, ::2, ::2])[1])]
    monkeypatch.setattr(staging, "l1_share", lambda device, live: 4 * 6 * 32 * 2 * time)
    outs.append(gather(mesh, ours(place(mesh, "none", x)[0]), place(mesh, "none", x[:, :3, ::2, ::2])[1]))
    assert torch.equal(*outs)
    later = gather(
        mesh, ours(place(mesh, "none", x[:, 1:])[0], starts=False), place(mesh, "none", x[:, :2, ::2, ::2])[1]
    )
    assert torch.equal(later, outs[0][:, 1:])


@places
@pytest.mark.parametrize("attends", [False, True])
def test_down_block(mesh, split, attends):
    from models.mochi.vae.encoder import _smaller
    from models.mochi.vae.split import Split
    from tests.layers.test_group_norm import scatter

    x = randn(1, 5, 6, 14, 32, seed=1)
    options = {"num_layers": 2, "temporal_expansion": 2, "spatial_expansion": 2, "add_attention": attends}
    exact, rounded = both("MochiDownBlock3D", x, 32, 64, **options)
    ours = DownBlock(Shared(mesh), "", 32, 64, 2, 2, 2, attends=attends)
    ours.load(StateDict(made("MochiDownBlock3D", 32, 64, **options)))
    extent = Split.parse(split).extent(mesh, 5, 3, 7).times(1, 2, 2)
    smaller = _smaller(extent, 2, 2)
    out = ours.stage(ours.conv_in(scatter(mesh, x, extent)), smaller, Past())
    out = gather(mesh, out, smaller)
    for frame in range(3):
        check(out[:, frame], exact[:, frame], rounded[:, frame], max_rmse=0.02)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_middle_block(mesh):
    x = randn(1, *SIZE, 64, seed=1)
    exact, rounded = both("MochiMidBlock3D", x, 64, num_layers=2)
    ours = Stage(Shared(mesh), "", 64, 2, attends=True)
    ours.load(StateDict(made("MochiMidBlock3D", 64, num_layers=2)))
    device, extent = place(mesh, "h1", x)
    check(gather(mesh, ours(device, extent, Past()), extent), exact, rounded, max_rmse=0.02)
