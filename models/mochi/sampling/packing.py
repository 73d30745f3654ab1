"""Latents as patches: the order in which the transformer sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pack_latents(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """Latents [1, C, T, H, W] -> patches [T H/p W/p, p p C], tokens in (time, row, column) order."""
    _, channels, frames, height, width = latents.shape
    grid = latents.reshape(channels, frames, height // patch, patch, width // patch, patch)
    return grid.permute(1, 2, 4, 3, 5, 0).reshape(-1, patch * patch * channels)


def unpack_latents(patches: torch.Tensor, shape: Sequence[int], patch: int) -> torch.Tensor:
    """The inverse of `pack_latents`, for latents of ``shape`` [1, C, T, H, W]."""
    _, channels, frames, height, width = shape
    grid = patches.reshape(frames, height // patch, width // patch, patch, patch, channels)
    return grid.permute(5, 0, 1, 3, 2, 4).reshape(tuple(shape))
