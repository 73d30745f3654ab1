"""Training of the AsymmVAE on the tiny world: encoder and decoder together, then the decoder alone, twice.

Frames are float32 [B, 3, T, H, W] from -1 to 1, latents [B, 12, T', H / 8, W / 8].
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.tiny.bank import Bank
from models.tiny.scenes import SMALL, WIDE, Drawing, Scene, random_scene
from models.tiny.training import Batch, Losses, Schedule, Training, mixed_precision
from models.tiny.vae_modules import replace_modules_

# GroupNorm has 32 groups, so channels are multiples of 32. The five depths are those of full, half, quarter and eighth
# resolution and of the innermost block. Attention stands where Genmo's encoder has it, with heads of 32.
CONFIG: dict[str, Any] = {
    "encoder_block_out_channels": (32, 32, 64, 128),
    "decoder_block_out_channels": (32, 32, 64, 128),
    "layers_per_block": (1, 1, 2, 1, 1),
    "add_attention_block": (False, True, True, True, True),
}
SCHEDULE = Schedule(steps=3000, rate=5e-4, warmup=300, fall=0.2, ema=0.998)
DECODER_SCHEDULE = Schedule(steps=12000, rate=5e-4, warmup=100, fall=0.4, ema=0.998)
REFINING = Schedule(steps=240, rate=4e-4, warmup=30, fall=0.5, ema=0.99)
BATCH = 8
# Every third batch is of the small size, and has twice as many videos.
SMALL_EVERY = 3
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
            if ".conv2." in name or ".to_out." in name:
                parameter.zero_()
            elif ".resnets." not in name and ".attentions." not in name and parameter.ndim > 1:
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


def fast_vae(device: str, compiled: bool = False, seed: int = 0) -> Any:
    """Return a new VAE on a device, in its faster form.

    Args:
        device: device of torch.
        compiled: whether to speed up its blocks with torch.compile (it needs a C++ compiler).
        seed: seed of the weights.
    """
    # Convolutions over [B, C, T, H, W] are several times as fast with the channels innermost.
    vae = new_vae(seed).to(device, memory_format=torch.channels_last_3d)
    replace_modules_(vae)
    if compiled:
        for half in (vae.encoder, vae.decoder):
            half.compile(dynamic=False)
    return vae


def load_vae(checkpoint: Path, device: str) -> Any:
    """Load the VAE of a checkpoint in float32, in its faster form."""
    from diffusers import AutoencoderKLMochi

    vae: Any = AutoencoderKLMochi.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32).eval()
    replace_modules_(vae)
    return vae.to(device, memory_format=torch.channels_last_3d)


def train_vae(
    bank: Bank,
    folder: Path,
    schedule: Schedule = SCHEDULE,
    device: str = "cpu",
    compiled: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    batch: int = BATCH,
) -> Any:
    """Train encoder and decoder whose state is in `folder`, or continue. Return the VAE with averaged weights."""
    vae = fast_vae(device, compiled)

    def batch_of(step: int) -> Batch:
        generator = torch.Generator(device).manual_seed(step)
        part = bank.small if step % SMALL_EVERY == SMALL_EVERY - 1 else bank.wide
        count = 2 * batch if part.frame == SMALL else batch
        frames = part.frames(part.draw(count, generator)).contiguous(memory_format=torch.channels_last_3d)
        noise = torch.randn(part.latent_shape(count), generator=generator, device=device)
        return frames, NOISE_SHARE * min(1.0, step / NOISE_RAMP) * noise

    def losses(frames: torch.Tensor, noise: torch.Tensor) -> Losses:
        return vae_losses(vae, frames, noise)

    return Training(vae, losses, schedule, folder).run(batch_of, progress).eval()


def train_decoder(
    vae: Any,
    bank: Bank,
    folder: Path,
    schedule: Schedule = DECODER_SCHEDULE,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    batch: int = BATCH,
) -> Any:
    """Train the decoder of `vae` alone on the bank's latents, in place. Return the VAE with averaged weights."""
    vae.encoder.requires_grad_(False)
    device = next(vae.parameters()).device

    def batch_of(step: int) -> Batch:
        generator = torch.Generator(device).manual_seed(step)
        part = bank.small if step % SMALL_EVERY == SMALL_EVERY - 1 else bank.wide
        chosen = part.draw(2 * batch if part.frame == SMALL else batch, generator)
        noise = torch.randn(part.latent_shape(len(chosen)), generator=generator, device=device)
        latents = part.latents[chosen].float() + NOISE_SHARE * part.spreads[chosen].float() * noise
        return latents, part.frames(chosen)

    def losses(latents: torch.Tensor, frames: torch.Tensor) -> Losses:
        with mixed_precision(device):
            decoded = vae.decoder(latents)[0][:, :, SURPLUS:].float()
        return frame_losses(decoded, frames)

    return Training(vae, losses, schedule, folder).run(batch_of, progress).eval()


class Clips(NamedTuple):
    """Clips of one length to refine the decoder on, with mean and spread of their latents."""

    drawing: Drawing
    means: torch.Tensor
    spreads: torch.Tensor


# Clips that the decoder is refined on: so many groups of short ones, whose frames begin anywhere, and of whole videos.
SHORT_GROUPS, SHORT_CLIPS, SHORT_FRAMES = 80, 8, 7
WHOLE_GROUPS, WHOLE_CLIPS = 30, 2
# Every so many steps of the refining take whole videos.
WHOLE_EVERY = 4
# Largest radius of a small thing, and the share of the scenes that is taken: of those with a small cross, with another
# small thing, and of the others. Crosses of this size became balls.
SMALL_RADIUS, TAKEN = 8.0, (1.0, 0.35, 0.15)
# How much more a pixel near a thing of the radius `USUAL_RADIUS` weighs; near a smaller one as much more as there are
# fewer such pixels.
NEAR_WEIGHT, NEAR, USUAL_RADIUS, LEAST_RADIUS = 3.0, 1.3, 9.0, 4.0


def refine_decoder(
    vae: Any,
    folder: Path,
    schedule: Schedule = REFINING,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    most_groups: int = SHORT_GROUPS,
) -> Any:
    """Train the decoder of a trained `vae` on small things, in place. Return the VAE with averaged weights.

    With the loss over all pixels alone, a quarter of the small crosses came out as balls: their notches are few pixels.

    Args:
        vae: the VAE, in its faster form.
        folder: folder of the training's state and loss curve.
        schedule: see `Schedule`.
        progress: called as `progress(done, total, text)`.
        most_groups: largest number of groups of clips of either length.
    """
    vae.encoder.requires_grad_(False)
    device = next(vae.parameters()).device

    @cache
    def clips() -> tuple[list[Clips], list[Clips]]:
        """Encode them in the first step, so that a training that is done encodes none."""
        rng = random.Random("decoder again")
        short, whole = (min(groups, most_groups) for groups in (SHORT_GROUPS, WHOLE_GROUPS))
        return (
            [_clips(vae, hard_scenes(SHORT_CLIPS, rng), device, rng) for _ in range(short)],
            [_clips(vae, hard_scenes(WHOLE_CLIPS, rng), device) for _ in range(whole)],
        )

    def batch_of(step: int) -> Batch:
        short, whole = clips()
        generator, choose = torch.Generator().manual_seed(step), random.Random(step)
        if step % WHOLE_EVERY == WHOLE_EVERY - 1:
            chosen = choose.choice(whole)
        else:
            halves = [choose.choice(short) for _ in range(2)]
            rows = [torch.randperm(SHORT_CLIPS, generator=generator)[: SHORT_CLIPS // 2].to(device) for _ in halves]
            pairs = list(zip(halves, rows, strict=True))
            parts = zip(*(half.drawing[row].tensors() for half, row in pairs), strict=True)
            chosen = Clips(
                Drawing(*map(torch.cat, parts)),
                torch.cat([half.means[row] for half, row in pairs]),
                torch.cat([half.spreads[row] for half, row in pairs]),
            )
        noise = torch.randn(chosen.means.shape, generator=generator).to(device)
        latents = chosen.means + NOISE_SHARE * chosen.spreads * noise
        return latents, chosen.drawing.frames(WIDE.height, WIDE.width), weights_near(chosen.drawing)

    def losses(latents: torch.Tensor, frames: torch.Tensor, weights: torch.Tensor) -> Losses:
        with mixed_precision(device):
            decoded = vae.decoder(latents)[0][:, :, SURPLUS:].float()
        return frame_losses(frames + (decoded - frames) * weights, frames)

    return Training(vae, losses, schedule, folder).run(batch_of, progress).eval()


def hard_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Return random scenes, most of which have a small thing, and many a small cross."""
    found: list[Scene] = []
    while len(found) < count:
        scene = random_scene(rng, two_share=0.75)
        small = [thing for thing in scene.things if thing.radius < SMALL_RADIUS]
        share = TAKEN[0 if any(thing.shape == "cross" for thing in small) else 1 if small else 2]
        if rng.random() < share:
            found.append(scene)
    return found


@torch.no_grad()
def _clips(vae: Any, scenes: list[Scene], device: torch.device, rng: random.Random | None = None) -> Clips:
    """Draw scenes and encode them; with `rng` short clips of them, which begin at one random frame."""
    drawing = Drawing.of(scenes).to(device)
    if rng is not None:
        first = rng.randrange(WIDE.num_frames - SHORT_FRAMES + 1)
        drawing = replace(drawing, tracks=drawing.tracks[:, :, first : first + SHORT_FRAMES])
    frames = drawing.frames(WIDE.height, WIDE.width).contiguous(memory_format=torch.channels_last_3d)
    return Clips(drawing, *encode(vae, frames))


def weights_near(drawing: Drawing) -> torch.Tensor:
    """Return the weight of each pixel's error, [B, 1, T, H, W], with a mean of 1: small things count as large ones.

    That is so of the absolute error and of hue; the squared error is weighed by the weight's square.
    """
    device = drawing.tracks.device
    rows = (torch.arange(WIDE.height, device=device) + 0.5).view(1, 1, 1, -1, 1)
    columns = (torch.arange(WIDE.width, device=device) + 0.5).view(1, 1, 1, 1, -1)
    x, y, radius = drawing.tracks[..., None, None, :].unbind(-1)
    near = ((columns - x).abs() < NEAR * radius) & ((rows - y).abs() < NEAR * radius)
    share = near * drawing.shown[:, :, None, None, None] * (USUAL_RADIUS / radius.clamp(min=LEAST_RADIUS)) ** 2
    weights = 1 + NEAR_WEIGHT * share.amax(1)[:, None]
    return weights / weights.mean()


def encode(vae: Any, frames_BCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and spread of the latents' posterior, float32."""
    with mixed_precision(frames_BCTHW.device):
        mean, log_variance = vae.encoder(frames_BCTHW)[0].float().chunk(2, dim=1)
    return mean, torch.exp(0.5 * log_variance.clamp(-12, 4))


def vae_losses(vae: Any, frames_BCTHW: torch.Tensor, noise: torch.Tensor) -> Losses:
    """Return the errors of the reconstruction, and the KL divergence per latent value, in nats.

    Args:
        vae: an `AutoencoderKLMochi`.
        frames_BCTHW: frames to reconstruct.
        noise: the latents' noise, in units of their spread.
    """
    mean, spread = encode(vae, frames_BCTHW)
    with mixed_precision(frames_BCTHW.device):
        decoded = vae.decoder(mean + spread * noise)[0][:, :, SURPLUS:].float()
    divergence = 0.5 * (mean.square() + spread.square() - 1 - 2 * spread.log()).mean()
    losses = frame_losses(decoded, frames_BCTHW)
    return losses | {"loss": losses["loss"] + KL_WEIGHT * divergence, "kl": divergence}


def frame_losses(decoded: torch.Tensor, frames_BCTHW: torch.Tensor) -> Losses:
    """Return absolute, squared and hue error of decoded frames, and the loss that weighs them."""
    error = decoded - frames_BCTHW
    absolute, square = error.abs().mean(), error.square().mean()
    hue = (error - error.mean(1, keepdim=True)).abs().mean()
    loss = absolute + SQUARE_WEIGHT * square + HUE_WEIGHT * hue
    return {"loss": loss, "absolute": absolute, "square": square, "hue": hue}
