"""The interface of a VAE decoder, and conversions of latents and frames on the host.

`VaeDecoder` is the interface that the pipeline needs. `models.mochi.vae.decoder` implements it on the mesh.

Shapes: B batch (1), C latent channels, T latent frames, F frames of the video, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch


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


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Convert frames from 0..1 to uint8 0..255, rounded as Diffusers rounds pictures."""
    return (frames * 255).round().astype(np.uint8)
