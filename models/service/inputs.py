"""Pictures and videos that clients send, for a video to start from: what is taken, where it lies, and how it goes.

A file is named by the SHA-256 of its content, so the same one twice is one. Its first bytes say whether it is taken,
and never its name or what the client calls it. `models.jobs.media.is_image` says what is a picture, as for `generate`.
A file stays as long as a video that waits or is made needs it, and for `KEEP_SECONDS` after it was sent.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from models.jobs.media import Limits, is_image, measure
from models.machine.errors import InputError
from models.machine.files import renamed_when_done

KEEP_SECONDS = 3600.0
IMAGE, VIDEO = "image", "video"
_ID = re.compile(r"file-[0-9a-f]{64}")
_CAN = "JPEG, PNG, WebP, AVIF, GIF, MP4, MOV, WebM and MKV can be read"


@dataclass(frozen=True)
class Input:
    """A file that a client sent.

    Attributes:
        id: its name.
        kind: `IMAGE` or `VIDEO`.
        bytes: its size.
        stamp: when it was written, by the file system; None if it was there before.
    """

    id: str
    kind: str
    bytes: int
    stamp: int | None = None


class TooManyInputs(Exception):
    """The bound on all files together is reached."""


class Inputs:
    """The folder of these files. Processes may share it."""

    def __init__(self, root: Path, limits: Limits, most_bytes: int | None = None) -> None:
        """Take the folder, which `keep` makes, what a file may not exceed, and all together; None for no such bound."""
        self._root, self._limits, self._most_bytes = root, limits, most_bytes

    def keep(self, content: bytes) -> Input:
        """Check a file and keep it.

        Raises:
            InputError: it is of no kind that is read, damaged, or too large or long.
            TooManyInputs: there are so many that it exceeds the bound on all.
            OSError: it cannot be written.
        """
        if not is_taken(content):
            raise InputError(f"the file is neither a picture nor a video: {_CAN}")
        name = f"file-{hashlib.sha256(content).hexdigest()}"
        path = self._root / name
        self._root.mkdir(mode=0o700, exist_ok=True)
        stamp = None
        if not path.exists():
            if self._most_bytes is not None and self._bytes() + len(content) > self._most_bytes:
                raise TooManyInputs
            with renamed_when_done(path, 0o600) as scratch:
                scratch.write_bytes(content)
                try:
                    measure(scratch, self._limits, called="the file")
                except InputError:
                    scratch.unlink(missing_ok=True)
                    raise
            stamp = _stamp_of(path)
        else:
            with suppress(OSError):  # It may have expired in this moment.
                os.utime(path)
        return Input(name, _kind_of(path), len(content), stamp)

    def drop(self, kept: Input) -> None:
        """Let the next `sweep` delete a file for which nobody has a use; nothing if it has come before, or again since.

        It is not deleted here: a video that needs it may be queued at this moment.
        """
        path = self._root / kept.id
        with suppress(OSError):
            if kept.stamp is not None and _stamp_of(path) == kept.stamp:
                os.utime(path, (0, 0))

    def _bytes(self) -> int:
        """Return the bytes of all files."""
        total = 0
        for entry in os.scandir(self._root):
            with suppress(OSError):  # It may have expired in this moment.
                total += entry.stat().st_size
        return total

    def find(self, name: str) -> tuple[Path, str] | None:
        """Return the path and the kind of a file; None if there is none of this name."""
        if not _ID.fullmatch(name):
            return None
        path = self._root / name
        return (path, _kind_of(path)) if path.is_file() else None

    def sweep(self, needed: Collection[str]) -> list[str]:
        """Delete the files that no video needs and that were sent long ago; return their names."""
        gone = []
        with suppress(FileNotFoundError):  # Nobody has sent one yet.
            for entry in os.scandir(self._root):
                if entry.name in needed:
                    continue
                with suppress(OSError):
                    if abs(time.time() - entry.stat().st_mtime) > KEEP_SECONDS:
                        os.unlink(entry.path)
                        gone.append(entry.name)
        return gone


def is_taken(content: bytes) -> bool:
    """Return whether a file's first bytes are those of a kind that is taken."""
    if content[:3] == b"\xff\xd8\xff" or content[:8] == b"\x89PNG\r\n\x1a\n":
        return True
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return True
    return content[:6] in (b"GIF87a", b"GIF89a") or content[4:8] == b"ftyp" or content[:4] == b"\x1a\x45\xdf\xa3"


def _stamp_of(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _kind_of(path: Path) -> str:
    return IMAGE if is_image(path) else VIDEO
