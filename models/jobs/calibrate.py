"""The job behind `mochi-tt calibrate`: which steps reuse blocks for every one of a few prompts.

Each prompt is denoised with a threshold. The steps that were reused for all of them are written as a list, which later
runs of the same checkpoint and number of steps take with `--reuse steps:FILE`: they read nothing from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.jobs.generate import Message, Progress, check_mode, once
from models.machine.checks import check_text
from models.machine.errors import Cancelled, InputError
from models.machine.files import check_writable
from models.mochi.notes import notes
from models.mochi.reuse import Calibration
from models.mochi.sampling.reuse import ReuseSteps
from models.mochi.setup import Request, Setup, Video, resolve

THRESHOLD = 0.1
"""ParaAttention's examples take 0.05 to 0.12 for video models."""


@dataclass(frozen=True)
class Plan:
    """A calibration with every default filled in and every rule checked."""

    prompts: tuple[str, ...]
    setup: Setup
    video: Video
    threshold: float
    out: Path


def plan(prompts: Sequence[str], request: Request, out: str) -> Plan:
    """Check whatever can be checked before weights are read and a mesh is opened.

    `request` has a video whose `reuse` is the threshold.

    Raises:
        InputError: a value breaks its rule, or `out` is a file of another kind.
        MissingInputError: the checkpoint or a part of it is missing.
    """
    check_mode(request.mode)
    if not prompts:
        raise InputError("a calibration needs prompts: name at least one, better three or more")
    for prompt in prompts:
        check_text("the prompt", prompt)
    path = Path(out)
    check_writable(path, ".json")
    if path.exists():
        try:
            Calibration.read(path)
        except InputError as error:
            raise InputError(f"{path} exists and is no earlier calibration: choose another --out") from error
    setup = resolve(replace(request, components=("transformer", "text_encoder")))
    video = setup.video
    threshold = None if video is None or video.reuse is None else video.reuse.threshold
    if video is None or threshold is None:
        raise InputError("a calibration needs a threshold above 0 and at most 1, such as 0.1")
    return Plan(tuple(prompts), setup, video, threshold, path)


def run(job: Plan, progress: Progress | None = None, on_message: Message | None = None) -> Calibration:
    """Denoise every prompt, write the list of steps and return it.

    Raises:
        Cancelled: an interrupt ended the run; nothing is written.
        OSError: the file cannot be written.
    """
    from models.mochi.pipeline import MochiPipeline

    setup, video, checkpoint = job.setup, job.video, job.setup.checkpoint
    assert checkpoint is not None
    on_message = once(on_message)
    for line in setup.notes():
        on_message(line)
    seeds = [(video.settings.seed + index) % 2**63 for index in range(len(job.prompts))]
    reused = []
    with MochiPipeline.load(setup, progress, on_message) as pipe:
        for prompt, seed in zip(job.prompts, seeds, strict=True):
            encoded = pipe.encode(prompt, do_classifier_free_guidance=max(video.guidance) > 1, progress=progress)
            denoised = pipe.denoise(
                encoded,
                height=video.geometry.height,
                width=video.geometry.width,
                num_frames=video.geometry.num_frames,
                sigmas=video.sigmas,
                guidance_scale=video.guidance,
                solver=video.solver,
                guidance_reuse=video.used_guidance_reuse(on_halves=setup.on_halves),
                seed=seed,
                reuse=video.reuse,
                progress=progress,
            )
            if not denoised.is_complete:
                raise Cancelled("the calibration was cancelled: nothing is written")
            reused.append(denoised.forwards[0].reused)
    found = Calibration.of(
        setup.weights,
        video.conditions(on_halves=setup.on_halves),
        job.threshold,
        sorted(set(reused[0]).intersection(*reused)),
        job.prompts,
        checkpoint.source,
    )
    about = {
        "reused_steps_of_each_prompt": reused,
        "seeds": seeds,
        "mode": setup.mode,
        "layout": str(setup.layout),
    }
    found.write(job.out, about)
    branches = video.branches(on_halves=setup.on_halves)
    for line in notes(branches, ReuseSteps(frozenset(found.reused_steps))):
        on_message(line)
    return found
