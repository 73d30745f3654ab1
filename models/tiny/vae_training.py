"""Training the AsymmVAE on the tiny world.

Frames are float32 [B, 3, T, H, W] from -1 to 1, latents [B, 12, T', H / 8, W / 8].
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models.tiny.scenes import SIZE, random_scene, render, window
from models.tiny.training import Schedule, train

# GroupNorm has 32 groups, so channels are multiples of 32. The five depths are those of full, half, quarter and
# eighth resolution and of the innermost block; at full resolution, which costs four times as much as all the rest,
# there are only the projections.
CONFIG: dict[str, Any] = {
    "encoder_block_out_channels": (32, 32, 64, 128),
    "decoder_block_out_channels": (32, 32, 64, 128),
    "layers_per_block": (0, 1, 2, 1, 1),
    "add_attention_block": (False, False, False, False, False),
}
SCHEDULE = Schedule(steps=2400, rate=2e-3)
# The first part of the training sees windows around the things, where there is most to learn; the rest whole frames.
WINDOW, WINDOW_BATCH, WINDOW_SHARE = 32, 8, 0.85
WHOLE_BATCH = 2
KL_WEIGHT = 5e-4
SQUARE_WEIGHT = 1.0
# Steps over which the latents' noise grows to its full spread: from the start it would drown what there is to learn.
NOISE_RAMP = 1200
# Frames that the causal decoder makes before the first one of the video.
SURPLUS = 5


def new_vae(seed: int = 0) -> Any:
    """An untrained `AutoencoderKLMochi` of these sizes."""
    from diffusers import AutoencoderKLMochi

    torch.manual_seed(seed)
    return AutoencoderKLMochi(**CONFIG)


def train_vae(
    folder: Path,
    schedule: Schedule = SCHEDULE,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> torch.nn.Module:
    """Train, or go on training, the VAE whose state is in `folder`; returns it with averaged weights."""
    # Convolutions over [B, C, T, H, W] are several times as fast with the channels innermost.
    vae = new_vae().to(device, memory_format=torch.channels_last_3d)
    replace_norms_(vae)

    def losses(step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"vae {step}")
        noise = torch.Generator(device).manual_seed(step)
        frames = batch(rng, windows=step < WINDOW_SHARE * schedule.steps)
        frames = frames.to(device, memory_format=torch.channels_last_3d)
        return vae_losses(vae, frames, noise, min(1.0, step / NOISE_RAMP))

    return train(vae, losses, schedule, folder, progress).eval()


class FrameNorm(torch.nn.Module):
    """Group norm per frame in the channels-last arrangement; wraps the `GroupNorm` that it stands for.

    The same numbers as Diffusers' `MochiChunkedGroupNorm3D`, in half the time on a CPU: torch's own norm wants the
    channels outermost, which is two copies more.
    """

    def __init__(self, norm_layer: torch.nn.GroupNorm):
        super().__init__()
        self.norm_layer = norm_layer

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Normalise over the pixels of a frame and the channels of a group."""
        groups = self.norm_layer.num_groups
        x = x_BCTHW.permute(0, 2, 3, 4, 1).unflatten(-1, (groups, -1))
        exact = x.float()
        mean = exact.mean((2, 3, 5), keepdim=True)
        variance = exact.square().mean((2, 3, 5), keepdim=True) - mean.square()
        scale = (variance.clamp_min(0) + self.norm_layer.eps).rsqrt() * self.norm_layer.weight.view(groups, -1)
        shift = self.norm_layer.bias.view(groups, -1) - mean * scale
        return (x * scale.to(x.dtype) + shift.to(x.dtype)).flatten(-2).permute(0, 4, 1, 2, 3)


def replace_norms_(module: torch.nn.Module) -> None:
    """Put a `FrameNorm` in place of each of Diffusers' norms; parameters and their names stay."""
    from diffusers.models.autoencoders.autoencoder_kl_mochi import MochiChunkedGroupNorm3D

    for name, child in module.named_children():
        if isinstance(child, MochiChunkedGroupNorm3D):
            setattr(module, name, FrameNorm(child.norm_layer))
        else:
            replace_norms_(child)


def batch(rng: random.Random, windows: bool) -> torch.Tensor:
    """Frames of random scenes, whole or in windows."""
    if not windows:
        return render([random_scene(rng) for _ in range(WHOLE_BATCH)])
    scenes = [random_scene(rng) for _ in range(WINDOW_BATCH)]
    assert WINDOW < SIZE
    return render(scenes, size=WINDOW, corners=[window(scene, rng, WINDOW) for scene in scenes])


def vae_losses(
    vae: Any, frames_BCTHW: torch.Tensor, noise: torch.Generator, noise_share: float = 1.0
) -> dict[str, torch.Tensor]:
    """Absolute and squared error of the reconstruction, and the KL divergence per latent value, in nats.

    Args:
        vae: an `AutoencoderKLMochi`.
        frames_BCTHW: what it shall reconstruct.
        noise: source of the latents' noise.
        noise_share: multiplies that noise.
    """
    with torch.autocast(frames_BCTHW.device.type, torch.bfloat16):
        mean, log_variance = vae.encoder(frames_BCTHW)[0].float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-12, 4)
        spread = torch.exp(0.5 * log_variance)
        latents = mean + noise_share * spread * torch.randn(mean.shape, generator=noise, device=mean.device)
        decoded = vae.decoder(latents)[0][:, :, SURPLUS:].float()
    error = decoded - frames_BCTHW
    absolute, square = error.abs().mean(), error.square().mean()
    divergence = 0.5 * (mean.square() + spread.square() - 1 - log_variance).mean()
    loss = absolute + SQUARE_WEIGHT * square + KL_WEIGHT * divergence
    return {"loss": loss, "absolute": absolute, "square": square, "kl": divergence}
