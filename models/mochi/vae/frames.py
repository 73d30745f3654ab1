"""From latents to frames.

`VaeDecoder` is what the pipeline needs; `models.mochi.vae.decoder` does it on the mesh.

Shapes: B batch (1), C latent channels, T latent frames, F frames of the video, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    pass


class VaeDecoder(Protocol):
    """Decodes latents, wherever it runs."""

    def decode(self, latents_BCTHW: torch.Tensor) -> np.ndarray:
        """Frames [1, F, H, W, 3], float32 from 0 to 1, of normalised latents."""
        ...


def denormalise(latents_BCTHW: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """`latents * std / scaling_factor + mean`, per channel (Diffusers `MochiPipeline.__call__`)."""
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
    """Frames from 0 to 1 as uint8 from 0 to 255, rounded as Diffusers rounds them for pictures."""
    return (frames * 255).round().astype(np.uint8)
