"""What a service is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GIGABYTE = 10**9


@dataclass(frozen=True)
class Settings:
    """Bounds and places of a service.

    Attributes:
        folder: of the database, of results and of locks; one service at a time has it.
        queue: most jobs that wait or run.
        keep_seconds: until a result expires.
        keep_bytes: of all results; the oldest expire above.
        body_bytes: of a request.
        body_seconds: in which a request must have come.
        send_seconds: for which a client may leave a piece of an answer unread.
        stall_seconds: without any progress of a job, after which its worker is killed.
        on_stop: "finish" or "park" the present job at SIGTERM.
        poll_ms: that a client is told to wait between two looks.
    """

    folder: Path
    queue: int = 100
    keep_seconds: float = 7 * 86400.0
    keep_bytes: int = 50 * GIGABYTE
    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    send_seconds: float = 120.0
    stall_seconds: float = 6 * 3600.0
    on_stop: str = "park"
    poll_ms: int = 2000

    @property
    def database(self) -> Path:
        """The file of jobs."""
        return self.folder / "jobs.sqlite3"

    @property
    def results(self) -> Path:
        """The folder of the jobs' folders."""
        return self.folder / "jobs"
