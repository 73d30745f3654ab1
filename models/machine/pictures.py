"""Pictures that users have, as Pillow reads them, in one form: upright, 8 bits a colour, nothing transparent."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from models.machine.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

# Modes of Pillow with whole numbers of 16 bits, which its own conversions cut off at 255.
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# The first picture of these is the picture; the others are a preview of it, or its depth.
_STILL_FORMATS = ("MPO",)


@contextmanager
def without_bomb_warnings() -> Iterator[None]:
    """Leave out Pillow's warning of large pictures; what is too large is an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def is_still(image: Image.Image) -> bool:
    """Return whether a file that Pillow opened is one picture."""
    return getattr(image, "n_frames", 1) == 1 or image.format in _STILL_FORMATS


def flattened(image: Image.Image) -> Image.Image:
    """Return a picture in RGB: turned as its EXIF data says, black where it is transparent.

    Raises:
        InputError: its pixels are floats, or whole numbers of more than 16 bits, whose white nobody knows.
    """
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BITS:
        least, most = upright.getextrema()
        if not 0 <= least <= most <= 0xFFFF:  # type: ignore[operator]
            raise InputError(f"its values from {least} to {most} are not of 16 bits: save it with 8 or 16 bits")
        upright = upright.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    elif upright.mode == "F":
        raise InputError("its values are floats, whose white nobody knows: save it with 8 or 16 bits")
    opaque = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", opaque.size, (0, 0, 0, 255)), opaque).convert("RGB")
