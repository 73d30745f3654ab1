"""The functions of the service that every door calls: the routes of `/v1/videos`, their aliases, and a page.

They are synchronous and safe to call from any thread. An `owner` is the name of a key; None sees all jobs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from models.machine.errors import InputError
from models.service.errors import ServiceError, unknown_job
from models.service.estimate import LATEST, Rates, places, rates
from models.service.files import PREVIEW, VIDEO, Files
from models.service.inputs import Input, TooManyInputs
from models.service.jobs import (
    CANCELLING,
    COMPLETED,
    ENDED,
    IN_PROGRESS,
    Bounds,
    Job,
    JobStore,
    KeyReused,
    QueueFull,
    StoreUnavailable,
)
from models.service.keys import Key
from models.service.log import log
from models.service.requests import Planner
from models.service.settings import Settings
from models.service.supervisor import Status, Supervisor

# Submissions that are checked at a time: checking computes, and /health must answer beside it.
_PLANNERS = 2
_RETRY_FULL, _RETRY_BUSY, _RETRY_FILES = 10, 2, 60
# What is known of a job for `models.service.estimate` alone.
_OF_ESTIMATES = ("tokens", "forwards", "inversions", "is_encoded")
# The whole queue is read for one place in it; a client looks again after two seconds.
_SEEN_SECONDS = 1.0


@dataclass(frozen=True)
class Result:
    """A file of a job, open.

    Attributes:
        file: to be read and closed.
        size: bytes.
        etag: of its content, in quotes; None where nobody has taken it.
    """

    file: BinaryIO
    size: int
    etag: str | None


class Service:
    """Jobs of a store, checked by a planner, run by the worker of a supervisor."""

    def __init__(self, settings: Settings, jobs: JobStore, planner: Planner, supervisor: Supervisor | None) -> None:
        """Compose a service of its parts."""
        self.settings, self.jobs, self.planner = settings, jobs, planner
        self.files = Files(settings.results)
        self._supervisor = supervisor
        self._seen: tuple[float, tuple[Rates | None, dict[str, tuple[int, float | None]]]] = (float("-inf"), (None, {}))
        self._planning = threading.BoundedSemaphore(_PLANNERS)

    @property
    def status(self) -> Status:
        """What is known of the worker."""
        return self._supervisor.status if self._supervisor is not None else Status(ready=True, loading=None)

    def submit(self, owner: Key, fields: Mapping[str, Any], idempotency: str | None = None) -> Job:
        """Check a client's fields and queue a job.

        Args:
            owner: who asks.
            fields: of `models.service.schemas.VideoCreate`.
            idempotency: a text of the client: the same again returns the first job.

        Raises:
            ServiceError: a field breaks its rule, a bound is reached, or the store is not available.
        """
        if self.status.stopping:
            raise ServiceError(
                503, "the service is about to stop: try again later", "stopping", None, _retry(_RETRY_FULL)
            )
        with self._planning:
            planned = self.planner.plan(fields)
        digest = hashlib.sha256(json.dumps(planned.fields, sort_keys=True).encode()).hexdigest()
        bounds = Bounds(self.settings.queue, owner.queued, owner.per_day)
        try:
            job, new = self.jobs.submit(
                owner.name,
                planned.fields,
                planned.about,
                bounds,
                messages=planned.messages,
                idempotency=None if idempotency is None else (idempotency, digest),
            )
        except QueueFull as error:
            raise ServiceError(429, error.message, error.code, None, _retry(self._until_free())) from error
        except KeyReused as error:
            raise ServiceError(
                409, "this Idempotency-Key came before with another request: use a new one", "idempotency_key_reused"
            ) from error
        log("job submitted" if new else "job submitted before", job=job.id, owner=owner.name)
        return job

    def _until_free(self) -> int:
        """Return the seconds after which to try again: until the present job ends, as far as that is known."""
        found = self._rates()
        waiting = self.jobs.waiting()
        if found is None or not waiting:
            return _RETRY_FULL
        seconds = places(waiting, found)[waiting[0].id][1]
        return max(1, min(int(seconds or _RETRY_FULL), 3600))

    def keep(self, content: bytes, field: str = "file") -> Input:
        """Check a file that a client sent, and keep it for its videos.

        Raises:
            ServiceError: it breaks a rule, or there is no room.
        """
        if len(content) > self.settings.input_bytes:
            raise ServiceError(
                413, f"{field} has more than {self.settings.input_bytes} bytes, the most of a file", "too_large", field
            )
        try:
            if self.jobs.is_full():
                raise OSError(errno.ENOSPC, "no room")
            with self._planning:
                kept = self.settings.inputs.keep(content)
        except InputError as error:
            raise ServiceError(422, f"{field}: {error}", "invalid_file", field) from error
        except TooManyInputs as error:
            raise ServiceError(
                429,
                f"the files of clients may take {self.settings.keep_input_bytes} bytes together, and each goes after "
                "an hour: try again later",
                "files_full",
                None,
                _retry(_RETRY_FILES),
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise unavailable(StoreUnavailable("no room", full=True)) from error
        log("file kept", file=kept.id, kind=kept.kind, bytes=kept.bytes)
        return kept

    def drop(self, kept: Input) -> None:
        """Give up a file that came with a request which was refused, unless somebody else has sent it too."""
        self.settings.inputs.drop(kept)

    def get(self, name: str, owner: str | None) -> Job:
        """Return a job.

        Raises:
            ServiceError: there is none of this owner.
        """
        job = self.jobs.get(name, owner)
        if job is None:
            raise unknown_job(name)
        return job

    def page(self, owner: str | None, limit: int, after: str | None, order: str) -> tuple[list[Job], bool]:
        """Return jobs by order of submission, and whether more follow.

        Raises:
            ServiceError: there is no job `after`.
        """
        found = self.jobs.page(owner, limit=limit, after=after, order=order)
        if found is None:
            raise ServiceError(404, f"after {str(after)[:60]!a} is no video of yours", "not_found", "after")
        return found

    def cancel(self, name: str, owner: str | None) -> Job:
        """Cancel a job that waits or runs; one that is cancelled already stays so.

        Raises:
            ServiceError: there is none, or it has ended otherwise.
        """
        job = self.jobs.cancel(name, owner)
        if job is None:
            raise unknown_job(name)
        if job.state in (COMPLETED, "failed"):
            raise ServiceError(409, f"video {job.id} is {job.state} already", "already_ended", "id")
        log("job cancel asked", job=job.id, state=job.state)
        return job

    def delete(self, name: str, owner: str | None) -> str:
        """Delete a job and its files, and return its name.

        Raises:
            ServiceError: there is none, or it runs.
        """
        state = self.jobs.delete(name, owner)
        if state is None:
            raise unknown_job(name)
        if state in (IN_PROGRESS, CANCELLING):
            raise ServiceError(
                409, f"video {name} is {state}: cancel it, wait for its end, then delete it", "running", "id"
            )
        self.files.remove(name)
        log("job deleted", job=name, state=state)
        return name

    def content(self, name: str, owner: str | None) -> Result:
        """Open the video of a completed job.

        Raises:
            ServiceError: there is none, or not yet, or not any more.
        """
        job = self.get(name, owner)
        if job.expired:
            raise ServiceError(404, f"video {job.id} has expired: make it anew", "expired", "id")
        if job.state != COMPLETED:
            hint = "it will have none" if job.state in ENDED else "look again later"
            raise ServiceError(404, f"video {job.id} is {job.state}, so it has no content: {hint}", "not_ready", "id")
        file = self.files.open(job.id, VIDEO, job.result.get("claim"))
        if file is None:
            raise ServiceError(404, f"video {job.id} has expired: make it anew", "expired", "id")
        return Result(file, int(job.result["bytes"]), f'"{job.result["sha256"][:32]}"')

    def preview(self, name: str, owner: str | None) -> Result:
        """Open the latest preview of a job: whatever its engine has left as `PREVIEW` in its folder.

        Raises:
            ServiceError: there is none.
        """
        job = self.get(name, owner)
        file = self.files.open(job.id, PREVIEW, job.result.get("claim", job.worker))
        if file is None:
            raise ServiceError(404, f"video {job.id} has no preview", "no_preview", "id")
        return Result(file, file.seek(0, 2), None)

    def _rates(self) -> Rates | None:
        setup = self.planner.setup
        return rates(self.jobs.finished(LATEST), setup.mesh_shape if setup.mode == "hardware" else None)

    def _places(self) -> tuple[Rates | None, dict[str, tuple[int, float | None]]]:
        """Return the rates and the place of every job; where many servers ask, what one saw within a second."""
        if self.jobs.lease_seconds is None or time.monotonic() - self._seen[0] > _SEEN_SECONDS:
            found = self._rates()
            self._seen = (time.monotonic(), (found, places(self.jobs.waiting(), found)))
        return self._seen[1]

    def shown(self, *jobs: Job) -> list[dict[str, Any]]:
        """Return jobs as `models.service.schemas.Video` has them, with positions and estimates."""
        found: Rates | None = None
        where: dict[str, tuple[int, float | None]] = {}
        if any(not job.has_ended for job in jobs):
            found, where = self._places()
        return [self._shown(job, where.get(job.id), found) for job in jobs]

    def _shown(self, job: Job, place: tuple[int, float | None] | None, found: Rates | None) -> dict[str, Any]:
        position, seconds = place or (None, None)
        about = job.about
        done = job.state == COMPLETED
        settings = {name: value for name, value in about.items() if name not in _OF_ESTIMATES}
        return {
            "id": job.id,
            "object": "video",
            "status": job.state,
            "model": about["model"],
            "progress": job.progress,
            "created_at": int(job.created_at),
            "started_at": None if job.started_at is None else int(job.started_at),
            "completed_at": int(job.finished_at) if done and job.finished_at is not None else None,
            "expires_at": int(job.finished_at + self.settings.keep_seconds)
            if done and job.finished_at is not None
            else None,
            "size": f"{about['width']}x{about['height']}",
            "seconds": f"{about['num_frames'] / about['fps']:g}",
            "prompt": job.fields["prompt"],
            "error": job.error,
            "position": position,
            "estimated_seconds": seconds,
            "estimate_source": found.source if found is not None and seconds is not None else None,
            "stage": None if job.has_ended else job.stage,
            "step": None if job.has_ended else job.step,
            "steps": None if job.has_ended else job.steps,
            "expired": job.expired,
            "messages": list(job.messages),
            "settings": {**settings, **{name: value for name, value in job.fields.items() if name != "prompt"}},
            "timings": job.result.get("seconds"),
        }


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}


def unavailable(error: StoreUnavailable) -> ServiceError:
    """Return the answer where the store cannot be read or written at present."""
    if error.full:
        return ServiceError(503, "the service's disk is full: try again later", "disk_full", None, _retry(60))
    return ServiceError(503, "the service's database is busy: try again", "database_busy", None, _retry(_RETRY_BUSY))
