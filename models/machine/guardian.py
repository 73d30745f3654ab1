"""The guardian: a small process beside ours that still acts when ours cannot.

It is run as a script, with nothing but the standard library (see `models.machine.leftovers`). A call into C++ that
never returns may hold Python's lock: then no handler and no thread of our process runs any more. The guardian deletes
what our process leaves behind however that ends, and ends it where it takes no signal any more.

It reads lines: "+" and a path to delete at the end, "-" and one to keep after all, "signals" or "no signals". The end
of its input is the end of our process.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
from contextlib import suppress
from time import monotonic, sleep

# Our process waits for these in a thread. One that stays pending for so long is not waited for any more.
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 1.0
_POLL = 0.25
_TRIES = 240  # A minute.
_SHOW_CURSOR = "\x1b[?25h"


def delete(paths: list[str]) -> None:
    """Delete files, folders with all that is in them, and links; what is not there is no error."""
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(path)


def kill_children(process: int, but: int | None = None) -> None:
    """Kill the children of a process: compilers, encoders, workers."""
    for task in _listed(f"/proc/{process}/task"):
        with suppress(OSError), open(f"/proc/{process}/task/{task}/children") as file:
            for child in map(int, file.read().split()):
                if child != but:
                    with suppress(OSError):
                        os.kill(child, signal.SIGKILL)


def pending(process: int) -> bool:
    """Whether a signal that should end the process waits to be taken."""
    mask = 0
    with suppress(OSError), open(f"/proc/{process}/status") as file:
        for line in file:
            if line.startswith(("SigPnd:", "ShdPnd:")):
                mask |= int(line.split()[1], 16)
    return any(mask >> (number - 1) & 1 for number in ENDINGS)


def _listed(folder: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)
    return []


def main() -> None:
    """Watch the parent until it ends."""
    process = int(sys.argv[1])
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    paths: dict[str, None] = {}
    buffer, active, since = b"", False, None
    while True:
        lives = os.getppid() == process
        if select.select([0], [], [], _POLL)[0]:
            read = os.read(0, 65536)
            if not read:
                break
            *lines, buffer = (buffer + read).split(b"\n")
            for line in lines:
                text = line.decode()
                if text.startswith("+"):
                    paths[json.loads(text[1:])] = None
                elif text.startswith("-"):
                    paths.pop(json.loads(text[1:]), None)
                else:
                    active = text == "signals"
        elif not lives:
            break  # A fork of it may still hold the other end.
        if not active or not pending(process):
            since = None
        elif since is None:
            since = monotonic()
        elif monotonic() - since >= PATIENCE:
            kill_children(process, but=os.getpid())
            delete(list(paths))
            if sys.stdout is not None and sys.stdout.isatty():
                print(_SHOW_CURSOR, end="", flush=True)
            os.kill(process, signal.SIGKILL)
    # What the process had started may still write for a moment, and a folder that fills again is not deleted.
    for _ in range(_TRIES):
        delete(list(paths))
        if not any(os.path.lexists(path) for path in paths):
            break
        sleep(_POLL)


if __name__ == "__main__":
    main()
