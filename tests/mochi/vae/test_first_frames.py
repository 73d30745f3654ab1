"""Genmo's first frames: the formulas against Diffusers' modules, and the decoder on the mesh against the formulas."""

import pytest
import torch

from models.machine.errors import InputError
from models.mochi.vae.decoder import MochiVaeDecoder
from models.mochi.vae.frames import denormalise
from models.reference.genmo_vae import decode_by_formulas
from models.reference.metrics import relative_rmse
from models.reference.vae import HostVaeDecoder
from tests.mochi.vae.support import (
    check_frames_of_genmo,
    check_same,
    config,
    decoder,
    expected,
    expected_of_genmo,
    latents,
    reference,
)

pytestmark = pytest.mark.alone
SIZES = [(1, 6, 6), (2, 6, 10), (3, 9, 13), (4, 7, 5)]


def decode_with_hooks(size, change) -> torch.Tensor:
    """Frames [F, H, W, 3] of Diffusers' modules, where `change(x, t)` follows each upsampling by t in time."""
    model = reference()
    handles = []
    for block, time in zip(model.decoder.up_blocks, config().temporal_expansions[::-1], strict=True):

        def hook(module, inputs, output, time=time):
            return change(output[0], time), output[1]

        handles.append(block.register_forward_hook(hook))
    try:
        with torch.no_grad():
            video, _ = model.decoder(denormalise(latents(*size), model.config))
    finally:
        for handle in handles:
            handle.remove()
    return video[0].permute(1, 2, 3, 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_formulas_are_those_of_diffusers_modules(size):
    """Two programs that share no code: without dropping, and with each upsampling's output cut."""
    model = reference()
    given = denormalise(latents(*size), model.config)
    weights = model.decoder.state_dict()
    with torch.no_grad():
        everything = decode_by_formulas(weights, model.config, given, drops_surplus=False)
    assert everything.shape[2] == 6 * size[0]
    theirs = expected(size, keep_all_frames=True)
    torch.testing.assert_close(everything[0].permute(1, 2, 3, 0), theirs, atol=1e-4, rtol=1e-4)
    cut = decode_with_hooks(size, lambda x, time: x[:, :, time - 1 :])
    assert len(cut) == 6 * size[0] - 5
    torch.testing.assert_close(expected_of_genmo(size), cut, atol=1e-4, rtol=1e-4)


def test_surplus_frames_that_repeat_the_first_change_nothing():
    """What the decoder does where time is split: surplus frames stay, as copies of the first real one."""
    size, surplus = (3, 5, 4), 0

    def repeat(x, time):
        nonlocal surplus
        surplus = surplus * time + time - 1
        x = x.clone()
        x[:, :, :surplus] = x[:, :, surplus : surplus + 1]
        return x

    repeated = decode_with_hooks(size, repeat)
    assert surplus == 5
    torch.testing.assert_close(repeated[5:], expected_of_genmo(size), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(repeated[:5], repeated[5:6].expand(5, -1, -1, -1), atol=1e-5, rtol=1e-5)


def test_only_the_first_frames_differ_between_the_ways():
    """The two dropped frames reach 10 frames into the video through the small model's convolutions."""
    size = (4, 7, 5)
    one, other = expected(size), expected_of_genmo(size)
    assert one.shape == other.shape == (19, 56, 40, 3)
    errors = [relative_rmse(b, a) for a, b in zip(one, other, strict=True)]
    assert errors[0] > 0.1, errors
    assert max(errors[-3:]) < 1e-3, errors


# Each place, with the sizes of every day and those of the long run.
PLACES = [
    ("1x1sp0tp1", "none", SIZES[1:2], SIZES[:1] + SIZES[2:]),
    ("1x2sp0tp1", None, SIZES[3:], SIZES[:3]),
    ("1x2sp0tp1", "t1", SIZES[:3], SIZES[3:]),
    ("2x4sp0tp1", None, SIZES[1:2], SIZES[2:3]),
    ("2x4sp0tp1", "t0h1", SIZES[:1], SIZES[2:3]),
    ("2x4sp0tp1", "w0t1", SIZES[:1], SIZES[1:2]),
    ("1x8sp0tp1", "h1", [], SIZES[2:3]),
    ("4x8sp1tp0", None, [], SIZES[2:3]),
    ("4x8sp1tp0", "t0w1", SIZES[:1], []),
]


@pytest.mark.parametrize(
    ("mesh", "split", "size"),
    [
        pytest.param(mesh, split, size, marks=[pytest.mark.full] if size in rare else [])
        for mesh, split, daily, rare in PLACES
        for size in daily + rare
    ],
    indirect=["mesh"],
)
def test_decoder(mesh, split, size):
    """Every frame within 1.5 times PyTorch's own bfloat16 error, whether frames are dropped or repeated."""
    frames = decoder(mesh, split, "genmo").raw_frames(latents(*size))[0]
    check_frames_of_genmo(frames, size)


@pytest.mark.parametrize(
    ("mesh", "split", "chunk"),
    [
        ("1x1sp0tp1", "none", 1),
        pytest.param("1x2sp0tp1", "w1", 3, marks=pytest.mark.full),
        pytest.param("1x2sp0tp1", "t1", 4, marks=pytest.mark.full),
        pytest.param("2x4sp0tp1", "h0w1", 2, marks=pytest.mark.full),
    ],
    indirect=["mesh"],
)
def test_chunks(mesh, split, chunk):
    """Frames are dropped in the first chunk only; the carried state is that of the trimmed stream."""
    size = (7, 3, 5)
    ours = decoder(mesh, split, "genmo")
    chunked = ours.raw_frames(latents(*size), chunk)[0]
    check_same(chunked, ours.raw_frames(latents(*size), 7)[0])
    check_frames_of_genmo(chunked, size)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
@pytest.mark.parametrize("split", ["w1", "t1"])
def test_frames_of_the_protocol(mesh, split):
    ours, host = decoder(mesh, split, "genmo"), HostVaeDecoder(reference(), "genmo")
    for count in (1, 2):
        frames, theirs = ours.decode(latents(count, 3, 4)), host.decode(latents(count, 3, 4))
        assert frames.shape == theirs.shape == (1, 6 * count - 5, 24, 32, 3)
        assert abs(frames - theirs).max() < 0.1
    with pytest.raises(InputError, match="all frames cannot be kept where first_frames is genmo"):
        ours.decode(latents(2, 3, 4), keep_all_frames=True)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_there_are_two_ways(mesh):
    with pytest.raises(InputError, match=r"first_frames 'comfyui' must be genmo .* or diffusers"):
        MochiVaeDecoder(config(), mesh, first_frames="comfyui")


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
@pytest.mark.parametrize("split", [pytest.param("h0w1", marks=pytest.mark.full), "t0h1"])
def test_nothing_stays_behind(mesh, split):
    from models.mochi.vae.memory import dram_free

    ours = decoder(mesh, split, "genmo")
    ours.decode(latents(8, 3, 4), chunk=4)
    before = dram_free(mesh)
    ours.decode(latents(8, 3, 4), chunk=4)
    assert dram_free(mesh) == before
