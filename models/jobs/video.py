"""Writing the video: whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.machine.errors import InputError, MachineError
from models.machine.files import renamed_when_done
from models.mochi.geometry import FPS

# The filter converts, the options tag. ffmpeg 7 takes either from the other, older versions do not.
_CONVERTED = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int"
_TAGS = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
_COLOURS = ("-vf", _CONVERTED, *(word for name, value in _TAGS.items() for word in (f"-{name}", value)))


def write_mp4(
    frames: np.ndarray,
    path: str | Path,
    fps: float = FPS,
    on_frame: Callable[[int, int], None] | None = None,
) -> None:
    """Write H.264 in yuv420p with the index at the front, which browsers play and start at once.

    Colours are converted by BT.709's matrix to its limited range at every size, and the file says so. Without the tags
    players guess: BT.601 for small videos and BT.709 for large ones.

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
        raise TypeError(f"frames must be a uint8 array [T, H, W, 3], not {found}")
    total, height, width, _ = frames.shape
    if not total or height % 2 or width % 2 or not height or not width:
        raise InputError(f"{total} frames of {width}x{height}: need at least one frame, and even sizes for yuv420p")
    if not fps > 0:
        raise InputError(f"fps {fps} must be positive")

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
            output_params=["-crf", "18", "-preset", "medium", "-movflags", "+faststart", *_COLOURS, "-f", "mp4"],
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
            raise MachineError(f"the encoder wrote {written} of {total} frames of {path}")
