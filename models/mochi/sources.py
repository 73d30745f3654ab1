"""Videos and images that a run starts from, in place of noise alone.

Mochi 1 has no weights that are conditioned on images. A run can start from a video's latents with noise in them, at the
noise level that `strength` names (SDEdit, arXiv:2108.01073), as Diffusers' video-to-video pipelines do: the more noise,
the more of the video is made anew. An image is a video that stands still, and gives quite static ones.

Shapes: F frames, H and W rows and columns, C latent channels, T latent frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.machine.checks import short
from models.machine.errors import InputError
from models.machine.pictures import flattened
from models.mochi.geometry import Geometry, Scales

STRENGTH = 0.8
"""Strength where none is given: that of Diffusers' video-to-video pipelines."""
NO_STEP = (
    "strength is less than one step, so no step is done: the video stays as the VAE keeps it, and the prompt has no "
    "effect; give a larger strength or more steps"
)
_FORMS = "PIL images, uint8 arrays [F, H, W, 3], or floats from 0 to 1: arrays [F, H, W, 3] or tensors [F, 3, H, W]"


@dataclass(frozen=True)
class Source:
    """A video, or an image that stands for a still one.

    Attributes:
        pictures_FHWC: uint8, or float32 from 0 to 1.
        is_image: whether it is repeated for all frames.
    """

    pictures_FHWC: np.ndarray
    is_image: bool

    @classmethod
    def of(cls, video: Any, image: Any, strength: Any) -> Source | None:
        """Read what a caller gives; None where there is neither a video nor an image.

        Raises:
            InputError: both are given, one has another form, or there is a strength without either.
        """
        if video is None and image is None:
            if strength is not None:
                raise InputError("strength says how much of a video or an image is made anew: give video= or image=")
            return None
        if video is not None and image is not None:
            raise InputError("video and image are both given: give one of the two")
        name, value = ("video", video) if image is None else ("image", image)
        pictures = _pictures(name, [image] if image is not None and not _is_batch(image) else value)
        if image is not None and len(pictures) != 1:
            raise InputError(f"image has {len(pictures)} pictures: give one, or a video")
        return cls(pictures, image is not None)

    def num_frames(self, scales: Scales) -> int | None:
        """Return how many frames of a video make whole latent frames; None for an image, which has any number."""
        return None if self.is_image else (len(self.pictures_FHWC) - 1) // scales.temporal * scales.temporal + 1

    def frames(self, geometry: Geometry) -> torch.Tensor:
        """Return the frames [F, H, W, 3] of a size, uint8 or float32 from -1 to 1, filled and cut to the middle.

        Raises:
            InputError: the video has fewer frames.
        """
        pictures = self.pictures_FHWC[: geometry.num_frames]
        if not self.is_image and len(pictures) < geometry.num_frames:
            raise InputError(f"the video has {len(pictures)} frames, and num_frames is {geometry.num_frames}")
        if pictures.shape[1:3] != (geometry.height, geometry.width):
            pictures = np.stack([_resized(each, geometry) for each in pictures])
        frames = torch.from_numpy(np.ascontiguousarray(pictures))
        if frames.dtype != torch.uint8:
            frames = frames.float() * 2 - 1
        return frames.expand(geometry.num_frames, -1, -1, -1) if self.is_image else frames


def _is_batch(image: Any) -> bool:
    """Return whether an image has a dimension of pictures, or is a list."""
    return isinstance(image, list | tuple) or getattr(image, "ndim", 3) > 3


def _pictures(name: str, value: Any) -> np.ndarray:
    """Return pictures as one array [F, H, W, 3].

    Raises:
        InputError: they have another form.
    """
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]  # a batch of one video
    parts = list(value) if isinstance(value, list | tuple) else [value]
    arrays = [_array(name, part) for part in parts]
    if not arrays or len({array.shape[1:] for array in arrays}) != 1 or len({array.dtype for array in arrays}) != 1:
        raise InputError(f"{name} must be pictures of one size and type: {_FORMS}")
    made = np.concatenate(arrays)
    if not len(made) or made.shape[3] != 3 or min(made.shape[1:3]) < 1:
        raise InputError(f"{name} is {list(made.shape)}, and must be {_FORMS}")
    if made.dtype != np.uint8:
        least, most = float(made.min()), float(made.max())
        if not 0 <= least <= most <= 1:  # also where they are not numbers
            raise InputError(f"{name} has values from {least:g} to {most:g}: floats must be from 0 to 1")
    return made


def _array(name: str, part: Any) -> np.ndarray:
    if hasattr(part, "convert"):  # of PIL
        try:
            return np.array(flattened(part))[None]
        except InputError as error:
            raise InputError(f"{name} cannot be taken: {error}") from error
    if isinstance(part, torch.Tensor):
        tensor = part.detach().to("cpu")
        tensor = tensor[0] if tensor.ndim == 5 and len(tensor) == 1 else tensor
        tensor = tensor[None] if tensor.ndim == 3 else tensor
        if tensor.ndim == 4 and tensor.shape[1] == 3:
            tensor = tensor.permute(0, 2, 3, 1)
        part = (tensor if tensor.dtype == torch.uint8 else tensor.float()).numpy()
    if not isinstance(part, np.ndarray):
        raise InputError(f"{name} {short(part)} must be {_FORMS}")
    part = part[0] if part.ndim == 5 and len(part) == 1 else part
    part = part[None] if part.ndim == 3 else part
    if part.ndim != 4 or not (part.dtype == np.uint8 or np.issubdtype(part.dtype, np.floating)):
        raise InputError(f"{name} is {part.dtype} {list(part.shape)}, and must be {_FORMS}")
    return part if part.dtype == np.uint8 else part.astype(np.float32)


def plain_frames(frames: Any) -> Any:
    """Return frames for the encoder: PIL images become an array, and arrays lie in memory as they are read.

    Raises:
        InputError: a list holds something else than PIL images of one size.
    """
    if hasattr(frames, "convert") or (isinstance(frames, list | tuple) and all(hasattr(f, "convert") for f in frames)):
        return _pictures("frames", frames)
    return np.ascontiguousarray(frames) if isinstance(frames, np.ndarray) else frames


def _resized(picture: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return a picture that fills a frame, its middle cut out."""
    from PIL import Image, ImageOps

    size = (geometry.width, geometry.height)
    if picture.dtype == np.uint8:
        return np.array(ImageOps.fit(Image.fromarray(picture), size, Image.Resampling.LANCZOS))
    planes = [Image.fromarray(picture[..., colour]) for colour in range(picture.shape[2])]
    fitted = [np.array(ImageOps.fit(plane, size, Image.Resampling.LANCZOS)) for plane in planes]
    return np.stack(fitted, axis=-1).clip(0, 1)


def noised(latents: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the state of the flow at a noise level, `(1 - sigma) latents + sigma noise`; at 1 it is the noise itself.

    Source: Diffusers `FlowMatchEulerDiscreteScheduler.scale_noise`.

    Args:
        latents: normalised latents [1 or B, C, T, H, W] of the source.
        noise: [B, C, T, H, W].
        sigma: from 0 to 1.
    """
    if sigma == 1:
        return noise
    return (1 - sigma) * latents.expand_as(noise) + sigma * noise


def check_start(latents: Any, shape: Sequence[int]) -> torch.Tensor:
    """Return the latents that a run starts from, [1 or B, C, T, H, W], in float32.

    Raises:
        InputError: they do not fit the noise's shape.
    """
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point() or latents.ndim != 5:
        raise InputError(f"start_latents {short(latents)} must be a floating-point tensor [1, C, T, H, W]")
    if not latents.isfinite().all():
        raise InputError("start_latents hold values that are not finite: encode the video anew")
    if len(latents) not in (1, shape[0]) or list(latents.shape[1:]) != list(shape[1:]):
        raise InputError(f"start_latents {list(latents.shape)} must be {[1, *shape[1:]]}, or one per video")
    return latents.detach().to("cpu", torch.float32)
