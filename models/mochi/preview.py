"""Small pictures of latents without the decoder: one for each latent frame, a pixel or a square for each
latent pixel.

A colour is a linear function of the latent channels, so a preview costs no work of the chips. Shapes: C latent
channels, T latent frames, H and W rows and columns of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.machine.checks import number, sequence
from models.machine.errors import InputError
from weight_cache.checkpoints.names import is_preview_vae

if TYPE_CHECKING:
    import numpy as np
    import torch

    from weight_cache.checkpoints.checkpoint import Checkpoint

RGB_FILE = "latent_rgb.json"
"""Beside model_index.json: `factors`, three numbers for each latent channel, and `bias`, three numbers."""
_GAP = 2
# Rows that a picture of a small video has at least half of, by drawing each latent pixel as a square.
_ROWS = 64


@dataclass(frozen=True)
class LatentRgb:
    """How normalised latents look: colours from -1 to 1 are `factors^T z + bias`.

    Attributes:
        factors: [C][3].
        bias: [3].
    """

    factors: Sequence[Sequence[float]]
    bias: Sequence[float]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LatentRgb:
        """Return a checkpoint's own, or Mochi's for the VAE of Mochi 1 preview.

        Raises:
            InputError: its file is damaged, or it has none and its VAE is another.
        """
        own = checkpoint.optional_json(RGB_FILE)
        channels = int(checkpoint.vae.config.get("latent_channels", 12))
        if own:
            return cls._read(own, str(checkpoint.directory / RGB_FILE), channels)
        if is_preview_vae(checkpoint.vae.config):
            return MOCHI
        raise InputError(
            f"{checkpoint.source} has no {RGB_FILE}, and its VAE is not that of Mochi 1 preview, so nobody knows how "
            "its latents look: leave the preview out, or put such a file beside model_index.json (docs/usage.md)"
        )

    @classmethod
    def _read(cls, own: dict[str, Any], where: str, channels: int) -> LatentRgb:
        rule = f"{where} must hold factors, {channels} lists of 3 numbers, and bias, 3 numbers"
        if not {"factors", "bias"} <= set(own) <= {"factors", "bias", "source"}:
            raise InputError(f"{rule}: it has {', '.join(sorted(own)) or 'nothing'}")
        rows = [*sequence(f"{where}: factors", own["factors"], "a list of lists"), own["bias"]]
        made = [[number(where, v) for v in sequence(f"{where}: a row", row, "a list of numbers")] for row in rows]
        if len(made) != channels + 1 or any(len(row) != 3 for row in made):
            raise InputError(rule)
        return cls(made[:-1], made[-1])

    def pictures(self, latents_BCTHW: torch.Tensor) -> np.ndarray:
        """Return pictures uint8 [T, H, W, 3] of the latents [1, C, T, H, W] of one video."""
        import numpy as np

        latents = np.asarray(latents_BCTHW[0].float().numpy(), dtype=np.float32)
        colours = np.einsum("cthw,cr->thwr", latents, np.asarray(self.factors, np.float32))
        colours += np.asarray(self.bias, np.float32)
        # Estimates of the first steps may be of any size.
        shares = np.clip(np.nan_to_num(colours * 0.5 + 0.5, nan=0.0), 0.0, 1.0)
        return np.asarray((shares * 255).round(), dtype=np.uint8)


MOCHI = LatentRgb(
    (
        (-0.0069, -0.0045, 0.0018),
        (0.0154, -0.0692, -0.0274),
        (0.0333, 0.0019, 0.0206),
        (-0.1390, 0.0628, 0.1678),
        (-0.0725, 0.0134, -0.1898),
        (0.0074, -0.0270, -0.0209),
        (-0.0176, -0.0277, -0.0221),
        (0.5294, 0.5204, 0.3852),
        (-0.0326, -0.0446, -0.0143),
        (-0.0659, 0.0153, -0.0153),
        (0.0185, -0.0217, 0.0014),
        (-0.0396, -0.0495, -0.0281),
    ),
    (-0.0940, -0.1418, -0.1453),
)
"""Of Mochi 1 preview's VAE. Source: comfyanonymous/ComfyUI `comfy/latent_formats.py`, class `Mochi`."""


def strip(pictures_THWC: np.ndarray) -> np.ndarray:
    """Return pictures in one row with a gap between them, uint8 [rows, width, 3]; small ones are enlarged."""
    import numpy as np

    scale = max(1, _ROWS // pictures_THWC.shape[1])
    pictures_THWC = pictures_THWC.repeat(scale, 1).repeat(scale, 2)
    frames, height, width, _ = pictures_THWC.shape
    row = np.zeros((height, frames * (width + _GAP) - _GAP, 3), dtype=np.uint8)
    for index, picture in enumerate(pictures_THWC):
        start = index * (width + _GAP)
        row[:, start : start + width] = picture
    return row
