"""The whole decoder against Diffusers', over meshes, splits and sizes that do not divide."""

import pytest
import torch

from models.mochi.vae import choose_split
from tests.mochi.vae.support import check_frames, check_same, decoder, latents

SIZES = [(1, 6, 6), (2, 6, 10), (3, 9, 13), (4, 7, 5)]


def raw(ours, size, chunk=None) -> torch.Tensor:
    return ours.raw_frames(latents(*size), chunk)[0]


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "1x8sp0tp1", "4x8sp1tp0"], indirect=True)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decoder(mesh, size):
    """With the split of the rule, surplus frames included."""
    print(choose_split(mesh, *size))
    check_frames(raw(decoder(mesh), size), size, keep_all_frames=True)


@pytest.mark.parametrize(
    ("mesh", "split", "chunk"),
    [
        ("1x1sp0tp1", "none", 1),
        ("1x1sp0tp1", "none", 3),
        ("1x2sp0tp1", "h1", 2),
        ("1x2sp0tp1", "w1", 1),
        ("1x2sp0tp1", "t1", 4),
        ("2x4sp0tp1", "t0h1", 4),
        ("2x4sp0tp1", "w0h1", 2),
        ("2x4sp0tp1", "h0w1", 3),
    ],
    indirect=["mesh"],
)
def test_chunks(mesh, split, chunk):
    """Chunks change nothing but the order of sums on the host, which now and then turns a bfloat16 rounding."""
    size = (7, 3, 5)
    ours = decoder(mesh, split)
    check_same(raw(ours, size, chunk), raw(ours, size, 7))
