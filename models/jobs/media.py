"""Reading of videos and images that users have: whatever ffmpeg or Pillow reads, as frames of the size that is asked.

Frames are read one by one, so that a long file costs no more memory than the frames that are taken. Rotation flags are
followed. What is transparent becomes black. Frames are repeated or left out to get the wanted frames per second, by
their time stamps where they vary.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.machine.errors import InputError, MissingInputError
from models.machine.paths import is_dir, is_file, listed, shown

if TYPE_CHECKING:
    import numpy as np

_VIDEOS = ".avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv"
_IMAGES = ".bmp .jpeg .jpg .png .tif .tiff .webp"
SUFFIXES = frozenset(f"{_VIDEOS} {_IMAGES}".split())
_DURATION = re.compile(r"Duration: (\d+):(\d+):([\d.]+)")
# ffmpeg's names of pixel formats whose pixels may be transparent.
_TRANSPARENT = re.compile(r"\b(rgba|bgra|argb|abgr|yuva\d\w*|gbrap\w*|ya8|ya16\w*|pal8|rgba64\w*|bgra64\w*)\b")
# Only the file itself is read: no playlist is one of these, which could name others.
_CONTAINERS = "mov,mp4,m4a,matroska,webm,gif,avi,flv,mpeg,mpegts,mpegvideo,ogg,asf,image2,png_pipe,webp_pipe"
_LIMITS = ("-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS, "-nostdin", "-hide_banner")
_PROBE_SECONDS = 30.0
_MEND = "give a video or an image that ffmpeg reads"


@dataclass(frozen=True)
class Frames:
    """What is taken of a video or an image.

    Attributes:
        height, width: of the frames in pixels.
        most: number of frames at most.
        fps: of the frames; those of an image have none.
        fit: scale the whole picture into the frame with black bars, in place of filling it and cutting the middle out.
        start: seconds of a video that are left out.
    """

    height: int
    width: int
    most: int
    fps: float = 30
    fit: bool = False
    start: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What a file from somebody else may not exceed.

    Attributes:
        pixels: of a picture.
        seconds: of a video.
    """

    pixels: int = 40_000_000
    seconds: float = 120.0


def measure(path: Path, limits: Limits, called: str | None = None) -> None:
    """Look at a video, without reading its pictures, or at an image.

    Args:
        path: the file.
        limits: what it may not exceed.
        called: what messages call it; its path if None.

    Raises:
        InputError: it holds no picture, is damaged, or exceeds a limit.
    """
    from PIL import Image, UnidentifiedImageError

    name = shown(path) if called is None else called
    try:
        with Image.open(path) as image:
            size, still = image.size, getattr(image, "n_frames", 1) == 1
            if still and size[0] * size[1] <= limits.pixels:
                image.load()
    except UnidentifiedImageError:
        size, still = (0, 0), False
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read: {_MEND}") from error
    if not still:
        import imageio_ffmpeg

        lines = _said_of(imageio_ffmpeg.get_ffmpeg_exe(), path)
        stream = next((line for line in lines if _is_video(line)), "")
        found = re.search(r"\b(\d{1,6})x(\d{1,6})\b", stream)
        lasts = next((match for line in lines if (match := _DURATION.search(line))), None)
        if found is None:
            raise InputError(f"{name} has no video that can be read: {_MEND}")
        size = int(found[1]), int(found[2])
        seconds = 0.0 if lasts is None else 3600 * int(lasts[1]) + 60 * int(lasts[2]) + float(lasts[3])
        if seconds > limits.seconds:
            raise InputError(f"{name} lasts {seconds:.0f} s, and {limits.seconds:g} s is the most: cut it")
    if size[0] * size[1] > limits.pixels:
        raise InputError(
            f"{name} has pictures of {size[0]}x{size[1]}, and {limits.pixels // 10**6} million pixels are the most: "
            "make it smaller"
        )


def media_in(source: str | Path) -> list[Path]:
    """Return the file, or the media in the folder, that a user names.

    Raises:
        MissingInputError: there is none.
    """
    if is_dir(source):
        found = [path for path in listed(source) if path.suffix.lower() in SUFFIXES and is_file(path)]
        if not found:
            raise MissingInputError(f"{shown(source)} has no videos or images ({', '.join(sorted(SUFFIXES))})")
        return found
    if not is_file(source):
        raise MissingInputError(f"{shown(source)} does not exist: give a video, an image or a folder of them")
    return [Path(source)]


def read_media(path: Path, wanted: Frames) -> np.ndarray:
    """Read the frames that are wanted, or as many as there are: uint8 [F, H, W, 3], one for an image.

    Raises:
        InputError: the file holds no picture, or is damaged.
    """
    import numpy as np

    image = _image(path, wanted)
    if image is not None:
        return image[None]
    with closing(_video(path, wanted)) as frames:
        found = list(frames)
    if not found:
        after = f" after {wanted.start:g} s" if wanted.start else ""
        raise InputError(f"{shown(path)} has no frames{after}: {_MEND}")
    return np.stack(found)


def is_image(path: Path) -> bool:
    """Return whether a file is a still image that Pillow reads."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) == 1
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return False


def _image(path: Path, wanted: Frames) -> np.ndarray | None:
    """Return an image [H, W, 3], or None if the file is something else."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    size = (wanted.width, wanted.height)
    try:
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                return None
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except UnidentifiedImageError:
        return None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image {shown(path)} cannot be read ({error}): {_MEND}") from error
    flat = Image.alpha_composite(Image.new("RGBA", upright.size, (0, 0, 0, 255)), upright).convert("RGB")
    resized = (ImageOps.pad if wanted.fit else ImageOps.fit)(flat, size, Image.Resampling.LANCZOS)
    return np.array(resized)


def _video(path: Path, wanted: Frames) -> Generator[np.ndarray]:
    """Yield a video's frames [H, W, 3]; close it to end ffmpeg."""
    import imageio_ffmpeg
    import numpy as np

    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, *_LIMITS, "-v", "error"]
    if wanted.start:
        command += ["-ss", f"{wanted.start:.6f}"]
    command += ["-i", f"file:{path}", "-map", "0:v:0", "-an", "-vf", _filters(wanted, _described(program, path))]
    command += ["-frames:v", str(wanted.most), "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    size = wanted.height * wanted.width * 3
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        assert process.stdout is not None
        try:
            while len(data := process.stdout.read(size)) == size:
                yield np.frombuffer(data, np.uint8).reshape(wanted.height, wanted.width, 3)
            process.wait()
        finally:
            process.kill()
        if process.returncode:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").splitlines()
            raise InputError(f"{shown(path)} cannot be read ({_reason(lines)}): {_MEND}")


def _filters(wanted: Frames, described: str) -> str:
    """Return ffmpeg's filters that make the wanted frames."""
    size = f"{wanted.width}:{wanted.height}"
    steps = ["format=gbrap,premultiply=inplace=1"] if _TRANSPARENT.search(described) else []
    steps.append(f"fps={wanted.fps:g}")
    # Pixels that are not square are made so first.
    steps.append("scale='max(2,trunc(iw*sar))':ih,setsar=1")
    how = "decrease" if wanted.fit else "increase"
    steps.append(f"scale={size}:force_original_aspect_ratio={how}:flags=lanczos+accurate_rnd")
    steps.append(f"pad={size}:(ow-iw)/2:(oh-ih)/2:black" if wanted.fit else f"crop={size}")
    return ",".join(steps)


def _described(program: str, path: Path) -> str:
    """Return ffmpeg's line about the video in a file.

    Raises:
        InputError: there is none.
    """
    lines = _said_of(program, path)
    for line in lines:
        if _is_video(line):
            return line
    raise InputError(f"{shown(path)} has no video ({_reason(lines)}): {_MEND}")


def _said_of(program: str, path: Path) -> list[str]:
    """Return what ffmpeg says of a file, in lines.

    Raises:
        InputError: it looks at it for too long.
    """
    command = [program, *_LIMITS, "-i", f"file:{path}"]
    try:
        made = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_PROBE_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{shown(path)} cannot be read within {_PROBE_SECONDS:g} s: {_MEND}") from error
    return made.stderr.decode("utf-8", "replace").splitlines()


def _is_video(line: str) -> bool:
    return line.lstrip().startswith("Stream ") and " Video: " in line


def _reason(said: Sequence[str]) -> str:
    """Return what ffmpeg said last that is no advice."""
    lines = [line.strip() for line in said if line.strip()]
    lines = [line for line in lines if "At least one output file" not in line] or ["ffmpeg gives no reason"]
    return re.sub(r"^\[[^\]]*\] ?", "", lines[-1])[:200]
