"""`python -m mochi_tt` and the program `mochi-tt`."""

import signal
import sys

# Those of `models.machine.guardian`, whose import takes time.
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the command line and return its exit code.

    The signals that end a program wait until it is imported: `scripts.interrupts` then takes them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    from scripts.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
