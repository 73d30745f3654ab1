"""Videos of the trained parts in PyTorch, many at a time, and what is seen in them. The training ends with it.

`models.jobs.evaluate` judges the same prompts through the whole pipeline. Latents are [B, 12, T', H / 8, W / 8].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from models.mochi.sampling.schedule import first_step, linear_quadratic_schedule
from models.mochi.text.words import Words
from models.tiny.bank import LATENT_CHANNELS, PIXEL_STEP, TIME_STEP, encode_texts
from models.tiny.prompts import EDIT_SIGMAS, EDIT_STRENGTH, Prompt
from models.tiny.scenes import WIDE, Frame, render
from models.tiny.vae_training import SURPLUS
from models.tiny.vision import Sight, look_for

ATTRIBUTES = ("colour", "motion", "shape")


@dataclass(frozen=True)
class Sampler:
    """The trained parts on one device, and the settings of generation.

    Attributes:
        model: a `TextToVelocity`.
        vae: an `AutoencoderKLMochi` whose configuration has the latents' statistics.
        tokenizer: the tokenizer.
        steps: number of Euler steps of Genmo's schedule.
        guidance: guidance scale.
    """

    model: Any
    vae: Any
    tokenizer: Any
    steps: int = 16
    guidance: float = 4.5

    @property
    def device(self) -> torch.device:
        """The device of the parts."""
        return next(self.vae.parameters()).device

    def noise(self, count: int, frame: Frame = WIDE, seed: int = 0) -> torch.Tensor:
        """Return noise of the seeds `seed`, `seed` + 1, ..., as the pipeline draws it."""
        times = (frame.num_frames - 1) // TIME_STEP + 1
        shape = (1, LATENT_CHANNELS, times, frame.height // PIXEL_STEP, frame.width // PIXEL_STEP)
        made = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + index)) for index in range(count)]
        return torch.cat(made).to(self.device)

    @torch.no_grad()
    def generate(
        self,
        texts: Sequence[str],
        noise: torch.Tensor,
        source: torch.Tensor | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Return videos, float32 [B, T, H, W, 3] from 0 to 1.

        Args:
            texts: B prompts.
            noise: noise of each.
            source: normalised latents of videos to start from; None for pure noise.
            sigmas: noise levels of the run; those of Genmo's schedule by default.
        """
        ids = encode_texts(self.tokenizer, [Words.plain(text) for text in texts]).long().to(self.device)
        both, mask = torch.cat([ids, ids]), torch.cat([ids != 0, torch.zeros_like(ids).bool()])
        sigmas = linear_quadratic_schedule(self.steps) if sigmas is None else sigmas
        latents = noise if source is None else sigmas[0] * noise + (1 - sigmas[0]) * source
        for now, after in pairwise(sigmas):
            sigma = torch.full((len(both),), now, device=self.device)
            with_, without = self.model(torch.cat([latents, latents]), sigma, both, mask).chunk(2)
            latents = latents + (now - after) * (without + self.guidance * (with_ - without))
        return self.decode(latents)

    def answer(self, asked: Sequence[Prompt]) -> torch.Tensor:
        """Return the videos of the prompts of one set, the i-th from the noise of seed i; see `generate`."""
        noise, texts = self.noise(len(asked)), [prompt.text for prompt in asked]
        scenes = [prompt.source for prompt in asked if prompt.source is not None]
        if not scenes:
            return self.generate(texts, noise)
        first = first_step(len(EDIT_SIGMAS) - 1, EDIT_STRENGTH)
        return self.generate(texts, noise, self.encode(render(scenes)), EDIT_SIGMAS[first:])

    @torch.no_grad()
    def encode(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return normalised mean latents of frames from -1 to 1."""
        mean, std = self._statistics()
        return (self.vae.encoder(frames_BCTHW.to(self.device))[0].chunk(2, dim=1)[0] - mean) / std

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the videos of normalised latents, float32 [B, T, H, W, 3] from 0 to 1, on the CPU."""
        mean, std = self._statistics()
        made = []
        for part in (latents * std + mean).split(8):
            frames = self.vae.decoder(part)[0][:, :, SURPLUS:].float()
            made.append((frames / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).cpu())
        return torch.cat(made)

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (
            torch.tensor(self.vae.config[f"latents_{name}"], device=self.device).view(1, -1, 1, 1, 1)
            for name in ("mean", "std")
        )
        return mean, std


@dataclass(frozen=True)
class Seen:
    """A prompt, and what its video shows in the order of what it asks for."""

    prompt: Prompt
    sights: tuple[Sight, ...]


def judge(prompts: Sequence[Prompt], videos: torch.Tensor) -> list[Seen]:
    """Look at the videos of prompts."""
    pairs = zip(prompts, videos, strict=True)
    return [Seen(prompt, look_for(prompt.asked, video)) for prompt, video in pairs]


def accuracy(seen: Sequence[Seen]) -> dict[str, float]:
    """Return the shares of things whose colour, motion and shape are right, of still things that are still, and of
    prompts for two things of which all is right.
    """
    pairs = [(a, s) for one in seen for a, s in zip(one.prompt.asked, one.sights, strict=True)]
    found = {name: _share([getattr(a, name) == getattr(s, name) for a, s in pairs]) for name in ATTRIBUTES}
    still = [s.motion == "still" for a, s in pairs if a.motion == "still"]
    two = [one.sights == one.prompt.asked for one in seen if len(one.prompt.asked) == 2]
    return found | {"still": _share(still), "both": _share(two)}


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else 1.0
