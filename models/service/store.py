"""Jobs in SQLite: the one truth about them, on the disk before anybody is told.

Write-ahead log, `synchronous=FULL`: what a method has returned survives a kill and a power cut. Writers wait for each
other up to `BUSY_SECONDS`. Order is by number, never by time, so a clock that jumps changes nothing.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from models.machine.errors import InputError
from models.service.jobs import CANCELLING, IN_PROGRESS, LEASE_SECONDS, JobStore, StoreUnavailable
from models.service.reserve import Reserve
from models.service.sql import SCHEMA, SqlJobs, add

VERSION = 1
BUSY_SECONDS = 5.0


def open_store(database: str | Path, lease_seconds: float = LEASE_SECONDS) -> JobStore:
    """Open the store that a user names: a path of SQLite, or the URL of a database of Postgres.

    Raises:
        InputError: there is no such kind, or the database is none of this version.
        MachineError: the database cannot be reached.
    """
    text = str(database)
    scheme, colon, _ = text.partition("://")
    if colon and scheme in ("postgresql", "postgres"):
        from models.service.postgres import PostgresJobs

        return PostgresJobs(text, lease_seconds)
    if colon and scheme != "sqlite":
        raise InputError(f"database {scheme}:// is not supported: name postgresql://..., or leave it out for SQLite")
    return SqliteJobs(Path(text.removeprefix("sqlite://")))


def _by_the_reserve[**P, T](method: Callable[P, T]) -> Callable[P, T]:
    """Return a method of `SqliteJobs` that gives the reserve away, and tries again, where the disk is full."""

    @wraps(method)
    def tried(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return method(*arguments, **named)
        except StoreUnavailable as error:
            jobs = arguments[0]
            assert isinstance(jobs, SqliteJobs)
            if not (error.full and jobs.reserve.release()):
                raise
            return method(*arguments, **named)

    return tried


class SqliteJobs(SqlJobs):
    """Jobs in a file of SQLite. Threads may share it; each process opens its own.

    A reserve on its disk lets videos end and be deleted though the disk is full; none begins until it is there again.
    """

    cancel, delete = _by_the_reserve(SqlJobs.cancel), _by_the_reserve(SqlJobs.delete)
    finish, park = _by_the_reserve(SqlJobs.finish), _by_the_reserve(SqlJobs.park)
    recover, tick = _by_the_reserve(SqlJobs.recover), _by_the_reserve(SqlJobs.tick)
    expire, forget = _by_the_reserve(SqlJobs.expire), _by_the_reserve(SqlJobs.forget)

    def __init__(self, path: Path, busy_seconds: float = BUSY_SECONDS) -> None:
        """Open the file, or make it.

        Raises:
            InputError: it is no database of this version.
        """
        self.path, self.reserve = path, Reserve(path.with_name(f"{path.name}.reserve"))
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        try:
            self._writer = self._connect(busy_seconds)
            self._reader = self._connect(busy_seconds)
            self._writer.execute("BEGIN IMMEDIATE")
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                schema = SCHEMA.format(serial="INTEGER PRIMARY KEY AUTOINCREMENT", real="REAL")
                for statement in schema.split(";"):
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA user_version = {VERSION}")
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            raise InputError(f"database {path} cannot be opened ({error}): name another, or free it") from error
        if version not in (0, VERSION):
            raise InputError(f"database {path} is of version {version}, this program reads {VERSION}: name another")
        self.reserve.fill()

    def is_full(self) -> bool:
        """See `JobStore.is_full`."""
        return not self.reserve.fill()

    def _connect(self, busy_seconds: float) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, busy_seconds, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def close(self) -> None:
        """Close the file."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def _write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction; all are durable here."""
        with self._write_lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise _unavailable(error) from error
                raise

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._read_lock:
            try:
                return self._reader.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise _unavailable(error) from error

    def _now(self, db: sqlite3.Connection) -> float:
        return time.time()

    def _clock(self, db: sqlite3.Connection) -> float:
        row = db.execute("SELECT value FROM totals WHERE name = 'clock'").fetchone()
        return row["value"] if row is not None else 0.0

    def _move_clock(self, db: sqlite3.Connection, seconds: float) -> None:
        add(db, clock=seconds)
        db.executemany(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            sorted(_times().items()),
        )

    def catch_up(self) -> None:
        """See `JobStore.catch_up`. Since the same start of the machine its own clock counts, else the wall clock."""
        with self._write() as db:
            seen = {row["name"]: row["value"] for row in db.execute("SELECT * FROM totals WHERE name LIKE 'clock_%'")}
            now = _times()
            which = "clock_up" if seen.get("clock_start") == now["clock_start"] else "clock_wall"
            self._move_clock(db, max(0.0, now[which] - seen.get(which, now[which])))

    def _abandoned(self, db: sqlite3.Connection, worker: str | None) -> list[sqlite3.Row]:
        """Return all that run, or those of one worker: there is one worker, whose end the caller has seen."""
        return db.execute(
            f"SELECT * FROM jobs WHERE state IN ('{IN_PROGRESS}', '{CANCELLING}') AND (? IS NULL OR worker = ?)",
            (worker, worker),
        ).fetchall()


def _times() -> dict[str, float]:
    """Return the wall time, the seconds since the machine's start, and a number that each start has of its own."""
    start = Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:12]
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return {"clock_wall": time.time(), "clock_up": up, "clock_start": float(int(start, 16))}


def _unavailable(error: sqlite3.Error) -> StoreUnavailable:
    full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return StoreUnavailable(str(error), full=full)
