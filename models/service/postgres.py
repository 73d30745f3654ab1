"""Jobs in Postgres: the one truth about them for any number of servers and workers.

A claim is an update of the first row that waits, by `FOR UPDATE SKIP LOCKED`, and it holds for `LEASE_SECONDS` of the
database's clock. A worker that looks at its claim renews it. Where nobody has for that long, any server may give the
job back to the queue. A worker that was taken for dead and still runs finds its claim gone: `finish` and `report`
change nothing, for a claim's name is in every one of their statements, and the video that it wrote lies in a folder of
its claim, which no row names.

Why this is not procrastinate's queue (read in 3.10): its `procrastinate_finish_job_v1` ends a job by its number whoever
holds it, so a worker that was taken for dead could end what another one runs; a job's end and its row here would be two
transactions; its heartbeats need the worker's event loop, and here a thread beside the mesh has the turn. Bounds,
cancelling, parking and the order of jobs need the row anyhow. So the queue is the row.

A commit whose answer is lost may have happened or not. A lost claim runs out. A finish is tried again, and finds that
it is done. A submission is answered with an error; the same Idempotency-Key finds it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from models.machine.errors import InputError, MachineError
from models.service.jobs import CANCELLING, IN_PROGRESS, LEASE_SECONDS, POLL_SECONDS, QUEUED, Job, StoreUnavailable
from models.service.sql import SCHEMA, Row, SqlJobs, add

VERSION = 1
BUSY_SECONDS = 5.0
"""At most, to wait for a connection or a lock."""
CLEAN_SECONDS = 60.0
_CONNECTIONS = 8
# Any number that no other program of the database takes.
_LOCK = 0x6D6F636869
_NOW = "extract(epoch FROM clock_timestamp())::double precision"
_RUNS = f"state IN ('{IN_PROGRESS}', '{CANCELLING}')"


class PostgresJobs(SqlJobs):
    """Jobs in a database of Postgres that holds nothing else. Threads may share it; each process opens its own."""

    poll_seconds = POLL_SECONDS
    _FIRST = f"SELECT seq FROM jobs WHERE state = '{QUEUED}' ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED"
    _FOR_UPDATE = "FOR UPDATE"

    def __init__(self, url: str, lease_seconds: float = LEASE_SECONDS) -> None:
        """Connect, and make the tables where there are none.

        Args:
            url: postgresql://..., with all that libpq knows.
            lease_seconds: for which a claim holds.

        Raises:
            InputError: the URL is none, or the database is not of this version.
            MachineError: the database cannot be reached.
        """
        self.lease_seconds: float | None = lease_seconds
        self._lease_seconds = lease_seconds
        # Long before a lease runs out one has come back to it.
        busy_seconds = self._busy_seconds = min(BUSY_SECONDS, lease_seconds / 4) or BUSY_SECONDS
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error as error:
            raise InputError(f"database is no URL ({_line(error)}): write postgresql://host/name") from error
        self._options: dict[str, Any] = {
            "autocommit": True,
            "row_factory": dict_row,
            "cursor_factory": psycopg.ClientCursor,
            "connect_timeout": max(2, round(busy_seconds)),
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "application_name": "mochi-tt",
        }
        try:
            with psycopg.connect(url, **self._options) as first:
                self._make(first)
        except psycopg.OperationalError as error:
            raise MachineError(f"the database cannot be reached ({_line(error)}): start it") from error
        except psycopg.Error as error:
            raise InputError(f"the database cannot be used ({_line(error)}): name another, or mend it") from error
        self._pool: ConnectionPool[psycopg.Connection[dict[str, Any]]] = ConnectionPool(
            url,
            kwargs=self._options,
            min_size=1,
            max_idle=60.0,
            max_size=_CONNECTIONS,
            timeout=busy_seconds,
            reconnect_timeout=busy_seconds,
            open=True,
        )
        wait = round(1000 * busy_seconds)
        # With each transaction and not with the connection, which a pooler between may give to others meanwhile.
        self._waits = f"SET LOCAL lock_timeout TO {wait}; SET LOCAL idle_in_transaction_session_timeout TO {4 * wait}"
        self._lost = time.monotonic()
        self._renewed: tuple[str, str, float] = ("", "", 0.0)
        self._renewing = threading.Lock()

    def _make(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        """Make the tables, once of all who begin at the same time.

        Raises:
            InputError: they are of another version, or the database's texts are not Unicode.
        """
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise InputError(f"the database's encoding is {encoding}, and must be UTF8: createdb --encoding UTF8")
        with connection.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            connection.execute("CREATE TABLE IF NOT EXISTS mochi_tt (version INTEGER NOT NULL)")
            row = connection.execute("SELECT version FROM mochi_tt").fetchone()
            if row is None:
                connection.execute(
                    SCHEMA.format(serial="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", real="DOUBLE PRECISION")
                    + "ALTER TABLE jobs ADD COLUMN lease DOUBLE PRECISION;"
                    + f"CREATE INDEX jobs_lease ON jobs (lease) WHERE {_RUNS};"
                )
                connection.execute(f"INSERT INTO mochi_tt VALUES ({VERSION})")
            elif row["version"] != VERSION:
                raise InputError(
                    f"the database is of version {row['version']}, this program reads {VERSION}: name another"
                )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def _unavailable(self, error: psycopg.Error) -> StoreUnavailable:
        if isinstance(error, psycopg.OperationalError):
            self._lost = time.monotonic()
        return StoreUnavailable(_line(error), full=isinstance(error, psycopg.errors.DiskFull))

    def _begun(self, statement: str, values: Sequence[Any] = ()) -> tuple[psycopg.Connection[Any], psycopg.Cursor[Any]]:
        """Return a connection on which a first statement has run; one that has died meanwhile is left for another."""
        for _ in range(_CONNECTIONS + 1):
            connection = self._pool.getconn()
            try:
                return connection, connection.execute(_dialect(statement, values), values or None)
            except BaseException as error:
                died = connection.closed
                self._pool.putconn(connection)
                if not (died and isinstance(error, psycopg.OperationalError)):
                    raise
                self._lost = time.monotonic()
        raise PoolTimeout("no connection lives")

    @contextmanager
    def _write(self, *, durable: bool = True) -> Iterator[_Transaction]:
        """Run a block as one transaction; without `durable` the commit does not wait for the disk."""
        try:
            connection, _ = self._begun(
                f"BEGIN; SET LOCAL synchronous_commit TO {'on' if durable else 'off'}; {self._waits}"
            )
        except psycopg.Error as error:
            raise self._unavailable(error) from error
        try:
            yield _Transaction(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            with suppress(psycopg.Error):
                connection.execute("ROLLBACK")
            if isinstance(error, psycopg.Error):
                raise self._unavailable(error) from error
            raise
        finally:
            self._pool.putconn(connection)

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        try:
            connection, cursor = self._begun(query, values)
            try:
                return cursor.fetchall()
            finally:
                self._pool.putconn(connection)
        except psycopg.Error as error:
            raise self._unavailable(error) from error

    def _now(self, db: _Transaction) -> float:
        return db.execute(f"SELECT {_NOW} AS now").fetchall()[0]["now"]

    def _clock(self, db: _Transaction) -> float:
        """Return the database's clock, and what the tests have added to it."""
        return db.execute(
            f"SELECT {_NOW} + coalesce((SELECT value FROM totals WHERE name = 'clock'), 0) AS now"
        ).fetchall()[0]["now"]

    def _alone(self, db: _Transaction) -> None:
        db.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")

    def _lease(self, db: _Transaction, name: str, worker: str) -> None:
        db.execute(f"UPDATE jobs SET lease = {_NOW} + ? WHERE id = ?", (self._lease_seconds, name))

    def is_wanted(self, name: str, worker: str) -> bool:
        """See `JobStore.is_wanted`."""
        with self._renewing:
            due = self._renewed[:2] != (name, worker) or time.monotonic() - self._renewed[2] > self._lease_seconds / 6
        if not due:
            return super().is_wanted(name, worker)
        with self._write(durable=False) as db:
            row = db.execute(
                f"UPDATE jobs SET lease = {_NOW} + ? WHERE id = ? AND worker = ? AND {_RUNS} RETURNING state",
                (self._lease_seconds, name, worker),
            ).fetchone()
        with self._renewing:
            self._renewed = (name, worker, time.monotonic())
        return row is not None and row["state"] == IN_PROGRESS

    def recover(self, cause: str, worker: str | None = None) -> list[Job]:
        """See `JobStore.recover`.

        Where this process itself lacked the database within the time of a lease, nobody is taken for dead: the others
        lacked it too, perhaps, and come back to renew their leases.
        """
        if worker is None:
            if time.monotonic() - self._lost < self._lease_seconds:
                return []
            if not self._read(f"SELECT 1 FROM jobs WHERE {_RUNS} AND lease < {_NOW} LIMIT 1"):
                return []
        return super().recover(cause, worker)

    def _abandoned(self, db: _Transaction, worker: str | None) -> list[Row]:
        which, values = (f"lease < {_NOW}", ()) if worker is None else ("worker = ?", (worker,))
        return db.execute(
            f"SELECT * FROM jobs WHERE {_RUNS} AND {which} ORDER BY seq FOR UPDATE SKIP LOCKED", values
        ).fetchall()

    def may_clean(self) -> bool:
        """See `JobStore.may_clean`. What one server deletes at most once a minute no other need look for."""
        with self._write() as db:
            return bool(
                db.execute(
                    f"INSERT INTO totals VALUES ('clock_cleaned', {_NOW}) ON CONFLICT (name) "
                    f"DO UPDATE SET value = {_NOW} WHERE totals.value NOT BETWEEN {_NOW} - ? AND {_NOW}",
                    (CLEAN_SECONDS,),
                ).rowcount
            )

    def pass_time(self, seconds: float) -> None:
        """Let all results and quotas age at once: for tests."""
        with self._write() as db:
            add(db, clock=seconds)


class _Transaction:
    """A connection within a transaction, which takes `?` for values."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, query: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        return self._connection.execute(_dialect(query, values), values or None)

    def executemany(self, query: str, rows: Sequence[Sequence[Any]]) -> None:
        self._connection.cursor().executemany(_dialect(query, rows), rows)


def _dialect(query: str, values: Sequence[Any]) -> Any:
    return query.replace("%", "%%").replace("?", "%s") if values else query


def _line(error: BaseException) -> str:
    """Return an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__
