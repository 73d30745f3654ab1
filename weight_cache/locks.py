"""Locks on entries, shared by readers or held by one process that makes, mends or deletes.

They are `flock` locks, which the system frees if their holder dies. The files are never deleted, so that all processes
lock the same one; if somebody else deletes one, it is noticed. Whoever may only read the store can lock as well.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from weight_cache.inside import is_file, remove

_POLL_SECONDS = 0.2
# How often a waiting process says that it still waits.
SAY_AGAIN_SECONDS = 30.0
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK


class Busy(Exception):
    """Another process holds a lock, and the caller does not wait."""


class Locks:
    """The locks in a directory, one per name."""

    def __init__(self, folder: Path):
        """Refer to the locks in `folder`, which must exist when one is taken."""
        self._folder = folder

    @contextmanager
    def exclusive(self, name: str, tell: Callable[[str], None] | None) -> Iterator[None]:
        """Hold a lock alone.

        Args:
            name: of the lock.
            tell: called with a line that says who is waited for, at once and then twice a minute.
                None: do not wait.

        Raises:
            Busy: another process holds it, and `tell` is None.
            OSError: the lock's file can neither be opened nor made.
        """
        descriptor = self._take(name, fcntl.LOCK_EX, tell)
        with _closing(descriptor):
            with contextlib.suppress(OSError):  # It is not ours to write, or the disk is full.
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, 0)

    @contextmanager
    def shared(self, name: str, tell: Callable[[str], None]) -> Iterator[None]:
        """Hold a lock together with other readers; `tell` is as in `exclusive`.

        In a store that is read-only and has no file for the lock nothing is locked.
        """
        try:
            descriptor = self._take(name, fcntl.LOCK_SH, tell)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
                raise
            yield
            return
        with _closing(descriptor):
            yield

    def holders(self, name: str) -> str:
        """Say which processes hold a lock, as far as this user can see them, such as "process 12 (stopped)"."""
        path = self._path(name)
        found = _that_opened(path)
        with contextlib.suppress(OSError, ValueError):
            found = found or [int(path.read_text())]
        if not found:
            return "another process"
        return " and ".join(f"process {pid}{_stopped(pid)}" for pid in found)

    def _take(self, name: str, kind: int, tell: Callable[[str], None] | None) -> int:
        start, said = monotonic(), 0
        while True:
            descriptor = self._open(name)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                if self._is_still(name, descriptor):
                    return descriptor
            except BlockingIOError:
                waited = monotonic() - start
                if tell is None:
                    raise Busy(self.holders(name)) from None
                if waited >= said * SAY_AGAIN_SECONDS:
                    tell(self._waiting(name, waited))
                    said += 1
                sleep(_POLL_SECONDS)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _waiting(self, name: str, waited: float) -> str:
        who = self.holders(name)
        if waited < 1:
            return f"{who} works on these weights: waiting for it"
        hint = "let it go on with kill -CONT, or end it" if "stopped" in who else "end it if it hangs"
        return f"{who} works on these weights: waiting for it since {waited:.0f} s ({hint})"

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.lock"

    def _open(self, name: str) -> int:
        path = self._path(name)
        if os.path.lexists(path) and not is_file(path):
            remove(path)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return os.open(path, os.O_RDONLY | _FLAGS)

    def _is_still(self, name: str, descriptor: int) -> bool:
        """Whether the file that was locked is the one that others would lock now."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self._path(name)))
        except OSError:
            return False


@contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def _that_opened(path: Path) -> list[int]:
    """Return the processes that have a file open, without this one if there are others."""
    found = set()
    target = os.path.realpath(path)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(link) == target for link in (folder / "fd").iterdir()):
                found.add(int(folder.name))
    return sorted(found - {os.getpid()} or found)


def _stopped(pid: int) -> str:
    with contextlib.suppress(OSError):
        if "\nState:\tT" in Path(f"/proc/{pid}/status").read_text():
            return " (stopped)"
    return ""
