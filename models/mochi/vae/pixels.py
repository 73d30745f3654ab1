"""Frames as the encoder reads them: the colours of a pixel and their Fourier features.

Formula (Diffusers `FourierFeatures`): a colour x from -1 to 1 has the features x, sin(2 pi 2^p x) and cos(2 pi 2^p x)
for p = 6 and 7, ordered as all colours, all sines, all cosines. They are made on the host, in float32: at 2^7 a step of
bfloat16 is half a period, so pixels in bfloat16 would lose them.

Shapes: F frames, H and W rows and columns.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from models.machine.errors import InputError
from models.mochi.vae.config import FEATURES, FOURIER_POWERS

COLOURS = 3
_LEVELS = 256


def features_of(
    frames_FHWC: torch.Tensor, channels: int = FEATURES, padded: tuple[int, int] | None = None
) -> torch.Tensor:
    """Return the features of frames, bfloat16 [F, H, W, channels]; channels after the features are zeros.

    Args:
        frames_FHWC: uint8 [F, H, W, 3], or float32 from -1 to 1.
        channels: number of channels of the result.
        padded: rows and columns of the result, of which those after the frames' are zeros.
    """
    count, rows, columns, _ = frames_FHWC.shape
    whole = torch.zeros(count, *(padded or (rows, columns)), channels, dtype=torch.bfloat16)
    made = whole[:, :rows, :columns]
    bytes_ = frames_FHWC.dtype == torch.uint8
    table = _waves(to_signed(torch.arange(_LEVELS, dtype=torch.uint8))).bfloat16() if bytes_ else None
    powers = len(FOURIER_POWERS)
    for colour in range(COLOURS):
        values = frames_FHWC[..., colour]
        waves = table[values.int()] if table is not None else _waves(values.float()).bfloat16()
        sine, cosine = COLOURS + colour * powers, COLOURS * (1 + powers) + colour * powers
        made[..., colour] = waves[..., 0]
        made[..., sine : sine + powers] = waves[..., 1 : 1 + powers]
        made[..., cosine : cosine + powers] = waves[..., 1 + powers :]
    return whole


def _waves(values: torch.Tensor) -> torch.Tensor:
    """Return each value with its sines and cosines, [..., 1 + 2 powers] float32."""
    angles = [values * (2.0**power * (2 * math.pi)) for power in FOURIER_POWERS]
    return torch.stack([values, *map(torch.sin, angles), *map(torch.cos, angles)], dim=-1)


def to_signed(frames: torch.Tensor) -> torch.Tensor:
    """Convert uint8 to float32 from -1 to 1, as Diffusers' `VideoProcessor` does."""
    return 2.0 * (frames.float() / 255.0) - 1.0


def check_pixels(frames_FHWC: np.ndarray | torch.Tensor, time: int, space: int) -> torch.Tensor:
    """Return frames as a tensor, after a look at their shape, type and values.

    Args:
        frames_FHWC: uint8 [F, H, W, 3], or floats from -1 to 1.
        time: frames per latent frame.
        space: rows per latent row, and columns.

    Raises:
        InputError: they have another shape or type, values out of range, or a size that the encoder does not have.
    """
    frames = torch.as_tensor(frames_FHWC)
    shape = list(frames.shape)
    if len(shape) != 4 or shape[3] != COLOURS or min(shape) < 1:
        raise InputError(f"frames must be [F, H, W, {COLOURS}], not {shape}")
    if (shape[0] - 1) % time:
        below = (shape[0] - 1) // time * time + 1
        raise InputError(f"{shape[0]} frames must be {time} k + 1: use {below} or {below + time}")
    if shape[1] % space or shape[2] % space:
        raise InputError(f"frames of {shape[2]}x{shape[1]} must have multiples of {space} rows and columns")
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        raise InputError(f"frames must be uint8, or floating-point numbers from -1 to 1, not {frames.dtype}")
    least, most = (value.item() for value in frames.aminmax())
    if not -1 <= least <= most <= 1:  # also where they are not numbers
        raise InputError(f"frames must be from -1 to 1, and have values from {least:g} to {most:g}")
    return frames.float()
