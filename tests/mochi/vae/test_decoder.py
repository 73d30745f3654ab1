"""The whole decoder against Diffusers', over meshes, splits and sizes that do not divide."""

import functools

import pytest
import torch

from models.mochi.vae.decoder import MochiVaeDecoder
from models.reference.vae import HostVaeDecoder
from tests.mochi.vae.support import Component, check_frames, check_same, decoder, latents, reference

pytestmark = pytest.mark.alone
SIZES = [(1, 6, 6), (2, 6, 10), (3, 9, 13), (4, 7, 5)]


def raw(ours, size, chunk=None) -> torch.Tensor:
    return ours.raw_frames(latents(*size), chunk)[0]


MESHES = ["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "1x8sp0tp1", "4x8sp1tp0"]


# Two of the sizes are enough for every day, and one where a decode takes long.
PLACES = [
    pytest.param(mesh, size, marks=[] if size in daily else [pytest.mark.full])
    for mesh, daily in zip(MESHES, (SIZES[::2], SIZES[1::2], SIZES[1:3], [], SIZES[:1]), strict=True)
    for size in SIZES
]


@pytest.mark.parametrize(("mesh", "size"), PLACES, indirect=["mesh"])
def test_decoder(mesh, size):
    """With the split of the rule, surplus frames included; some chips own only padding."""
    check_frames(raw(decoder(mesh), size), size, keep_all_frames=True)


@functools.cache
def on_one_chip(open_layout, size) -> torch.Tensor:
    return raw(decoder(open_layout("1x1sp0tp1")), size)


INVARIANT = [
    ("1x2sp0tp1", "t1"),
    ("1x2sp0tp1", "w1"),
    ("2x4sp0tp1", "t0h1"),
    pytest.param("2x4sp0tp1", "h0t1", marks=pytest.mark.full),
    pytest.param("2x4sp0tp1", "t0w1", marks=pytest.mark.full),
    pytest.param("2x4sp0tp1", "h0w1", marks=pytest.mark.full),
    ("1x8sp0tp1", "h1"),
    pytest.param("4x8sp1tp0", "t0h1", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("mesh", "split"), INVARIANT, indirect=["mesh"])
def test_mesh_invariance(mesh, split, open_layout):
    """Any mesh and split gives what one chip gives: every frame, row and column, seams among them."""
    size = (4, 7, 5)
    check_same(raw(decoder(mesh, split), size), on_one_chip(open_layout, size))


@pytest.mark.parametrize(
    ("mesh", "split", "chunk"),
    [
        ("1x1sp0tp1", "none", 1),
        pytest.param("1x2sp0tp1", "w1", 1, marks=pytest.mark.full),
        ("1x2sp0tp1", "t1", 4),
        pytest.param("2x4sp0tp1", "t0h1", 4, marks=pytest.mark.full),
        pytest.param("2x4sp0tp1", "w0h1", 2, marks=pytest.mark.full),
        pytest.param("2x4sp0tp1", "h0w1", 3, marks=pytest.mark.full),
    ],
    indirect=["mesh"],
)
def test_chunks(mesh, split, chunk):
    """Chunks change nothing but the order of sums on the host, which now and then turns a bfloat16 rounding."""
    size = (7, 3, 5)
    ours = decoder(mesh, split)
    check_same(raw(ours, size, chunk), raw(ours, size, 7))


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_frames_of_the_protocol(mesh):
    """The surplus frames are dropped, values are from 0 to 1: what the host decoder gives."""
    ours, host = decoder(mesh), HostVaeDecoder(reference())
    frames = ours.decode(latents(2, 3, 4))
    assert frames.shape == (1, 7, 24, 32, 3)
    assert frames.dtype == "float32"
    assert 0 <= frames.min() < 0.1 < 0.9 < frames.max() <= 1
    reference().drop_last_temporal_frames = True
    assert abs(frames - host.decode(latents(2, 3, 4))).max() < 0.1
    everything = ours.decode(latents(2, 3, 4), keep_all_frames=True)
    assert everything.shape[1] == 12
    assert (everything[:, 5:] == frames).all()
    assert ours.decode(latents(1, 3, 4)).shape[1] == 1


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(12, 2, 3, 4), r"must be \[1, 12, T, H, W\], not \[12, 2, 3, 4\]"),
        (torch.zeros(1, 16, 2, 3, 4), "must be .*not .*16"),
        (torch.zeros(1, 12, 0, 3, 4), "must be"),
        (torch.zeros(1, 12, 2, 3, 4, dtype=torch.int32), "floating-point numbers, not torch.int32"),
        (torch.full((1, 12, 1, 3, 4), float("nan")), "not finite"),
    ],
)
def test_bad_latents(mesh, bad, message):
    with pytest.raises(ValueError, match=message):
        decoder(mesh).decode(bad)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
@pytest.mark.parametrize(("split", "chunk"), [("t1", 3), ("t1", 2), ("h1", 0)])
def test_bad_chunks(mesh, split, chunk):
    with pytest.raises(ValueError, match=f"chunks of {chunk} latent frames"):
        decoder(mesh, split).decode(latents(7, 3, 4), chunk=chunk)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_weights_are_checked(mesh):
    class Truncated(Component):
        def keys(self):
            everything = super().keys()
            return [key for key in everything if key != "decoder.proj_out.bias"]

    with pytest.raises(ValueError, match=r"1 missing \(decoder.proj_out.bias\)"):
        MochiVaeDecoder.from_checkpoint(Truncated(), mesh)


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_nothing_stays_behind(mesh):
    """A decode leaves no tensor on the device but tables, which the next one uses again."""
    from models.mochi.vae.memory import dram_free

    ours = decoder(mesh, "t0h1")
    ours.decode(latents(8, 3, 4), chunk=4)
    before = dram_free(mesh)
    ours.decode(latents(8, 3, 4), chunk=4)
    assert dram_free(mesh) == before
