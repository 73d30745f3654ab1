"""Room on the disk that is kept for the ends of videos and for deleting, when all other room is gone.

Without it a full disk cannot be freed by the service itself: to delete a video its row must be written first.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

RESERVE_BYTES = 8 << 20
"""SQLite's write-ahead log grows to about 4 MB before it is used anew."""


class Reserve:
    """A file that takes room until it is needed. Processes may share it."""

    def __init__(self, path: Path, size: int = RESERVE_BYTES) -> None:
        """Keep `size` bytes at a path, from the first `fill` on."""
        self._path, self._size = path, size

    def fill(self) -> bool:
        """Take the room, unless it is taken, and return whether it is.

        It is not taken where as much again would not be left: what is freed goes to the videos' ends first.
        """
        if self._path.exists():
            return True
        scratch = self._path.with_name(f"{self._path.name}.{token_hex(8)}")
        try:
            there = os.statvfs(self._path.parent)
            if there.f_bavail * there.f_frsize < 2 * self._size:
                return False
            with scratch.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, self._size)
            scratch.replace(self._path)
        except OSError:
            return False
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
        return True

    def release(self) -> bool:
        """Give the room away, and return whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
