"""What a call returns, and mp4 files of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.jobs.video import write_mp4
from models.machine.checks import path_text, short
from models.machine.errors import InputError
from models.mochi.outputs import MochiOutput
from models.mochi.setup import check_fps
from models.mochi.vae.frames import to_uint8


@dataclass
class MochiPipelineOutput(MochiOutput):
    """`MochiOutput` that can be read as Diffusers' too: `output.frames`, `output["frames"]` and `output[0]`.

    As a mapping or a tuple it has frames alone, as in Diffusers; the other attributes are ours.
    """

    @classmethod
    def of(cls, output: MochiOutput) -> MochiPipelineOutput:
        """Return the same values."""
        return cls(**vars(output))

    def __getitem__(self, key: str | int | slice) -> Any:
        return self.frames if key == "frames" else self.to_tuple()[key]  # type: ignore[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return 1

    def __contains__(self, key: object) -> bool:
        return key == "frames"

    def keys(self) -> list[str]:
        """Return the names of what Diffusers' output has."""
        return ["frames"]

    def values(self) -> list[Any]:
        """Return the frames alone."""
        return [self.frames]

    def items(self) -> list[tuple[str, Any]]:
        """Return the frames with their name."""
        return [("frames", self.frames)]

    def to_tuple(self) -> tuple[Any]:
        """Return `(frames,)`."""
        return (self.frames,)


def export_to_video(
    video_frames: Sequence[Any] | np.ndarray,
    output_video_path: str | None = None,
    fps: int = 10,
    quality: float | None = 5.0,
    bitrate: int | None = None,
    macro_block_size: int | None = 16,
) -> str:
    """Write an mp4, with the arguments of `diffusers.utils.export_to_video`, and return its path.

    It needs neither Diffusers nor imageio. The file is H.264 of constant quality (CRF 18) and appears when complete.

    Args:
        video_frames: pictures of PIL, or arrays [H, W, 3] float from 0 to 1, as `frames[0]` of an output has them.
        output_video_path: file to write; one in the temporary directory if None.
        fps: frames per second. The default is Diffusers'; Mochi's videos are made for 30.
        quality: Diffusers' 5.0 only.
        bitrate: None only.
        macro_block_size: changes nothing: Mochi's sizes are multiples of 16.

    Raises:
        InputError: frames of another kind or shape, or an argument that would need another encoder.
        OSError: the file cannot be written.
    """
    for name, value, known in (("quality", quality, (5.0, None)), ("bitrate", bitrate, (None,))):
        if value not in known:
            raise InputError(
                f"{name} {short(value)} is not taken: files have a constant quality (CRF 18); leave it out, or use "
                "diffusers.utils.export_to_video"
            )
    if macro_block_size not in (16, 8, 4, 2, 1, None):
        raise InputError(f"macro_block_size {short(macro_block_size)} is not taken: leave it out, sizes are even")
    frames = [_pixels(frame) for frame in video_frames]
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        raise InputError("video_frames must be one or more pictures of one size, such as frames[0] of an output")
    if output_video_path is None:
        with tempfile.NamedTemporaryFile(suffix=".mp4", delete=False) as file:
            output_video_path = file.name
    path = path_text("output_video_path", output_video_path)
    write_mp4(np.stack(frames), path, check_fps(fps))
    return str(path)


def _pixels(frame: Any) -> np.ndarray:
    """Return a picture as uint8 [H, W, 3].

    Raises:
        InputError: it is none.
    """
    array = np.asarray(frame)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "uf":
        raise InputError(
            f"video_frames must hold pictures [H, W, 3] of PIL or NumPy, not {short(type(frame).__name__)} "
            f"{list(array.shape)}: give frames[0] of an output of type pil or np"
        )
    if array.dtype.kind == "f":
        return to_uint8(np.clip(array, 0, 1))
    return array.astype(np.uint8, copy=False)
