"""The supervisor: starts the worker, hears what it says, gives its job back when it dies, and starts it again."""

from __future__ import annotations

import multiprocessing
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from secrets import token_hex
from typing import Any

from models.machine.errors import InputError
from models.service.jobs import JobStore, StoreUnavailable
from models.service.log import log, log_error
from models.service.settings import Settings
from models.service.worker import MakeEngine, name_of, work

_POLL = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_ORPHAN_SECONDS = 60.0
_KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Status:
    """What is known of the worker.

    Attributes:
        ready: whether it takes jobs.
        loading: what it loads, such as "transformer weights 3/48"; None if nothing.
        job: the one that it runs.
        restarts: times that it was started again.
        figures: its latest ones.
        stopping: whether the service is about to end.
    """

    ready: bool = False
    loading: str | None = "worker"
    job: str | None = None
    restarts: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    stopping: bool = False


class Supervisor:
    """Keeps one worker alive. `run` is for the thread that owns it; `status` and `stop` may be called from any."""

    def __init__(self, settings: Settings, jobs: JobStore, make_engine: MakeEngine) -> None:
        """Take what a worker is started with; nothing is started yet."""
        self._settings, self._jobs, self._make_engine = settings, jobs, make_engine
        self.status = Status()
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._worker = ""
        self._stop: str | None = None
        self._told = False
        self._was_ready = False
        self._pause, self._next_start = _FIRST_PAUSE, 0.0
        self._moved: tuple[Any, float] = (None, time.monotonic())
        self._ended = threading.Event()

    def run(self) -> None:
        """Keep a worker alive until `stop`.

        Raises:
            InputError: the first worker refused its start, for a reason that the user can mend.
        """
        # A worker of a server that was killed ends within moments; until then its job is its own.
        with self._settings.alone("worker", _ORPHAN_SECONDS):
            self._recover("server")
        try:
            while True:
                if self._process is None:
                    if self._stop is not None:
                        return
                    if time.monotonic() >= self._next_start:
                        self._start()
                    else:
                        time.sleep(_POLL)
                    continue
                self._look()
        finally:
            self._kill()
            self._ended.set()

    def stop(self, how: str) -> None:
        """Have the worker "finish" or "park" its job, and end."""
        self._stop = how
        self.status = replace(self.status, stopping=True, ready=False)

    def _start(self) -> None:
        context, life = multiprocessing.get_context("spawn"), token_hex(8)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=work, args=(self._settings, self._make_engine, theirs, life), name="mochi-tt worker"
        )
        self._process.start()
        self._worker = name_of(self._process.pid, life)
        theirs.close()
        self._told = False
        self.status = replace(self.status, ready=False, loading="worker", job=None)

    def _look(self) -> None:
        """Hear the worker for a moment."""
        assert self._process is not None
        assert self._pipe is not None
        if self._stop is not None and not self._told:
            self._told = True
            with suppress(OSError):
                self._pipe.send(self._stop)
            if self.status.loading is not None:
                self._kill()  # It has no job.
                return
        wait([self._pipe, self._process.sentinel], _POLL)
        try:
            while self._pipe.poll():
                self._hear(self._pipe.recv())
        except (EOFError, OSError):
            pass
        if self._process.exitcode is not None or not self._process.is_alive():
            self._bury()
        elif self._has_stalled():
            log("worker killed: no progress", level="error", job=self.status.job, seconds=self._settings.stall_seconds)
            self._kill()

    def _hear(self, message: tuple[Any, ...]) -> None:
        kind, *values = message
        if kind == "loading":
            stage, done, total = values
            self.status = replace(self.status, loading=f"{stage} {done}/{total}")
        elif kind == "ready":
            self._was_ready, self._pause = True, _FIRST_PAUSE
            self.status = replace(self.status, ready=self._stop is None, loading=None)
        elif kind == "job":
            self.status = replace(self.status, job=values[0])
            self._moved = (None, time.monotonic())
        elif kind == "figures":
            self.status = replace(self.status, figures=values[0])
        elif kind == "refused":
            if not self._was_ready:
                raise InputError(values[0])
            log("worker refused its start", level="error", why=values[0])

    def _has_stalled(self) -> bool:
        """Return whether the present job has shown no progress for too long, by the monotonic clock."""
        name = self.status.job
        if name is None:
            return False
        try:
            job = self._jobs.get(name, None)
        except StoreUnavailable:
            return False
        where = None if job is None else (job.state, job.stage, job.step)
        if where != self._moved[0]:
            self._moved = (where, time.monotonic())
        return time.monotonic() - self._moved[1] > self._settings.stall_seconds

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(_KILL_SECONDS)
            self._bury()

    def _bury(self) -> None:
        """Give back the job of a worker that has ended, and plan the next one."""
        assert self._process is not None
        assert self._pipe is not None
        code = self._process.exitcode
        self._process.join()
        self._pipe.close()
        self._process = self._pipe = None
        self._recover("worker", self._worker)
        self.status = replace(self.status, ready=False, job=None, loading="worker, again")
        if self._stop is None:
            log("worker died", level="error", code=code, again_in_seconds=self._pause)
            self.status = replace(self.status, restarts=self.status.restarts + 1)
            self._next_start = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def adopt(self) -> None:
        """Give the jobs of other boxes back to the queue whose claims have run out, where a store has such."""
        if self._jobs.lease_seconds is not None:
            self._recover("server")

    def _recover(self, cause: str, worker: str | None = None) -> None:
        """Give jobs back to the queue, as often as it takes: without that they would be lost, but for leases."""
        while True:
            try:
                for job in self._jobs.recover(cause, worker):
                    log("job recovered", level="warning", job=job.id, state=job.state, cause=cause)
                return
            except StoreUnavailable as error:
                log_error("jobs not recovered yet", error)
                if self._jobs.lease_seconds is not None:
                    return
                time.sleep(1.0)
