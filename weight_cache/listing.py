"""Entries as shown to people: state, size, age, and their sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from weight_cache.entry import Entry
from weight_cache.inside import is_directory
from weight_cache.manifest import Manifest
from weight_cache.versions import format_state, key_state

# What a manifest says for people, as text. Whatever else a damaged one says is not shown.
_TEXTS = ("source", "component", "layout", "precision", "made")


@dataclass(frozen=True)
class Found:
    """An entry as `Store.entries` lists it.

    Attributes:
        name: of its directory.
        path: its directory.
        state: "complete"; "unfinished" (being made, or interrupted); "unreadable" (its manifest is damaged); "outdated"
            (made by an older version of this program or of ttnn, so that it is never read again); or "newer" (made by
            a newer version, which may still read it).
        bytes: size of its files, without those set aside.
        set_aside_bytes: size of the damaged files set aside.
        last_used: seconds since the epoch.
        about: what its manifest says for people; "why" gives the reason for an unreadable, outdated or newer state.
    """

    name: str
    path: Path
    state: str
    bytes: int
    set_aside_bytes: int
    last_used: float
    about: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        return {
            "name": self.name,
            "state": self.state,
            "bytes": self.bytes,
            "set_aside_bytes": self.set_aside_bytes,
            "age_days": round((time() - self.last_used) / 86400, 3),
            **self.about,
        }

    @classmethod
    def at(cls, path: Path) -> Found:
        """Describe the entry in the directory `path`, whatever state it is in."""
        entry = Entry(path)
        state, why = state_of(entry)
        about = _about(entry) | ({"why": why} if why else {})
        aside = Entry(path / "set-aside").size()
        return cls(path.name, path, state, entry.size() - aside, aside, entry.last_used(), about)


def state_of(entry: Entry) -> tuple[str, str]:
    """Return the state of an entry, as in `Found`, and the reason where it needs one, else "".

    A manifest that says nothing of its versions is judged by what can be read of it.
    """
    if not is_directory(entry.path):
        return "unreadable", "it is a link or no directory"
    try:
        value = Manifest.read_value(entry.manifest_path)
        state, why = format_state(value.get("format"))
        if state != "complete":
            return state, why
        manifest = entry.manifest()
        return ("unfinished", "") if manifest is None else key_state(manifest.key_fields)
    except (FileNotFoundError, NotADirectoryError):
        return "unfinished", ""
    except (ValueError, OSError) as error:
        return "unreadable", str(error)


def _about(entry: Entry) -> dict[str, Any]:
    """What a manifest of any version says for people, as far as it is there."""
    try:
        value = Manifest.read_value(entry.manifest_path) if is_directory(entry.path) else {}
    except (OSError, ValueError):
        return {}
    about, tensors = value.get("about"), value.get("tensors")
    about = about if isinstance(about, dict) else {}
    found: dict[str, Any] = {name: about[name] for name in _TEXTS if isinstance(about.get(name), str)}
    loras = about.get("loras")
    if isinstance(loras, list) and all(isinstance(lora, str) for lora in loras):
        found["loras"] = loras
    if isinstance(about.get("seconds"), (int, float)):
        found["seconds"] = about["seconds"]
    return found | ({"tensors": len(tensors)} if isinstance(tensors, list) else {})
