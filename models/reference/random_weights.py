"""Random weights that exercise every parameter of a PyTorch model and keep activations of order one.

PyTorch's own initialisation leaves norm scales at one and biases (and Mochi's `pos_frequencies`) at zero, so a port
that forgets them would pass. Here no parameter keeps a neutral value.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch

NORM_SCALE_STD = 0.3
BIAS_STD = 0.1
# Radians per position for Mochi's three RoPE axes. Frames are numbered 0, 1, 2 and so on. Rows and columns are scaled
# to about +-96, so they need a smaller frequency for angles of a few turns.
POS_FREQUENCY_STD = (0.5, 0.1, 0.1)


@torch.no_grad()
def randomize_(module: torch.nn.Module, seed: int = 0, gains: Mapping[str, float] | None = None) -> None:
    """Overwrite every parameter of `module` in place.

    Matrices and convolutions are normal with std `1 / sqrt(fan_in)`, scales of norms are `1 + 0.3 n`, biases `0.1 n`,
    and `pos_frequencies` [3, heads, head_dim / 2] normal with a std per axis. Each parameter is drawn from its own
    generator, seeded by `seed` and its name, so adding a layer does not change the others.

    Args:
        module: any module; parameters keep their dtype and device.
        seed: any integer.
        gains: factors on the weights of parameters whose name ends with the key (1 without a matching key).
    """
    for name, parameter in module.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if name.endswith("pos_frequencies"):
            value = noise * torch.tensor(POS_FREQUENCY_STD).view(3, 1, 1)
        elif name.endswith("bias"):
            value = noise * BIAS_STD
        elif parameter.ndim == 1:
            value = 1 + NORM_SCALE_STD * noise
        else:
            value = noise / (parameter.numel() / parameter.shape[0]) ** 0.5
        for suffix, gain in (gains or {}).items():
            if name.endswith(suffix):
                value = value * gain
        parameter.copy_(value)


@torch.no_grad()
def heavy_tailed_(module: torch.nn.Module, seed: int = 0, gains: Mapping[str, float] | None = None) -> None:
    """Overwrite every parameter of `module` in place, as `randomize_` does, with matrices such as training leaves them.

    Their values are Student's t with 4 degrees of freedom, scaled to the same variance, and each output has a lognormal
    gain (sigma 0.5, mean square 1). So a block of 16 values that share an exponent often has one far above the others.
    """
    randomize_(module, seed, gains)
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2 or name.endswith("pos_frequencies"):
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:tail of {name}".encode()))
        # Student's t: a normal over the root of chi-squared by its degrees of freedom. Its variance is 2.
        chi = torch.randn((4, *parameter.shape), generator=generator).square_().mean(0)
        rows = torch.randn(parameter.shape[0], generator=generator)
        gain = (0.5 * rows - 0.25).exp().view(-1, *[1] * (parameter.ndim - 1))
        parameter.copy_(parameter.float() / (2 * chi).sqrt() * gain)


def outlier_scale(width: int, channels: int = 8, factor: float = 1000.0, seed: int = 0) -> torch.Tensor:
    """Return factors [D] that make some channels much larger, as they are in the residual streams of transformers.

    Source: Sun et al., "Massive Activations in Large Language Models", arXiv:2402.17762.
    """
    scale = torch.ones(width)
    scale[torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:channels]] = factor
    return scale
