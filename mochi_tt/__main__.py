"""`python -m mochi_tt` and the program `mochi-tt`."""

import contextlib
import os
import signal
import sys

# Those of `models.machine.guardian`, whose import takes time.
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the command line and return its exit code.

    The signals that end a program wait until it is imported: `scripts.interrupts` then takes them. Those that the
    caller has ignored stay so.
    """
    signal.pthread_sigmask(
        signal.SIG_BLOCK, {number for number in _ENDINGS if signal.getsignal(number) != signal.SIG_IGN}
    )
    from scripts.cli import main as run

    code = run()
    from scripts import interrupts

    if interrupts.received() is not None:
        # Where the signal came while ttnn was imported, what is half made crashes when Python takes itself down. And
        # what C++ still holds then is nobody's news.
        from models.machine import leftovers

        leftovers.clear()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
