"""Ctrl-C that is never lost.

Two things lose it. tt-metal builds kernels with ``system``, and while that waits for the compiler the whole process
ignores SIGINT (POSIX ``system``). And where Python raises `KeyboardInterrupt` inside a callback from C++ (a finalizer,
an argument being converted), whoever called it may drop the exception.

So SIGINT is kept blocked, which a signal must be to outlive being ignored, and a thread of its own waits for it. The
thread remembers the interrupt, for every `check` to raise it again (the progress of a long run calls that at each
step), and sends the main thread a signal that nobody ignores. Programs started meanwhile inherit the blocked signal: a
compiler finishes its kernel, and a video encoder waits to be told.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_seen = threading.Event()
_RELAY = signal.SIGRTMIN + 3  # The first ones have meanings in some libraries and tools.


@contextmanager
def remembered() -> Iterator[None]:
    """Remember interrupts while the block runs; outside of the main thread, and where they are ignored, do nothing."""
    main = threading.main_thread()
    if threading.current_thread() is not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    done = threading.Event()

    def wait() -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            if done.is_set():
                return
            _seen.set()
            signal.pthread_kill(main.ident, _RELAY)  # type: ignore[arg-type]

    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    relayed = signal.signal(_RELAY, signal.default_int_handler)
    waiter = threading.Thread(target=wait, name="interrupts", daemon=True)
    waiter.start()
    try:
        yield
    finally:
        done.set()
        signal.pthread_kill(waiter.ident, signal.SIGINT)  # type: ignore[arg-type]
        waiter.join()
        signal.signal(_RELAY, relayed)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _seen.clear()


def check() -> None:
    """Raise the interrupt that came.

    Raises:
        KeyboardInterrupt: there was one.
    """
    if _seen.is_set():
        raise KeyboardInterrupt
