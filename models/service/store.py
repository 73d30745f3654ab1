"""Jobs in SQLite: the one truth about them, on the disk before anybody is told.

Write-ahead log, `synchronous=FULL`: what a method has returned survives a kill and a power cut. Writers wait for each
other up to `BUSY_SECONDS`. Order is by number, never by time, so a clock that jumps changes nothing.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from models.machine.errors import InputError
from models.service.jobs import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    ENDED,
    FAILED,
    IN_PROGRESS,
    MOST_DEATHS,
    MOST_RESTARTS,
    QUEUED,
    STATES,
    Bounds,
    Job,
    JobStore,
    KeyReused,
    Outcome,
    QueueFull,
    StoreUnavailable,
    new_id,
)

VERSION = 1
BUSY_SECONDS = 5.0
DAY = 86400.0
_SCHEMA = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, state TEXT NOT NULL,
    fields TEXT NOT NULL, about TEXT NOT NULL, created_at REAL NOT NULL, started_at REAL, finished_at REAL,
    worker TEXT, stage TEXT, step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0,
    progress INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0, restarts INTEGER NOT NULL DEFAULT 0,
    error TEXT, messages TEXT NOT NULL DEFAULT '[]', result TEXT NOT NULL DEFAULT '{}',
    expired INTEGER NOT NULL DEFAULT 0, ended_clock REAL);
CREATE INDEX jobs_state ON jobs (state, seq);
CREATE INDEX jobs_owner ON jobs (owner, seq);
CREATE TABLE idempotency (
    owner TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, job TEXT NOT NULL, clock REAL NOT NULL,
    PRIMARY KEY (owner, key));
CREATE TABLE usage (owner TEXT NOT NULL, clock REAL NOT NULL);
CREATE INDEX usage_owner ON usage (owner, clock);
CREATE TABLE totals (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""
_WAITING = f"state IN ('{QUEUED}', '{IN_PROGRESS}', '{CANCELLING}')"
_MINE = f"id = ? AND worker = ? AND state IN ('{IN_PROGRESS}', '{CANCELLING}')"
_MOST_MESSAGES = 20


def open_store(database: str | Path) -> JobStore:
    """Open the store that a user names: a path of SQLite. Further kinds of store begin here, by their URL.

    Raises:
        InputError: there is no such kind, or the file is none of this version.
    """
    text = str(database)
    scheme, colon, _ = text.partition("://")
    if colon and scheme != "sqlite":
        raise InputError(f"database {scheme}:// is not supported: name a file, or leave it out for SQLite")
    return SqliteJobs(Path(text.removeprefix("sqlite://")))


class SqliteJobs:
    """Jobs in a file of SQLite. Threads may share it; each process opens its own."""

    def __init__(self, path: Path, busy_seconds: float = BUSY_SECONDS) -> None:
        """Open the file, or make it.

        Raises:
            InputError: it is no database of this version.
        """
        self.path = path
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        try:
            self._writer = self._connect(busy_seconds)
            self._reader = self._connect(busy_seconds)
            self._writer.execute("BEGIN IMMEDIATE")
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA user_version = {VERSION}")
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            raise InputError(f"database {path} cannot be opened ({error}): name another, or free it") from error
        if version not in (0, VERSION):
            raise InputError(f"database {path} is of version {version}, this program reads {VERSION}: name another")

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
    def _write(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction."""
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
        """See `JobStore.submit`."""
        with self._write() as db:
            if idempotency is not None:
                row = db.execute(
                    "SELECT digest, job FROM idempotency WHERE owner = ? AND key = ?", (owner, idempotency[0])
                ).fetchone()
                if row is not None:
                    if row["digest"] != idempotency[1]:
                        raise KeyReused
                    found = db.execute("SELECT * FROM jobs WHERE id = ?", (row["job"],)).fetchone()
                    if found is not None:
                        return _job(found), False
            clock = _clock(db)
            self._check_bounds(db, owner, bounds, clock)
            made = db.execute(
                "INSERT INTO jobs (id, owner, state, fields, about, created_at, messages) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "RETURNING *",
                (new_id(), owner, QUEUED, _text(fields), _text(about), time.time(), _text(list(messages))),
            ).fetchone()
            db.execute("INSERT INTO usage VALUES (?, ?)", (owner, clock))
            if idempotency is not None:
                db.execute(
                    "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?)",
                    (owner, *idempotency, made["id"], clock),
                )
            _add(db, submitted=1)
        return _job(made), True

    def _check_bounds(self, db: sqlite3.Connection, owner: str, bounds: Bounds, clock: float) -> None:
        waiting = db.execute(f"SELECT count(*) FROM jobs WHERE {_WAITING}").fetchone()[0]
        if waiting >= bounds.queue:
            raise QueueFull(
                f"the queue is full: {waiting} videos wait, {bounds.queue} may; try again later", "queue_full"
            )
        if bounds.own is not None:
            own = db.execute(f"SELECT count(*) FROM jobs WHERE owner = ? AND {_WAITING}", (owner,)).fetchone()[0]
            if own >= bounds.own:
                raise QueueFull(
                    f"{own} videos of this key wait, {bounds.own} may: wait for one, or cancel one", "quota_queued"
                )
        if bounds.per_day is not None:
            used = db.execute(
                "SELECT count(*) FROM usage WHERE owner = ? AND clock > ?", (owner, clock - DAY)
            ).fetchone()[0]
            if used >= bounds.per_day:
                raise QueueFull(
                    f"{used} videos of this key were submitted within 24 hours, {bounds.per_day} may be",
                    "quota_per_day",
                )

    def get(self, name: str, owner: str | None) -> Job | None:
        """See `JobStore.get`."""
        rows = self._read("SELECT * FROM jobs WHERE id = ? AND (? IS NULL OR owner = ?)", (name, owner, owner))
        return _job(rows[0]) if rows else None

    def page(self, owner: str | None, *, limit: int, after: str | None, order: str) -> tuple[list[Job], bool] | None:
        """See `JobStore.page`."""
        sign, direction = ("<", "DESC") if order == "desc" else (">", "ASC")
        query, values = "SELECT * FROM jobs WHERE (? IS NULL OR owner = ?)", [owner, owner]
        if after is not None:
            last = self.get(after, owner)
            if last is None:
                return None
            query += f" AND seq {sign} ?"
            values.append(last.seq)  # type: ignore[arg-type]
        rows = self._read(f"{query} ORDER BY seq {direction} LIMIT ?", [*values, limit + 1])
        return [_job(row) for row in rows[:limit]], len(rows) > limit

    def waiting(self) -> list[Job]:
        """See `JobStore.waiting`."""
        return [
            _job(row) for row in self._read(f"SELECT * FROM jobs WHERE {_WAITING} ORDER BY state = '{QUEUED}', seq")
        ]

    def cancel(self, name: str, owner: str | None) -> Job | None:
        """See `JobStore.cancel`."""
        with self._write() as db:
            where = "WHERE id = ? AND (? IS NULL OR owner = ?)"
            db.execute(
                f"UPDATE jobs SET state = '{CANCELLING}' {where} AND state = '{IN_PROGRESS}'", (name, owner, owner)
            )
            waited = db.execute(
                f"UPDATE jobs SET state = '{CANCELLED}', finished_at = ? {where} AND state = '{QUEUED}'",
                (time.time(), name, owner, owner),
            ).rowcount
            if waited:
                _add(db, cancelled=1)
            row = db.execute(f"SELECT * FROM jobs {where}", (name, owner, owner)).fetchone()
        return None if row is None else _job(row)

    def delete(self, name: str, owner: str | None) -> str | None:
        """See `JobStore.delete`."""
        with self._write() as db:
            where, values = "WHERE id = ? AND (? IS NULL OR owner = ?)", (name, owner, owner)
            row = db.execute(f"SELECT state FROM jobs {where}", values).fetchone()
            if row is None:
                return None
            gone = db.execute(f"DELETE FROM jobs {where} AND state NOT IN (?, ?)", (*values, IN_PROGRESS, CANCELLING))
            if gone.rowcount and row["state"] == QUEUED:
                _add(db, cancelled=1)
        return row["state"]

    def claim(self, worker: str) -> Job | None:
        """See `JobStore.claim`."""
        if not self._read(f"SELECT 1 FROM jobs WHERE state = '{QUEUED}' LIMIT 1"):
            return None
        with self._write() as db:
            row = db.execute(
                f"UPDATE jobs SET state = '{IN_PROGRESS}', worker = ?, started_at = ?, stage = NULL, step = 0, "
                f"steps = 0 "
                f"WHERE seq = (SELECT min(seq) FROM jobs WHERE state = '{QUEUED}') RETURNING *",
                (worker, time.time()),
            ).fetchone()
        return None if row is None else _job(row)

    def report(self, name: str, worker: str, stage: str, step: int, steps: int, progress: int) -> None:
        """See `JobStore.report`."""
        with self._write() as db:
            db.execute(
                f"UPDATE jobs SET stage = ?, step = ?, steps = ?, progress = max(progress, ?) WHERE {_MINE}",
                (stage, step, steps, progress, name, worker),
            )

    def is_wanted(self, name: str, worker: str) -> bool:
        """See `JobStore.is_wanted`."""
        return bool(
            self._read(f"SELECT 1 FROM jobs WHERE id = ? AND worker = ? AND state = '{IN_PROGRESS}'", (name, worker))
        )

    def finish(self, name: str, worker: str, outcome: Outcome) -> bool:
        """See `JobStore.finish`."""
        assert outcome.state in ENDED
        among = _MINE if outcome.state != COMPLETED else f"id = ? AND worker = ? AND state = '{IN_PROGRESS}'"
        with self._write() as db:
            row = db.execute(f"SELECT messages FROM jobs WHERE {among}", (name, worker)).fetchone()
            if row is None:
                return False
            told = list(dict.fromkeys([*json.loads(row["messages"]), *outcome.messages]))[:_MOST_MESSAGES]
            db.execute(
                f"UPDATE jobs SET state = ?, error = ?, messages = ?, result = ?, finished_at = ?, "
                f"progress = CASE WHEN ? THEN 100 ELSE progress END, worker = NULL WHERE {among}",
                (
                    outcome.state,
                    None if outcome.error is None else _text(outcome.error),
                    _text(told),
                    _text(outcome.result),
                    time.time(),
                    outcome.state == COMPLETED,
                    name,
                    worker,
                ),
            )
            seconds = {f"seconds_{stage}": value for stage, value in outcome.result.get("seconds", {}).items()}
            forwards = {f"forwards_{kind}": value for kind, value in outcome.result.get("forwards", {}).items()}
            _add(db, **{outcome.state: 1}, **seconds, **forwards)
        return True

    def park(self, name: str, worker: str) -> None:
        """See `JobStore.park`."""
        with self._write() as db:
            db.execute(
                f"UPDATE jobs SET state = CASE state WHEN '{CANCELLING}' THEN '{CANCELLED}' ELSE '{QUEUED}' END, "
                f"worker = NULL, started_at = NULL, "
                f"finished_at = CASE state WHEN '{CANCELLING}' THEN ? END WHERE {_MINE}",
                (time.time(), name, worker),
            )

    def recover(self, cause: str) -> list[Job]:
        """See `JobStore.recover`."""
        column, most = {"worker": ("deaths", MOST_DEATHS), "server": ("restarts", MOST_RESTARTS)}[cause]
        error = {"code": f"{cause}_died", "message": f"the {cause} died {most} times while it made this video"}
        now = time.time()
        with self._write() as db:
            running = db.execute(
                f"SELECT id, state FROM jobs WHERE state IN ('{IN_PROGRESS}', '{CANCELLING}')"
            ).fetchall()
            made = []
            for row in running:
                db.execute(f"UPDATE jobs SET {column} = {column} + 1, worker = NULL WHERE id = ?", (row["id"],))
                count = db.execute(f"SELECT {column} FROM jobs WHERE id = ?", (row["id"],)).fetchone()[0]
                if row["state"] == CANCELLING:
                    changed: tuple[Any, ...] = (CANCELLED, None, now)
                elif count >= most:
                    changed = (FAILED, _text(error), now)
                else:
                    changed = (QUEUED, None, None)
                if changed[0] != QUEUED:
                    _add(db, **{changed[0]: 1})
                made.append(
                    db.execute(
                        "UPDATE jobs SET state = ?, error = ?, finished_at = ? WHERE id = ? RETURNING *",
                        (*changed, row["id"]),
                    ).fetchone()
                )
        return [_job(row) for row in made]

    def finished(self, most: int) -> list[Job]:
        """See `JobStore.finished`."""
        return [
            _job(row)
            for row in self._read(f"SELECT * FROM jobs WHERE state = '{COMPLETED}' ORDER BY seq DESC LIMIT ?", (most,))
        ]

    def totals(self) -> dict[str, float]:
        """See `JobStore.totals`."""
        return {row["name"]: row["value"] for row in self._read("SELECT * FROM totals WHERE name NOT LIKE 'clock%'")}

    def counts(self) -> dict[str, int]:
        """See `JobStore.counts`."""
        found = {row["state"]: row["n"] for row in self._read("SELECT state, count(*) AS n FROM jobs GROUP BY state")}
        return {state: found.get(state, 0) for state in STATES}

    def tick(self, seconds: float) -> float:
        """Move the service's own clock forward, note the jobs that have ended since, and return it.

        Ages are counted by this clock. It moves by what the caller measured on a monotonic clock, so that no jump of
        the wall clock lets results expire.
        """
        with self._write() as db:
            _add(db, clock=max(0.0, seconds))
            clock = _clock(db)
            db.execute(f"UPDATE jobs SET ended_clock = ? WHERE ended_clock IS NULL AND NOT {_WAITING}", (clock,))
            db.execute("DELETE FROM usage WHERE clock < ?", (clock - DAY,))
            db.execute("DELETE FROM idempotency WHERE clock < ?", (clock - DAY,))
        return clock

    def expire(self, *, older: float, most_bytes: int) -> list[str]:
        """Mark the results that are too old, then the oldest until the others fit; return the jobs' names.

        Args:
            older: seconds by the clock of `tick`.
            most_bytes: of all results together.
        """
        with self._write() as db:
            clock = _clock(db)
            held = f"state = '{COMPLETED}' AND NOT expired AND ended_clock IS NOT NULL"
            gone = [
                row["id"]
                for row in db.execute(f"SELECT id FROM jobs WHERE {held} AND ended_clock < ?", (clock - older,))
            ]
            total = 0
            for row in db.execute(f"SELECT id, result FROM jobs WHERE {held} ORDER BY seq DESC").fetchall():
                total += int(json.loads(row["result"]).get("bytes", 0))
                if total > most_bytes and row["id"] not in gone:
                    gone.append(row["id"])
            db.executemany("UPDATE jobs SET expired = 1 WHERE id = ?", [(name,) for name in gone])
        return gone

    def forget(self, older: float) -> int:
        """Delete the rows of jobs that ended long ago, and return how many: the file does not grow for ever."""
        with self._write() as db:
            return db.execute(
                f"DELETE FROM jobs WHERE ended_clock < ? AND (expired OR state IN ('{FAILED}', '{CANCELLED}'))",
                (_clock(db) - older,),
            ).rowcount

    def holds(self) -> dict[str, str]:
        """Return the state of every job whose files may be there, by its name."""
        return {row["id"]: row["state"] for row in self._read("SELECT id, state FROM jobs WHERE NOT expired")}


def _unavailable(error: sqlite3.Error) -> StoreUnavailable:
    full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return StoreUnavailable(str(error), full=full)


def _clock(db: sqlite3.Connection) -> float:
    row = db.execute("SELECT value FROM totals WHERE name = 'clock'").fetchone()
    return row["value"] if row is not None else 0.0


def _add(db: sqlite3.Connection, **values: float) -> None:
    db.executemany(
        "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        list(values.items()),
    )


def _text(value: Any) -> str:
    return json.dumps(dict(value) if isinstance(value, Mapping) else value)


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in row.keys() if name != "ended_clock"}  # noqa: SIM118 (a Row is no mapping)
    for name in ("fields", "about", "messages", "result"):
        values[name] = json.loads(values[name])
    values["error"] = None if values["error"] is None else json.loads(values["error"])
    return Job(**{**values, "expired": bool(values["expired"])})
