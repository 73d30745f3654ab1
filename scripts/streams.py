"""Standard streams that end badly: closed from the start, closed by their reader meanwhile, or full."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any

from models.machine.errors import MachineError

_NAMES = {1: "standard output", 2: "standard error"}


class _Stream(io.FileIO):
    """A standard stream, unbuffered. Once its reader has gone, what is written to it goes nowhere."""

    def write(self, data: Any) -> int:
        """Write all bytes.

        Raises:
            MachineError: the system refuses them, such as a full disk.
        """
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += super().write(view[done:]) or 0
        except BrokenPipeError:  # as of `mochi-tt cache list | head -1`
            _open_nowhere(self.fileno())
        except OSError as error:
            number = self.fileno()
            _open_nowhere(number)  # The rest of the run, and Python's end, would fail again.
            if number == 2:
                return len(view)  # There is nowhere to say it.
            raise MachineError(
                f"{_NAMES[number]} cannot be written ({error.strerror}): free some space there, or send it elsewhere",
            ) from error
        return len(view)


def settle() -> None:
    """Make standard streams of this process that no command has to think of.

    Those that are closed are opened on /dev/null, so that no file of ours gets their numbers. In the others, text that
    the terminal cannot show is escaped. What is no stream of the process, such as a test's, is left alone but for that.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _open_nowhere(number)
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        if number and stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            raw = io.BufferedWriter(_Stream(number, "wb", closefd=False))
            stream = io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, stream)
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _open_nowhere(number: int) -> None:
    """Open /dev/null under the number of a stream."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
