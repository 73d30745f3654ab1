"""Locks between processes: held by an open file, so that the end of a process, however it comes, frees them."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.machine.errors import InputError

_POLL = 0.05


class Held(InputError):
    """Another process has the lock."""


@contextmanager
def locked(path: Path, seconds: float, whose: str) -> Iterator[None]:
    """Hold a lock while the block runs.

    Args:
        path: its file.
        seconds: to wait for it.
        whose: it is, for the message.

    Raises:
        Held: another process keeps it for longer.
    """
    end = time.monotonic() + seconds
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise Held(
                        f"{path.parent} is in use by another {whose}: end it, or choose another --folder"
                    ) from error
                time.sleep(_POLL)
        yield
