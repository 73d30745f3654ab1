"""Looking at a path that a user named: there or not, or a line that says why nobody can tell."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from models.machine.errors import InputError

_PERMISSION = "allow this user to read it and to enter its folders, or choose another place"
_SPACE = "free some space, or choose another place"
MENDS = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: "choose a place that can be written",
    errno.EIO: "the disk or its connection fails, so see the system's log",
    errno.EMFILE: "allow this process more open files, such as with ulimit -n 4096",
    errno.ENFILE: "the system has too many open files, so close other programs",
    errno.EFBIG: "allow larger files (ulimit -f), or choose a file system that holds them",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead in a circle, so give the file itself",
    errno.ENOMEM: "free some memory",
}
"""What the operating system refuses because of the user's machine or of a name, and what the user does about it."""
_SHOWN = 120


def is_file(path: str | Path) -> bool:
    """Return whether there is a plain file, or a link to one.

    Raises:
        InputError: the operating system does not say, such as without permission for a folder.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_dir(path: str | Path) -> bool:
    """Return whether there is a directory, or a link to one.

    Raises:
        InputError: the operating system does not say, such as without permission for a folder.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def exists(path: str | Path) -> bool:
    """Return whether there is anything; a link to nothing is nothing.

    Raises:
        InputError: the operating system does not say, such as without permission for a folder.
    """
    return _mode(path) is not None


def is_taken(path: str | Path) -> bool:
    """Return whether there is anything of that name, also a link to nothing.

    Raises:
        InputError: the operating system does not say, such as without permission for a folder.
    """
    return _mode(path, follow=False) is not None


def listed(directory: str | Path) -> list[Path]:
    """Return what is in a directory, sorted.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        return sorted(Path(directory).iterdir())
    except OSError as error:
        raise refused(directory, error) from error


def refused(path: str | Path, error: OSError) -> InputError:
    """Return the line for what the operating system refuses: the path, why, and what helps."""
    return InputError(f"{shown(path)} cannot be read ({error.strerror or error}): {mend(error)}")


def mend(error: OSError) -> str:
    """Return what helps against an error of the operating system."""
    return MENDS.get(error.errno or 0, "give another")


def shown(path: str | Path) -> str:
    """Return a path as a message names it: its middle is left out where it is long."""
    text = str(path)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


def _mode(path: str | Path, *, follow: bool = True) -> int | None:
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL is in no name
        return None
    except OSError as error:
        raise refused(path, error) from error
