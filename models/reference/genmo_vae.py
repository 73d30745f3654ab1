"""The VAE's decoder in PyTorch by its formulas, with surplus frames dropped Genmo's way or not at all.

It shares no code with Diffusers' modules and reads their names of weights. Source of the formulas: genmoai/mochi
`vae/models.py`. Shapes: B batch, C channels, T frames, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

_GROUPS, _EPS, _TAPS = 32, 1e-5, 3
Weights = Mapping[str, torch.Tensor]


def decode_by_formulas(
    weights: Weights, config: Mapping[str, Any], latents_BCTHW: torch.Tensor, *, drops_surplus: bool = True
) -> torch.Tensor:
    """Decode latents that are not normalised.

    Args:
        weights: those of Diffusers' `MochiDecoder3D`, without a prefix.
        config: the VAE's configuration with Diffusers' names.
        latents_BCTHW: [B, 12, T, H, W], of the weights' type.
        drops_surplus: drop t - 1 frames right after each depth-to-space by t in time, as Genmo does.

    Returns:
        [B, 3, 6 T - 5, 8 H, 8 W] of the weights' type with values from about -1 to 1; 6 T frames without dropping.
    """
    layers = config["layers_per_block"][::-1]
    factors = list(zip(config["temporal_expansions"][::-1], config["spatial_expansions"][::-1], strict=True))
    x = _pointwise(weights, "conv_in", latents_BCTHW)
    x = _residuals(weights, "block_in", layers[0], x)
    for index, (time, space) in enumerate(factors):
        x = _residuals(weights, f"up_blocks.{index}", layers[index + 1], x)
        x = _depth_to_space(_pointwise(weights, f"up_blocks.{index}.proj", x), time, space)
        if drops_surplus:
            x = x[:, :, time - 1 :]
    x = _residuals(weights, "block_out", layers[-1], x)
    return _pointwise(weights, "proj_out", F.silu(x))


def _residuals(weights: Weights, name: str, count: int, x: torch.Tensor) -> torch.Tensor:
    for index in range(count):
        inner = x
        for part in ("1", "2"):
            normed = _norm(weights, f"{name}.resnets.{index}.norm{part}.norm_layer", inner)
            inner = _causal(weights, f"{name}.resnets.{index}.conv{part}.conv", F.silu(normed))
        x = x + inner
    return x


def _norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Group norm of each frame by itself."""
    frames = [
        F.group_norm(frame, _GROUPS, weights[f"{name}.weight"], weights[f"{name}.bias"], _EPS) for frame in x.unbind(2)
    ]
    return torch.stack(frames, dim=2)


def _causal(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Convolve each frame with the two before it; before the first there is the first, beside an edge the edge."""
    x = torch.cat([x[:, :, :1]] * (_TAPS - 1) + [x], dim=2)
    x = F.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate")
    return F.conv3d(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _pointwise(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """A 1x1x1 convolution; its weight may have the shape of a matrix."""
    matrix = weights[f"{name}.weight"].flatten(1)
    return F.linear(x.movedim(1, -1), matrix, weights[f"{name}.bias"]).movedim(-1, 1)


def _depth_to_space(x: torch.Tensor, time: int, space: int) -> torch.Tensor:
    """Turn channels (C, t, s, s) into frames, rows and columns."""
    x = x.unflatten(1, (-1, time, space, space)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
