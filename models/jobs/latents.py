"""Latents on disk: what `generate --save-latents` leaves and `decode` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from models.machine.checks import json_object
from models.machine.errors import InputError, MissingInputError
from models.machine.files import renamed_when_done

FORMAT = "mochi-tt latents 1"
_KEY = "latents"


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
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"latents {path} do not exist: give a file made by generate --save-latents")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or set(file.keys()) != {_KEY}:
                raise InputError(
                    f"{path} is a safetensors file but not one of latents: give one made by generate --save-latents"
                )
            about = json_object(metadata.get("about", "{}"), f"what {path} says of its latents")
            return file.get_tensor(_KEY), about
    except SafetensorError as error:
        raise InputError(f"latents {path} cannot be read ({error}): the file is damaged or of another kind") from error
