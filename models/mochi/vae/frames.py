"""The interface of a VAE decoder, and conversions of latents and frames on the host.

`VaeDecoder` is the interface that the pipeline needs. `models.mochi.vae.decoder` implements it on the mesh.

Shapes: B batch (1), C latent channels, T latent frames, F frames of the video, H and W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from models.machine.errors import InputError

# Latents of Mochi 1 are normalised to a standard deviation of 1; strong guidance has been seen to give some tens.
LARGEST_LATENT = 1e4


class VaeDecoder(Protocol):
    """Interface of a VAE decoder, on whatever device it runs."""

    def decode(self, latents_BCTHW: torch.Tensor) -> np.ndarray:
        """Decode normalised latents to frames [1, F, H, W, 3], float32 from 0 to 1."""
        ...


def denormalise(latents_BCTHW: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Return `latents * std / scaling_factor + mean`, per channel (Diffusers `MochiPipeline.__call__`)."""
    mean, std, scale = (
        config.get("latents_mean"),
        config.get("latents_std"),
        config.get("scaling_factor", 1.0),
    )
    if mean is None or std is None:
        return latents_BCTHW / scale
    mean_C, std_C = (torch.tensor(v, dtype=latents_BCTHW.dtype).view(1, -1, 1, 1, 1) for v in (mean, std))
    return latents_BCTHW * std_C / scale + mean_C


def normalise(latents_BCTHW: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Return `(latents - mean) * scaling_factor / std`, the inverse of `denormalise`."""
    mean, std, scale = config.get("latents_mean"), config.get("latents_std"), config.get("scaling_factor", 1.0)
    if not mean or not std:
        return latents_BCTHW * scale
    mean_C, std_C = (torch.tensor(v, dtype=latents_BCTHW.dtype).view(1, -1, 1, 1, 1) for v in (mean, std))
    return (latents_BCTHW - mean_C) * scale / std_C


def check_latent_values(
    latents_BCTHW: torch.Tensor, name: str, why: str = "they are of another model, or were scaled"
) -> None:
    """Check the values of normalised latents.

    Args:
        latents_BCTHW: of any shape.
        name: of them, for messages.
        why: such values may be there, and what mends it.

    Raises:
        InputError: some are not finite, or larger than any that sampling leaves.
    """
    least, most = (value.item() for value in latents_BCTHW.aminmax()) if latents_BCTHW.numel() else (0.0, 0.0)
    if not (math.isfinite(least) and math.isfinite(most)):
        raise InputError(f"{name} hold values that are not finite, so there is nothing to decode: {why}")
    if max(-least, most) > LARGEST_LATENT:
        raise InputError(
            f"{name} hold values up to {max(-least, most):.3g}, and normalised latents stay near 1 (at most "
            f"{LARGEST_LATENT:g} are taken): {why}"
        )


def check_frames(frames_BFHWC: np.ndarray) -> None:
    """Check that every value of decoded frames is a number: a video of none would be black.

    Raises:
        InputError: some are not finite.
    """
    least, most = (value.item() for value in torch.from_numpy(frames_BFHWC).aminmax())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise InputError(
            "the decoded frames hold values that are not finite, so there is no video: the vae's weights, or the "
            "latents, are too large for the decoder's arithmetic; check the checkpoint, and on cards run "
            "mochi-tt selftest"
        )


def are_flat(frames_FHWC: np.ndarray) -> bool:
    """Return whether all pixels of a video, uint8 [F, H, W, 3], have one colour."""
    return bool((frames_FHWC == frames_FHWC[:1, :1, :1]).all())


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Convert frames from 0..1 to uint8 0..255, rounded as Diffusers rounds pictures.

    Raises:
        InputError: a value is not finite.
    """
    check_frames(frames)
    return (frames * 255).round().astype(np.uint8)
