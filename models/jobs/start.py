"""What `mochi-tt generate --video` and `--image` add to a run: the frames of a file, and the steps that are done."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.jobs.media import Frames, check_is_video, is_image, media_in, read_media
from models.machine.errors import InputError
from models.machine.paths import is_dir, shown
from models.mochi.editing import Edit
from models.mochi.geometry import Geometry

if TYPE_CHECKING:
    import numpy as np

    from models.jobs.generate import GenerateRequest, Job
    from models.mochi.setup import Setup


def from_source(request: GenerateRequest, setup: Setup) -> tuple[Setup, np.ndarray | None]:
    """Read the source of a request, and cut the schedule to what its strength asks for.

    The frames are as many as were asked for, or those of the video up to the checkpoint's default.

    Raises:
        InputError: it cannot be read, has too few frames, or the encoder does not fit or has no weights.
        MissingInputError: there is no such file, or the checkpoint has no encoder.
    """
    if request.source is None:
        if request.strength is not None or request.fit or request.is_image or request.edit:
            raise InputError("strength, fit and edit belong to a video or an image: give --video FILE or --image FILE")
        Edit.of(False, request.eta, request.eta_end, strength=None, solver=None)
        return setup, None
    from models.mochi.sources import STRENGTH  # torch's import takes seconds

    assert setup.video is not None
    editing = Edit.of(request.edit, request.eta, request.eta_end, strength=request.strength, solver=setup.video.solver)

    if is_dir(request.source):
        raise InputError(f"{request.source} is a folder: give one video or image")
    (path,) = media_in(request.source)
    if is_image(path) != request.is_image:
        if request.is_image:
            check_is_video(path)
        found, name = ("no still image", "video") if request.is_image else ("an image", "image")
        raise InputError(f"{shown(path)} is {found}: give it as {name} (--{name})")
    assert setup.video is not None
    settings = setup.video.settings
    wanted = Frames(settings.height, settings.width, settings.num_frames, settings.fps, request.fit)
    pictures = _read(path, wanted, _stamp(path))
    if not request.is_image:
        setup, pictures = _of_its_length(request, setup, path, pictures)
    assert setup.video is not None
    video = setup.video
    if editing is None:
        strength = STRENGTH if request.strength is None else request.strength
        video = video.of_strength(strength, setup.weights, on_halves=setup.on_halves)
    if editing is not None or video.sigmas[0] < 1:
        check_encoder(setup, video.geometry)
    return replace(setup, video=video), pictures


@functools.lru_cache(maxsize=1)
def _read(path: Path, wanted: Frames, stamp: tuple[int, ...]) -> np.ndarray:
    """Read a source. The last one is kept: several videos, or lines of a sweep, often start from one file."""
    return read_media(path, wanted)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _of_its_length(
    request: GenerateRequest, setup: Setup, path: Path, pictures: np.ndarray
) -> tuple[Setup, np.ndarray]:
    """Return the set-up of a video as long as the source, where no number of frames was asked for, and its frames."""
    asked = request.request.video
    assert setup.video is not None
    assert asked is not None
    factor, frames = setup.scales.temporal, setup.video.settings.num_frames
    if len(pictures) >= frames:
        return setup, pictures[:frames]
    kept = (len(pictures) - 1) // factor * factor + 1
    if asked.num_frames is not None:
        raise InputError(
            f"{path} has {len(pictures)} frames at {setup.video.settings.fps} frames per second, and {frames} were "
            f"asked for: ask for {kept}"
        )
    shorter = replace(asked, num_frames=kept, seed=setup.video.settings.seed)
    return setup.for_video(shorter), pictures[:kept]


def check_encoder(setup: Setup, geometry: Geometry, *, alone: bool = False) -> Any:
    """Check the encoder's weights by their headers, and whether frames fit beside the models; return its configuration.

    Args:
        setup: resolved, with a checkpoint.
        geometry: of the frames.
        alone: whether no other model is on the mesh.

    Raises:
        InputError: the weights do not fit the configuration, or the frames do not fit the mesh.
        MissingInputError: the checkpoint has no encoder.
    """
    from models.machine.systems import chip_dram
    from models.mochi.vae.config import EncoderConfig
    from models.mochi.vae.encoder import MochiVaeEncoder
    from models.mochi.vae.encoder_memory import chunk_outputs
    from weight_cache.checkpoints.lora import checked_source
    from weight_cache.plan import NamedMesh, plan

    assert setup.checkpoint is not None
    component = setup.checkpoint.vae_encoder
    config = EncoderConfig.from_dict(component.config)
    split = setup.request.vae_split if alone else None
    encoder = MochiVaeEncoder(config, NamedMesh(setup.layout.branch), split=split)
    checked_source(encoder, component)
    free = chip_dram() - plan(encoder, "vae", setup.precision.weights).chip_bytes
    if not alone and setup.subject is not None:
        free -= setup.subject.weights[0]
    chunk_outputs(config, encoder.extents(geometry.num_frames, geometry.height, geometry.width), free)
    return config


def start_of(job: Job) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that a job's source makes; none without a source."""
    if job.pictures is None:
        return {}
    from models.mochi.sources import STRENGTH

    request = job.request
    given: dict[str, Any] = {"image" if request.is_image else "video": job.pictures}
    if request.edit:
        return given | {"edit": True, "eta": request.eta, "eta_end": request.eta_end}
    return given | {"strength": STRENGTH if request.strength is None else request.strength}


def used_of_source(request: GenerateRequest) -> dict[str, Any]:
    """Return what a run's record says of its source, with the defaults that were used."""
    from models.mochi.sources import STRENGTH

    own = {name: getattr(request, name) for name in ("is_image", "strength", "fit", "edit", "eta", "eta_end")}
    if request.source is None:
        return {"source": None, **own}
    edit = Edit.of(request.edit, request.eta, request.eta_end, strength=request.strength, solver=None)
    if edit is None:
        own["strength"] = STRENGTH if request.strength is None else request.strength
    else:
        own |= {"eta": edit.eta, "eta_end": edit.end}
    return {"source": name_as_text(request.source), **own}


def name_as_text(path: str) -> str:
    """Return a file's name for a record: it may have bytes that are no text."""
    return os.fsencode(path).decode("utf-8", "replace")
