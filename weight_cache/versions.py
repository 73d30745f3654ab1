"""Versions of what decides the stored bytes, and what they say of an entry: current, outdated, or of a newer program.

Three things decide the bytes besides the checkpoint, the layout and the precision:

- how each kind of parameter is converted: the table of `models.conversion`;
- how a checkpoint is read: the table below;
- how tensors are rounded, tiled, sharded and written: `weight_cache.manifest.FORMAT_VERSION`, and ttnn's version.

Whoever changes the bytes raises the version; `tests/weight_cache/test_conversions.py` fails until that is done. Nothing
here imports torch or ttnn, so that the store can be listed quickly.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

from models.conversion import CONVERSIONS, RETIRED, Conversion
from weight_cache.manifest import FORMAT_VERSION

# How a component is read, by `Component.form`: under which canonical names, in which arrangement, with which values.
FORMS = {
    "diffusers": Conversion("form-diffusers", 1, "takes tensors as they are"),
    "genmo": Conversion(
        "form-genmo",
        1,
        "cuts q, k and v apart, swaps the halves of SwiGLU and of the final modulation; fp8 stands for its value",
    ),
    "comfyui": Conversion("form-comfyui", 1, "as form-genmo; multiplies fp8 by its scale, one per tensor or per row"),
    "gguf": Conversion(
        "form-gguf", 1, "as form-genmo; blocks stand for the float32 values that the package gguf gives"
    ),
}


def ttnn_version() -> str:
    """Return the version of the installed ttnn, without importing it."""
    return importlib.metadata.version("ttnn")


def versions() -> dict[str, int]:
    """Return name -> present version of every kind of conversion, of parameters and of reading."""
    kinds = [*CONVERSIONS.values(), *FORMS.values()]
    return {kind.name: kind.version for kind in kinds}


def format_state(version: Any) -> tuple[str, str]:
    """Compare a manifest's format version with this program's.

    Returns:
        The state ("complete", "outdated", "newer" or "unreadable") and the reason, "" for "complete".
    """
    if not isinstance(version, int) or isinstance(version, bool):
        return "unreadable", f"its format version is {version!r}"
    if version == FORMAT_VERSION:
        return "complete", ""
    state = "outdated" if version < FORMAT_VERSION else "newer"
    return state, f"format version {version}, this program has {FORMAT_VERSION}"


def key_state(fields: Mapping[str, Any]) -> tuple[str, str]:
    """Compare the versions in an entry's key fields with this program's.

    An entry is outdated if some version is lower than this program's or a kind is retired. It is newer if some version
    is higher or a kind is unknown, whatever the others are: another program may still read it.

    Args:
        fields: those of a manifest of this program's format.

    Returns:
        The state ("complete", "outdated" or "newer") and the reason, "" for "complete".
    """
    stored, present = fields.get("conversions"), versions()
    if not isinstance(stored, Mapping) or not all(isinstance(version, int) for version in stored.values()):
        return "outdated", "its key has no versions of conversions"
    older, newer = [], []
    for name, version in stored.items():
        if name in RETIRED:
            older.append(f"{name} is no longer used")
        elif name not in present:
            newer.append(f"{name} is unknown to this program")
        elif version != present[name]:
            reasons = older if version < present[name] else newer
            reasons.append(f"{name} version {version}, this program has {present[name]}")
    ttnn, own = str(fields.get("ttnn")), ttnn_version()
    if ttnn != own:
        reasons = older if _release(ttnn) < _release(own) else newer
        reasons.append(f"ttnn {ttnn}, this program has {own}")
    if newer:
        return "newer", newer[0]
    return ("outdated", older[0]) if older else ("complete", "")


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 81, 1) of 0.81.1rc2."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()
