"""Fits how latents of a VAE look: `python -m models.tiny.latent_rgb FOLDER` writes a checkpoint's `latent_rgb.json`.

Frames of the tiny world are encoded, and the mean colour of the pixels of each latent pixel is fitted by least squares
to its normalised channels and a constant.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch

from models.machine.files import write_json
from models.mochi.preview import RGB_FILE
from models.tiny.scenes import random_scene, render
from weight_cache.checkpoints import TINY


@torch.no_grad()
def samples(vae: Any, scenes: int = 64, seed: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised latents [N, C] and the colours of their pixels [N, 3], from -1 to 1, of random scenes."""
    rng, config = random.Random(seed), vae.config
    mean, std = (torch.tensor(values) for values in (config.latents_mean, config.latents_std))
    latents, colours = [], []
    for _ in range(scenes):
        frames_CTHW = render([random_scene(rng)])[0]
        encoded_CTHW = vae.encode(frames_CTHW[None]).latent_dist.mode()[0]
        latents.append(((encoded_CTHW.flatten(1).T - mean) / std).float())
        times = encoded_CTHW.shape[1]
        small_CTHW = torch.nn.functional.avg_pool3d(frames_CTHW[None], (1, 8, 8))[0]
        # Of a latent frame's six video frames the last one: the first latent frame stands for one only.
        kept = small_CTHW[:, [6 * index for index in range(times)]]
        colours.append(kept.flatten(1).T)
    return torch.cat(latents), torch.cat(colours)


def fit(vae: Any) -> dict[str, Any]:
    """Return what `models.mochi.preview.LatentRgb` reads, fitted by least squares."""
    latents, colours = samples(vae)
    design = torch.cat([latents, torch.ones(len(latents), 1)], dim=1).double()
    solved = torch.linalg.lstsq(design, colours.double()).solution
    rows = [[round(float(value), 4) for value in row] for row in solved]
    return {"factors": rows[:-1], "bias": rows[-1], "source": "least squares on scenes, models/tiny/latent_rgb.py"}


def main(folder: Path) -> None:
    """Write the file into a Diffusers-layout checkpoint with a whole VAE."""
    from diffusers import AutoencoderKLMochi

    vae = AutoencoderKLMochi.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    write_json(fit(vae), folder / RGB_FILE)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TINY)
