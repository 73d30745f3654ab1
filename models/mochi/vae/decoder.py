"""From latents to frames.

`VaeDecoder` is what the pipeline needs. `HostVaeDecoder` does it with Diffusers' decoder in PyTorch on the
host; the TTNN decoder on the mesh will take its place behind the same interface.

Shapes: B batch (1), C latent channels, T latent frames, F frames of the video, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from weight_cache.host import load_module

if TYPE_CHECKING:
    from weight_cache.checkpoint import Component


class VaeDecoder(Protocol):
    """Decodes latents, wherever it runs."""

    def decode(self, latents_BCTHW: torch.Tensor) -> np.ndarray:
        """Frames [1, F, H, W, 3], float32 from 0 to 1, of normalised latents."""
        ...


class HostVaeDecoder:
    """Diffusers' Mochi decoder in PyTorch, float32, on the host: the oracle of `MochiVaeDecoder`.

    It decodes in one piece, so that there are no seams; a full-size video needs about 70 GB (Diffusers'
    documentation).
    """

    def __init__(self, model: torch.nn.Module):
        """Wrap an `AutoencoderKLMochi`, of which only the decoder needs weights."""
        self.model = model
        self.config: Mapping[str, Any] = model.config  # type: ignore[assignment]

    @classmethod
    def from_checkpoint(cls, component: Component) -> HostVaeDecoder:
        """Load the decoder's weights of the `vae` component; the encoder's are not read.

        Raises:
            ValueError: weights do not match the configuration.
            FileNotFoundError: a file is missing.
        """
        from diffusers import AutoencoderKLMochi

        with torch.device("meta"):
            model = AutoencoderKLMochi.from_config(component.config)
        model.encoder = None
        load_module(model.decoder, component, prefix="decoder.")
        return cls(model.eval())

    @torch.inference_mode()
    def decode(self, latents_BCTHW: torch.Tensor) -> np.ndarray:
        """Decode normalised latents and drop the decoder's surplus leading frames, as Diffusers does.

        Args:
            latents_BCTHW: float32 [1, C, T, H / 8, W / 8], as the denoising loop leaves them.

        Returns:
            float32 [1, F, H, W, 3] from 0 to 1, F = 6 (T - 1) + 1.

        Raises:
            ValueError: latents of another shape or with values that are not finite.
        """
        channels = self.config["latent_channels"]
        if latents_BCTHW.ndim != 5 or latents_BCTHW.shape[0] != 1 or latents_BCTHW.shape[1] != channels:
            raise ValueError(f"latents must be [1, {channels}, T, H, W], not {list(latents_BCTHW.shape)}")
        if not latents_BCTHW.isfinite().all():
            raise ValueError("latents hold values that are not finite: there is nothing to decode")
        latents_BCTHW = denormalise(latents_BCTHW.float(), self.config)
        video_BCFHW = self.model.decode(latents_BCTHW, return_dict=False)[0]  # type: ignore[operator]
        frames_BFHWC = (video_BCFHW / 2 + 0.5).clamp_(0, 1).permute(0, 2, 3, 4, 1)
        return frames_BFHWC.contiguous().numpy()


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
