"""The error that golden execution raises, and the search for the line of model code that caused it."""

import os
import sys
from pathlib import Path

import ttnn

_INNER = (str(Path(__file__).resolve().parents[1]) + os.sep, str(Path(ttnn.__file__).resolve().parent) + os.sep)
# The hook on ttnn's op entry point, and a user of it in another package.
_WRAPPERS = frozenset({"models.performance.trace", "models.machine.ops"})


class GoldenError(RuntimeError):
    """Error for a value that golden execution cannot compute: no golden, a wrong shape or dtype, or a freed tensor."""


def call_site() -> str:
    """Return `file:line` of the innermost frame outside the mock, outside ttnn and outside the op tracers."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_INNER) and frame.f_globals.get("__name__") not in _WRAPPERS:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "<unknown>"


def golden_error(op: str, message: str) -> GoldenError:
    """Return a `GoldenError` that names the op and the line of model code that called it."""
    return GoldenError(f"{op} at {call_site()}: {message}")
