"""Latents on disk: what `generate --save-latents` leaves and `decode` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from models.machine.checks import json_object
from models.machine.errors import InputError
from models.machine.files import renamed_when_done
from models.machine.headers import read_header
from models.mochi.vae.frames import check_latent_values

FORMAT = "mochi-tt latents 1"
# More than the largest video that a mesh decodes has (`models.mochi.size`).
LARGEST_BYTES = 1 << 30
_KEY = "latents"
_MEND = "give a file made by encode or generate --save-latents"


def save_latents(latents_BCTHW: torch.Tensor, path: Path, about: dict[str, Any]) -> None:
    """Write normalised latents [1, C, T, H, W] float32, whole or not at all.

    Args:
        latents_BCTHW: as the denoising loop leaves them.
        path: the file; its folder exists.
        about: plain data kept beside them.

    Raises:
        OSError: the file could not be written.
    """
    metadata = {"format": FORMAT, "about": json.dumps(about)}
    with renamed_when_done(path) as scratch:
        scratch.write_bytes(save({_KEY: latents_BCTHW.contiguous().float()}, metadata=metadata))


def load_latents(path: str | Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """Read what `save_latents` wrote: the latents and what was kept beside them.

    Raises:
        MissingInputError: there is no such file.
        InputError: it is damaged, not such a file, or holds values that no sampler leaves.
    """
    header = read_header(path, "latents", _MEND)
    if header.metadata.get("format") != FORMAT or set(header.tensors) != {_KEY}:
        raise InputError(f"{path} is a safetensors file but not one of latents: {_MEND}")
    about = json_object(header.metadata.get("about", "{}"), f"what {path} says of its latents", _MEND)
    found = header.tensors[_KEY]
    if found.dtype != "F32":
        raise InputError(f"latents {path} are {found.dtype}, not F32: {_MEND}")
    if found.end > LARGEST_BYTES:
        raise InputError(f"latents {path} have {found.end / 1e9:.1f} GB, no video's have so many: {_MEND}")
    try:
        with safe_open(path, "pt") as file:
            latents_BCTHW = file.get_tensor(_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"latents {path} cannot be read ({error}): {_MEND}") from error
    check_latent_values(latents_BCTHW, f"latents {path}")
    return latents_BCTHW, about
