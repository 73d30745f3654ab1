"""The error that golden execution raises, and how it finds the line of model code to blame."""

import os
import sys
from pathlib import Path

import ttnn

_INNER = (str(Path(__file__).resolve().parents[1]) + os.sep, str(Path(ttnn.__file__).resolve().parent) + os.sep)
# Wrappers around ttnn's op entry point that stand elsewhere.
_WRAPPERS = frozenset({"models.performance.trace"})


class GoldenError(RuntimeError):
    """Golden execution cannot vouch for a value: no golden, a wrong shape or dtype, or a dead tensor."""


def call_site() -> str:
    """Return `file:line` of the innermost frame outside the mock, outside ttnn and outside what watches ops."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_INNER) and frame.f_globals.get("__name__") not in _WRAPPERS:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "<unknown>"


def golden_error(op: str, message: str) -> GoldenError:
    """Build a `GoldenError` that names the op and the model line that called it."""
    return GoldenError(f"{op} at {call_site()}: {message}")
