"""A job, its states, and what a store of jobs promises; `models.service.store` keeps them in SQLite,
`models.service.postgres` in Postgres.

A job begins queued. A worker claims it (in_progress), and it ends in exactly one of completed, failed and cancelled.
Where somebody cancels it meanwhile it is cancelling until its worker has stopped. Only who holds a claim may change a
job that runs: each claim has the name of one life of one worker, and a later life has another.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

QUEUED, IN_PROGRESS, CANCELLING = "queued", "in_progress", "cancelling"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
LEASE_SECONDS = 60.0
"""For which a claim on a job holds without a look at it, where several workers share a store."""
POLL_SECONDS = 0.5
"""Between two looks of a worker there, for a job or at its claim."""
STATES = (QUEUED, IN_PROGRESS, CANCELLING, COMPLETED, FAILED, CANCELLED)
ENDED = (COMPLETED, FAILED, CANCELLED)
ID_PATTERN = r"video_[0-9a-f]{32}"
# Lives of the worker, and of the server, that one job may outlast before it counts as what ended them.
MOST_DEATHS, MOST_RESTARTS = 3, 10


def new_id() -> str:
    """Return a name for a job, which nobody can guess."""
    return f"video_{secrets.token_hex(16)}"


def is_id(name: str) -> bool:
    """Return whether a text has the form of a job's name."""
    return re.fullmatch(ID_PATTERN, name) is not None


class StoreUnavailable(Exception):
    """The store cannot be written or read at present. `full` says whether its disk is."""

    def __init__(self, message: str, *, full: bool = False) -> None:
        """Say why."""
        super().__init__(message)
        self.full = full


class QueueFull(Exception):
    """A bound on the queue is reached.

    Attributes:
        message: which, for the client.
        code: one word for programs.
    """

    def __init__(self, message: str, code: str) -> None:
        """Say which."""
        super().__init__(message)
        self.message, self.code = message, code


class KeyReused(Exception):
    """An idempotency key came again with another request."""


@dataclass(frozen=True)
class Bounds:
    """What a submission may not exceed.

    Attributes:
        queue: jobs that wait or run, of all owners.
        own: jobs of this owner that wait or run; None for no bound of its own.
        per_day: submissions of this owner in 24 hours; None for no bound.
    """

    queue: int
    own: int | None = None
    per_day: int | None = None


@dataclass(frozen=True)
class Job:
    """One video that somebody asked for.

    Attributes:
        seq: position in the order of submission.
        id: its name.
        owner: name of the key that asked.
        state: one of `STATES`.
        fields: what the client asked for, checked and by the service's names.
        about: what follows from the fields: size, frames, steps, forwards.
        created_at: wall time, seconds since 1970; as all times, for people only: nothing is decided by it.
        started_at: when the present or last run began.
        finished_at: when it ended.
        worker: the claim.
        stage: of the run, such as "denoise".
        step: done of the stage.
        steps: of the stage.
        progress: 0 to 100.
        deaths: workers that died while they ran it.
        restarts: servers that died while it ran.
        error: `{code, message}` of a failed job.
        messages: what its owner should know, such as a prompt that was cut.
        result: seconds by stage, forwards, bytes and digest of a completed job.
        expired: whether the files of a completed job are deleted.
    """

    seq: int
    id: str
    owner: str
    state: str
    fields: Mapping[str, Any]
    about: Mapping[str, Any]
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    worker: str | None = None
    stage: str | None = None
    step: int = 0
    steps: int = 0
    progress: int = 0
    deaths: int = 0
    restarts: int = 0
    error: Mapping[str, Any] | None = None
    messages: Sequence[str] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    expired: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more but that it expires."""
        return self.state in ENDED


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: one of `ENDED`.
        error: `{code, message}` of a failure.
        messages: for the owner.
        result: of a completed job.
    """

    state: str
    error: Mapping[str, Any] | None = None
    messages: Sequence[str] = ()
    result: Mapping[str, Any] = field(default_factory=dict)


class JobStore(Protocol):
    """What the service needs of a store of jobs. Every method is one transaction.

    Any method raises `StoreUnavailable` where the store is locked for long, is full or cannot be reached.

    Attributes:
        poll_seconds: to wait between two looks for a job, or at a claim.
        lease_seconds: after which a claim that nobody has looked at may be given to others; None where only one worker
            uses the store, and a claim ends with it.
    """

    poll_seconds: float
    lease_seconds: float | None

    def submit(
        self,
        owner: str,
        fields: Mapping[str, Any],
        about: Mapping[str, Any],
        bounds: Bounds,
        *,
        messages: Sequence[str] = (),
        idempotency: tuple[str, str] | None = None,
    ) -> tuple[Job, bool]:
        """Add a job that is queued, and return it and whether it is new. It is on the disk when this returns.

        `idempotency` is a key of the client and a digest of its request: the same again returns the first job.

        Raises:
            QueueFull: a bound is reached.
            KeyReused: the key came with another request.
        """
        ...

    def get(self, name: str, owner: str | None) -> Job | None:
        """Return a job of an owner, or of anybody for None; None if there is none."""
        ...

    def page(self, owner: str | None, *, limit: int, after: str | None, order: str) -> tuple[list[Job], bool] | None:
        """Return jobs by order of submission, and whether more follow; None if there is no job `after`."""
        ...

    def waiting(self) -> list[Job]:
        """Return the jobs that run, then those that are queued, in their order."""
        ...

    def cancel(self, name: str, owner: str | None) -> Job | None:
        """Cancel a job: at once if it waits, else as soon as its worker stops. One that has ended stays as it is."""
        ...

    def delete(self, name: str, owner: str | None) -> str | None:
        """Forget a job, and return its state before; one that runs stays."""
        ...

    def claim(self, worker: str) -> Job | None:
        """Take the first job that waits; None if there is none."""
        ...

    def report(self, name: str, worker: str, stage: str, step: int, steps: int, progress: int) -> None:
        """Write how far a run is; nothing if the claim is gone."""
        ...

    def is_wanted(self, name: str, worker: str) -> bool:
        """Whether a run is to go on: the claim holds, and nobody has cancelled the job. This renews its lease."""
        ...

    def finish(self, name: str, worker: str, outcome: Outcome) -> bool:
        """End a run. False where the claim is gone; and for `completed` where somebody has cancelled the job."""
        ...

    def park(self, name: str, worker: str) -> None:
        """Put a job that runs back to its place in the queue."""
        ...

    def recover(self, cause: str, worker: str | None = None) -> list[Job]:
        """Give the jobs of dead workers back to the queue, and return them.

        A job that has outlasted too many fails, and one that was being cancelled is cancelled.

        Args:
            cause: "worker" or "server", whichever died.
            worker: whose end the caller has seen; None for all whose lease has run out, and without leases for all.
        """
        ...

    def finished(self, most: int) -> list[Job]:
        """Return the latest completed jobs: for estimates."""
        ...

    def totals(self) -> dict[str, float]:
        """Return sums over all jobs that ever were."""
        ...

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state."""
        ...

    def tick(self, seconds: float) -> float:
        """Move the clock by which results age forward by `seconds`, and return it.

        Where a database has a clock that all boxes share, that one counts, and `seconds` do not.
        """
        ...

    def catch_up(self) -> None:
        """Count the time in which no server ran, once, before the first `tick`."""
        ...

    def is_full(self) -> bool:
        """Whether the store's disk is: then videos end and are deleted, and none is taken or begun."""
        ...

    def expire(self, *, older: float, most_bytes: int) -> list[str]:
        """Mark results that are too old or too many as expired, and return their names."""
        ...

    def forget(self, older: float) -> int:
        """Delete what is known of jobs that ended long ago, and return how many."""
        ...

    def holds(self) -> dict[str, tuple[str, str]]:
        """Return of every job whose files may be there, by its name, the state, and the claim that completed it."""
        ...

    def inputs(self) -> set[str]:
        """Return the names of files that the jobs which wait or run start from."""
        ...

    def may_clean(self) -> bool:
        """Return whether it is the caller's turn to let results expire: of all servers one at a time has it."""
        ...

    def close(self) -> None:
        """Let the store go."""
        ...
