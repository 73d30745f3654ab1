"""The job behind `mochi-tt decode`: from saved latents to an mp4, with the decoder that `generate` uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from models.device import MODES
from models.jobs.generate import FLAT, check_mode, check_outputs, check_own, tell_replaced
from models.jobs.opening import open_for
from models.machine.checks import typed
from models.machine.errors import MissingInputError
from models.machine.files import Reservation, write_json
from models.machine.paths import is_file, shown
from models.mochi.conventions import check_keep_all_frames
from models.mochi.geometry import FPS, Geometry
from models.mochi.setup import Request, Setup, check_fps, resolve

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DecodeRequest:
    """What a user asked for; None means what the latents were made with.

    The model of `request` is the checkpoint's name, or None for that of the latents.
    """

    latents: str
    request: Request
    keep_all_frames: bool = False
    fps: int | None = None
    out: str | None = None


@dataclass(frozen=True)
class _About:
    """What `generate` kept beside latents, as far as decoding takes it for granted."""

    fps: int = FPS
    model: str = "tiny"
    variant: str | None = None
    base: str | None = None
    vae_split: str | None = None
    first_frames: str | None = None


@dataclass(frozen=True)
class DecodeJob:
    """A request with every default filled in and every rule checked."""

    request: DecodeRequest
    setup: Setup
    latents_BCTHW: torch.Tensor
    about: dict[str, Any]
    fps: int
    out: Path
    reservation: Reservation


def plan(request: DecodeRequest) -> DecodeJob:
    """Fill in defaults and check whatever can be checked before a mesh is opened.

    Raises:
        InputError: a value breaks its rule, or the latents are not for this model.
        MissingInputError: the latents, or parts of the checkpoint, are missing.
    """
    check_mode(request.request.mode)
    if not is_file(request.latents):  # before torch is imported
        raise MissingInputError(
            f"latents {shown(request.latents)} do not exist: give a file made by encode or generate --save-latents"
        )
    from models.jobs.latents import load_latents

    latents, kept = load_latents(request.latents)
    about = typed(_About, {key: value for key, value in kept.items() if value is not None}, f"{request.latents}")
    fps = check_fps(request.fps if request.fps is not None else about.fps)
    out = Path(request.out) if request.out is not None else Path(request.latents).with_suffix(".mp4")
    check_outputs(out, latents=False)
    check_own(out, latents=False)
    setup = resolve(_completed(request.request, about))
    check_keep_all_frames(setup.conventions.first_frames, request.keep_all_frames)
    from models.mochi.size import check_size
    from models.mochi.vae.decoder import check_latents

    check_latents(latents, setup.configs.vae.latent_channels)
    # Decoding has no branches of guidance: it takes the whole mesh.
    setup = replace(setup, layout=replace(setup.layout, cfg_axis=None))
    assert setup.subject is not None
    check_size(replace(setup.subject, layout=setup.layout), _geometry(latents, setup))
    return DecodeJob(request, setup, latents, kept, fps, out, Reservation(out))


def _completed(request: Request, about: _About) -> Request:
    """Return a request with what the latents recorded in the place of what it leaves out.

    Another checkpoint than that of the latents has its own files and its own first frames.
    """
    wanted = replace(
        request,
        model=request.model or about.model,
        vae_split=request.vae_split or about.vae_split,
        components=("vae",),
    )
    if request.model is not None and str(request.model) != about.model:
        return wanted
    return replace(
        wanted,
        variant=request.variant or about.variant,
        base=request.base or about.base,
        first_frames=request.first_frames if request.first_frames is not None else about.first_frames,
    )


def _geometry(latents_BCTHW: torch.Tensor, setup: Setup) -> Geometry:
    """Return the size of the video that latents decode to."""
    _, _, frames, rows, columns = latents_BCTHW.shape
    scales = replace(setup.scales, patch=1)  # the decoder knows no patches
    return Geometry(rows * scales.spatial, columns * scales.spatial, (frames - 1) * scales.temporal + 1, scales)


def run(
    job: DecodeJob,
    progress: Callable[[str, int, int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Path:
    """Decode and write the video with its JSON; return the video's path.

    Raises:
        InputError: weights that do not fit their configuration, or a split that the video does not allow.
        OSError: writing failed; nothing is left behind.
    """
    tell_replaced(job.out, on_message)
    with job.reservation:
        return _run(job, progress or (lambda stage, done, total: None), on_message or (lambda line: None))


def _run(job: DecodeJob, report: Callable[[str, int, int], None], on_message: Callable[[str], None]) -> Path:
    from models.jobs.video import write_mp4
    from models.machine.watchdog import Watchdog
    from models.mochi.vae.decoder import MochiVaeDecoder
    from models.mochi.vae.frames import are_flat, to_uint8
    from models.parallel import Mesh
    from weight_cache.store import Store

    request, setup, seconds = job.request, job.setup, {}
    assert setup.checkpoint is not None
    start = perf_counter()
    with open_for(setup) as opened:
        mesh = Mesh(opened.device, setup.layout, setup.ways)
        first_frames = setup.conventions.first_frames
        decoder = MochiVaeDecoder(setup.configs.vae, mesh, split=setup.request.vae_split, first_frames=first_frames)
        store = Store(setup.request.cache_dir)
        store.load(decoder, setup.checkpoint.vae, progress=report, on_message=on_message)
        seconds["load"] = round(perf_counter() - start, 3)
        start = perf_counter()
        report("decode", 0, 1)
        with Watchdog(active=opened.mode == "hardware").watching("decode"):
            video = decoder.decode(job.latents_BCTHW, keep_all_frames=request.keep_all_frames)
        report("decode", 1, 1)
        seconds["decode"] = round(perf_counter() - start, 3)
    frames = to_uint8(video[0])
    if are_flat(frames):
        on_message(FLAT)
    report("write", 0, len(frames))
    write_mp4(frames, job.out, job.fps, on_frame=lambda done, total: report("write", done, total))
    try:
        write_json(
            {
                "video": job.out.name,
                "mode": setup.mode,
                "mode_means": MODES[setup.mode],
                "latents": str(request.latents),
                "latent_shape": list(job.latents_BCTHW.shape),
                "model": str(setup.request.model),
                "mesh": "x".join(map(str, setup.mesh_shape)),
                "layout": str(setup.layout),
                "vae_split": str(decoder.split_for(*job.latents_BCTHW.shape[2:])),
                "first_frames": first_frames,
                "keep_all_frames": request.keep_all_frames,
                "fps": job.fps,
                "made_with": job.about,
                "seconds": seconds,
            },
            job.out.with_suffix(".json"),
        )
    except BaseException:
        job.out.unlink(missing_ok=True)
        raise
    return job.out
