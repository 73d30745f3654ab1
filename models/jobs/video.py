"""Writing the video and the JSON beside it: whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from models.mochi.geometry import FPS


def check_writable(path: str | Path, suffix: str = ".mp4") -> None:
    """Make the folder of `path` and see that a file can be made there, before any long work.

    Raises:
        ValueError: the name does not end with `suffix`, `path` is a directory, or its folder cannot be made or written.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"output {path} must end with {suffix}")
    if path.is_dir():
        raise ValueError(f"output {path} is a directory: give a file name")
    made = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "the existing file is read-only")
    except OSError as error:
        for folder in made:
            if folder.is_dir():
                folder.rmdir()
        raise ValueError(f"output {path} cannot be written ({error.strerror}): choose another place") from error


def write_mp4(
    frames: np.ndarray,
    path: str | Path,
    fps: float = FPS,
    on_frame: Callable[[int, int], None] | None = None,
) -> None:
    """Write H.264 in yuv420p with the index at the front, which browsers play and start at once.

    The file appears under its name only when complete; an error or an interrupt leaves nothing.

    Args:
        frames: uint8 [T, H, W, 3], RGB, H and W even.
        path: the file to write; its folder exists.
        fps: frames per second.
        on_frame: called as `on_frame(done, total)` after each frame.

    Raises:
        ValueError: frames of another type or shape, an odd size, none at all, or fps not positive.
        OSError: the encoder failed or the file could not be written.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        found = f"{getattr(frames, 'dtype', type(frames).__name__)} {list(getattr(frames, 'shape', []))}"
        raise ValueError(f"frames must be a uint8 array [T, H, W, 3], not {found}")
    total, height, width, _ = frames.shape
    if not total or height % 2 or width % 2 or not height or not width:
        raise ValueError(f"{total} frames of {width}x{height}: need at least one frame, and even sizes for yuv420p")
    if not fps > 0:
        raise ValueError(f"fps {fps} must be positive")

    import imageio_ffmpeg

    with renamed_when_done(Path(path)) as scratch:
        writer = imageio_ffmpeg.write_frames(
            str(scratch),
            (width, height),
            fps=fps,
            codec="libx264",
            pix_fmt_in="rgb24",
            pix_fmt_out="yuv420p",
            macro_block_size=1,
            quality=None,
            output_params=["-crf", "18", "-preset", "medium", "-movflags", "+faststart", "-f", "mp4"],
        )
        writer.send(None)
        try:
            for index, frame in enumerate(frames):
                writer.send(np.ascontiguousarray(frame))
                if on_frame is not None:
                    on_frame(index + 1, total)
        finally:
            writer.close()
        # The writer does not report a failure at its last step: look at what is there.
        written = imageio_ffmpeg.count_frames_and_secs(str(scratch))[0] if scratch.stat().st_size else 0
        if written != total:
            raise OSError(f"the encoder wrote {written} of {total} frames of {path}")


def write_json(value: Mapping[str, Any], path: str | Path) -> None:
    """Write `value` as indented JSON, whole or not at all.

    Raises:
        OSError: the file could not be written.
        TypeError: a value that JSON does not know.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with renamed_when_done(Path(path)) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def renamed_when_done(path: Path) -> Iterator[Path]:
    """A fresh file beside `path` that takes its place at the end, or vanishes on any exception."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix + ".part", dir=path.parent)
    os.close(descriptor)
    scratch = Path(name)
    try:
        yield scratch
        # mkstemp makes private files; the result gets the permissions any new file would.
        mask = os.umask(0)
        os.umask(mask)
        scratch.chmod(0o666 & ~mask)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
