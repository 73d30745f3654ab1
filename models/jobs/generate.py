"""The job behind `mochi-tt generate`: from the user's words to an mp4 and the JSON beside it.

`plan` settles and checks everything that needs no weights. `run` composes three parts: a pipeline is opened, `make`
makes a video with it, `write` writes the files. One open pipeline serves many requests.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from models.device import MODES, choose_mode
from models.jobs.previews import Previews, preview_files
from models.jobs.start import from_source, start_of, used_of_source
from models.machine.checks import check_text, json_file
from models.machine.errors import Cancelled, InputError
from models.machine.files import Reservation, Taken, check_writable, write_json
from models.machine.paths import is_taken
from models.mochi.presets import preset
from models.mochi.preview import LatentRgb
from models.mochi.setup import Request, Setup, Video, as_arguments, resolve

if TYPE_CHECKING:
    import numpy as np

    from models.mochi.outputs import MochiOutput
    from models.mochi.pipeline import MochiPipeline

OUTPUTS = Path("outputs")
PACKAGES = ("mochi-tt", "ttnn", "torch", "diffusers", "transformers")
_EMPTY = {
    "zeros": "the prompt is empty: it is encoded as zeros, as Genmo does",
    "encoded": "the prompt is empty: its end token alone is encoded, as in Diffusers and ComfyUI",
}
FLAT = (
    "all pixels of the video have one colour: if the prompt did not ask for that, the numbers of the vae, the guidance "
    "or a LoRA are out of range"
)
# Fields of a request that say what is made of a video or an image.
Progress = Callable[[str, int, int], None]
Message = Callable[[str], None]


@dataclass(frozen=True)
class GenerateRequest:
    """What a user asked for: words, a set-up with a video in it, and where the files go.

    Attributes:
        preview: after how many steps a strip of pictures is written, again and again; None for never.
        source: a file of a video or an image that the run starts from; None for noise alone.
        is_image: whether the source is to be an image, which then stands still.
        strength: share of the steps that are done from a source; `models.mochi.sources.STRENGTH` if None.
        fit: see `models.jobs.media.Frames`.
        edit: whether the source is edited (`models.mochi.editing`), in place of a strength.
        eta, eta_end: of the editing; its defaults if None.
    """

    prompt: str
    request: Request
    negative_prompt: str = ""
    save_latents: bool = False
    out: str | None = None
    preview: int | None = None
    source: str | None = None
    is_image: bool = False
    strength: float | None = None
    fit: bool = False
    edit: bool = False
    eta: float | None = None
    eta_end: float | None = None


@dataclass(frozen=True)
class Job:
    """A request with every default filled in and every rule checked.

    `pictures` are the source's, uint8 [F, H, W, 3], one of an image; None without a source.
    """

    request: GenerateRequest
    setup: Setup
    video: Video
    out: Path
    reservation: Reservation
    look: LatentRgb | None = None
    pictures: np.ndarray | None = None

    @property
    def latents_file(self) -> Path:
        """Where the latents are kept, if they are."""
        return latents_beside(self.out)


@dataclass(frozen=True)
class Made:
    """A video that was made: frames uint8 [F, H, W, 3], and all that the pipeline said of it."""

    frames: np.ndarray
    output: MochiOutput
    system: str
    seconds: dict[str, float]


def check_mode(mode: str) -> str:
    """Return the mode that a job which makes frames will have: one of `MODES`.

    Raises:
        InputError: there is no such mode, or it computes no numbers.
        MachineError: hardware without cards.
    """
    chosen = choose_mode(mode)  # type: ignore[arg-type]
    if chosen not in MODES:
        raise InputError(f"mode {mode!r} computes no numbers and so makes no video: use auto, {', '.join(MODES)}")
    return chosen


def plan(request: GenerateRequest, setup: Setup | None = None) -> Job:
    """Fill in defaults and check whatever can be checked before weights are read and a mesh is opened.

    Args:
        request: what the user asked for.
        setup: of its models and its video, where that is resolved already.

    Raises:
        InputError: a value breaks its rule.
        MissingInputError: the checkpoint or a part of it is missing.
    """
    check_mode(request.request.mode)
    check_text("the prompt", request.prompt)
    check_text("the negative prompt", request.negative_prompt)
    if request.out is not None:
        check_outputs(Path(request.out), latents=request.save_latents)
        check_own(Path(request.out), latents=request.save_latents)
    setup = resolve(request.request) if setup is None else setup
    if setup.video is None:
        raise InputError("a video has to be asked for: give the request a VideoRequest")
    setup, pictures = from_source(request, setup)
    assert setup.video is not None
    look = None
    if request.preview is not None:
        assert setup.checkpoint is not None
        preview_files(Path("x.mp4"), request.preview, len(setup.video.guidance))
        look = LatentRgb.of(setup.checkpoint)
    seed = setup.video.settings.seed
    if request.out is not None:
        held = Reservation(Path(request.out))
    else:
        check_writable(OUTPUTS / "video.mp4")
        held = reserve_name(request.prompt, seed)
    try:
        check_outputs(held.path, latents=request.save_latents)
        if request.preview is not None:
            files = preview_files(held.path, request.preview, len(setup.video.guidance))
            check_own(held.path, latents=request.save_latents, others=files)
    except BaseException:
        held.release()
        raise
    return Job(request, setup, setup.video, held.path, held, look, pictures)


def latents_beside(out: Path) -> Path:
    """Return the file of the latents of a video."""
    return out.with_suffix(".latents.safetensors")


def check_own(out: Path, *, latents: bool, others: Iterable[Path] = ()) -> None:
    """See that a video replaces nothing but an earlier one of this program: the JSON beside it names it.

    Args:
        out: the video.
        latents: whether its latents are kept.
        others: files beside it that will be written too.

    Raises:
        InputError: there is a file of one of the names that is none of ours.
    """
    record = out.with_suffix(".json")
    ours = False
    if is_taken(record):
        with suppress(InputError):
            ours = json_file(record, "", "").get("video") == out.name
    own = [out, record, *([latents_beside(out)] if latents else []), *others]
    foreign = [path for path in own if is_taken(path)]
    if foreign and not ours:
        raise InputError(
            f"{foreign[0]} exists and is not of an earlier video of this name, so it is not replaced: choose another "
            "--out, or move it away"
        )


def tell_replaced(out: Path, on_message: Message | None) -> None:
    """Say that an earlier video will be replaced."""
    if on_message is not None and out.exists():
        on_message(f"{out} is an earlier video and will be replaced")


def check_outputs(out: Path, *, latents: bool) -> None:
    """See that a video and what stands beside it can be written.

    Raises:
        InputError: one of them cannot.
    """
    check_writable(out)
    check_writable(out.with_suffix(".json"), ".json")
    if latents:
        check_writable(out.with_suffix(".latents.safetensors"), ".safetensors")


def about_the_machine(setup: Setup) -> str | None:
    """Say in a line which machine profile a run takes, or on hardware that there is none yet; None if there is nothing.

    The line about a missing profile begins with "hint".
    """
    if setup.profile is not None:
        origin = setup.profile.origin(version_of("ttnn"))
        return f"machine profile {setup.profile.file}: {setup.profile} ({origin})"
    if setup.mode == "hardware" and setup.request.profile is None:
        return "hint: this machine has no profile; `mochi-tt selftest --profile` tries every op on it and writes one"
    return None


def run(job: Job, progress: Progress | None = None, on_message: Message | None = None) -> Path:
    """Open a pipeline, make the video and write it with its JSON; return the video's path.

    Args:
        job: what `plan` gave.
        progress: called as `progress(stage, done, total)`.
        on_message: called with a line for what the user should know, such as a prompt that was cut.

    Raises:
        InputError: a checkpoint whose weights do not fit its configuration.
        OSError: writing failed; nothing is left behind.
    """
    return run_all([job], progress, on_message)[0]


def run_all(
    jobs: Sequence[Job],
    progress: Progress | None = None,
    on_message: Message | None = None,
    on_made: Callable[[Job, Made], None] | None = None,
) -> list[Path]:
    """Do what `run` does for jobs of one set-up, with one opening of the mesh; return the videos' paths.

    `on_made` is called after each video, when its files are there. The seconds of the loading stand with the first.

    Raises:
        InputError, OSError: as `run`; the videos that were made before stay.
    """
    from models.mochi.pipeline import MochiPipeline

    on_message = once(on_message)
    for job in jobs:
        tell_replaced(job.out, on_message)
        for line in job.setup.notes():
            on_message(line)
    start = perf_counter()
    paths: list[Path] = []
    with ExitStack() as reserved:
        for job in jobs:
            reserved.enter_context(job.reservation)
        with MochiPipeline.load(jobs[0].setup, progress, on_message) as pipe:
            load_seconds = round(perf_counter() - start, 3)
            for index, job in enumerate(jobs):
                made = make(pipe, job, progress, on_message)
                made.seconds["load"] = load_seconds if index == 0 else 0.0
                paths.append(write(made, job, progress))
                if on_made is not None:
                    on_made(job, made)
    return paths


def once(on_message: Message | None, told: Iterable[str] = ()) -> Message:
    """Return what tells each line once, and none of those told: what the plan says, a pipeline says too."""
    told = set(told)

    def tell(line: str) -> None:
        if on_message is not None and line not in told:
            told.add(line)
            on_message(line)

    return tell


def make(
    pipe: MochiPipeline,
    job: Job,
    progress: Progress | None = None,
    on_message: Message | None = None,
    on_state: Callable[[int, Any], Any] | None = None,
) -> Made:
    """Make the video of a job with an open pipeline, and keep its latents and previews where the job asks for that.

    `on_state` is that of `MochiPipeline.denoise`.

    Raises:
        Cancelled: `pipe.interrupt()` ended the run.
        OSError: the latents cannot be written.
    """
    tell = on_message or (lambda line: None)
    output = make_latents(pipe, job, progress, tell, on_state)
    if job.request.save_latents:
        keep_latents(output, job)
    frames, decode_seconds = make_frames(pipe, output.frames, progress, tell)
    return Made(frames, output, pipe.mesh.system, output.seconds | {"decode": decode_seconds})


def make_latents(
    pipe: MochiPipeline,
    job: Job,
    progress: Progress | None,
    tell: Message,
    on_state: Callable[[int, Any], Any] | None = None,
) -> MochiOutput:
    """Make the latents of a job's video with an open pipeline; `on_state` is that of `MochiPipeline.denoise`.

    Raises:
        Cancelled: `pipe.interrupt()` ended the run.
    """
    from models.mochi.outputs import MochiOutput

    request, video = job.request, job.video
    if request.prompt == "":
        tell(_EMPTY[job.setup.conventions.empty_prompt])
    is_guided = max(video.guidance, default=1) > 1
    if request.negative_prompt and not is_guided:
        tell("guidance is 1: the negative prompt has no effect")
    asked = job.request.request.video
    if not is_guided and asked is not None and (asked.guidance_interval or asked.guidance_reuse):
        tell("guidance is 1: an interval or a reuse of guidance has no effect")
    watching = [] if on_state is None else [on_state]
    if request.preview is not None and job.look is not None:
        watching.append(Previews(job.look, job.out, request.preview, tell))
    output = pipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt if is_guided else None,
        height=video.geometry.height,
        width=video.geometry.width,
        num_frames=video.geometry.num_frames,
        sigmas=video.schedule[0],
        guidance_scale=video.schedule[1],
        solver=video.solver,
        guidance_reuse=video.guidance_reuse if is_guided else None,
        seed=video.settings.seed,
        reuse=video.reuse,
        output_type="latent",
        progress=progress,
        on_state=(lambda index, state: [each(index, state) for each in watching]) if watching else None,
        **start_of(job),
    )
    assert isinstance(output, MochiOutput)
    if not output.is_complete:
        raise Cancelled("the video was cancelled: nothing is written")
    for name, encoded in (("prompt", output.prompts), ("negative prompt", output.negatives)):
        if encoded and encoded[0].num_truncated:
            tell(
                f"the {name} is too long: its last {encoded[0].num_truncated} tokens were cut, "
                f"{encoded[0].num_tokens} are used"
            )
    return output


def keep_latents(output: MochiOutput, job: Job) -> None:
    """Write latents beside the video that they will be, with what decoding them takes.

    Raises:
        OSError: they cannot be written.
    """
    from models.jobs.latents import save_latents

    about = {
        "prompt": job.request.prompt,
        "fps": job.video.settings.fps,
        "seed": job.video.settings.seed,
    } | decoded_by(job.setup)
    save_latents(output.frames, job.latents_file, about)


def make_frames(
    pipe: MochiPipeline, latents_BCTHW: Any, progress: Progress | None, tell: Message
) -> tuple[np.ndarray, float]:
    """Decode latents to frames uint8 [F, H, W, 3], and return them and the seconds that it took."""
    from models.mochi.vae.frames import are_flat, to_uint8

    start = perf_counter()
    frames = to_uint8(pipe.decode(latents_BCTHW, "np", progress=progress)[0])
    if are_flat(frames):
        tell(FLAT)
    return frames, round(perf_counter() - start, 3)


def write(made: Made, job: Job, progress: Progress | None = None, more: Mapping[str, Any] | None = None) -> Path:
    """Write a video and the JSON beside it, both or neither; return the video's path.

    `more` is kept in the JSON too.

    Raises:
        OSError: writing failed; nothing is left behind.
    """
    from models.jobs.video import write_mp4

    report = progress or (lambda stage, done, total: None)
    start = perf_counter()
    report("write", 0, len(made.frames))
    write_mp4(made.frames, job.out, job.video.settings.fps, on_frame=lambda done, total: report("write", done, total))
    made.seconds["write"] = round(perf_counter() - start, 3)
    try:
        write_json(record(made, job) | dict(more or {}), job.out.with_suffix(".json"))
    except BaseException:
        job.out.unlink(missing_ok=True)
        raise
    return job.out


def decoded_by(setup: Setup) -> dict[str, Any]:
    """Return what latents record of the decoder, so that `decode` makes the same video of them."""
    request, checkpoint = setup.request, setup.checkpoint
    return {
        "model": checkpoint.source if checkpoint is not None else None,
        "variant": checkpoint.variant if checkpoint is not None else None,
        "base": None if request.base is None else str(request.base),
        "vae_split": request.vae_split,
        "first_frames": setup.conventions.first_frames,
        "mesh": "x".join(map(str, setup.mesh_shape)),
        "layout": str(setup.layout),
    }


def record(made: Made, job: Job) -> dict[str, Any]:
    """Return what the JSON beside the video holds: enough to make the same video again."""
    setup, geometry, settings, output = job.setup, job.video.geometry, job.video.settings, made.output
    assert setup.checkpoint is not None
    arguments = as_arguments(setup.request)
    arguments |= arguments.pop("video") | job.video.as_arguments() | asdict(setup.conventions)
    arguments |= {"precision": setup.precision.name}
    own = {"prompt": job.request.prompt, "negative_prompt": job.request.negative_prompt, "out": str(job.out)}
    own |= used_of_source(job.request)
    return {
        "video": job.out.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": setup.mode,
        "mode_means": MODES[setup.mode],
        "arguments": arguments | own | {"save_latents": job.request.save_latents, "preview": job.request.preview},
        "sigmas": output.sigmas,
        "guidance_schedule": output.guidance,
        "solver": job.video.solver,
        "guidance_reuse": job.video.used_guidance_reuse(on_halves=setup.on_halves),
        "preset": _preset_of(job),
        "forwards": output.forwards[0].to_json() if output.forwards else None,
        # The way of a source back to its noise: one forward a step, without guidance.
        "inversion_forwards": len(output.guidance) if job.request.edit else 0,
        "seed": settings.seed,
        **asdict(setup.conventions),
        "mesh": "x".join(map(str, setup.mesh_shape)),
        "layout": str(setup.layout),
        "system": made.system,
        "machine": {
            "profile": setup.profile.to_json() if setup.profile is not None else None,
            "plain": sorted(setup.ways.plain),
            "links": setup.ways.links,
            "capture": setup.capture,
        },
        "geometry": {
            "height": geometry.height,
            "width": geometry.width,
            "num_frames": geometry.num_frames,
            "fps": settings.fps,
            "latent_shape": list(geometry.latent_shape),
            "visual_tokens": geometry.num_tokens,
        },
        "tokens": {
            name: {"used": encoded[0].num_tokens, "cut": encoded[0].num_truncated} if encoded else None
            for name, encoded in (("prompt", output.prompts), ("negative_prompt", output.negatives))
        },
        "checkpoint": setup.checkpoint.identity(),
        "versions": {package: version_of(package) for package in PACKAGES},
        "seconds": made.seconds,
    }


def _preset_of(job: Job) -> dict[str, Any] | None:
    """Return the preset's name and what it sets; what was used stands in the arguments."""
    name = job.video.chosen["preset"]
    return None if name is None else {"name": name, "settings": dict(preset(name).settings)}


def free_name(prompt: str, seed: int, folder: Path = OUTPUTS) -> Path:
    """Return `outputs/<words of the prompt>-<seed>.mp4`, with a number where that name is taken.

    Letters of every script stay, up to 60 and 150 bytes, unless the system's names of files cannot have them.
    """
    return next(path for path in _names(prompt, seed, folder) if _is_free(path))


def reserve_name(prompt: str, seed: int, folder: Path = OUTPUTS) -> Reservation:
    """Reserve what `free_name` gives; a name that another job writes to is taken too."""
    for path in _names(prompt, seed, folder):
        with suppress(Taken):
            held = Reservation(path)
            if _is_free(path):  # looked at only now: a job that had the name may just have ended
                return held
            held.release()
    raise AssertionError("the names do not end")


def name_of(prompt: str, seed: int) -> str:
    """Return the words of a prompt and a seed, as a file's name has them."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", prompt).lower()).strip("-")[:60]
    try:
        words = os.fsencode(words)[:150].decode("utf-8", "ignore").strip("-")
    except UnicodeEncodeError:
        words = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    return f"{words or 'video'}-{seed}"


def _names(prompt: str, seed: int, folder: Path) -> Iterator[Path]:
    name = name_of(prompt, seed)
    yield folder / f"{name}.mp4"
    for number in itertools.count(2):
        yield folder / f"{name}-{number}.mp4"


def _is_free(path: Path) -> bool:
    return not any(is_taken(file) for file in (path, path.with_suffix(".json"), latents_beside(path)))


def version_of(package: str) -> str:
    """Return the version of an installed package, "not installed" for one that is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
