"""Dry runs in processes of their own: what a mock mesh took, only the end of its process gives back."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from models.device import quiet_ttnn


@contextmanager
def fresh_processes(jobs: int) -> Iterator[Executor]:
    """An executor that runs each task in a new process, ``jobs`` at a time, and drops what has not begun at the end."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, spawn, initializer=quiet_ttnn, max_tasks_per_child=1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
