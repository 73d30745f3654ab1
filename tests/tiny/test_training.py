import json
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from models.mochi.sampling.schedule import linear_quadratic_schedule, model_times
from models.tiny.trainer import Training, run
from models.tiny.training import Schedule, train
from models.tiny.transformer_training import BatchedAttention, TextToVelocity, velocity_losses
from models.tiny.vae_training import batch, new_vae, replace_norms_, vae_losses
from weight_cache.checkpoints.checkpoint import Checkpoint


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    from models.reference.random_weights import randomize_

    randomize_(module)
    return module.eval()


@torch.no_grad()
def test_the_faster_norm_is_diffusers_norm():
    vae = randomised(new_vae())
    frames = torch.randn(1, 3, 7, 16, 16, generator=torch.Generator().manual_seed(0))
    expected, names = vae.encoder(frames)[0], set(vae.state_dict())
    replace_norms_(vae)
    torch.testing.assert_close(vae.encoder(frames)[0], expected, atol=1e-4, rtol=1e-4)
    assert set(vae.state_dict()) == names


@torch.no_grad()
def test_the_batched_attention_is_diffusers_attention():
    model = randomised(TextToVelocity(50))
    g = torch.Generator().manual_seed(0)
    latents, ids = torch.randn(3, 12, 2, 4, 4, generator=g), torch.randint(3, 50, (3, 6), generator=g)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    sigma = torch.tensor([0.1, 0.5, 0.9])
    expected = model(latents, sigma, ids, mask)
    for block in model.transformer.transformer_blocks:
        block.attn1.processor = BatchedAttention()
    torch.testing.assert_close(model(latents, sigma, ids, mask), expected, atol=1e-3, rtol=1e-3)


def test_the_exact_velocity_leads_the_sampler_to_the_latents():
    """Sign, time and noise of the training are the sampler's: its Euler steps along the target end at z0."""
    target = []

    class Exact(torch.nn.Module):
        def forward(self, noisy, sigma, ids, mask):
            target.append((noisy, sigma))
            return z0 - eps

    z0, eps = torch.randn(2, 1, 12, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sigmas = linear_quadratic_schedule(8)
    z = eps.clone()
    for now, after in pairwise(sigmas):
        losses = velocity_losses(Exact(), z0, eps, torch.tensor([now]), torch.zeros(1, 1), torch.ones(1, 1))
        assert losses["loss"] < 1e-6
        torch.testing.assert_close(target[-1][0], z, atol=1e-5, rtol=1e-5)
        z = z + (now - after) * (z0 - eps)
    torch.testing.assert_close(z, z0, atol=1e-5, rtol=1e-5)


def test_the_model_is_told_the_samplers_time(monkeypatch):
    sigmas, seen = linear_quadratic_schedule(8), []
    model = TextToVelocity(10)

    def forward(latents, embeds, time, mask):
        seen.append(time)
        return SimpleNamespace(sample=latents)

    monkeypatch.setattr(model.transformer, "forward", forward)
    tokens = torch.ones(8, 1)
    model(torch.zeros(8, 12, 1, 2, 2), torch.tensor(sigmas[:-1]), tokens.long(), tokens.bool())
    torch.testing.assert_close(seen[0], torch.tensor(model_times(sigmas)), atol=1e-3, rtol=1e-5)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr("models.tiny.training.SAVE_EVERY", 2)
    schedule = Schedule(steps=6, rate=1e-2, warmup=2)

    def trained(folder, stop_at=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)

        def loss(step):
            if step == stop_at:
                raise KeyboardInterrupt
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            return {"loss": (model(x) - x).square().mean()}

        return train(model, loss, schedule, tmp_path / folder, lambda *_: None)

    whole = trained("whole")
    with pytest.raises(KeyboardInterrupt):
        trained("broken", stop_at=5)
    for name, value in trained("broken").state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name])


def test_a_few_steps_make_the_vae_better():
    vae = new_vae()
    replace_norms_(vae)
    optimiser = torch.optim.Adam(vae.parameters(), 2e-5)  # it starts as the mean colour: larger first steps leave that
    frames, losses = batch(random.Random(0), windows=True)[:2], []
    for _ in range(12):
        loss = vae_losses(vae, frames, torch.Generator().manual_seed(0), 0.0)["loss"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.alone
def test_the_whole_road_ends_in_a_checkpoint_that_the_loader_takes(tmp_path):
    out = tmp_path / "checkpoint"
    job = Training(tmp_path / "work", out, vae_steps=1, transformer_steps=2, scenes=8)
    run(job, lambda *_: None)
    checkpoint = Checkpoint.open(out)
    for component in checkpoint.components:
        component.check()
    assert len(checkpoint.vae.config["latents_mean"]) == 12
    curve = (tmp_path / "work" / "transformer" / "losses.jsonl").read_text().splitlines()
    assert json.loads(curve[-1])["step"] == 2


def test_a_wrong_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="scenes 0 must be at least 1"):
        run(Training(tmp_path, tmp_path / "out", scenes=0), lambda *_: None)
