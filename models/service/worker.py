"""The worker: a process that has the mesh, claims jobs one after the other and runs them.

It speaks with its supervisor by a pipe: out go `("loading", stage, done, total)`, `("ready",)`, `("refused", text)`,
`("figures", {...})`, `("job", name or None)`; in come "finish" and "park". The pipe's end is the server's end, and the
worker's too: nothing would serve what it makes, and a new server starts a worker of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from secrets import token_hex
from typing import Any

from models.machine.errors import Cancelled, InputError, MachineError, MissingInputError
from models.service.engine import Engine
from models.service.files import VIDEO, Files, measured
from models.service.jobs import CANCELLED, COMPLETED, FAILED, Job, JobStore, Outcome, StoreUnavailable
from models.service.log import log, log_error
from models.service.settings import Settings
from models.service.store import open_store

MakeEngine = Callable[[], Engine]
ORPHANED, BROKEN = 70, 71
"""Exit codes: the server is gone; something broke that the next job should not meet."""
_REPORT_SECONDS = 0.25
_RETRY_SECONDS = 1.0
_LOCK_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
# Percents of the progress bar: what encoding of a source and of the prompt take, and where stages end. Denoising takes
# nearly all of the time of a full-size video (docs/performance.md), together with the inversion of one that is edited.
_SOURCE, _PROMPT = 5, 3
_DENOISED, _DECODED, _WRITTEN = 90, 97, 99


def name_of(process: int | None, life: str) -> str:
    """Return the name of a worker's life, and of its claims: of its process's number and of random digits."""
    return f"{process}-{life}"


def work(settings: Settings, make_engine: MakeEngine, pipe: Connection, life: str) -> None:
    """Run the worker's process to its end. `life` are random hexadecimal digits that no other worker has."""
    code = 1
    try:
        _work(settings, make_engine, pipe, life)
        code = 0
    except BaseException as error:
        log_error("worker failed", error)
    # Here all is written and closed. What the libraries would still say of their own objects is nobody's news.
    os._exit(code)


def _work(settings: Settings, make_engine: MakeEngine, pipe: Connection, life: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    name = name_of(os.getpid(), life)
    link = _Link(pipe)
    with settings.alone("worker", _LOCK_SECONDS):
        jobs = open_store(settings.database, settings.lease_seconds)
        try:
            engine = make_engine()
            engine.load(lambda stage, done, total: link.send("loading", stage, done, total), _tell_log)
        except InputError as error:
            link.send("refused", str(error))
            return
        link.send("ready")
        log("worker ready", worker=name, box=socket.gethostname())
        worker = _Worker(settings, jobs, engine, link, name)
        try:
            worker.run()
        finally:
            worker.stopped.set()
        engine.close()


def _tell_log(line: str) -> None:
    log("note", text=line)


class _Link:
    """The worker's end of the pipe; its threads share it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def send(self, *message: Any) -> None:
        """Tell the server something. Without one this process ends."""
        try:
            with self._lock:
                self._pipe.send(message)
        except OSError:
            os._exit(ORPHANED)

    def receive(self, seconds: float) -> str | None:
        """Return what the server says; None if it says nothing in time. Without a server this process ends."""
        try:
            return self._pipe.recv() if self._pipe.poll(seconds) else None
        except (OSError, EOFError):
            os._exit(ORPHANED)


class _Worker:
    """Claims jobs and runs them, watched by a thread of its own."""

    def __init__(self, settings: Settings, jobs: JobStore, engine: Engine, link: _Link, name: str) -> None:
        self._jobs, self._engine, self._link, self._name = jobs, engine, link, name
        self._files = Files(settings.results)
        self._job: Job | None = None
        self._lock, self._unwanted = threading.Lock(), threading.Event()
        self._stop: str | None = None
        self.stopped = threading.Event()

    def run(self) -> None:
        """Take jobs until the server says stop."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        while self._stop is None:
            try:
                job = self._jobs.claim(self._name)
            except StoreUnavailable as error:
                log("store unavailable", level="warning", why=str(error))
                job = None
            if job is None:
                self.stopped.wait(self._jobs.poll_seconds)
                continue
            self._do(job)

    def _watch(self) -> None:
        """Listen to the server, and to those who cancel the present job."""
        while not self.stopped.is_set():
            said = self._link.receive(self._jobs.poll_seconds)
            if said is not None:
                self._stop = said
            job = self._job
            if job is None:
                continue
            unwanted = self._stop == "park" or self._unwanted.is_set()
            with suppress(StoreUnavailable):
                unwanted = unwanted or not self._jobs.is_wanted(job.id, self._name)
            with self._lock:  # The next job must not be met by what was meant for this one.
                if unwanted and self._job is job:
                    self._unwanted.set()
                    self._engine.interrupt()

    def _do(self, job: Job) -> None:
        """Run a job, and write how it ended, once."""
        with self._lock:
            self._unwanted.clear()
            self._job = job
        self._link.send("job", job.id)
        start = time.monotonic()
        log("job started", job=job.id, worker=self._name, **_sizes(job))
        progress = _Progress(job, self._jobs, self._name, self._unwanted)
        messages: list[str] = []
        broken: BaseException | None = None
        try:
            folder = self._files.make(job.id, self._name)
            result = self._engine.run(job, folder, progress, messages.append)
            size, digest = measured(folder / VIDEO)
            made = {"seconds": dict(result.seconds), "forwards": dict(result.forwards)}
            made |= {"bytes": size, "sha256": digest, "claim": self._name}
            outcome = Outcome(COMPLETED, None, messages, made)
        except Cancelled:
            outcome = Outcome(CANCELLED, None, messages)
        except Exception as error:
            outcome, broken = _failure(error, job, messages)
        with self._lock:
            self._job = None
        self._end(job, outcome)
        log("job ended", job=job.id, worker=self._name, state=outcome.state, seconds=round(time.monotonic() - start, 3))
        self._link.send("job", None)
        if broken is not None:
            log("worker ends, for a fresh mesh", level="warning", job=job.id)
            os._exit(BROKEN)
        self._figures()

    def _end(self, job: Job, outcome: Outcome) -> None:
        """Write how a job ended, as often as it takes: nothing else is to be done meanwhile."""
        while True:
            try:
                if outcome.state == CANCELLED and self._stop == "park" and self._jobs.is_wanted(job.id, self._name):
                    self._jobs.park(job.id, self._name)
                    return
                if self._jobs.finish(job.id, self._name, outcome):
                    break
                if outcome.state != COMPLETED:
                    return
                outcome = Outcome(CANCELLED)  # Somebody cancelled it after its last step.
            except StoreUnavailable as error:
                log("job's end not written yet", level="warning", job=job.id, why=str(error))
                time.sleep(_RETRY_SECONDS)
        try:
            if outcome.state == COMPLETED:
                self._files.keep(job.id, self._name)
            else:
                self._files.remove(job.id)
        except OSError as error:
            log_error("files not removed", error, job=job.id)

    def _figures(self) -> None:
        figures = self._engine.tidy()
        figures["resident_bytes"] = _resident()
        figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._link.send("figures", figures)


class _Progress:
    """Writes how far a job is, and ends it between two stages where nobody wants it any more."""

    def __init__(self, job: Job, jobs: JobStore, worker: str, unwanted: threading.Event) -> None:
        self._job, self._jobs, self._worker, self._unwanted = job, jobs, worker, unwanted
        self._last, self._stage = 0.0, ""
        self._spans = spans(job.about)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of progress.

        Raises:
            Cancelled: the job is not wanted any more.
        """
        if self._unwanted.is_set() and stage != "denoise":
            raise Cancelled("the video was cancelled")
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last < _REPORT_SECONDS:
            return
        self._stage, self._last = stage, now
        first, last = self._spans.get(stage, (0, 0))
        share = first + (last - first) * done // max(total, 1)
        with suppress(StoreUnavailable):  # The next one may get through; only how a job ends is written without fail.
            self._jobs.report(self._job.id, self._worker, stage, done, total, share)


def spans(about: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the first and the last percent of each stage of a job."""
    encoded = _SOURCE if about.get("is_encoded") else 0
    inversions, forwards = about.get("inversions", 0), about.get("forwards", 1)
    inverted = encoded + (_DENOISED - _PROMPT - encoded) * inversions // max(inversions + forwards, 1)
    return {
        "encode_video": (0, encoded),
        "invert": (encoded, inverted),
        "encode": (inverted, inverted + _PROMPT),
        "denoise": (inverted + _PROMPT, _DENOISED),
        "decode": (_DENOISED, _DECODED),
        "write": (_DECODED, _WRITTEN),
    }


def _failure(error: Exception, job: Job, messages: list[str]) -> tuple[Outcome, Exception | None]:
    """Return how a job failed, and the error if the worker should not go on after it.

    A client reads what is about its own fields, and what it can wait for; never a path or a traceback.
    """
    fault = token_hex(6)
    code, said, broken = (
        "internal_error",
        f"the service failed to make this video; its log has the reason ({fault})",
        True,
    )
    number = _errno(error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        code, said, broken = "disk_full", "the service's disk is full: try again later", False
    elif isinstance(error, MachineError | MissingInputError | OSError):
        code, said = (
            "machine_error",
            f"the service's machine refused a file or a device; its log has the reason ({fault})",
        )
    elif isinstance(error, InputError):
        code, said, broken = "invalid_value", str(error), False
    elif isinstance(error, MemoryError) or re.search("Out of Memory", str(error)):
        code, said = "out_of_memory", "a memory is too small for this video: ask for fewer frames or a smaller size"
    log_error("job failed", error, job=job.id, code=code, fault=fault)
    return Outcome(FAILED, {"code": code, "message": said}, messages), error if broken else None


def _errno(error: BaseException | None) -> int | None:
    """Return the number of the operating system's refusal, which libraries wrap in errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if "No space left on device" in str(error):
            return errno.ENOSPC
        error = error.__cause__ or error.__context__
    return None


def _sizes(job: Job) -> dict[str, Any]:
    return {name: job.about.get(name) for name in ("width", "height", "num_frames", "num_inference_steps")}


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
