"""What a service is told at its start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from models.jobs.media import Limits
from models.service.inputs import Inputs
from models.service.jobs import LEASE_SECONDS
from models.service.locks import locked

GIGABYTE = 10**9


@dataclass(frozen=True)
class Settings:
    """Bounds and places of a service.

    Attributes:
        folder: of the database, of results and of locks; one service at a time has it, unless a database is named.
        queue: most jobs that wait or run.
        keep_seconds: until a result expires.
        keep_bytes: of all results; the oldest expire above.
        body_bytes: of a request.
        body_seconds: in which a request must have come.
        input_bytes: of a picture or a video that a client sends.
        keep_input_bytes: of all such files.
        input_seconds: in which a request with one must have come.
        input_limits: what such a file may not exceed.
        send_seconds: for which a client may leave a piece of an answer unread.
        stall_seconds: without any progress of a job, after which its worker is killed.
        on_stop: "finish" or "park" the present job at SIGTERM.
        poll_ms: that a client is told to wait between two looks.
        shared: URL of a database that other servers use too, with this folder; None for one of its own.
        lease_seconds: after which the job of a worker that is not heard of goes to another, where the database is
            shared.
    """

    folder: Path
    queue: int = 100
    keep_seconds: float = 7 * 86400.0
    keep_bytes: int = 50 * GIGABYTE
    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    input_bytes: int = 50_000_000
    keep_input_bytes: int = 10 * GIGABYTE
    input_seconds: float = 300.0
    input_limits: Limits = field(default_factory=Limits)
    send_seconds: float = 120.0
    stall_seconds: float = 6 * 3600.0
    on_stop: str = "park"
    poll_ms: int = 2000
    shared: str | None = None
    lease_seconds: float = LEASE_SECONDS

    @property
    def database(self) -> str | Path:
        """What `models.service.store.open_store` opens."""
        return self.shared or self.folder / "jobs.sqlite3"

    @contextmanager
    def alone(self, what: str, seconds: float) -> Iterator[None]:
        """Hold the folder's lock of a "service" or "worker" while the block runs; a shared folder has none.

        Raises:
            Held: another process keeps it for longer than the seconds.
        """
        with nullcontext() if self.shared else locked(self.folder / f"{what}.lock", seconds, what):
            yield

    @property
    def inputs(self) -> Inputs:
        """What clients have sent."""
        return Inputs(self.folder / "inputs", self.input_limits, self.keep_input_bytes)

    @property
    def results(self) -> Path:
        """The folder of the jobs' folders."""
        return self.folder / "jobs"
