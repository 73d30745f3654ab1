"""ComfyUI's split files: which files belong to a transformer's.

They lie together in one folder, or in the folders that ComfyUI has for each kind:

| component | folder | file |
|---|---|---|
| transformer | `diffusion_models`, `unet` | `mochi_preview_*.safetensors`, `mochi_preview_*.gguf` |
| VAE | `vae` | `mochi_vae.safetensors` |
| text encoder | `text_encoders`, `clip` | `t5xxl_*.safetensors`: fp16 before fp8, scaled before plain |

Source: the folders of comfyanonymous/ComfyUI `folder_paths.py`, and the names of Comfy-Org's repackaged Mochi.
"""

from __future__ import annotations

from pathlib import Path

from models.machine.errors import InputError
from models.machine.paths import is_dir, is_file, listed

_FOLDERS = {
    "transformer": ("diffusion_models", "unet"),
    "vae": ("vae",),
    "text_encoder": ("text_encoders", "clip"),
}
_FILES = {
    "transformer": ("mochi_preview*.safetensors", "mochi_preview*.gguf"),
    "vae": ("mochi_vae*.safetensors",),
    "text_encoder": ("t5xxl*.safetensors",),
}
_CHECKPOINTS = ("checkpoints", "all_in_one")


def transformer_in(directory: Path) -> Path | None:
    """Return the only transformer's file in a folder of ComfyUI's files; None if there is none.

    Raises:
        InputError: there are several.
    """
    if is_file(directory / "dit.safetensors"):
        return None
    found = [path for root in (directory, directory / "split_files") for path in _in(root, "transformer")]
    if len(found) > 1:
        raise InputError(f"{directory} has the transformers {', '.join(p.name for p in found[:4])}: name one of them")
    return found[0] if found else None


def beside(transformer: Path, kind: str) -> Path | None:
    """Return the file of a component that belongs to a transformer's file; None if there is none.

    Args:
        transformer: the transformer's file.
        kind: `vae` or `text_encoder`.
    """
    folder = transformer.parent
    roots = [folder]
    if folder.name in (*_FOLDERS["transformer"], *_CHECKPOINTS):
        roots += [folder.parent, folder.parent / "split_files"]
    found = [path for root in roots for path in _in(root, kind)]
    return min(found, key=_order) if found else None


def _in(root: Path, kind: str) -> list[Path]:
    folders = (root, *(root / name for name in _FOLDERS[kind]))
    return [path for folder in folders if is_dir(folder) for path in listed(folder) if _is_of(path, kind)]


def _is_of(path: Path, kind: str) -> bool:
    return any(path.match(pattern) for pattern in _FILES[kind])


def _order(path: Path) -> tuple[bool, bool, str]:
    """Sort the more exact files first."""
    return "fp8" in path.name, "scaled" not in path.name, path.name
