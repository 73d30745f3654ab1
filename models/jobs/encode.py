"""The job behind `mochi-tt encode`: from videos and images to files of latents that `decode` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from models.jobs.generate import check_mode
from models.jobs.media import Frames, check_is_video, is_image, media_in, read_media
from models.jobs.opening import open_for
from models.jobs.start import check_encoder
from models.machine.checks import json_object, number, whole
from models.machine.errors import InputError
from models.machine.files import Reservation, check_writable
from models.machine.paths import is_dir, is_taken
from models.mochi.geometry import MOST_FRAMES, Geometry
from models.mochi.setup import Request, Setup, check_fps, resolve

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".latents.safetensors"
_LONGEST_START = 1e6


@dataclass(frozen=True)
class EncodeRequest:
    """What a user asked for; None means the checkpoint's default.

    Attributes:
        source: a video, an image, or a folder of them.
        request: the model and the mesh.
        height, width: of the frames.
        num_frames: 6k + 1; None for as many as the video has, up to the checkpoint's default.
        fps: that the video is resampled to.
        fit: see `models.jobs.media.Frames`.
        start: seconds of the video that are left out.
        seed: of the latents' sample; their mean if None.
        out: the file, or for a folder the folder.
    """

    source: str
    request: Request
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    fit: bool = False
    start: float = 0.0
    seed: int | None = None
    out: str | None = None


@dataclass(frozen=True)
class EncodeJob:
    """A request with every default filled in and every rule checked.

    Attributes:
        outputs: by source.
        config: of the encoder.
    """

    request: EncodeRequest
    setup: Setup
    config: Any
    wanted: Frames
    outputs: dict[Path, Path]
    reservations: tuple[Reservation, ...]


def plan(request: EncodeRequest) -> EncodeJob:
    """Fill in defaults and check whatever can be checked before a mesh is opened.

    Raises:
        InputError: a value breaks its rule, or the frames do not fit the mesh.
        MissingInputError: the source, or parts of the checkpoint, are missing.
    """
    check_mode(request.request.mode)
    sources = media_in(request.source)
    if request.seed is not None:
        whole("seed", request.seed, 0, 2**63 - 1)
    start = number("start", request.start)
    if not 0 <= start <= _LONGEST_START:
        raise InputError(f"start {start:g} must be seconds from 0 to {_LONGEST_START:g}")
    if request.num_frames is not None:
        whole("num_frames", request.num_frames, 1, MOST_FRAMES)
    outputs = _outputs(request, sources)
    setup = resolve(replace(request.request, components=()))
    # Encoding has no branches of guidance: it takes the whole mesh.
    setup = replace(setup, layout=replace(setup.layout, cfg_axis=None))
    defaults = setup.defaults
    geometry = Geometry(
        defaults.height if request.height is None else request.height,
        defaults.width if request.width is None else request.width,
        defaults.num_frames if request.num_frames is None else request.num_frames,
        setup.scales,
    )
    only_images = is_image(sources[0]) if len(sources) == 1 else _only_images(sources)
    if only_images and request.num_frames not in (None, 1):
        raise InputError(f"num_frames {request.num_frames} is for videos: an image is one frame")
    frames = 1 if only_images else geometry.num_frames
    config = check_encoder(setup, replace(geometry, num_frames=frames), alone=True)
    fps = check_fps(defaults.fps if request.fps is None else request.fps)
    wanted = Frames(geometry.height, geometry.width, geometry.num_frames, fps, request.fit, start)
    return EncodeJob(request, setup, config, wanted, outputs, tuple(map(Reservation, outputs.values())))


def _only_images(paths: Sequence[Path]) -> bool:
    """Return whether the files of a folder that can be opened are images; the others are told when their turn comes."""
    found = False
    for path in paths:
        try:
            image = is_image(path)
            if not image:
                check_is_video(path)
                return False
        except InputError:
            continue
        found = True
    return found


def _outputs(request: EncodeRequest, sources: list[Path]) -> dict[Path, Path]:
    """Return the file of each source's latents.

    Raises:
        InputError: one cannot be written, replaces something, or is that of two sources.
    """
    folder = is_dir(request.source)
    if request.out is not None and not folder:
        found = {sources[0]: Path(request.out)}
    else:
        place = Path(request.out) if request.out is not None else None
        if place is not None and is_taken(place) and not is_dir(place):
            raise InputError(f"output {place} is a file, and the source is a folder: give a folder with --out")
        found = {path: (place or path.parent) / f"{path.stem}{SUFFIX}" for path in sources}
    if len(set(found.values())) < len(found):
        names = sorted(path.stem for path in sources)
        twice = next(name for name, after in pairwise(names) if name == after)
        raise InputError(f"{request.source} has two files named {twice}, whose latents would have one name: rename one")
    for path in found.values():
        check_writable(path, ".safetensors")
    for source, path in found.items():
        if is_taken(path) and not _is_of(path, source):
            raise InputError(
                f"{path} exists and has no latents of an earlier encoding of {source.name}, so it is not replaced: "
                "choose another --out, or move it away"
            )
    return found


def _is_of(path: Path, source: Path) -> bool:
    """Return whether a file has latents that were encoded from a source of this name."""
    from models.jobs.latents import FORMAT
    from models.machine.headers import read_header

    try:
        metadata = read_header(path, "latents", "").metadata
        about = json_object(metadata.get("about", "{}"), "", "")
    except InputError:
        return False
    return metadata.get("format") == FORMAT and about.get("encoded") == source.name


def run(
    job: EncodeJob,
    progress: Callable[[str, int, int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> list[Path]:
    """Encode every source and write its latents; return the files.

    Of a folder, files that cannot be read are told and left out; the error comes after the others are done.

    Raises:
        InputError: weights that do not fit their configuration, or files that cannot be read.
        OSError: writing failed; nothing is left half-written.
    """
    try:
        return _run(job, progress or (lambda stage, done, total: None), on_message or (lambda line: None))
    finally:
        for reservation in job.reservations:
            reservation.release()


def _run(job: EncodeJob, report: Callable[[str, int, int], None], tell: Callable[[str], None]) -> list[Path]:
    from models.jobs.latents import save_latents
    from models.machine.watchdog import Watchdog
    from models.mochi.vae.encoder import MochiVaeEncoder
    from models.parallel import Mesh
    from weight_cache.store import Store

    setup, written, unread = job.setup, [], []
    assert setup.checkpoint is not None
    several = len(job.outputs) > 1
    first = None if several else _read(job, next(iter(job.outputs)), tell)  # what is broken is known before a mesh is
    with open_for(setup) as opened:
        mesh = Mesh(opened.device, setup.layout, setup.ways)
        encoder = MochiVaeEncoder(job.config, mesh, split=setup.request.vae_split)
        Store(setup.request.cache_dir).load(encoder, setup.checkpoint.vae_encoder, progress=report, on_message=tell)
        for index, (source, target) in enumerate(job.outputs.items()):
            report("encode", index, len(job.outputs))
            try:
                frames = _read(job, source, tell) if first is None else first
            except InputError as error:
                tell(f"{error}")
                unread.append(source.name)
                continue
            start = perf_counter()
            with Watchdog(active=opened.mode == "hardware").watching("encode"):
                latents = encoder.encode(frames, seed=job.request.seed)
            save_latents(latents, target, _about(job, source, frames, perf_counter() - start))
            written.append(target)
        report("encode", len(job.outputs), len(job.outputs))
    if unread:
        for path in written:
            tell(f"wrote {path}")
        raise InputError(f"{len(unread)} of {len(job.outputs)} files could not be read: {', '.join(unread[:5])}")
    return written


def _read(job: EncodeJob, source: Path, tell: Callable[[str], None]) -> np.ndarray:
    """Read a source's frames: as many as were asked for, or the most that make whole latent frames.

    Raises:
        InputError: it cannot be read, or has fewer frames than were asked for.
    """
    frames = read_media(source, job.wanted)
    factor = job.setup.scales.temporal
    if is_image(source):
        return frames
    asked = job.request.num_frames
    if asked is not None and len(frames) < asked:
        raise InputError(
            f"{source} has {len(frames)} frames at {job.wanted.fps:g} frames per second, and {asked} were asked for: "
            f"ask for {_whole(len(frames), factor)}"
        )
    kept = _whole(len(frames), factor)
    tell(f"{source.name}: {kept} frames of {job.wanted.width}x{job.wanted.height}")
    return frames[:kept]


def _whole(count: int, factor: int) -> int:
    """Return the largest 6k + 1 that is at most `count`."""
    return (count - 1) // factor * factor + 1


def _about(job: EncodeJob, source: Path, frames: np.ndarray, seconds: float) -> dict[str, Any]:
    request = job.setup.request
    return {
        "encoded": source.name,
        "mode": job.setup.mode,
        "model": str(request.model),
        "variant": request.variant,
        "base": None if request.base is None else str(request.base),
        "fps": int(job.wanted.fps),
        "num_frames": len(frames),
        "height": job.wanted.height,
        "width": job.wanted.width,
        "fit": job.wanted.fit,
        "start": job.wanted.start,
        "sample_seed": job.request.seed,
        "seconds": {"encode": round(seconds, 3)},
    }
