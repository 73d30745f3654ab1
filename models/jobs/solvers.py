"""How far a few steps of a solver, or less guidance, lead from the full run: measured on the tiny model.

The loop is the mesh's (`models.mochi.sampling`), with the same weights, scales and kinds of step, but on Diffusers'
modules in float32 on the host: what differs is the method alone and not the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from models.jobs.evaluate import Reference, plan, worst_psnr
from models.mochi.geometry import Geometry
from models.mochi.inputs import make_latents
from models.mochi.sampling.branches import StepKind
from models.mochi.sampling.denoise import GuideByScale, ReuseUnconditional
from models.mochi.sampling.schedule import guidance_schedule, linear_quadratic_schedule, model_times
from models.mochi.sampling.solver import solver_weights
from models.mochi.setup import check_configs


@dataclass(frozen=True)
class Settings:
    """How a video is sampled. `reuse` is K of guidance_reuse, 1 for none."""

    solver: str
    steps: int
    interval: str = "0:1"
    reuse: int = 1


@dataclass(frozen=True)
class Row:
    """A row of the table: forwards of one video, and the PSNR of frames against the full run, in dB, over prompts."""

    settings: Settings
    forwards: int
    psnr: Sequence[float]

    def __str__(self) -> str:
        made = self.settings
        cells = [made.solver, made.steps, made.interval, made.reuse, self.forwards]
        return f"| {' | '.join(map(str, cells))} | {mean(self.psnr):.1f} | {min(self.psnr):.1f} |"


HEAD = (
    "| solver | steps | guidance interval | guidance reuse | forwards | mean PSNR | worst PSNR |\n"
    "|---|---|---|---|---|---|---|"
)


def compare(
    full: Settings,
    others: Sequence[Settings],
    limit: int,
    model: str = "tiny",
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Row]:
    """Sample `limit` held-out prompts in every way from the same noise; PSNR is the worst frame's of each prompt.

    Raises:
        InputError: a value breaks its rule.
    """
    checkpoint, defaults, prompts = plan(model, limit)
    geometry = Geometry(defaults.height, defaults.width, defaults.num_frames, check_configs(checkpoint))
    reference = Reference(checkpoint, defaults)
    forwards, psnr = [0] * len(others), [[] for _ in others]  # type: ignore[var-annotated]
    for number, (text, _) in enumerate(prompts):
        progress("compare", number, len(prompts))
        noise = make_latents(geometry, 1, None, None, defaults.seed + number)
        embeds = reference.pipe.encode_prompt(text, do_classifier_free_guidance=True)
        expected, _ = sample(reference, embeds, noise, full, defaults.guidance_scale)
        for index, settings in enumerate(others):
            made, forwards[index] = sample(reference, embeds, noise, settings, defaults.guidance_scale)
            psnr[index].append(worst_psnr(made, expected))
    progress("compare", len(prompts), len(prompts))
    return [Row(*row) for row in zip(others, forwards, psnr, strict=True)]


@torch.no_grad()
def sample(
    reference: Reference, embeds: tuple, noise_BCTHW: torch.Tensor, settings: Settings, scale: float
) -> tuple[torch.Tensor, int]:
    """Return frames, float32 [T, H, W, 3] from 0 to 1, and the forwards that they took.

    Args:
        reference: Diffusers' pipeline.
        embeds: what its `encode_prompt` returned.
        noise_BCTHW: float32.
        settings: how to sample.
        scale: of guidance, inside the interval.
    """
    sigmas = linear_quadratic_schedule(settings.steps)
    scales = guidance_schedule(scale, settings.steps, settings.interval)
    policy = ReuseUnconditional(scales, settings.reuse) if settings.reuse > 1 else GuideByScale(scales)
    weights = solver_weights(settings.solver, sigmas, scales)
    positive, mask, negative, negative_mask = embeds
    state, forwards = noise_BCTHW.clone(), 0
    kept = [torch.zeros_like(state) for _ in weights[0][1:]]
    difference = torch.zeros_like(state)
    for index, (time, rows) in enumerate(zip(model_times(sigmas), weights, strict=True)):
        kind, at = policy.kind(index), torch.tensor([time])
        velocity = reference.pipe.transformer(state, positive, at, mask, return_dict=False)[0]
        forwards += 1
        if kind is StepKind.GUIDED:
            unconditional = reference.pipe.transformer(state, negative, at, negative_mask, return_dict=False)[0]
            difference = unconditional - velocity
            forwards += 1
        if kind is not StepKind.CONDITIONAL:
            velocity = velocity + (1 - scales[index]) * difference
        sources = torch.stack([velocity, *kept])
        moved = torch.einsum("rs,s...->r...", torch.from_numpy(rows).float(), sources)
        state, kept = state + moved[0], list(moved[1:])
    return torch.from_numpy(reference.decoder.decode(state)[0]), forwards
