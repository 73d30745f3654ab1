"""Access to files within the store that never follows a symbolic link.

Whatever else is where a file or a directory should be (a link, a pipe, a directory) is damage: it is not read, and of a
link only the link is removed.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from models.machine.errors import InputError

# No text file of a store is larger: a manifest of the full transformer has under 2 MB.
_TEXT_BYTES = 1 << 28


def is_directory(path: Path) -> bool:
    """Return whether `path` is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Return whether `path` is a plain file, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def exists(path: Path) -> bool:
    """Return whether anything is at `path`, a broken link included."""
    return os.path.lexists(path)


def make_directory(path: Path) -> None:
    """Make the directory `path` in an existing one; whatever else is there is removed.

    Raises:
        OSError: it cannot be made.
    """
    if not is_directory(path):
        remove(path)
        path.mkdir(exist_ok=True)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole directory, if it is there. What a link points to stays.

    Raises:
        OSError: it cannot be deleted.
    """
    if is_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """Read a small file.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: it cannot be read.
        ValueError: it is no plain file, or larger than any that the store writes.
    """
    return _read(path)[0]


def read_own(path: Path) -> bytes:
    """Read a small file as `read_bytes` does, if it belongs to this user and only this user can write it.

    Raises:
        OSError: it cannot be read.
        ValueError: as of `read_bytes`, or it is another user's.
    """
    content, status = _read(path)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise InputError(f"{path} can be written by others")
    return content


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    if exists(path) and not is_file(path):
        raise InputError(f"{path} is a link or no plain file")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size > _TEXT_BYTES:
            raise InputError(f"{path} has {status.st_size} bytes, which is too large")
        return file.read(_TEXT_BYTES), status
