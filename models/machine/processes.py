"""Work in separate processes, because only the end of a process frees the memory of a mock mesh."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from models.machine.host import quiet_ttnn


@contextmanager
def fresh_processes(jobs: int = 1) -> Iterator[Executor]:
    """Yield an executor that runs each task in a new process, `jobs` at a time.

    After an error or an interrupt nothing continues: waiting tasks are dropped and running tasks are killed.
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
