"""A decode job needs the decoder's weights alone."""

import pytest
import torch

from models.jobs.decode import DecodeRequest, plan
from models.jobs.latents import save_latents
from models.machine.errors import InputError
from models.mochi.setup import Request, resolve


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
