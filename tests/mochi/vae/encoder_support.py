"""A small random VAE with attention, its encoder on the mesh, and what Diffusers gives for the same frames."""

import functools

import torch

from models.mochi.vae.config import EncoderConfig
from models.mochi.vae.encoder import MochiVaeEncoder
from models.reference.random_weights import randomize_
from tests.mochi.vae.support import SMALL
from tests.support import StateDict, check

ATTENDING = SMALL | {
    "encoder_block_out_channels": (32, 64, 32, 96),
    "add_attention_block": (False, True, False, True, True),
}


@functools.cache
def reference(dtype: torch.dtype = torch.float32):
    """The VAE; its outputs are scaled so that the log-variances stay within some units."""
    from diffusers import AutoencoderKLMochi

    model = AutoencoderKLMochi(**ATTENDING).eval()
    randomize_(model, seed=4)
    return model.to(dtype)


class Component:
    """The VAE component of a checkpoint, with the decoder's weights, which must not be claimed."""

    def __init__(self):
        self.config = dict(reference().config)
        self._all = StateDict(reference())

    def keys(self):
        return self._all.keys()

    def shape(self, key):
        return self._all.shape(key)

    def tensor(self, key):
        return self._all.tensor(key)


def encoder(mesh, split: str | None = None) -> MochiVaeEncoder:
    return MochiVaeEncoder.from_checkpoint(Component(), mesh, split=split)


def config() -> EncoderConfig:
    return EncoderConfig.from_dict(reference().config)


@functools.cache
def frames(count: int, rows: int, columns: int) -> torch.Tensor:
    """Smooth colours that move, with some noise: uint8 [F, H, W, 3]."""
    made = torch.Generator().manual_seed(count * 10007 + rows * 101 + columns)
    small = torch.rand(1, 3, max(count // 3, 1) + 1, rows // 8 + 1, columns // 8 + 1, generator=made)
    video = torch.nn.functional.interpolate(small, (count, rows, columns), mode="trilinear")
    video = video + 0.02 * torch.randn(video.shape, generator=made)
    return (video[0].permute(1, 2, 3, 0).clamp(0, 1) * 255).round().to(torch.uint8)


@functools.cache
def expected(size: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Mean and log-variance [2 C, T, H, W] of Diffusers' encoder, float32.

    The one in bfloat16 gets the Fourier features in float32, as ours does: of pixels in bfloat16 they would be noise.
    """
    from models.mochi.vae.pixels import to_signed

    model = reference(dtype)
    video = to_signed(frames(*size)).permute(3, 0, 1, 2)[None]
    features = model.encoder.fourier_features
    with torch.no_grad():
        made = type(features).forward(features, video).to(dtype)
        model.encoder.fourier_features = torch.nn.Identity()
        try:
            return model.encoder(made)[0][0].float()
        finally:
            model.encoder.fourier_features = features


def check_moments(posterior, size: tuple[int, int, int]) -> None:
    """Mean and log-variance against Diffusers', and each latent frame of them.

    A frame of the smallest size has 48 values, whose rounding errors differ by more than those of all.
    """
    exact, rounded = expected(size), expected(size, torch.bfloat16)
    ours = torch.cat([posterior.mean[0], posterior.log_variance[0]])
    assert ours.shape == exact.shape
    half = len(exact) // 2
    for part in (slice(0, half), slice(half, None)):
        check(ours[part], exact[part], rounded[part])
        for frame in range(exact.shape[1]):
            check(
                ours[part, frame], exact[part, frame], rounded[part, frame], margin=1.5 if ours[0, 0].numel() > 4 else 2
            )
