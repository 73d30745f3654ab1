"""Folders that this process made for its files, and removes again where no file came."""

from __future__ import annotations

import os
import threading
from pathlib import Path

# Held from the making of a folder until something is in it, so that no other thread removes it in between. It is
# reentrant: the release of a forgotten reservation can come at any moment.
lock = threading.RLock()

_made: dict[str, int] = {}
"""The process that made a folder, by the folder's real path: a fork does not own what its parent made."""


def make(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OSError: one cannot be made; those that were are removed again.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            _made[os.path.realpath(each)] = os.getpid()
    except OSError:
        remove_empty(folder)
        raise


def keep(folder: Path) -> None:
    """Leave a folder and those above it alone: a file came."""
    for each in _chain(folder):
        _made.pop(each, None)


def remove_empty(folder: Path) -> None:
    """Remove a folder and those above it that this process made, as far as they are empty."""
    for each in _chain(folder):
        if not os.path.lexists(each):
            _made.pop(each, None)
            continue
        if _made.get(each) != os.getpid():
            return
        try:
            os.rmdir(each)
        except OSError:
            return
        del _made[each]


def _chain(folder: Path) -> list[str]:
    real = Path(os.path.realpath(folder))
    return [str(each) for each in (real, *real.parents)]
