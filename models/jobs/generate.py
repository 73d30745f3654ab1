"""The job behind `mochi-tt generate`: from the user's words to an mp4 and the JSON beside it.

`plan` settles and checks everything that needs no weights; `run` does the work.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from models.jobs.latents import save_latents
from models.jobs.video import check_writable, write_json, write_mp4
from models.mochi.defaults import DEFAULTS_FILE, Defaults
from models.mochi.geometry import Geometry
from models.mochi.precision import Precision
from models.mochi.sampling.schedule import guidance_schedule, linear_quadratic_schedule

if TYPE_CHECKING:
    from models.parallel import Layout
    from weight_cache.checkpoints.checkpoint import Checkpoint
    from weight_cache.checkpoints.lora import LoraRequest

OUTPUTS = Path("outputs")
PACKAGES = ("mochi-tt", "ttnn", "torch", "diffusers", "transformers")
# What each mode's numbers are, in a sentence that a user reads first.
MODES = {
    "hardware": "hardware: computed on Tenstorrent cards",
    "golden": "golden: a mock mesh, numbers computed by torch on this host, not on silicon",
}


@dataclass(frozen=True)
class Request:
    """What the user asked for; None means "the model's default"."""

    prompt: str
    negative_prompt: str = ""
    model: str = "tiny"
    variant: str | None = None
    base: str | None = None
    precision: str = "default"
    lora: tuple[str, ...] = ()
    cache_dir: str | None = None
    mesh: str = "2x4"
    layout: str | None = None
    mode: str = "auto"
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_steps: int | None = None
    cfg_scale: float | None = None
    threshold_noise: float | None = None
    linear_steps: int | None = None
    seed: int | None = None
    fps: int | None = None
    vae_split: str | None = None
    capture: bool = True
    save_latents: bool = False
    out: str | None = None


@dataclass(frozen=True)
class Plan:
    """A request with every default filled in and every rule checked."""

    request: Request
    mode: str
    settings: Defaults
    geometry: Geometry
    sigmas: list[float]
    guidance: list[float]
    checkpoint: Checkpoint
    layout: Layout
    loras: tuple[LoraRequest, ...]
    out: Path


def resolve_mode(mode: str) -> str:
    """`"hardware"` or `"golden"` for what the user asked, `"auto"` included.

    Raises:
        ValueError: no such mode, one that makes no video, or hardware without cards.
    """
    from models.device import choose_mode

    try:
        chosen = choose_mode(mode)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if chosen not in MODES:
        raise ValueError(f"mode {mode!r} computes no numbers and so makes no video: use auto, hardware or golden")
    return chosen


def plan(request: Request) -> Plan:
    """Fill in defaults and check whatever can be checked before weights are read and a mesh is opened.

    Raises:
        ValueError: a value breaks its rule.
        FileNotFoundError: the checkpoint or a part of it is missing.
    """
    from models.device import parse_mesh, quiet_ttnn
    from models.mochi.inputs import check_configs
    from weight_cache.checkpoints.checkpoint import Checkpoint
    from weight_cache.checkpoints.lora import LoraRequest

    mode = resolve_mode(request.mode)
    mesh_shape = parse_mesh(request.mesh)
    precision = Precision.named(request.precision)
    loras = tuple(LoraRequest.parse(text) for text in request.lora)
    checkpoint = Checkpoint.open(request.model, request.variant, request.base)
    wanted = {name: value for name, value in asdict(request).items() if name in Defaults.__dataclass_fields__}
    settings = Defaults().overridden(checkpoint.optional_json(DEFAULTS_FILE)).overridden(wanted)
    if settings.fps < 1:
        raise ValueError(f"fps {settings.fps} must be at least 1 (Mochi's is 30)")
    if not 0 <= settings.seed < 2**63:
        raise ValueError(f"seed {settings.seed} must be from 0 to 2**63 - 1")
    scales = check_configs(checkpoint)
    geometry = Geometry(settings.height, settings.width, settings.num_frames, scales)
    sigmas = linear_quadratic_schedule(settings.num_steps, settings.threshold_noise, request.linear_steps)
    guidance = guidance_schedule(settings.cfg_scale, settings.num_steps)
    quiet_ttnn()
    from models.mochi.components import Configs, choose_layout  # ttnn is quiet by now

    layout = choose_layout(Configs.of(checkpoint), mesh_shape, precision, request.layout)
    for component in checkpoint.components:
        component.check()
    out = Path(request.out) if request.out is not None else free_name(request.prompt, settings.seed)
    check_writable(out)
    return Plan(request, mode, settings, geometry, sigmas, guidance, checkpoint, layout, loras, out)


def run(
    job: Plan,
    progress: Callable[[str, int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Path:
    """Make the video and write it with its JSON; returns the video's path.

    Args:
        job: what `plan` gave.
        progress: called as `progress(stage, done, total)`.
        warn: called with a line for what the user should know, such as a prompt that was cut.

    Raises:
        ValueError: a checkpoint whose weights do not fit its configuration.
        OSError: writing failed; nothing is left behind.
    """
    from models.mochi.pipeline import MochiOutput, MochiPipeline
    from models.mochi.vae.frames import to_uint8

    report, say = progress or (lambda stage, done, total: None), warn or (lambda line: None)
    request, settings = job.request, job.settings
    if request.prompt == "":
        say("the prompt is empty: it is encoded as zeros, as Genmo does")
    guided = max(job.guidance) > 1
    if request.negative_prompt and not guided:
        say("guidance is 1: the negative prompt has no effect")
    seconds: dict[str, float] = {}
    start = perf_counter()
    with MochiPipeline.from_pretrained(
        job.checkpoint,
        mesh=request.mesh,
        layout=str(job.layout),
        mode=job.mode if request.mode != "auto" else "auto",  # type: ignore[arg-type]
        progress=report,
        precision=request.precision,
        loras=job.loras,
        cache_dir=request.cache_dir,
        vae_split=request.vae_split,
        capture=request.capture,
        say=say,
    ) as pipe:
        seconds["load"] = round(perf_counter() - start, 3)
        system = pipe.mesh.system
        output = pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt if guided else None,
            height=job.geometry.height,
            width=job.geometry.width,
            num_frames=job.geometry.num_frames,
            sigmas=job.sigmas,
            guidance_scale=job.guidance,
            seed=settings.seed,
            output_type="latent",
            progress=report,
        )
        assert isinstance(output, MochiOutput)
        if request.save_latents:
            about = {"prompt": request.prompt, "model": request.model, "fps": settings.fps, "seed": settings.seed}
            save_latents(output.frames, latents_file(job.out), about)
        start = perf_counter()
        video = pipe.decode(output.frames, "np", progress=report)
        output.seconds["decode"] = round(perf_counter() - start, 3)
    for name, encoded in (("prompt", output.prompts), ("negative prompt", output.negatives)):
        if encoded and encoded[0].num_truncated:
            say(
                f"the {name} is too long: its last {encoded[0].num_truncated} tokens were cut, "
                f"{encoded[0].num_tokens} are used"
            )
    seconds |= output.seconds
    start = perf_counter()
    frames = to_uint8(video[0])
    report("write", 0, len(frames))
    write_mp4(frames, job.out, settings.fps, on_frame=lambda done, total: report("write", done, total))
    seconds["write"] = round(perf_counter() - start, 3)
    try:
        write_json(record(job, output, system, seconds), job.out.with_suffix(".json"))
    except BaseException:
        job.out.unlink(missing_ok=True)
        raise
    return job.out


def latents_file(video: Path) -> Path:
    """Where the latents of a video are kept."""
    return video.with_suffix(".latents.safetensors")


def record(job: Plan, output: Any, system: str, seconds: dict[str, float]) -> dict[str, Any]:
    """What the JSON beside the video holds: enough to make the same video again."""
    geometry = job.geometry
    return {
        "video": job.out.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": job.mode,
        "mode_means": MODES[job.mode],
        "arguments": asdict(job.request) | asdict(job.settings) | {"out": str(job.out)},
        "sigmas": output.sigmas,
        "cfg_schedule": output.guidance,
        "seed": job.settings.seed,
        "mesh": job.request.mesh,
        "layout": str(job.layout),
        "system": system,
        "geometry": {
            "height": geometry.height,
            "width": geometry.width,
            "num_frames": geometry.num_frames,
            "fps": job.settings.fps,
            "latent_shape": list(geometry.latent_shape),
            "visual_tokens": geometry.num_tokens,
        },
        "tokens": {
            name: {"used": encoded[0].num_tokens, "cut": encoded[0].num_truncated} if encoded else None
            for name, encoded in (("prompt", output.prompts), ("negative_prompt", output.negatives))
        },
        "checkpoint": job.checkpoint.identity(),
        "versions": {package: _version(package) for package in PACKAGES},
        "seconds": seconds,
    }


def free_name(prompt: str, seed: int, folder: Path = OUTPUTS) -> Path:
    """`outputs/<words of the prompt>-<seed>.mp4`, with a number where that name is taken."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-") or "video"
    path, number = folder / f"{words}-{seed}.mp4", 2
    while path.exists() or path.with_suffix(".json").exists():
        path, number = folder / f"{words}-{seed}-{number}.mp4", number + 1
    return path


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
