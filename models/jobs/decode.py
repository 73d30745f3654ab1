"""The job behind `mochi-tt decode`: from saved latents to an mp4, with the decoder that `generate` uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from models.jobs.generate import MODES, resolve_mode
from models.jobs.latents import load_latents
from models.jobs.video import check_writable, write_json, write_mp4
from models.mochi.geometry import FPS

if TYPE_CHECKING:
    import torch

    from models.mochi.vae.config import DecoderConfig
    from models.parallel import Layout
    from weight_cache.checkpoints.component import Component


@dataclass(frozen=True)
class DecodeRequest:
    """What the user asked for; None means what the latents were made with."""

    latents: str
    model: str | None = None
    variant: str | None = None
    base: str | None = None
    mesh: str = "2x4"
    layout: str | None = None
    vae_split: str | None = None
    keep_all_frames: bool = False
    mode: str = "auto"
    fps: int | None = None
    cache_dir: str | None = None
    out: str | None = None


@dataclass(frozen=True)
class DecodePlan:
    """A request with every default filled in and every rule checked."""

    request: DecodeRequest
    mode: str
    latents_BCTHW: torch.Tensor
    about: dict[str, Any]
    model: str
    component: Component
    config: DecoderConfig
    layout: Layout
    fps: int
    out: Path


def plan(request: DecodeRequest) -> DecodePlan:
    """Fill in defaults and check whatever can be checked before a mesh is opened.

    Raises:
        ValueError: a value breaks its rule, or the latents are not for this model.
        FileNotFoundError: the latents, or parts of the checkpoint, are missing.
    """
    from models.device import parse_mesh, quiet_ttnn

    mode = resolve_mode(request.mode)
    mesh_shape = parse_mesh(request.mesh)
    latents, about = load_latents(request.latents)
    model = request.model or about.get("model") or "tiny"
    fps = request.fps if request.fps is not None else int(about.get("fps", FPS))
    if fps < 1:
        raise ValueError(f"fps {fps} must be at least 1 (Mochi's is 30)")
    out = Path(request.out) if request.out is not None else Path(request.latents).with_suffix(".mp4")
    check_writable(out)
    quiet_ttnn()
    from models.mochi.vae.config import DecoderConfig
    from models.mochi.vae.decoder import check_latents
    from models.mochi.vae.split import Split
    from models.parallel import Layout
    from weight_cache.checkpoints.checkpoint import Checkpoint

    if request.vae_split is not None:
        Split.parse(request.vae_split)
    component = Checkpoint.open(model, request.variant, request.base).vae
    config = DecoderConfig.from_dict(component.config)
    check_latents(latents, config.latent_channels)
    component.check()
    layout = Layout.parse(request.layout, mesh_shape) if request.layout else Layout.default(mesh_shape)
    layout = replace(layout, cfg_axis=None)  # there are no branches in decoding
    return DecodePlan(request, mode, latents, about, model, component, config, layout, fps, out)


def run(
    job: DecodePlan,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Decode and write the video with its JSON; returns the video's path.

    Raises:
        ValueError: weights that do not fit their configuration, or a split that the video does not allow.
        OSError: writing failed; nothing is left behind.
    """
    from models.device import open_mesh
    from models.mochi.vae import MochiVaeDecoder
    from models.mochi.vae.frames import to_uint8
    from models.parallel import Mesh
    from weight_cache.store import Store

    report = progress or (lambda stage, done, total: None)
    request, seconds = job.request, {}
    start = perf_counter()
    with open_mesh(request.mesh, job.mode if request.mode != "auto" else "auto") as opened:  # type: ignore[arg-type]
        decoder = MochiVaeDecoder(job.config, Mesh(opened.device, job.layout), split=request.vae_split)
        Store(request.cache_dir).load(decoder, job.component, progress=report, say=say)
        seconds["load"] = round(perf_counter() - start, 3)
        start = perf_counter()
        report("decode", 0, 1)
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
                "mode": job.mode,
                "mode_means": MODES[job.mode],
                "latents": str(request.latents),
                "latent_shape": list(job.latents_BCTHW.shape),
                "model": job.model,
                "mesh": request.mesh,
                "layout": str(job.layout),
                "vae_split": str(decoder.split_for(*job.latents_BCTHW.shape[2:])),
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
