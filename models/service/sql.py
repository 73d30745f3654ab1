"""Jobs in an SQL database: what the stores of SQLite and of Postgres have in common.

The statements are of both dialects, with `?` for values. What differs is a method or a constant with a leading `_`.
Each transaction locks rows of jobs before it adds to the totals, and adds once, in the order of their names: so no two
can wait for each other.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

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
    KeyReused,
    Outcome,
    QueueFull,
    StoreUnavailable,
    is_id,
    new_id,
)

DAY = 86400.0
SCHEMA = """
CREATE TABLE jobs (
    seq {serial}, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, state TEXT NOT NULL,
    fields TEXT NOT NULL, about TEXT NOT NULL, created_at {real} NOT NULL, started_at {real}, finished_at {real},
    worker TEXT, stage TEXT, step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0,
    progress INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0, restarts INTEGER NOT NULL DEFAULT 0,
    error TEXT, messages TEXT NOT NULL DEFAULT '[]', result TEXT NOT NULL DEFAULT '{{}}',
    expired INTEGER NOT NULL DEFAULT 0, ended_clock {real});
CREATE INDEX jobs_state ON jobs (state, seq);
CREATE INDEX jobs_owner ON jobs (owner, seq);
CREATE TABLE idempotency (
    owner TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, job TEXT NOT NULL, clock {real} NOT NULL,
    PRIMARY KEY (owner, key));
CREATE TABLE usage (owner TEXT NOT NULL, clock {real} NOT NULL);
CREATE INDEX usage_owner ON usage (owner, clock);
CREATE TABLE totals (name TEXT PRIMARY KEY, value {real} NOT NULL);
"""
_WAITING = f"state IN ('{QUEUED}', '{IN_PROGRESS}', '{CANCELLING}')"
_MINE = f"id = ? AND worker = ? AND state IN ('{IN_PROGRESS}', '{CANCELLING}')"
_MOST_MESSAGES = 20
Row = Any
"""A row by the names of its columns."""
Database = Any
"""A connection within a transaction: `execute(query, values)` and `executemany(query, rows)` return cursors."""


class SqlJobs(ABC):
    """Jobs in tables. A subclass has the connection, the clocks and the leases."""

    poll_seconds = 0.1
    lease_seconds: float | None = None
    _FIRST = f"SELECT min(seq) FROM jobs WHERE state = '{QUEUED}'"
    _FOR_UPDATE = ""

    @abstractmethod
    def _write(self, *, durable: bool = True) -> AbstractContextManager[Database]:
        """Run a block as one transaction; without `durable` a power cut may undo it."""

    @abstractmethod
    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query."""

    @abstractmethod
    def _now(self, db: Database) -> float:
        """Return the wall time, seconds since 1970."""

    @abstractmethod
    def _clock(self, db: Database) -> float:
        """Return the clock by which ages are counted, in seconds."""

    @abstractmethod
    def _abandoned(self, db: Database, worker: str | None) -> list[Row]:
        """Return the jobs of a dead worker, or of all that are taken for dead."""

    def _move_clock(self, db: Database, seconds: float) -> None:  # noqa: B027 (nothing to do is an answer)
        """Move the clock of ages forward, where it does not move by itself."""

    def _alone(self, db: Database) -> None:  # noqa: B027
        """Wait until no other transaction submits, where those do not wait for each other anyhow."""

    def _lease(self, db: Database, name: str, worker: str) -> None:  # noqa: B027
        """Let a claim hold for a while from now on, where claims have an end."""

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
        if self.is_full():
            raise StoreUnavailable("the disk is full", full=True)
        with self._write() as db:
            self._alone(db)
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
            clock = self._clock(db)
            self._check_bounds(db, owner, bounds, clock)
            made = db.execute(
                "INSERT INTO jobs (id, owner, state, fields, about, created_at, messages) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "RETURNING *",
                (new_id(), owner, QUEUED, _text(fields), _text(about), self._now(db), _text(list(messages))),
            ).fetchone()
            db.execute("INSERT INTO usage VALUES (?, ?)", (owner, clock))
            if idempotency is not None:
                db.execute(
                    "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?) ON CONFLICT (owner, key) DO UPDATE "
                    "SET digest = excluded.digest, job = excluded.job, clock = excluded.clock",
                    (owner, *idempotency, made["id"], clock),
                )
            add(db, submitted=1)
        return _job(made), True

    def _check_bounds(self, db: Database, owner: str, bounds: Bounds, clock: float) -> None:
        waiting = db.execute(f"SELECT count(*) AS n FROM jobs WHERE {_WAITING}").fetchone()["n"]
        if waiting >= bounds.queue:
            raise QueueFull(
                f"the queue is full: {waiting} videos wait, {bounds.queue} may; try again later", "queue_full"
            )
        if bounds.own is not None:
            own = db.execute(f"SELECT count(*) AS n FROM jobs WHERE owner = ? AND {_WAITING}", (owner,)).fetchone()["n"]
            if own >= bounds.own:
                raise QueueFull(
                    f"{own} videos of this key wait, {bounds.own} may: wait for one, or cancel one", "quota_queued"
                )
        if bounds.per_day is not None:
            used = db.execute(
                "SELECT count(*) AS n FROM usage WHERE owner = ? AND clock > ?", (owner, clock - DAY)
            ).fetchone()["n"]
            if used >= bounds.per_day:
                raise QueueFull(
                    f"{used} videos of this key were submitted within 24 hours, {bounds.per_day} may be",
                    "quota_per_day",
                )

    def get(self, name: str, owner: str | None) -> Job | None:
        """See `JobStore.get`."""
        if not is_id(name):
            return None
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
        if not is_id(name):
            return None
        with self._write() as db:
            where = "WHERE id = ? AND (? IS NULL OR owner = ?)"
            # Held from here on: a worker that takes it between the two statements would be met by neither.
            db.execute(f"SELECT 1 FROM jobs {where} {self._FOR_UPDATE}", (name, owner, owner)).fetchall()
            db.execute(
                f"UPDATE jobs SET state = '{CANCELLING}' {where} AND state = '{IN_PROGRESS}'", (name, owner, owner)
            )
            waited = db.execute(
                f"UPDATE jobs SET state = '{CANCELLED}', finished_at = ? {where} AND state = '{QUEUED}'",
                (self._now(db), name, owner, owner),
            ).rowcount
            if waited:
                add(db, cancelled=1)
            row = db.execute(f"SELECT * FROM jobs {where}", (name, owner, owner)).fetchone()
        return None if row is None else _job(row)

    def delete(self, name: str, owner: str | None) -> str | None:
        """See `JobStore.delete`."""
        if not is_id(name):
            return None
        with self._write() as db:
            where, values = "WHERE id = ? AND (? IS NULL OR owner = ?)", (name, owner, owner)
            row = db.execute(f"SELECT state FROM jobs {where} {self._FOR_UPDATE}", values).fetchone()
            if row is None:
                return None
            gone = db.execute(f"DELETE FROM jobs {where} AND state NOT IN (?, ?)", (*values, IN_PROGRESS, CANCELLING))
            if gone.rowcount and row["state"] == QUEUED:
                add(db, cancelled=1)
        return row["state"]

    def claim(self, worker: str) -> Job | None:
        """See `JobStore.claim`."""
        if not self._read(f"SELECT 1 FROM jobs WHERE state = '{QUEUED}' LIMIT 1") or self.is_full():
            return None
        with self._write() as db:
            row = db.execute(
                f"UPDATE jobs SET state = '{IN_PROGRESS}', worker = ?, started_at = ?, stage = NULL, step = 0, "
                f"steps = 0 WHERE seq = ({self._FIRST}) RETURNING *",
                (worker, self._now(db)),
            ).fetchone()
            if row is not None:
                self._lease(db, row["id"], worker)
        return None if row is None else _job(row)

    def report(self, name: str, worker: str, stage: str, step: int, steps: int, progress: int) -> None:
        """See `JobStore.report`."""
        with self._write(durable=False) as db:
            db.execute(
                f"UPDATE jobs SET stage = ?, step = ?, steps = ?, "
                f"progress = CASE WHEN progress > ? THEN progress ELSE ? END WHERE {_MINE}",
                (stage, step, steps, progress, progress, name, worker),
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
            row = db.execute(f"SELECT messages FROM jobs WHERE {among} {self._FOR_UPDATE}", (name, worker)).fetchone()
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
                    self._now(db),
                    outcome.state == COMPLETED,
                    name,
                    worker,
                ),
            )
            seconds = {f"seconds_{stage}": value for stage, value in outcome.result.get("seconds", {}).items()}
            forwards = {f"forwards_{kind}": value for kind, value in outcome.result.get("forwards", {}).items()}
            add(db, **{outcome.state: 1}, **seconds, **forwards)
        return True

    def park(self, name: str, worker: str) -> None:
        """See `JobStore.park`."""
        with self._write() as db:
            row = db.execute(
                f"UPDATE jobs SET state = CASE state WHEN '{CANCELLING}' THEN '{CANCELLED}' ELSE '{QUEUED}' END, "
                f"worker = NULL, started_at = NULL, stage = NULL, step = 0, steps = 0, progress = 0, "
                f"finished_at = CASE state WHEN '{CANCELLING}' THEN ? END WHERE {_MINE} RETURNING state",
                (self._now(db), name, worker),
            ).fetchone()
            if row is not None and row["state"] == CANCELLED:
                add(db, cancelled=1)

    def recover(self, cause: str, worker: str | None = None) -> list[Job]:
        """See `JobStore.recover`."""
        column, most = {"worker": ("deaths", MOST_DEATHS), "server": ("restarts", MOST_RESTARTS)}[cause]
        error = {"code": f"{cause}_died", "message": f"the {cause} died {most} times while it made this video"}
        made: list[Row] = []
        with self._write() as db:
            for row in self._abandoned(db, worker):
                count = row[column] + 1
                state = CANCELLED if row["state"] == CANCELLING else FAILED if count >= most else QUEUED
                made.append(
                    db.execute(
                        f"UPDATE jobs SET {column} = ?, worker = NULL, state = ?, error = ?, finished_at = ?, "
                        f"stage = NULL, step = 0, steps = 0, progress = 0 WHERE id = ? RETURNING *",
                        (
                            count,
                            state,
                            _text(error) if state == FAILED else None,
                            None if state == QUEUED else self._now(db),
                            row["id"],
                        ),
                    ).fetchone()
                )
            ended = Counter(row["state"] for row in made if row["state"] != QUEUED)
            add(db, **ended)
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
            self._move_clock(db, max(0.0, seconds))
            clock = self._clock(db)
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
            clock = self._clock(db)
            held = f"state = '{COMPLETED}' AND expired = 0 AND ended_clock IS NOT NULL"
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
                f"DELETE FROM jobs WHERE ended_clock < ? AND (expired = 1 OR state IN ('{FAILED}', '{CANCELLED}'))",
                (self._clock(db) - older,),
            ).rowcount

    def is_full(self) -> bool:
        """See `JobStore.is_full`."""
        return False

    def catch_up(self) -> None:  # noqa: B027 (nothing to do is an answer)
        """See `JobStore.catch_up`."""

    def holds(self) -> dict[str, tuple[str, str]]:
        """See `JobStore.holds`."""
        rows = self._read("SELECT id, state, result FROM jobs WHERE expired = 0")
        return {row["id"]: (row["state"], json.loads(row["result"]).get("claim", "")) for row in rows}

    def inputs(self) -> set[str]:
        """See `JobStore.inputs`."""
        rows = self._read(f"SELECT fields FROM jobs WHERE {_WAITING} AND fields LIKE '%\"file-%'")
        found = [json.loads(row["fields"]) for row in rows]
        return {name for each in found for name in (each.get("image"), each.get("video")) if name is not None}

    def may_clean(self) -> bool:
        """See `JobStore.may_clean`."""
        return True


def add(db: Database, **values: float) -> None:
    """Add to the totals; once in a transaction, as its last step."""
    db.executemany(
        "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = totals.value + excluded.value",
        sorted(values.items()),
    )


def _text(value: Any) -> str:
    return json.dumps(dict(value) if isinstance(value, Mapping) else value)


def _job(row: Row) -> Job:
    values = {name: value for name, value in dict(row).items() if name not in ("ended_clock", "lease")}
    for name in ("fields", "about", "messages", "result"):
        values[name] = json.loads(values[name])
    values["error"] = None if values["error"] is None else json.loads(values["error"])
    return Job(**{**values, "expired": bool(values["expired"])})
