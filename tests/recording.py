"""Records which op configurations each test ran: `pytest --evidence FILE`, for `models.performance.evidence`."""

import json
import os
import time
from pathlib import Path

import pytest


class Recorder:
    """Adds a line of JSON per test to a file; several processes may share it."""

    def __init__(self, file: Path) -> None:
        self._file = file.absolute()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        """Gather while the test runs."""
        from models.device import cards
        from models.performance.configurations import configurations

        simulated = bool(os.environ.get("TT_METAL_SIMULATOR"))
        start = time.perf_counter()
        with configurations() as found:
            outcome = yield
        row = {
            "test": item.nodeid,
            "mode": "simulator" if simulated else "hardware" if cards() else "golden",
            "chips": max(found.values(), default=0),
            "seconds": round(time.perf_counter() - start, 1),
            "outcome": "failed" if outcome.excinfo else "passed",
            "configurations": sorted(found),
        }
        if found:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
