"""The job behind `mochi-tt evaluate`: does the tiny model make the videos it is asked for, and those of PyTorch?

Each prompt of a set (`models.tiny.prompts`) is generated through TTNN on a mesh and by Diffusers' `MochiPipeline` in
float32 on the host, from the same noise; both videos are looked at (`models.tiny.vision`) and compared with each other.
Both sides follow the checkpoint's conventions (`models.mochi.conventions`) and read a prompt in the same form.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from models.machine.errors import InputError
from models.machine.extras import require
from models.mochi.conventions import Conventions
from models.mochi.defaults import DEFAULTS_FILE, Defaults
from models.mochi.geometry import Geometry
from models.mochi.inputs import make_latents
from models.mochi.pipeline import MochiPipeline
from models.mochi.sampling.schedule import THRESHOLD_NOISE, TIMESTEPS, first_step
from models.mochi.setup import check_configs
from models.mochi.text.words import Words
from models.reference.vae import HostVaeDecoder
from models.tiny.prompts import EDIT_SIGMAS, EDIT_STRENGTH, SETS, Prompt
from models.tiny.prompts import prompts as prompts_of
from models.tiny.scenes import Scene, render
from models.tiny.vision import Sight, look_for
from weight_cache.checkpoints.checkpoint import Checkpoint

ATTRIBUTES = ("colour", "motion", "shape")


@dataclass(frozen=True)
class Verdict:
    """One prompt: what it asks for, what each side shows, and the worst frame's PSNR between the two, in dB.

    Each has a `Sight` for each of the one or two things that are asked for.
    """

    prompt: str
    asked: tuple[Sight, ...]
    mesh: tuple[Sight, ...]
    reference: tuple[Sight, ...]
    psnr: float


@dataclass(frozen=True)
class Evaluation:
    """The verdicts of all prompts of the set `name`, and the mesh's videos, float32 [N, T, H, W, 3] from 0 to 1."""

    name: str
    mode: str
    layout: str
    precision: str
    settings: Defaults
    verdicts: Sequence[Verdict]
    videos: torch.Tensor

    def accuracy(self, side: str = "mesh") -> dict[str, float]:
        """The share of things that are as asked, per attribute; `side` is "mesh" or "reference".

        "still" is the share of still things that are still, "both" that of prompts for two things of which all is as
        asked. They stand there only if the prompts ask for such.
        """
        pairs = [pair for v in self.verdicts for pair in zip(v.asked, getattr(v, side), strict=True)]
        right = {name: [getattr(a, name) == getattr(s, name) for a, s in pairs] for name in ATTRIBUTES}
        right["still"] = [s.motion == "still" for a, s in pairs if a.motion == "still"]
        right["both"] = [getattr(v, side) == v.asked for v in self.verdicts if len(v.asked) > 1]
        return {name: sum(found) / len(found) for name, found in right.items() if found}

    def to_json(self) -> dict[str, Any]:
        """All of it but the videos."""
        return {
            "set": self.name,
            "mode": self.mode,
            "layout": self.layout,
            "precision": self.precision,
            "settings": asdict(self.settings),
            "prompts": len(self.verdicts),
            "accuracy": self.accuracy(),
            "reference_accuracy": self.accuracy("reference"),
            "agreement": sum(v.mesh == v.reference for v in self.verdicts) / len(self.verdicts),
            "psnr_min": min(v.psnr for v in self.verdicts),
            "verdicts": [asdict(v) for v in self.verdicts],
        }

    def lines(self) -> list[str]:
        """What a reader wants to see, wrong prompts first."""
        report = self.to_json()
        wrong = [v for v in self.verdicts if v.mesh != v.asked]
        return [
            *(f"wrong: {v.prompt!r} shows {_words(v.mesh)} (PyTorch: {_words(v.reference)})" for v in wrong),
            f"{len(self.verdicts)} {self.name} prompts, {self.mode}, {self.layout}, precision {self.precision}, "
            f"{self.settings.num_steps} steps, "
            f"guidance {self.settings.guidance_scale:g}",
            *(
                f"{name:<7} {report['accuracy'][name]:6.1%}   PyTorch {report['reference_accuracy'][name]:6.1%}"
                for name in report["accuracy"]
            ),
            f"TTNN and PyTorch show the same in {report['agreement']:.1%}; worst frame PSNR between them "
            f"{report['psnr_min']:.1f} dB",
        ]


def plan(model: str, limit: int | None, name: str = SETS[0]) -> tuple[Checkpoint, Defaults, list[Prompt]]:
    """The checkpoint, its settings, and the first prompts of a set.

    Raises:
        ValueError: there is no such set, the limit is below 1, the checkpoint is no Mochi, or its schedule is not
            Diffusers'.
        FileNotFoundError: the checkpoint or a part of it is missing.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit} must be at least 1")
    checkpoint = Checkpoint.open(model)
    for component in checkpoint.components:
        component.check()
    settings = Defaults.of(checkpoint)
    if settings.threshold_noise != THRESHOLD_NOISE:
        raise InputError(
            f"{checkpoint.directory / DEFAULTS_FILE} has threshold_noise {settings.threshold_noise}, but Diffusers' "
            f"pipeline, which the videos are compared with, knows only {THRESHOLD_NOISE}: leave it out"
        )
    return checkpoint, settings, prompts_of(name)[:limit]


def evaluate(
    checkpoint: Checkpoint,
    settings: Defaults,
    prompts: Sequence[Prompt],
    mesh: str = "2x4",
    precision: str = "default",
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    name: str = SETS[0],
) -> Evaluation:
    """Generate and judge the videos of `prompts`; prompt i starts from the noise of seed `settings.seed` + i.

    Raises:
        ValueError: a value breaks its rule, or weights do not fit.
        RuntimeError: the mesh cannot be opened.
    """
    geometry = Geometry(settings.height, settings.width, settings.num_frames, check_configs(checkpoint))
    reference = Reference(checkpoint, settings)
    verdicts, videos = [], []
    with MochiPipeline.from_pretrained(checkpoint, mesh=mesh, precision=precision, progress=progress) as pipe:
        mode, layout = pipe.mode, str(pipe.layout)
        for index, prompt in enumerate(prompts):
            text, asked = prompt.text, prompt.asked
            progress("evaluate", index, len(prompts))
            noise = make_latents(geometry, 1, None, None, settings.seed + index)
            with warnings.catch_warnings():
                # Prompts as people type them have words that the model does not know.
                warnings.filterwarnings("ignore", "this model does not know")
                made = pipe(
                    text,
                    latents=noise,
                    height=settings.height,
                    width=settings.width,
                    num_frames=settings.num_frames,
                    guidance_scale=settings.guidance_scale,
                    output_type="np",
                    **_start(prompt, settings),
                )
            ours = torch.from_numpy(made.frames[0])  # type: ignore[union-attr]
            expected = reference(prompt, noise)
            seen = look_for(asked, ours), look_for(asked, expected)
            verdicts.append(Verdict(text, asked, *seen, worst_psnr(ours, expected)))
            videos.append(ours)
        progress("evaluate", len(prompts), len(prompts))
    return Evaluation(name, mode, layout, precision, settings, verdicts, torch.stack(videos))


def _start(prompt: Prompt, settings: Defaults) -> dict[str, Any]:
    """Return from what a run starts, and with which noise levels."""
    if prompt.source is None:
        return {"num_inference_steps": settings.num_steps}
    return {"video": _clip(prompt.source), "strength": EDIT_STRENGTH, "sigmas": list(EDIT_SIGMAS)}


def _clip(scene: Scene) -> np.ndarray:
    """Return the frames of a scene as a file would hold them, uint8 [T, H, W, 3]."""
    return ((render([scene])[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


class Reference:
    """Diffusers' pipeline in float32 on the host, with the same settings and the checkpoint's conventions."""

    def __init__(self, checkpoint: Checkpoint, settings: Defaults):
        diffusers = require("diffusers", "reference", "the comparison with PyTorch")
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        conventions = Conventions.of(checkpoint)
        self.words = Words.of(checkpoint.tokenizer)
        self.pipe: Any = diffusers.MochiPipeline.from_pretrained(
            checkpoint.directory,
            dtype=torch.float32,
            force_zeros_for_empty_prompt=conventions.empty_prompt == "zeros",
        )
        self.decoder = HostVaeDecoder(self.pipe.vae, conventions.first_frames)
        self.pipe.set_progress_bar_config(disable=True)
        self.settings = settings

    def __call__(self, prompt: Prompt, noise_BCTHW: torch.Tensor) -> torch.Tensor:
        """Frames, float32 [T, H, W, 3] from 0 to 1. The prompt is read as the mesh's text encoder reads it."""
        text = prompt.text if self.words is None else self.words.plain(prompt.text)
        with warnings.catch_warnings():
            # Diffusers asks for float32 autocast in its RoPE; torch says that the CPU has none, and uses float32.
            warnings.filterwarnings("ignore", "In CPU autocast")
            if prompt.source is None:
                latents = self._generate(text, noise_BCTHW).frames
            else:
                latents = self._edit(text, noise_BCTHW, _clip(prompt.source))
        return torch.from_numpy(self.decoder.decode(latents)[0])

    @torch.no_grad()
    def _edit(self, prompt: str, noise_BCTHW: torch.Tensor, clip: np.ndarray) -> torch.Tensor:
        """Return the latents of a run from a clip: Diffusers' Mochi has none, so this is its loop on its modules."""
        models, config = self.pipe, self.pipe.vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        frames = torch.from_numpy(clip).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
        started = (models.vae.encode(frames).latent_dist.mode() - mean) / std * config.scaling_factor
        texts = [models.encode_prompt(text, do_classifier_free_guidance=False)[:2] for text in (prompt, "")]
        if models.config.force_zeros_for_empty_prompt:
            texts[1] = tuple(torch.zeros_like(part) for part in texts[1])
        sigmas = EDIT_SIGMAS[first_step(len(EDIT_SIGMAS) - 1, EDIT_STRENGTH) :]
        state = sigmas[0] * noise_BCTHW + (1 - sigmas[0]) * started
        for now, after in pairwise(sigmas):
            time = torch.tensor([(1 - now) * TIMESTEPS])
            one, none = (models.transformer(state, text, time, mask).sample for text, mask in texts)
            state = state + (now - after) * (none + self.settings.guidance_scale * (one - none))
        return state

    def _generate(self, prompt: str, noise_BCTHW: torch.Tensor) -> Any:
        return self.pipe(
            prompt,
            latents=noise_BCTHW.clone(),
            height=self.settings.height,
            width=self.settings.width,
            num_frames=self.settings.num_frames,
            num_inference_steps=self.settings.num_steps,
            guidance_scale=self.settings.guidance_scale,
            output_type="latent",
        )


def worst_psnr(frames_THWC: torch.Tensor, expected_THWC: torch.Tensor) -> float:
    """The lowest peak signal-to-noise ratio of a frame, in dB, for values from 0 to 1; at most 99."""
    error = (frames_THWC - expected_THWC).square().mean((1, 2, 3)).max()
    return min(99.0, float(-10 * torch.log10(error)))


def contact_sheet(videos: torch.Tensor, columns: int = 7) -> torch.Tensor:
    """A picture with a row of frames, evenly spread in time, per video: uint8 [H', W', 3] with thin lines between."""
    count = videos.shape[1]
    chosen = [round(i * (count - 1) / (columns - 1)) for i in range(columns)]
    cells = torch.nn.functional.pad(videos[:, chosen], (0, 0, 1, 1, 1, 1), value=1.0)
    return (torch.cat([torch.cat(list(row), dim=1) for row in cells], dim=0) * 255).round().byte()


def _words(sights: Sequence[Sight]) -> str:
    return " and ".join(f"{sight.colour} {sight.shape} {sight.motion}" for sight in sights)
