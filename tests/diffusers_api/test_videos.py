"""`pipe.vae.encode`, `video=`, `image=` and `edit=` through the door, beside Diffusers' own VAE."""

import numpy as np
import pytest
import torch

from mochi_tt import MochiPipeline
from models.machine.errors import InputError
from models.reference.metrics import pcc, relative_rmse
from tests.mochi.vae.encoder_support import frames

SIZE = {"height": 32, "width": 48, "num_frames": 7, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def pipe(small_checkpoint):
    with MochiPipeline.from_pretrained(small_checkpoint, "1x2") as opened:
        yield opened


def pixels() -> torch.Tensor:
    return (frames(7, 32, 48).float() / 127.5 - 1).permute(3, 0, 1, 2)[None]


def test_encode_is_that_of_diffusers(pipe, small_checkpoint):
    from diffusers import AutoencoderKLMochi

    exact = AutoencoderKLMochi.from_pretrained(small_checkpoint / "vae", torch_dtype=torch.float32)
    with torch.no_grad():
        theirs = exact.encode(pixels()).latent_dist
    ours = pipe.vae.encode(pixels()).latent_dist
    for name in ("mean", "logvar", "std"):
        assert pcc(getattr(theirs, name), getattr(ours, name)) > 0.999
        assert relative_rmse(getattr(theirs, name), getattr(ours, name)) < 0.03
    assert torch.equal(ours.mode(), ours.mean)
    noise = torch.Generator().manual_seed(3)
    torch.testing.assert_close(ours.sample(noise), theirs.sample(torch.Generator().manual_seed(3)), rtol=0.1, atol=0.1)
    both = pipe.vae.encode(torch.cat([pixels(), -pixels()]), return_dict=False)[0]
    assert torch.equal(both.mean[:1], ours.mean)
    assert pipe.vae.decode(ours.mode()).sample.shape == pixels().shape


def test_a_run_from_a_video(pipe):
    """As in the stages; what the scheduler shows are the steps that were done."""
    video = [np.asarray(frame) for frame in frames(7, 32, 48)]
    size = {name: SIZE[name] for name in ("height", "width", "num_inference_steps")}
    made = pipe("a ball", video=video, strength=0.7, generator=torch.Generator().manual_seed(1), **size)
    assert len(made.frames[0]) == 7
    assert len(pipe.scheduler.timesteps) == pipe.num_timesteps == 2
    still = pipe("a ball", image=made.frames[0][0], strength=0.4, output_type="pt", **SIZE).frames
    assert still.shape == (1, 7, 3, 32, 48)
    edited = pipe("a ball", video=made.frames[0], edit=True, eta=0.5, output_type="latent", **SIZE)
    assert edited.frames.shape == (1, 12, 2, 4, 6)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3, 8, 32, 48), r"8 frames must be 6 k \+ 1: use 7 or 13"),
        (torch.zeros(1, 4, 7, 32, 48), "floating-point tensor"),
        (torch.zeros(3, 7, 32, 48), "floating-point tensor"),
        (torch.full((1, 3, 7, 32, 48), 2.0), "must be from -1 to 1"),
    ],
)
def test_what_encode_refuses(pipe, x, message):
    with pytest.raises(InputError, match=message):
        pipe.vae.encode(x)
