"""The VAE's decoder in PyTorch: the reference for `models.mochi.vae.decoder`.

Shapes: B batch (1), C latent channels, T latent frames, F frames of the video, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.mochi.conventions import FirstFrames, check_first_frames
from models.mochi.vae.frames import denormalise
from models.reference.genmo_vae import decode_by_formulas
from weight_cache.host import load_module

if TYPE_CHECKING:
    from weight_cache.checkpoints.checkpoint import Component


class HostVaeDecoder:
    """Mochi's decoder in PyTorch, float32, on the host: the reference for `MochiVaeDecoder`.

    Diffusers' way it is Diffusers' decoder, Genmo's way that of `models.reference.genmo_vae`. It decodes in one piece,
    so there are no seams. A full-size video needs about 70 GB (Diffusers' documentation).
    """

    def __init__(self, model: torch.nn.Module, first_frames: FirstFrames = "diffusers"):
        """Wrap an `AutoencoderKLMochi`, of which only the decoder needs weights.

        Args:
            model: the module.
            first_frames: where surplus frames are dropped; see `models.mochi.conventions`.

        Raises:
            InputError: there is no such way.
        """
        self.model = model
        self.first_frames = check_first_frames(first_frames)
        self.config: Mapping[str, Any] = model.config  # type: ignore[assignment]

    @classmethod
    def from_checkpoint(cls, component: Component, first_frames: FirstFrames = "diffusers") -> HostVaeDecoder:
        """Load the decoder's weights of the `vae` component. The encoder's weights are not read.

        Raises:
            ValueError: weights do not match the configuration, or there is no such way with the first frames.
            FileNotFoundError: a file is missing.
        """
        from diffusers import AutoencoderKLMochi

        with torch.device("meta"):
            model = AutoencoderKLMochi.from_config(component.config)
        model.encoder = None
        load_module(model.decoder, component, prefix="decoder.")
        return cls(model.eval(), first_frames)

    @torch.inference_mode()
    def decode(self, latents_BCTHW: torch.Tensor) -> np.ndarray:
        """Decode normalised latents and drop the decoder's surplus leading frames.

        Args:
            latents_BCTHW: float32 [1, C, T, H / 8, W / 8], as the denoising loop returns them.

        Returns:
            float32 [1, F, H, W, 3] from 0 to 1, F = 6 (T - 1) + 1.

        Raises:
            ValueError: the latents have another shape, or values that are not finite.
        """
        channels = self.config["latent_channels"]
        if latents_BCTHW.ndim != 5 or latents_BCTHW.shape[0] != 1 or latents_BCTHW.shape[1] != channels:
            raise ValueError(f"latents must be [1, {channels}, T, H, W], not {list(latents_BCTHW.shape)}")
        if not latents_BCTHW.isfinite().all():
            raise ValueError("latents hold values that are not finite: there is nothing to decode")
        latents_BCTHW = denormalise(latents_BCTHW.float(), self.config)
        if self.first_frames == "genmo":
            weights = self.model.decoder.state_dict()  # type: ignore[union-attr, operator]
            video_BCFHW = decode_by_formulas(weights, self.config, latents_BCTHW)
        else:
            video_BCFHW = self.model.decode(latents_BCTHW, return_dict=False)[0]  # type: ignore[operator]
        frames_BFHWC = (video_BCFHW / 2 + 0.5).clamp_(0, 1).permute(0, 2, 3, 4, 1)
        return frames_BFHWC.contiguous().numpy()
