"""Entries as shown to people: state, size, age, and their sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from weight_cache.entry import Entry


@dataclass(frozen=True)
class Found:
    """An entry as `Store.entries` lists it. `state` is complete, unfinished or unreadable."""

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
        """Return the entry in the directory `path`, in whatever state it is."""
        entry = Entry(path)
        about: dict[str, Any] = {}
        try:
            manifest = entry.manifest()
            state = "unfinished" if manifest is None else "complete"
            about = {} if manifest is None else manifest.about | {"tensors": len(manifest.tensors)}
        except ValueError as error:
            state, about = "unreadable", {"why": str(error)}
        aside = Entry(path / "set-aside").size()
        return cls(path.name, path, state, entry.size() - aside, aside, entry.last_used(), about)
