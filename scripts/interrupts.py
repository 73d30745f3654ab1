"""Ctrl-C, SIGTERM and SIGHUP that are never lost: the first cancels a run, the second ends the process.

Two things lose a Ctrl-C. tt-metal builds kernels with ``system``, and while that waits for the compiler the whole
process ignores SIGINT (POSIX ``system``). And where Python raises `KeyboardInterrupt` inside a callback from C++ (a
finalizer, an argument being converted), whoever called it may drop the exception.

So the signals are kept blocked, which a signal must be to outlive being ignored, and a thread of its own waits for
them. The thread remembers the first, for every `check` to raise it again (the progress of a long run calls that at each
step), and sends the main thread a signal that nobody ignores. The next one ends the process at once. Where the thread
cannot run, because a call into C++ holds Python's lock, the guardian sees that the next one is not taken, and kills the
process (`models.machine.guardian`). Programs started meanwhile inherit the blocked signals: a compiler finishes its
kernel, and a video encoder waits to be told.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType

from models.machine import leftovers
from models.machine.guardian import ENDINGS

_RELAY = signal.SIGRTMIN + 3  # The first ones have meanings in some libraries and tools.
_DONE = signal.SIGRTMIN + 4
# `timeout` and closing terminals send the same signal to a process and to its group: that is one request.
_SAME_SECONDS = 0.3
_NOTE_SECONDS = 2.0
_AGAIN_SECONDS = 0.1
_NOTE = "mochi-tt: ending when the present call returns; the same signal again ends at once\n"
_AT_ONCE = "mochi-tt: ended at once\n"
_SHOW_CURSOR = "\x1b[?25h"


class _State:
    """The signal that came first, and whether the main thread is to be told."""

    received: int | None = None
    active = False
    silent = False


_state = _State()


@contextmanager
def remembered() -> Iterator[None]:
    """Remember signals while the block runs; outside of the main thread, and those that are ignored, leave alone."""
    main = threading.main_thread()
    usual = (signal.default_int_handler, signal.SIG_DFL)
    watched = {number for number in ENDINGS if signal.getsignal(number) in usual}
    if threading.current_thread() is not main or not watched:
        yield
        return

    def wait() -> None:
        first = 0.0
        while True:
            note = _NOTE_SECONDS if _state.received is not None else None
            number = _next(watched | {_DONE}, note)
            if number == _DONE:
                return
            if number is None:
                _say(_NOTE)
                number = _next(watched | {_DONE}, None)
                if number == _DONE:
                    return
            assert number is not None
            if _state.received is None:
                first, _state.received = monotonic(), number
                signal.pthread_kill(main.ident, _RELAY)  # type: ignore[arg-type]
            elif monotonic() - first >= _SAME_SECONDS:
                _end_at_once(number)

    def tell() -> None:
        if _state.active:
            signal.pthread_kill(main.ident, _RELAY)  # type: ignore[arg-type]

    def relay(number: int, frame: FrameType | None) -> None:
        if not _state.active:
            return
        if _is_importing(frame):
            # An exception in the middle of a C++ module's start ends the process there.
            again = threading.Timer(_AGAIN_SECONDS, tell)
            again.daemon = True
            again.start()
            return
        raise KeyboardInterrupt

    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, watched | {_DONE})
    relayed = signal.signal(_RELAY, relay)
    waiter = threading.Thread(target=wait, name="interrupts", daemon=True)
    _state.received, _state.active = None, True
    waiter.start()
    leftovers.end_hung(True)
    try:
        yield
    finally:
        _state.active = False
        # To this thread alone: others may have the signal unblocked, and it would end the process.
        if waiter.is_alive():
            signal.pthread_kill(waiter.ident, _DONE)  # type: ignore[arg-type]
        waiter.join()
        # A process that holds the signals until its end has nobody but the guardian to see the next one.
        leftovers.end_hung(bool(watched & blocked))
        signal.signal(_RELAY, relayed)
        # A signal that came again while the block ended was the same request: unblocked, it would end the process.
        while _state.received is not None and signal.sigtimedwait(watched, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def check() -> None:
    """Raise the interrupt that came.

    Raises:
        KeyboardInterrupt: there was one.
    """
    if _state.active and _state.received is not None:
        raise KeyboardInterrupt


def silence() -> None:
    """Say nothing of signals on standard error: a program that writes a structured log there says it in its own way."""
    _state.silent = True


def received() -> int | None:
    """Return the number of the signal that ended the last `remembered` block; None if there was none."""
    return _state.received


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _next(numbers: set[int], seconds: float | None) -> int | None:
    """Wait for a signal and return its number; None if none came in time."""
    if seconds is None:
        return signal.sigwait(numbers)
    found = signal.sigtimedwait(numbers, seconds)
    return None if found is None else found.si_signo


def _end_at_once(number: int) -> None:
    leftovers.clear()
    if os.isatty(1):
        with suppress(OSError):
            os.write(1, _SHOW_CURSOR.encode())
    _say(_AT_ONCE)
    os._exit(128 + number)


def _say(text: str) -> None:
    if _state.silent:
        return
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
        os.write(2, text.encode())
