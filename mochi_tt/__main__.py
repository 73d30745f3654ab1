"""`python -m mochi_tt` and the program `mochi-tt`."""

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    from scripts.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
