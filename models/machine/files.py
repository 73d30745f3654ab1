"""Files that appear whole or not at all: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE
from typing import IO, Any, Self

from models.machine import leftovers
from models.machine.checks import check_text
from models.machine.errors import InputError, MachineError

# Beginning of the names of unfinished files. One that is left was being written when its process was killed.
SCRATCH = ".mochi-tt-"
_LONGEST_NAME = 255  # Of Linux's file systems, in bytes.


def check_writable(path: str | Path, suffix: str = ".mp4") -> None:
    """Make the folder of `path` and see that a file can be made there, before any long work.

    Raises:
        InputError: the name does not end with `suffix`, `path` is a directory or a link to nothing, or its folder
            cannot be made or written.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise InputError(f"output {path} must end with {suffix}")
    _check_name(path)
    made: list[Path] = []
    try:
        if path.is_dir():
            raise InputError(f"output {path} is a directory: give a file name")
        if path.is_symlink() and not path.exists():
            raise InputError(f"output {path} is a link to nothing, which would be replaced: remove it, or name another")
        made += [p for p in (path.parent, *path.parent.parents) if not p.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "the existing file is read-only")
    except OSError as error:
        for folder in made:
            if folder.is_dir():
                folder.rmdir()
        raise InputError(f"output {path} cannot be written ({error.strerror}): choose another place") from error


class Reservation:
    """A name that this process alone writes to, from when it was chosen until it is released or the process ends.

    It is a lock on a hidden file beside the name, so that nothing appears under the name itself and the end of a
    process, however it comes, frees it.
    """

    def __init__(self, path: Path) -> None:
        """Reserve `path`, whose folder exists.

        Raises:
            Taken: another job writes to it.
            InputError: nothing can be written there.
        """
        self.path = path
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        self._beside = path.with_name(f".mochi-tt-{digest}.reserved")
        self._file: IO[bytes] | None = None
        try:
            while self._file is None:
                self._file = self._locked()
        except BlockingIOError as error:
            raise Taken(f"output {path} is being written by another job: choose another name, or wait") from error
        except OSError as error:
            raise InputError(f"output {path} cannot be written ({error.strerror}): choose another place") from error

    def _locked(self) -> IO[bytes] | None:
        """Return the locked file, or None if its last holder removed it meanwhile."""
        file = self._beside.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == self._beside.stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def release(self) -> None:
        """Give the name free; a second call does nothing."""
        if self._file is not None:
            self._beside.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.release()


class Taken(InputError):
    """Another job writes to this name at this moment."""


def _check_name(path: Path) -> None:
    """Check that a file can have the name, and that a JSON file can hold it."""
    try:
        size = len(os.fsencode(path.name))
    except UnicodeEncodeError as error:
        raise InputError(
            f"output {str(path)!a} has a character that this system's locale cannot write "
            f"({sys.getfilesystemencoding()}): set LC_ALL=C.UTF-8, or name it in ASCII"
        ) from error
    if size > _LONGEST_NAME:
        raise InputError(f"output {path.name[:20]}... is a name of {size} bytes: at most {_LONGEST_NAME} are possible")
    check_text("output", str(path))


def write_json(value: Mapping[str, Any], path: str | Path) -> None:
    """Write `value` as indented JSON, whole or not at all.

    Raises:
        OSError: the file could not be written.
        TypeError: a value that JSON does not know.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with renamed_when_done(Path(path)) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def renamed_when_done(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A fresh file beside `path` that takes its place at the end, or vanishes on any exception.

    Its permissions are `mode` less the umask, which are those of any new file by default.
    """
    scratch = path.with_name(f"{SCRATCH}{os.getpid()}-{token_hex(8)}{path.suffix}.part")
    leftovers.guard(scratch)  # before it is there: a kill in between would leave it
    try:
        os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        permissions = S_IMODE(scratch.stat().st_mode)
        yield scratch
        # Whoever writes it may have put a file of its own there.
        scratch.chmod(permissions)
        flush(scratch)
        scratch.replace(path)
        flush(path.parent)
    finally:
        scratch.unlink(missing_ok=True)
        leftovers.release(scratch)


@contextmanager
def refused_as_the_machines(folder: Path, mend: str) -> Iterator[None]:
    """Say what the operating system refuses in a folder that this program chose, not the user.

    Raises:
        MachineError: the block raised an OSError that is not one already.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise MachineError(f"{folder} cannot be written ({error.strerror or error}): {mend}") from error


def flush(path: Path) -> None:
    """Flush a file's data, or a directory's entries, to the disk: what was renamed then survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
