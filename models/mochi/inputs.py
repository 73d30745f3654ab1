"""Checking what a caller of the pipeline gives, before any long work.

Shapes: B videos, C latent channels, T latent frames, L text tokens, D width of the T5 features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.machine.checks import check_text, function, short, whole
from models.machine.errors import InputError
from models.mochi.defaults import Defaults
from models.mochi.geometry import Geometry, Scales
from models.mochi.notes import notes
from models.mochi.presets import SIZES, fill, preset
from models.mochi.reuse import Conditions, Weights, parse_reuse
from models.mochi.sampling.reuse import ReusePolicy, check_reused
from models.mochi.sampling.schedule import (
    check_reuse,
    check_strength,
    first_step,
    guidance_schedule,
    resolve_sigmas,
)
from models.mochi.sampling.solver import EULER, check_solver
from models.mochi.size import Subject, check_size
from models.mochi.sources import check_start, noised
from models.mochi.text.encoder import MAX_SEQUENCE_LENGTH, TextEmbeddings
from models.mochi.vae.frames import check_latent_values

if TYPE_CHECKING:
    from models.mochi.sampling.denoise import StepPolicy

# A prompt as a caller gives it: texts, embeddings [B, L, D], their mask [B, L]; None for what is not given.
Given = tuple[Any, "torch.Tensor | None", "torch.Tensor | None"]


@dataclass(frozen=True)
class Texts:
    """The prompts of a run, checked: texts still to encode, or embeddings as given.

    Attributes:
        prompts: one per video.
        negatives: one for all videos, or one per video.
        has_negative: whether the caller gave a negative prompt of any kind.
    """

    prompts: list[str | TextEmbeddings]
    negatives: list[str | TextEmbeddings]
    has_negative: bool

    @classmethod
    def of(cls, prompt: Given, negative: Given, width: int) -> Texts:
        """Check what a caller gave.

        Args:
            prompt: of the conditional branch.
            negative: of the unconditional branch; `""` where nothing is given.
            width: D of the transformer.

        Raises:
            InputError: a rule is broken, or the numbers of prompts do not go together.
        """
        prompts = texts("prompt", *prompt, width)
        has_negative = any(value is not None for value in negative)
        negatives: list[str | TextEmbeddings] = texts("negative_prompt", *negative, width) if has_negative else [""]
        if len(negatives) not in (1, len(prompts)):
            raise InputError(
                f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one, or one per prompt"
            )
        return cls(prompts, negatives, has_negative)


@dataclass(frozen=True)
class Run:
    """The arguments of one denoising run, checked.

    Attributes:
        noise_BCTHW: float32, one per video.
        sigmas: n + 1 noise levels.
        guidance: n guidance scales.
        policy: decides the kind of each step; None for guidance by its scales.
        solver: how a step combines the predictions so far.
        callback: called with (pipeline, step, model time, {}) after each step; None for nothing.
        progress: called as `progress(stage, done, total)`.
        reuse: decides which steps reuse blocks; None for none.
        notes: what the user should know of its steps before they run, each in a line.
        on_state: called as `on_state(video, state)` after each step; see `models.mochi.sampling.state`.
        start_BCTHW: normalised latents of the video that it starts from; None for noise alone.
    """

    noise_BCTHW: torch.Tensor
    sigmas: list[float]
    guidance: list[float]
    policy: StepPolicy | None
    callback: Callable[[Any, int, float, dict], Any] | None
    progress: Callable[[str, int, int], None]
    reuse: ReusePolicy | None = None
    solver: str = EULER
    notes: Sequence[str] = ()
    on_state: Callable[[int, Any], Any] | None = None
    start_BCTHW: torch.Tensor | None = None

    def starting_from(self, latents: torch.Tensor) -> Run:
        """Return the run that starts from a video's latents, [1 or B, C, T, H, W], with noise in them.

        Raises:
            InputError: they do not fit the noise.
        """
        return replace(self, start_BCTHW=check_start(latents, self.noise_BCTHW.shape))

    @property
    def begins(self) -> torch.Tensor:
        """What the first step begins with: noise, or a video's latents with the first noise level's share of it."""
        if self.start_BCTHW is None:
            return self.noise_BCTHW
        return noised(self.start_BCTHW, self.noise_BCTHW, self.sigmas[0])

    @property
    def is_guided(self) -> bool:
        """Whether any step needs the unconditional branch."""
        return any(scale != 1 for scale in self.guidance)

    @classmethod
    def of(
        cls,
        videos: int,
        defaults: Defaults,
        scales: Scales,
        subject: Subject | None,
        size: tuple[int | None, int | None, int | None],
        num_inference_steps: int | None,
        guidance_scale: float | Sequence[float] | None,
        noise: tuple[torch.Tensor | None, torch.Generator | Sequence[torch.Generator] | None],
        callback: Callable[[Any, int, float, dict], Any] | None,
        weights: Weights | None = None,
        on_halves: bool = False,
        /,
        *,
        seed: int | None = None,
        sigmas: Sequence[float] | None = None,
        threshold_noise: float | None = None,
        linear_steps: int | None = None,
        policy: StepPolicy | None = None,
        solver: str | None = None,
        guidance_interval: str | Sequence[float] | None = None,
        guidance_reuse: int | None = None,
        preset: str | None = None,
        reuse: Any = None,
        progress: Callable[[str, int, int], None] | None = None,
        on_state: Callable[[int, Any], Any] | None = None,
        strength: float | None = None,
        start_latents: torch.Tensor | None = None,
        **unknown: Any,
    ) -> Run:
        """Check the arguments of `MochiPipeline.denoise`, and draw the noise.

        `size` is (height, width, number of frames), `noise` the caller's latents and generators. `defaults` fill in
        what is None and what `preset` leaves open. `subject` is what the size is judged for, before the noise is drawn;
        not at all if None. `weights` are those of the transformer, for a file of reused steps. `on_halves` says whether
        the branches run beside each other.

        Raises:
            InputError: an argument breaks its rule, or two exclude each other.
        """
        if unknown:
            known = (
                "seed, sigmas, threshold_noise, linear_steps, policy, solver, guidance_interval, guidance_reuse, "
                "reuse, preset, progress, on_state, strength, start_latents"
            )
            raise InputError(f"there is no argument {sorted(unknown)[0]!r}; besides those that have a place: {known}")
        function("callback_on_step_end", callback)
        function("progress", progress)
        function("on_state", on_state)
        given = {
            "solver": solver,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "guidance_reuse": guidance_reuse,
            "reuse": reuse,
        }
        given |= dict(zip(SIZES, size, strict=True))
        if sigmas is None:
            given |= {
                "num_steps": num_inference_steps,
                "threshold_noise": threshold_noise,
                "linear_steps": linear_steps,
            }
        chosen = fill(preset, given, defaults)
        if preset is not None and subject is not None:
            _tell_precision(preset, subject.precision.name)
        height, width, frames = (chosen[name] for name in SIZES)
        geometry = Geometry(
            defaults.height if height is None else height,
            defaults.width if width is None else width,
            defaults.num_frames if frames is None else frames,
            scales,
        )
        if sigmas is None:
            wanted, linear_steps = chosen["num_steps"], chosen["linear_steps"]
            num_inference_steps = defaults.num_steps if wanted is None else wanted
            threshold_noise = chosen["threshold_noise"]
            threshold_noise = defaults.threshold_noise if threshold_noise is None else threshold_noise
        levels = resolve_sigmas(num_inference_steps, sigmas, threshold_noise, linear_steps)
        scale = chosen["guidance_scale"]
        guidance = guidance_schedule(
            defaults.guidance_scale if scale is None else scale, len(levels) - 1, chosen["guidance_interval"]
        )
        if strength is not None:
            first = first_step(len(guidance), check_strength(strength))
            levels, guidance = levels[first:], guidance[first:]
        if max(guidance, default=1) == 1 and (guidance_interval is not None or guidance_reuse is not None):
            warnings.warn(NO_GUIDANCE, stacklevel=4)
        if chosen["guidance_reuse"] is not None:
            if policy is not None:
                raise InputError("guidance_reuse is a policy of its own: give it or policy, not both")
            policy = reuse_policy(guidance, chosen["guidance_reuse"])
        every = _reused_every(policy) if max(guidance, default=1) > 1 else None
        if on_halves and every is not None:
            policy = None
        method = check_solver(EULER if chosen["solver"] is None else chosen["solver"])
        used = Conditions(
            levels,
            guidance,
            method,
            None if on_halves else every,
            (geometry.width, geometry.height, geometry.num_frames),
        )
        reused = parse_reuse(chosen["reuse"], used, weights) if guidance else None
        if reused is not None:
            blocks = 2 if subject is None else subject.configs.transformer.num_layers
            check_reused(reused, len(guidance), blocks)
        if subject is not None:
            check_size(subject.keeping(reused, is_guided=max(guidance, default=1) > 1), geometry, videos)
        said = notes(
            _branches(policy, guidance),
            reused,
            guidance_reuse=every,
            on_halves=on_halves,
            whole=subject.whole if on_halves and subject is not None else None,
        )
        drawn = make_latents(geometry, videos, noise[0], noise[1], seed)
        run = cls(drawn, levels, guidance, policy, callback, progress or _silent, reused, method, said, on_state)
        return run if start_latents is None else run.starting_from(start_latents)


def _tell_precision(name: str, used: str) -> None:
    """Warn if a preset has another precision than the pipeline was opened with."""
    wanted = preset(name).settings.get("precision", used)
    if wanted != used:
        warnings.warn(
            f"preset {name} is of precision {wanted}, but this pipeline was opened with {used}, which stays: open it "
            f"with precision={wanted!r} for the preset's speed",
            stacklevel=5,
        )


def _branches(policy: StepPolicy | None, guidance: Sequence[float]) -> list[int]:
    """Return how many branches of guidance take part in each step.

    Raises:
        InputError: the policy is none.
    """
    if policy is None:
        return [1 if scale == 1 else 2 for scale in guidance]
    rule = "must have a method kind, which returns the StepKind of a step (models.mochi.sampling.denoise)"
    if not callable(getattr(policy, "kind", None)):
        raise InputError(f"policy {short(policy)} {rule}")
    kinds = [policy.kind(index) for index in range(len(guidance))]
    for index, kind in enumerate(kinds):
        if not hasattr(kind, "branches"):
            raise InputError(f"policy {short(policy)} {rule}, not {short(kind)} for step {index}")
    return [kind.branches for kind in kinds]


def _reused_every(policy: StepPolicy | None) -> int | None:
    """Return K of a policy that leaves out the unconditional branch in some steps; None of any other."""
    if policy is None:
        return None
    from models.mochi.sampling.denoise import ReuseUnconditional

    return policy.every if isinstance(policy, ReuseUnconditional) else None


NO_GUIDANCE = "guidance is 1 in every step: an interval or a reuse of guidance has no effect"


def reuse_policy(guidance: Sequence[float], every: int) -> StepPolicy:
    """Return the policy that computes the unconditional branch in every K-th step only.

    Raises:
        InputError: K breaks the rule of `check_reuse`.
    """
    from models.mochi.sampling.denoise import ReuseUnconditional  # ttnn's import takes seconds

    return ReuseUnconditional(guidance, check_reuse(every))


def _silent(stage: str, done: int, total: int) -> None:
    pass


def texts(
    name: str,
    prompt: str | Sequence[str] | None,
    embeds_BLD: torch.Tensor | None,
    mask_BL: torch.Tensor | None,
    width: int,
) -> list[str | TextEmbeddings]:
    """Texts still to encode, or embeddings as given: one per video.

    Args:
        name: `"prompt"` or `"negative_prompt"`, for messages.
        prompt: one or several texts.
        embeds_BLD: embeddings instead of `prompt`; see `given_embeddings`.
        mask_BL: their mask.
        width: D of the transformer.

    Raises:
        ValueError: both or neither of the two, or either breaks its rule.
    """
    if (prompt is None) == (embeds_BLD is None):
        raise InputError(f"give either {name} or {name}_embeds (one of the two)")
    if embeds_BLD is not None:
        return list(given_embeddings(f"{name}_embeds", embeds_BLD, mask_BL, width))
    if mask_BL is not None:
        raise InputError(f"{name}_attention_mask belongs to {name}_embeds, which is not given")
    return list(prompt_list(name, prompt))


def prompt_list(name: str, prompt: Any) -> list[str]:
    """One or several prompts as a list.

    Raises:
        ValueError: not a string or a list of strings, or an empty list.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, list | tuple) else []
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise InputError(f"{name} must be a string or a list of strings, not {short(prompt)}")
    return [check_text(name, p) for p in prompts]


def given_embeddings(
    name: str, embeds_BLD: torch.Tensor, mask_BL: torch.Tensor | None, width: int
) -> list[TextEmbeddings]:
    """Embeddings that the caller computed, checked and split into one per video.

    Args:
        name: the argument's name, for messages.
        embeds_BLD: floating-point [B, L, D], L from 1 to 256.
        mask_BL: bool or 0/1 [B, L].
        width: D of the transformer.

    Raises:
        ValueError: a wrong shape or type, values that are not finite, or no mask.
    """
    mask_name = name.removesuffix("embeds") + "attention_mask"
    if mask_BL is None:
        raise InputError(f"{name} needs its {mask_name}, bool [B, L]")
    embeds_BLD, mask_BL = _tensor(name, embeds_BLD), _tensor(mask_name, mask_BL)
    if embeds_BLD.ndim != 3 or embeds_BLD.shape[2] != width or not embeds_BLD.is_floating_point():
        raise InputError(f"{name} must be floating-point [B, L, {width}], not {_describe(embeds_BLD)}")
    batch, length, _ = embeds_BLD.shape
    if not 1 <= length <= MAX_SEQUENCE_LENGTH or not batch:
        raise InputError(f"{name} {_describe(embeds_BLD)} must have 1 to {MAX_SEQUENCE_LENGTH} tokens")
    if tuple(mask_BL.shape) != (batch, length):
        raise InputError(f"{mask_name} must be [{batch}, {length}] as {name} is, not {_describe(mask_BL)}")
    if not ((mask_BL == 0) | (mask_BL == 1)).all():
        raise InputError(f"{mask_name} must hold only 0 and 1 (or False and True)")
    if not embeds_BLD.isfinite().all():
        raise InputError(f"{name} holds values that are not finite")
    embeds, mask = embeds_BLD.detach().to("cpu", torch.float32), mask_BL.detach().to("cpu").bool()
    return [TextEmbeddings(embeds[i : i + 1], mask[i : i + 1], num_tokens=int(mask[i].sum())) for i in range(batch)]


def make_latents(
    geometry: Geometry,
    batch: int,
    latents: torch.Tensor | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    seed: int | None,
) -> torch.Tensor:
    """The starting noise, float32 BCTHW: the caller's, or drawn as Diffusers draws it on the CPU.

    One generator draws the whole batch at once, a list draws each video from its own (Diffusers
    `randn_tensor`), so that a seed gives the latents that Diffusers has for it.

    Raises:
        ValueError: more than one of `latents`, `generator` and `seed`; latents of another shape or not
            finite; a wrong number of generators, or one that is not on the CPU.
    """
    shape = (batch, *geometry.latent_shape[1:])
    named = [n for n, v in (("latents", latents), ("generator", generator), ("seed", seed)) if v is not None]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} are both given: give only one source of noise")
    if latents is not None:
        latents = _tensor("latents", latents)
        if tuple(latents.shape) != shape or not latents.is_floating_point():
            raise InputError(
                f"latents must be floating-point {list(shape)} for {batch} x {geometry.width}x{geometry.height}, "
                f"{geometry.num_frames} frames, not {_describe(latents)}"
            )
        check_latent_values(latents, "latents")
        return latents.detach().to("cpu", torch.float32)
    if seed is not None:
        generator = torch.Generator().manual_seed(whole("seed", seed, 0, 2**63 - 1))
    generators = [generator] if generator is None or isinstance(generator, torch.Generator) else generator
    if not isinstance(generators, list | tuple) or not all(
        g is None or isinstance(g, torch.Generator) for g in generators
    ):
        raise InputError(f"generator must be a torch.Generator or a list of them, not {type(generator).__name__}")
    if any(g is not None and g.device.type != "cpu" for g in generators):
        raise InputError("generators must be on the CPU, where the noise is drawn")
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(shape, generator=generator, dtype=torch.float32)
    if len(generators) != batch:
        raise InputError(f"{len(generators)} generators for {batch} videos: give one, or one per video")
    return torch.cat([torch.randn((1, *shape[1:]), generator=g, dtype=torch.float32) for g in generators])


def latents_list(latents: Any) -> list[torch.Tensor]:
    """Latents [B, C, T, H, W], or a list of such, as a list with one per video.

    Raises:
        InputError: they are none.
    """
    parts = list(latents) if isinstance(latents, list | tuple) else [latents]
    each = [video for part in parts for video in _tensor("latents", part).split(1)]
    if not each:
        raise InputError("latents are none: give [B, C, T, H, W], or a list of such")
    return each


def _tensor(name: str, value: Any) -> torch.Tensor:
    """Return a caller's tensor or array of numbers as a tensor.

    Raises:
        InputError: it is neither.
    """
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} must be an array of numbers, not of {value.dtype}") from error
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name} must be a tensor, not {type(value).__name__}")
    if value.ndim == 0:
        raise InputError(f"{name} must be a tensor with dimensions, not one number")
    return value


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
