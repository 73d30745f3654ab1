"""What a process must not leave behind, however it ends: temporary folders and half-written files.

A context manager deletes them where the process ends in order. Where it is killed, or hangs in C++ until a second
Ctrl-C, the guardian does (`models.machine.guardian`): a child process, started with the first thing to guard.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO

from models.machine import guardian

_lock = threading.Lock()


class _Guarded:
    """The guardian of this process, and what it was told."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.paths: dict[str, None] = {}
        self.signals = False


_guarded = _Guarded()


def guard(path: str | Path) -> None:
    """Have a file or folder deleted at the end of this process, however it ends."""
    with _lock:
        _start()
        _guarded.paths[os.path.abspath(path)] = None
        _tell("+" + json.dumps(os.path.abspath(path)))


def release(path: str | Path) -> None:
    """Leave a file or folder alone that `guard` named."""
    with _lock:
        _guarded.paths.pop(os.path.abspath(path), None)
        _tell("-" + json.dumps(os.path.abspath(path)))


@contextmanager
def guarded(path: str | Path) -> Iterator[None]:
    """Guard a path while the block runs."""
    guard(path)
    try:
        yield
    finally:
        release(path)


def temporary_folder(prefix: str) -> Path:
    """Make a folder in the system's temporary folder that is deleted at the end of this process, however it ends."""
    folder = Path(tempfile.gettempdir(), prefix + token_hex(8))
    guard(folder)  # before it is there: a kill in between would leave it
    folder.mkdir(0o700)
    return folder


def remove(folder: Path) -> None:
    """Delete a folder of `temporary_folder` before the end."""
    shutil.rmtree(folder, ignore_errors=True)
    release(folder)


def end_hung(active: bool) -> None:
    """Have the guardian kill this process when a signal that should end it is not taken for a second."""
    with _lock:
        _guarded.signals = active
        if active:
            _start()
        _tell("signals" if active else "no signals")


def clear() -> None:
    """Kill the children of this process and delete all that is guarded, right before it ends."""
    process = _guarded.process
    guardian.kill_children(os.getpid(), but=process.pid if process is not None else None)
    guardian.delete(list(_guarded.paths))


def _start() -> None:
    """Start the guardian, unless this very process has one: a fork does not take it along."""
    if _guarded.owner == os.getpid():
        return
    if _guarded.owner:
        _guarded.paths = {}
    _guarded.owner = os.getpid()
    shown = sys.__stdout__
    with suppress(OSError):  # Without it only an end out of order leaves something.
        _guarded.process = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            # Nobody waits for the end of a terminal as for that of a pipe.
            stdout=None if shown is not None and not shown.closed and shown.isatty() else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        if _guarded.signals:
            _tell("signals")


def _tell(line: str) -> None:
    pipe: IO[bytes] | None = _guarded.process.stdin if _guarded.process is not None else None
    if pipe is not None and _guarded.owner == os.getpid():
        with suppress(OSError, ValueError):
            os.write(pipe.fileno(), line.encode() + b"\n")
