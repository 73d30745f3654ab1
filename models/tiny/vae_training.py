"""Training of the AsymmVAE on the tiny world.

Frames are float32 [B, 3, T, H, W] from -1 to 1, latents [B, 12, T', H / 8, W / 8].
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models.tiny.scenes import SIZE, random_scene, render, window
from models.tiny.training import Schedule, mixed_precision, train

# GroupNorm has 32 groups, so channels are multiples of 32. The five depths are those of full, half, quarter and eighth
# resolution and of the innermost block.
CONFIG: dict[str, Any] = {
    "encoder_block_out_channels": (32, 32, 64, 128),
    "decoder_block_out_channels": (32, 32, 64, 128),
    "layers_per_block": (1, 1, 2, 1, 1),
    "add_attention_block": (False, False, False, False, False),
}
SCHEDULE = Schedule(steps=9000, rate=5e-4, warmup=300, ema=0.998)
# Number of steps after which the encoder, and with it the latents, does not change any more. From then on only the
# decoder is trained, and the training of the transformer can begin.
ENCODER_STEPS = 300
# Size and batch of windows. While the encoder is trained it gets windows around the things, where there is most to
# learn. After that the decoder gets windows and whole frames in turn.
WINDOW, WINDOW_BATCH = 32, 8
WHOLE_BATCH = 2
NORM_BIAS, SILU_BIAS = 4.0, 3.0
KL_WEIGHT = 5e-4
SQUARE_WEIGHT = 1.0
# Weight of the error in hue, in addition to the error in brightness.
HUE_WEIGHT = 2.0
# Share of the posterior's noise that is added to the latents, and the steps over which it grows to that share. Full
# noise from the start would hide the signal.
NOISE_SHARE, NOISE_RAMP = 0.5, 200
# Number of frames that the causal decoder returns before the first one of the video.
SURPLUS = 5


def new_vae(seed: int = 0) -> Any:
    """Return an `AutoencoderKLMochi` whose first three latent channels start as the mean colour of their pixels.

    At these widths a group of a norm has one or a few channels, so norms remove the colour of a plain area. Training
    from random weights is slow to find a way around the norms. So the residual branches start at zero, and the path
    around them starts with the mean colour. The other nine latent channels start at random.
    """
    from diffusers import AutoencoderKLMochi

    torch.manual_seed(seed)
    vae: Any = AutoencoderKLMochi(**CONFIG)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if ".conv2." in name:
                parameter.zero_()
            elif ".resnets." not in name and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=(parameter.numel() / parameter.shape[0]) ** -0.5)
        for colour in range(3):
            _start_encoding_(vae.encoder, colour)
            _start_decoding_(vae.decoder, colour)
    return vae


def _start_encoding_(encoder: Any, colour: int) -> None:
    """Initialise the path from a colour channel to a latent channel.

    It averages over the pixels of a latent pixel and passes the last norm.
    """
    first, second, third = (block.conv_in.conv for block in encoder.down_blocks)
    for layer in (encoder.proj_in, first, second):
        _pick_(layer, [colour], colour)
    # Two large constants of opposite sign keep the norm's mean at zero and its spread nearly constant.
    group = third.out_channels // 32 * colour
    for place, (sign, share) in enumerate(((1, 1), (-1, 1), (1, 0), (-1, 0))):
        _pick_(third, [group + place], colour, sign * share, sign * NORM_BIAS)
    encoder.proj_out.weight[colour] = 0
    encoder.proj_out.weight[colour, group] = 2 * NORM_BIAS
    encoder.proj_out.weight[colour, group + 2] = -2 * NORM_BIAS


def _start_decoding_(decoder: Any, colour: int) -> None:
    """Initialise the path from a latent channel to the pixels of a colour channel.

    It passes the last SiLU, which is linear far from 0.
    """
    _pick_(decoder.conv_in, [colour], colour, 0.5)
    for index, block in enumerate(decoder.up_blocks):
        copies = block.temporal_expansion * block.spatial_expansion**2
        last = index == len(decoder.up_blocks) - 1
        rows = [colour * copies + copy for copy in range(copies)]
        _pick_(block.proj, rows, colour, 1.0, SILU_BIAS if last else 0.0)
    decoder.proj_out.weight[colour] *= 0.3
    decoder.proj_out.weight[colour, colour] = 1
    decoder.proj_out.bias[colour] = -SILU_BIAS


def _pick_(layer: Any, rows: list[int], channel: int, gain: float = 1.0, bias: float = 0.0) -> None:
    """Make outputs of a linear layer or convolution the mean of one input channel over the kernel."""
    layer.weight[rows] = 0
    layer.weight[rows, channel] = gain / layer.weight[0, 0].numel()
    layer.bias[rows] = bias


def train_vae(
    folder: Path,
    schedule: Schedule = SCHEDULE,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> torch.nn.Module:
    """Train the VAE whose state is in `folder`, or continue its training. Return it with averaged weights."""
    # Convolutions over [B, C, T, H, W] are several times as fast with the channels innermost.
    vae = new_vae().to(device, memory_format=torch.channels_last_3d)
    replace_norms_(vae)

    def losses(step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"vae {step}")
        noise = torch.Generator(device).manual_seed(step)
        frames = batch(rng, windows=step < ENCODER_STEPS or step % 2 == 0)
        frames = frames.to(device, memory_format=torch.channels_last_3d)
        vae.encoder.requires_grad_(step < ENCODER_STEPS)
        return vae_losses(vae, frames, noise, NOISE_SHARE * min(1.0, step / NOISE_RAMP))

    return train(vae, losses, schedule, folder, progress).eval()


class FrameNorm(torch.nn.Module):
    """Group norm per frame in the channels-last arrangement. It wraps the `GroupNorm` that it replaces.

    It computes the same numbers as Diffusers' `MochiChunkedGroupNorm3D`, in half the time on a CPU. torch's own norm
    needs the channels outermost, which costs two more copies.
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
    """Replace each of Diffusers' norms by a `FrameNorm`. Parameters and their names stay the same."""
    from diffusers.models.autoencoders.autoencoder_kl_mochi import MochiChunkedGroupNorm3D

    for name, child in module.named_children():
        if isinstance(child, MochiChunkedGroupNorm3D):
            setattr(module, name, FrameNorm(child.norm_layer))
        else:
            replace_norms_(child)


def batch(rng: random.Random, windows: bool) -> torch.Tensor:
    """Return frames of random scenes, whole or in windows."""
    if not windows:
        return render([random_scene(rng) for _ in range(WHOLE_BATCH)])
    scenes = [random_scene(rng) for _ in range(WINDOW_BATCH)]
    assert WINDOW < SIZE
    return render(scenes, size=WINDOW, corners=[window(scene, rng, WINDOW) for scene in scenes])


def vae_losses(
    vae: Any, frames_BCTHW: torch.Tensor, noise: torch.Generator, noise_share: float = 1.0
) -> dict[str, torch.Tensor]:
    """Return absolute, squared and hue error of the reconstruction, and the KL divergence per latent value, in nats.

    Args:
        vae: an `AutoencoderKLMochi`.
        frames_BCTHW: frames to reconstruct.
        noise: source of the latents' noise.
        noise_share: factor on that noise.
    """
    with mixed_precision(frames_BCTHW.device):
        mean, log_variance = vae.encoder(frames_BCTHW)[0].float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-12, 4)
        spread = torch.exp(0.5 * log_variance)
        latents = mean + noise_share * spread * torch.randn(mean.shape, generator=noise, device=mean.device)
        decoded = vae.decoder(latents)[0][:, :, SURPLUS:].float()
    error = decoded - frames_BCTHW
    absolute, square = error.abs().mean(), error.square().mean()
    hue = (error - error.mean(1, keepdim=True)).abs().mean()
    divergence = 0.5 * (mean.square() + spread.square() - 1 - log_variance).mean()
    loss = absolute + SQUARE_WEIGHT * square + HUE_WEIGHT * hue + KL_WEIGHT * divergence
    return {"loss": loss, "absolute": absolute, "square": square, "hue": hue, "kl": divergence}
