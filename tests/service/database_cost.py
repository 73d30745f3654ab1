"""Measure what a private Postgres on this machine does a second: `python -m tests.service.database_cost`.

The figures are constants of `models.service.simulation`. Four threads ask at once, in the same process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from models.service.jobs import Bounds, Outcome
from models.service.postgres import PostgresJobs
from tests.service.postgres import Cluster

SECONDS, THREADS = 3.0, 4
DONE = Outcome("completed", None, [], {"bytes": 1, "sha256": "x", "seconds": {"denoise": 1.0}})


def rate(act: Callable[[int], object]) -> float:
    """Return how often a second threads together do something."""
    counts, end = [0] * THREADS, time.monotonic() + SECONDS

    def loop(thread: int) -> None:
        while time.monotonic() < end:
            act(thread)
            counts[thread] += 1

    threads = [threading.Thread(target=loop, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


def main() -> None:
    """Print the rates."""
    cluster = Cluster()
    try:
        jobs = PostgresJobs(cluster.database())

        def submit(_: int) -> None:
            jobs.submit("me", {"prompt": "a" * 200}, {"model": "tiny"}, Bounds(10**9))

        def video(thread: int) -> None:
            job = jobs.claim(f"{thread}-a")
            assert job is not None
            assert jobs.finish(job.id, f"{thread}-a", DONE)

        print(f"looks at an empty queue: {rate(lambda thread: jobs.claim(f'{thread}-a')):.0f} a second")
        for _ in range(5000):
            submit(0)
        print(f"submissions: {rate(submit):.0f} a second")
        print(f"claims and ends: {rate(video):.0f} a second")
        held = [jobs.claim(f"{thread}-b") for thread in range(THREADS)]
        names = [job.id for job in held if job is not None]
        print(f"looks at a claim: {rate(lambda thread: jobs.is_wanted(names[thread], f'{thread}-b')):.0f} a second")
        reports = rate(lambda thread: jobs.report(names[thread], f"{thread}-b", "denoise", 1, 50, 5))
        print(f"reports of progress: {reports:.0f} a second")
        start = time.monotonic()
        print(f"rows of the queue: {len(jobs.waiting()) / (time.monotonic() - start):.0f} a second")
        jobs.close()
    finally:
        cluster.remove()


if __name__ == "__main__":
    main()
