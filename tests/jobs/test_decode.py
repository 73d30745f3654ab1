"""A decode job needs the decoder's weights alone."""

import pytest
import torch

from models.jobs.decode import DecodeRequest, plan
from models.jobs.latents import save_latents
from models.machine.errors import InputError
from models.mochi.setup import Request, resolve


def planned(tmp_path, model, about, **options) -> str:
    """The way with first frames of a job that decodes latents with `about` beside them."""
    save_latents(torch.zeros(1, 12, 3, 8, 8), tmp_path / "a.safetensors", about)
    keep = options.pop("keep_all_frames", False)
    request = Request(model=model, mesh="1x1", mode="golden", cache_dir=tmp_path, **options)
    job = plan(DecodeRequest(str(tmp_path / "a.safetensors"), request, keep_all_frames=keep))
    return job.setup.conventions.first_frames


def test_first_frames_are_those_of_the_latents(small_checkpoint, tmp_path):
    """What is asked for, else what the latents' video had, else the checkpoint's; another checkpoint has its own."""
    made = {"model": "tiny", "first_frames": "genmo"}
    assert planned(tmp_path, None, made) == "genmo"
    assert planned(tmp_path, "tiny", made) == "genmo"
    assert planned(tmp_path, None, made, first_frames="diffusers") == "diffusers"
    assert planned(tmp_path, small_checkpoint, made) == "diffusers"
    assert planned(tmp_path, None, {"model": "tiny"}) == "diffusers"
    assert planned(tmp_path, None, {"model": "tiny"}, first_frames="genmo") == "genmo"
    with pytest.raises(InputError, match="first_frames 'x' must be genmo"):
        planned(tmp_path, None, made | {"first_frames": "x"})


def test_frames_that_are_never_computed_cannot_be_kept(tmp_path):
    assert planned(tmp_path, "tiny", {}, keep_all_frames=True) == "diffusers"
    with pytest.raises(InputError, match="all frames cannot be kept where first_frames is genmo"):
        planned(tmp_path, "tiny", {"model": "tiny", "first_frames": "genmo"}, keep_all_frames=True)


def test_only_the_decoder_is_needed(small_copy, tmp_path):
    for part in ("transformer", "text_encoder"):
        for file in (small_copy / part).glob("*.safetensors"):
            file.unlink()
    save_latents(torch.zeros(1, 12, 3, 8, 8), tmp_path / "a.safetensors", {})
    request = Request(model=small_copy, mesh="1x1", mode="golden", cache_dir=tmp_path)
    job = plan(DecodeRequest(str(tmp_path / "a.safetensors"), request))
    assert job.setup.checkpoint is not None
    with pytest.raises(InputError, match="transformer"):
        resolve(request)
    for file in (small_copy / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match="vae"):
        plan(DecodeRequest(str(tmp_path / "a.safetensors"), request))
