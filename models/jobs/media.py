"""Reading of videos and images that users have: whatever ffmpeg or Pillow reads, as frames of the size that is asked.

Frames are read one by one, so that a long file costs no more memory than the frames that are taken. Rotation flags are
followed. What is transparent becomes black. Frames are repeated or left out to get the wanted frames per second, by
their time stamps where they vary. A file in which ffmpeg finds damage is refused, also where it could go on.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.machine.errors import InputError, MissingInputError
from models.machine.paths import is_dir, is_file, listed, shown
from models.machine.pictures import flattened, is_still, without_bomb_warnings

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_VIDEOS = ".avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv"
_IMAGES = ".avif .bmp .jpeg .jpg .png .tif .tiff .webp"
SUFFIXES = frozenset(f"{_VIDEOS} {_IMAGES}".split())
_DURATION = re.compile(r"Duration: (\d+):(\d+):([\d.]+)")
# ffmpeg's names of pixel formats whose pixels may be transparent.
_TRANSPARENT = re.compile(r"\b(rgba|bgra|argb|abgr|yuva\d\w*|gbrap\w*|ya8|ya16\w*|pal8|rgba64\w*|bgra64\w*)\b")
# Only the file itself is read: no playlist is one of these, which could name others.
_CONTAINERS = "mov,mp4,m4a,matroska,webm,gif,avi,flv,mpeg,mpegts,mpegvideo,ogg,asf,image2,png_pipe,webp_pipe"
_LIMITS = ("-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS, "-nostdin", "-hide_banner")
_PROBE_SECONDS = 30.0
# What ffmpeg says of a file whose pictures are not what was recorded; its other errors may be harmless.
_DAMAGE = re.compile(
    r"error while decoding|invalid (data|nal)|corrupt|concealing|partial file|truncat|missing picture|error submitting",
    re.IGNORECASE,
)
# Animations of these formats are read by Pillow: this ffmpeg reads their first picture alone, or none.
_ANIMATIONS = ("PNG", "WEBP", "AVIF")
# VP8 and VP9 keep transparency in a second stream of the same track, which their line does not show.
_ALPHA_MODE, _ALPHA = re.compile(r"^\s*alpha_mode\s*: 1"), " yuva420p"
_VPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_TIME = re.compile(r"time=(\d+):(\d+):([\d.]+)")
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
    seconds: float | None = None
    try:
        with without_bomb_warnings(), Image.open(path) as image:
            size, still = image.size, is_still(image)
            if still and size[0] * size[1] <= limits.pixels:
                image.load()
            elif image.format in _ANIMATIONS:
                seconds = _lasts(image, limits.seconds)
    except UnidentifiedImageError:
        size, still = (0, 0), False
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read: {_MEND}") from error
    if not still and seconds is None:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        lines = _said_of(program, path)
        stream = next((line for line in lines if _is_video(line)), "")
        found = re.search(r"\b(\d{1,6})x(\d{1,6})\b", stream)
        lasts = next((match for line in lines if (match := _DURATION.search(line))), None)
        if found is None:
            raise InputError(f"{name} has no video that can be read: {_MEND}")
        size = int(found[1]), int(found[2])
        seconds = 0.0 if lasts is None else _seconds(lasts)
        if seconds <= limits.seconds:  # a file may state no length, or another one
            seconds = max(seconds, _counted(program, path, limits.seconds))
    if seconds is not None and seconds > limits.seconds:
        raise InputError(f"{name} lasts more than {limits.seconds:g} s, which is the most: cut it")
    if size[0] * size[1] > limits.pixels:
        raise InputError(
            f"{name} has pictures of {size[0]}x{size[1]}, and {limits.pixels // 10**6} million pixels are the most: "
            "make it smaller"
        )


def _seconds(found: re.Match[str]) -> float:
    return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])


def _counted(program: str, path: Path, most: float) -> float:
    """Return how long a video lasts by the times of its packets, or a little more than `most`; nothing is decoded."""
    lines = _said_of(program, path, "-t", f"{most + 1:g}", "-map", "0:v:0", "-c", "copy", "-f", "null", "-")
    times = [match for line in lines for match in _TIME.finditer(line)]
    return _seconds(times[-1]) if times else 0.0


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
        raise MissingInputError(f"the file {shown(source)!r} does not exist: give a video or an image")
    return [Path(source)]


def read_media(path: Path, wanted: Frames) -> np.ndarray:
    """Read the frames that are wanted, or as many as there are: uint8 [F, H, W, 3], one for an image.

    Raises:
        InputError: the file holds no picture, or is damaged.
    """
    import numpy as np

    opened = _pictures(path, wanted)
    if opened is not None:
        return opened
    with closing(_video(path, wanted)) as frames:
        found = list(frames)
    if not found:
        after = f" after {wanted.start:g} s" if wanted.start else ""
        raise InputError(f"{shown(path)} has no frames{after}: {_MEND}")
    return np.stack(found)


def is_image(path: Path) -> bool:
    """Return whether a file is a still image that Pillow reads.

    Raises:
        InputError: it is an image that cannot be opened, such as of too many pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with without_bomb_warnings(), Image.open(path) as image:
            return is_still(image)
    except UnidentifiedImageError:
        return False
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image {shown(path)} cannot be read ({error}): {_MEND}") from error


def check_is_video(path: Path) -> None:
    """Check that there are moving pictures in a file.

    Raises:
        InputError: there are none.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with without_bomb_warnings(), Image.open(path) as image:
            if image.format in _ANIMATIONS and not is_still(image):
                return
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass
    import imageio_ffmpeg

    if not re.search(r"\b\d{1,6}x\d{1,6}\b", _described(imageio_ffmpeg.get_ffmpeg_exe(), path)):
        raise InputError(f"{shown(path)} has no pictures that can be read: {_MEND}")


def _pictures(path: Path, wanted: Frames) -> np.ndarray | None:
    """Return an image [1, H, W, 3], the frames of an animation that Pillow reads, or None if it is something else.

    Raises:
        InputError: it is damaged, or of a form that is not taken.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with without_bomb_warnings(), Image.open(path) as opened:
            if is_still(opened):
                return _fitted(opened, wanted)[None]
            if opened.format in _ANIMATIONS:
                return np.stack([_fitted(opened, wanted) for _ in _shown_in_turn(opened, wanted)])
            if opened.format == "TIFF":
                raise InputError(f"it has {getattr(opened, 'n_frames', 1)} pages: save one of them")
    except UnidentifiedImageError:
        return None
    except InputError as error:
        raise InputError(f"image {shown(path)} cannot be taken: {error}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image {shown(path)} cannot be read ({error}): {_MEND}") from error
    return None


def _fitted(image: Image.Image, wanted: Frames) -> np.ndarray:
    """Return a picture of the wanted size, [H, W, 3]."""
    import numpy as np
    from PIL import Image, ImageOps

    flat = flattened(image)
    if wanted.fit and min(wanted.width / flat.width, wanted.height / flat.height) * min(flat.size) < 1:
        raise InputError(f"it is {flat.width}x{flat.height}, of which --fit would leave no pixel: leave fit out")
    resize = ImageOps.pad if wanted.fit else ImageOps.fit
    return np.array(resize(flat, (wanted.width, wanted.height), Image.Resampling.LANCZOS))


def _shown_in_turn(image: Image.Image, wanted: Frames) -> Iterator[None]:
    """Seek an animation to what it shows at each wanted time, and yield there.

    Raises:
        InputError: it ends before the first wanted time.
    """
    shown_until, index, made = _duration(image), 0, 0
    while made < wanted.most:
        time = wanted.start + made / wanted.fps
        while time > shown_until - 1e-6:
            index += 1
            if index == getattr(image, "n_frames", 1):
                if not made:
                    raise InputError(f"it has no frames after {wanted.start:g} s")
                return
            image.seek(index)
            shown_until += _duration(image)
        made += 1
        yield


def _duration(image: Image.Image) -> float:
    """Return the seconds of the picture to which an animation is sought; 0.1 where it says none, as browsers do."""
    image.load()
    return float(image.info.get("duration", 0) or 100) / 1000


def _lasts(image: Image.Image, most: float) -> float:
    """Return how long an animation lasts, or a little more than `most`."""
    seconds = 0.0
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        seconds += _duration(image)
        if seconds > most:
            break
    return seconds


def _video(path: Path, wanted: Frames) -> Generator[np.ndarray]:
    """Yield a video's frames [H, W, 3]; close it to end ffmpeg."""
    import imageio_ffmpeg
    import numpy as np

    program = imageio_ffmpeg.get_ffmpeg_exe()
    described = _described(program, path)
    command = [program, *_LIMITS, "-v", "error", *_decoder(described)]
    if wanted.start:
        command += ["-ss", f"{wanted.start:.6f}"]
    command += ["-i", f"file:{path}", "-map", "0:v:0", "-an", "-vf", _filters(wanted, described)]
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
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").splitlines()
        damage = [line for line in lines if _DAMAGE.search(line)]
        if damage and not process.returncode:
            raise InputError(f"{shown(path)} is damaged ({_reason(damage[:1])}): make it anew from its source")
        if process.returncode:
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


def _decoder(described: str) -> list[str]:
    """Return ffmpeg's options that choose a decoder: of VP8 and VP9 its own leaves the transparency out."""
    kind = re.search(r" Video: (vp[89])\b", described)
    return ["-c:v", _VPX[kind[1]]] if kind and _ALPHA in described else []


def _described(program: str, path: Path) -> str:
    """Return ffmpeg's line about the video in a file, and whether that has transparency beside it.

    Raises:
        InputError: there is none.
    """
    lines = _said_of(program, path)
    for index, line in enumerate(lines):
        if _is_video(line):
            beside = any(_ALPHA_MODE.search(other) for other in lines[index + 1 : index + 6])
            return line + _ALPHA if beside else line
    if any(line.lstrip().startswith("Stream ") for line in lines):
        raise InputError(f"{shown(path)} has no pictures, only other streams: {_MEND}")
    raise InputError(f"{shown(path)} has no video ({_reason(lines)}): {_MEND}")


def _said_of(program: str, path: Path, *further: str) -> list[str]:
    """Return what ffmpeg says of a file, in lines.

    Raises:
        InputError: it looks at it for too long.
    """
    command = [program, *_LIMITS, "-i", f"file:{path}", *further]
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
