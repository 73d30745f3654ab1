"""The job behind `mochi-tt decode`: from saved latents to an mp4, with the decoder that `generate` uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from models.device import MODES
from models.jobs.generate import check_mode
from models.machine.checks import typed
from models.machine.errors import InputError, MissingInputError
from models.machine.files import check_writable, write_json
from models.mochi.conventions import check_keep_all_frames
from models.mochi.geometry import FPS
from models.mochi.setup import Request, Setup, resolve

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


def plan(request: DecodeRequest) -> DecodeJob:
    """Fill in defaults and check whatever can be checked before a mesh is opened.

    Raises:
        InputError: a value breaks its rule, or the latents are not for this model.
        MissingInputError: the latents, or parts of the checkpoint, are missing.
    """
    check_mode(request.request.mode)
    if not Path(request.latents).is_file():  # before torch is imported
        raise MissingInputError(f"latents {request.latents} do not exist: give a file made by generate --save-latents")
    from models.jobs.latents import load_latents

    latents, kept = load_latents(request.latents)
    about = typed(_About, {key: value for key, value in kept.items() if value is not None}, f"{request.latents}")
    fps = request.fps if request.fps is not None else about.fps
    if fps < 1:
        raise InputError(f"fps {fps} must be at least 1 (Mochi's is 30)")
    out = Path(request.out) if request.out is not None else Path(request.latents).with_suffix(".mp4")
    check_writable(out)
    setup = resolve(
        replace(
            request.request,
            model=request.request.model or about.model,
            first_frames=_first_frames(request, about),
            components=("vae",),
        )
    )
    check_keep_all_frames(setup.conventions.first_frames, request.keep_all_frames)
    from models.mochi.vae.decoder import check_latents

    check_latents(latents, setup.configs.vae.latent_channels)
    # Decoding has no branches of guidance: it takes the whole mesh.
    return DecodeJob(request, replace(setup, layout=replace(setup.layout, cfg_axis=None)), latents, kept, fps, out)


def _first_frames(request: DecodeRequest, about: _About) -> str | None:
    """Return the way asked for, else that of the video that the latents were made with; None for the checkpoint's.

    Another checkpoint than that of the latents has its own way.
    """
    asked, model = request.request.first_frames, request.request.model
    is_of_the_latents = model is None or str(model) == about.model
    return asked if asked is not None or not is_of_the_latents else about.first_frames


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
    from models.device import open_mesh
    from models.jobs.video import write_mp4
    from models.machine.watchdog import Watchdog, operation_seconds
    from models.mochi.vae import MochiVaeDecoder
    from models.mochi.vae.frames import to_uint8
    from models.parallel import Mesh
    from weight_cache.store import Store

    report = progress or (lambda stage, done, total: None)
    request, setup, seconds = job.request, job.setup, {}
    assert setup.checkpoint is not None
    start = perf_counter()
    with open_mesh(
        setup.mesh_shape,
        setup.request.mode,  # type: ignore[arg-type]
        system=setup.request.system,
        ring=setup.ring,
        operation_seconds=operation_seconds(setup.layout.sp * setup.layout.tp, setup.configs.transformer.inner_dim),
    ) as opened:
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
