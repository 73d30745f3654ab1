"""Work in processes of its own ends with what asked for it."""

import multiprocessing
import time
from concurrent.futures import as_completed

import pytest

from models.machine.processes import fresh_processes


def test_an_interrupt_kills_what_runs():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), fresh_processes(1) as pool:  # noqa: PT012
        next(as_completed([pool.submit(abs, 0)]))  # Processes do start here.
        pool.submit(time.sleep, 300)
        pool.submit(time.sleep, 300)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 100, "the tasks were not waited for"
    assert not multiprocessing.active_children()
