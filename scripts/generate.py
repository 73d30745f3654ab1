"""`mochi-tt generate`: a video from a text."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Annotated

import typer

from models.device import MODES
from models.jobs.batch import plan_batch, run_batch
from models.jobs.generate import GenerateRequest, Job, about_the_machine, check_mode, plan, run
from models.machine.errors import InputError
from models.mochi.defaults import DEFAULTS_FILE, Defaults
from models.mochi.text.words import Words
from scripts.options import HELP, request, with_steps
from scripts.progress import Reporter, make_reporter, quiet_libraries
from weight_cache.checkpoints import TINY
from weight_cache.checkpoints.checkpoint import Checkpoint

_GENMO = Defaults()
_TINY = json.loads((TINY / DEFAULTS_FILE).read_text(encoding="utf-8"))


# Options that are no settings of the model or of the video.
_OF_A_SOURCE = ("video", "image", "strength", "fit", "edit", "eta", "eta_end")


def _default(name: str) -> str:
    """The defaults of a real model and of `tiny`, for the help."""
    genmo = getattr(_GENMO, name)
    tiny = _TINY.get(name, genmo)
    return f"[default: {genmo}]" if tiny == genmo else f"[default: {genmo}; tiny: {tiny}]"


def _needed(context: typer.Context, prompt: str | None) -> str | None:
    """Refuse a missing prompt, unless only the words are asked for."""
    if prompt is None and not context.params.get("help_words"):
        raise typer.BadParameter('a prompt is missing: write what the video shows, such as "a red ball rolls left"')
    return prompt


def _list_words(model: str, variant: str | None, base: str | None) -> None:
    words = Words.of(Checkpoint.open(model, variant, base).tokenizer)
    if words is None:
        print(f"{model} reads any text: it has no list of words")
        return
    print(textwrap.fill(" ".join(words.known), 78))


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What the video shows. Up to 256 tokens are used.", callback=_needed)
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to steer away from.")] = "",
    width: Annotated[int | None, typer.Option(help=f"Pixels, a multiple of 16. {_default('width')}")] = None,
    height: Annotated[int | None, typer.Option(help=f"Pixels, a multiple of 16. {_default('height')}")] = None,
    num_frames: Annotated[int | None, typer.Option(help=f"6k + 1. {_default('num_frames')}")] = None,
    num_steps: Annotated[int | None, typer.Option(help=f"Denoising steps. {_default('num_steps')}")] = None,
    cfg_scale: Annotated[
        float | None, typer.Option(help=f"Guidance; 1 turns it off and halves the time. {_default('guidance_scale')}")
    ] = None,
    guidance_interval: Annotated[str | None, typer.Option(help=HELP["guidance_interval"])] = None,
    guidance_reuse: Annotated[int | None, typer.Option(help=HELP["guidance_reuse"])] = None,
    solver: Annotated[str | None, typer.Option(help=HELP["solver"])] = None,
    preset: Annotated[str | None, typer.Option(help=HELP["preset"])] = None,
    threshold_noise: Annotated[
        float | None, typer.Option(help=f"{HELP['threshold_noise']} {_default('threshold_noise')}")
    ] = None,
    linear_steps: Annotated[int | None, typer.Option(help=HELP["linear_steps"])] = None,
    sigmas: Annotated[str | None, typer.Option(help=HELP["sigmas"])] = None,
    cfg_schedule: Annotated[str | None, typer.Option(help=HELP["cfg_schedule"])] = None,
    steps_file: Annotated[str | None, typer.Option(help=HELP["steps_file"])] = None,
    reuse: Annotated[str | None, typer.Option(help=HELP["reuse"])] = None,
    seed: Annotated[int | None, typer.Option(help=f"Of the noise. {_default('seed')}")] = None,
    fps: Annotated[int | None, typer.Option(help=f"Frames per second of the file. {_default('fps')}")] = None,
    out: Annotated[str | None, typer.Option(help="The .mp4 to write. [default: outputs/<prompt>-<seed>.mp4]")] = None,
    model: Annotated[
        str,
        typer.Option(
            help="A directory in Diffusers' or Genmo's layout, a ComfyUI .safetensors or .gguf file, a Hugging Face id "
            "in the local cache (genmo/mochi-1-preview), or the built-in tiny."
        ),
    ] = "tiny",
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as bf16.")] = None,
    base: Annotated[str | None, typer.Option(help=HELP["base"])] = None,
    precision: Annotated[
        str | None, typer.Option(help=f"{HELP['precision']} [default: the preset's, else default]")
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(help=HELP["lora"])] = None,
    cache_dir: Annotated[str | None, typer.Option(help=HELP["cache_dir"])] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[
        str | None,
        typer.Option(
            help="Mesh axes of sequence (sp) and tensor (tp) parallelism, such as sp0tp1. [default: by the mesh]"
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="hardware, simulator (which TT_METAL_SIMULATOR names), golden (a mock mesh, numbers computed on this "
            "host), or auto: hardware where there are cards."
        ),
    ] = "auto",
    capture: Annotated[
        bool | None, typer.Option(help="On cards, record a denoising step once and replay it. [default: do]")
    ] = None,
    plain: Annotated[str | None, typer.Option(help=HELP["plain"])] = None,
    links: Annotated[int | None, typer.Option(help=HELP["links"])] = None,
    topology: Annotated[str | None, typer.Option(help=HELP["topology"])] = None,
    attention_chunks: Annotated[
        str | None, typer.Option(help="Rows of queries and of keys that a core takes, e.g. 256x384. [default: by rule]")
    ] = None,
    profile: Annotated[str | None, typer.Option(help=HELP["profile"])] = None,
    vae_split: Annotated[
        str | None,
        typer.Option(help="How the decoder is split over the mesh, such as h0w1. [default: by size]"),
    ] = None,
    first_frames: Annotated[str | None, typer.Option(help=HELP["first_frames"])] = None,
    empty_prompt: Annotated[str | None, typer.Option(help=HELP["empty_prompt"])] = None,
    save_latents: Annotated[
        bool, typer.Option("--save-latents", help="Keep the latents beside the video; mochi-tt decode reads them.")
    ] = False,
    video: Annotated[str | None, typer.Option(help=HELP["video"])] = None,
    image: Annotated[str | None, typer.Option(help=HELP["image"])] = None,
    strength: Annotated[float | None, typer.Option(help=HELP["strength"])] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Show all of the video or image, with black bars. [default: fill, cut]")
    ] = False,
    edit: Annotated[bool, typer.Option("--edit", help=HELP["edit"])] = False,
    eta: Annotated[float | None, typer.Option(help=HELP["eta"])] = None,
    eta_end: Annotated[float | None, typer.Option(help=HELP["eta_end"])] = None,
    num_videos: Annotated[int, typer.Option(help=HELP["num_videos"])] = 1,
    preview: Annotated[int | None, typer.Option(help=HELP["preview"])] = None,
    help_words: Annotated[
        bool,
        typer.Option(
            "--help-words", help="Only list the words that the model knows, if it knows only some.", is_eager=True
        ),
    ] = False,
) -> None:
    """Make a video from a text: an .mp4, and a .json with everything that went into it."""
    options = locals()
    if help_words:
        _list_words(model, variant, base)
        return
    assert prompt is not None
    print(f"mode {MODES[check_mode(mode)]}", flush=True)
    if video is not None and image is not None:
        raise InputError("--video and --image are both given: give one of the two")
    settings = {name: value for name, value in options.items() if name not in _OF_A_SOURCE}
    asked = GenerateRequest(
        prompt,
        request(with_steps(settings)),
        negative_prompt,
        save_latents,
        out,
        preview,
        video if image is None else image,
        image is not None,
        strength,
        fit,
        edit,
        eta,
        eta_end,
    )
    batch = plan_batch(asked, num_videos) if num_videos != 1 else None
    jobs = [plan(asked)] if batch is None else batch.jobs
    quiet_libraries()
    job = jobs[0]
    size = job.video.geometry
    with make_reporter() as reporter:
        reporter.line(
            f"{size.num_frames} frames of {size.width}x{size.height}, {_steps(job)}, "
            f"model {model}, layout {job.setup.layout}, {job.setup.conventions}"
        )
        about = about_the_machine(job.setup)
        if about is not None:
            reporter.line(about)
        tell = _warning(reporter)
        paths = [run(job, reporter.progress, tell)] if batch is None else run_batch(batch, reporter.progress, tell)
    for each, path in zip(jobs, paths, strict=True):
        print(f"wrote {path} and {path.with_suffix('.json').name}")
        if save_latents:
            print(f"kept the latents in {each.latents_file}")
    if batch is not None:
        print(f"{batch.record} lists them")


def _steps(job: Job) -> str:
    """Return how many steps are done; from a video or an image it is the last ones."""
    done, every = len(job.video.guidance), len(job.video.schedule[1])
    if job.request.source is None:
        return f"{every} steps"
    return f"{every} steps back and forth" if job.request.edit else f"the last {done} of {every} steps"


def _warning(reporter: Reporter) -> Callable[[str], None]:
    return lambda line: reporter.line(f"warning: {line}")
