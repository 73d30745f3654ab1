"""Structured logs: one JSON object a line on standard error. Prompts and keys are never logged."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any

_lock = threading.Lock()


def log(event: str, *, level: str = "info", **values: Any) -> None:
    """Write a line: the time, the event and its values, such as `job` and `seconds`. None is left out."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event}
    line |= {name: value for name, value in values.items() if value is not None}
    try:
        text = json.dumps(line, default=str)
        with _lock:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
    except (OSError, ValueError):  # the reader of the log is gone
        pass


def log_error(event: str, error: BaseException, **values: Any) -> None:
    """Write a line with an error's traceback."""
    log(event, level="error", traceback="".join(traceback.format_exception(error)), **values)


class JsonHandler(logging.Handler):
    """Writes what libraries log, such as uvicorn, as such lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else None
        log(record.getMessage(), level=record.levelname.lower(), logger=record.name, traceback=trace)
