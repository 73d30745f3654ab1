"""Work in processes of its own: what a mock mesh took, only the end of its process gives back."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from models.device import quiet_ttnn


@contextmanager
def fresh_processes(jobs: int = 1) -> Iterator[Executor]:
    """An executor that runs each task in a new process, `jobs` at a time.

    After an error or an interrupt nothing goes on: what has not begun is dropped, what runs is killed.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, spawn, initializer=quiet_ttnn, max_tasks_per_child=1)
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
