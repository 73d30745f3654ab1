"""`mochi-tt presets`: the named settings of `generate --preset`."""

from __future__ import annotations

from models.mochi.presets import lines


def presets() -> None:
    """Show the presets: what each sets. An empty cell is the checkpoint's default; sizes are the largest."""
    print("\n".join(lines()))
