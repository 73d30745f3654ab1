"""Presets: named settings of a video, kept in `presets.toml`.

What a caller names wins over the preset, and the preset wins over the checkpoint's defaults.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models.machine.errors import InputError
from models.mochi.defaults import Defaults

PRESETS_FILE = Path(__file__).with_name("presets.toml")
SIZES = ("height", "width", "num_frames")
SETTINGS = (
    "num_steps",
    "solver",
    "guidance_scale",
    "guidance_interval",
    "guidance_reuse",
    "reuse",
    "threshold_noise",
    "linear_steps",
    "precision",
    *SIZES,
)
"""What a preset may set."""


@dataclass(frozen=True)
class Preset:
    """Settings with a name.

    Attributes:
        name: as the user gives it.
        about: one line for the table.
        settings: values of some of `SETTINGS`.
    """

    name: str
    about: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.settings.items())

    def fill(self, given: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
        """Return ``given`` with the preset's values in the place of None.

        A size of the preset is the largest: the checkpoint's default stays where it is smaller. An interval of
        guidance is left out where the caller gives a list of scales.

        Args:
            given: what the caller named, None for the rest; settings whose names are absent are not asked for.
            defaults: the checkpoint's.
        """
        filled = dict(given)
        for name, value in self.settings.items():
            if name not in given or given[name] is not None:
                continue
            if name == "guidance_interval" and hasattr(given.get("guidance_scale"), "__iter__"):
                continue
            filled[name] = min(value, getattr(defaults, name)) if name in SIZES else value
        return filled


@cache
def presets() -> dict[str, Preset]:
    """Return all presets by name, in the order of the file."""
    made = {}
    for name, values in tomllib.loads(PRESETS_FILE.read_text(encoding="utf-8")).items():
        unknown = set(values) - {"about", *SETTINGS}
        assert not unknown, f"{PRESETS_FILE.name}: {name} sets {sorted(unknown)}, which no preset may"
        made[name] = Preset(name, values.pop("about"), values)
    return made


def preset(name: str) -> Preset:
    """Return a preset.

    Raises:
        InputError: there is none of that name.
    """
    if not isinstance(name, str) or name not in presets():
        raise InputError(f"preset {name!r} must be one of {', '.join(presets())} (mochi-tt presets shows them)")
    return presets()[name]


def fill(name: str | None, given: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """Return ``given`` with the values of the preset ``name`` in the place of None; see `Preset.fill`.

    Raises:
        InputError: there is no such preset.
    """
    return dict(given) if name is None else preset(name).fill(given, defaults)


def lines() -> list[str]:
    """Return a Markdown table of all presets."""
    names = [name for name in SETTINGS if any(name in each.settings for each in presets().values())]
    rows = [["setting", *presets()]]
    rows += [[name, *(str(each.settings.get(name, "")) for each in presets().values())] for name in names]
    rows.append(["", *(each.about for each in presets().values())])
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *body]
