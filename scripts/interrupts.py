"""Ctrl-C that is never lost.

Python raises `KeyboardInterrupt` wherever the main thread happens to be. Inside a callback from C++ (a finalizer, an
argument being converted) whoever called it may drop the exception. So the signal is remembered as well, and every
`check`, which the progress of a long run calls at each step, raises it again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_seen = threading.Event()


@contextmanager
def remembered() -> Iterator[None]:
    """Remember interrupts while the block runs; outside of the main thread, and where they are ignored, do nothing."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        _seen.set()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _seen.clear()


def check() -> None:
    """Raise the interrupt that came.

    Raises:
        KeyboardInterrupt: there was one.
    """
    if _seen.is_set():
        raise KeyboardInterrupt
