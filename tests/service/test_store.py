"""The store: each job ends once, whoever dies, waits or comes twice."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from models.machine.errors import InputError
from models.service import store as module
from models.service.jobs import (
    MOST_DEATHS,
    MOST_RESTARTS,
    Bounds,
    KeyReused,
    Outcome,
    QueueFull,
    StoreUnavailable,
)
from models.service.postgres import PostgresJobs
from models.service.store import SqliteJobs, open_store

ABOUT = {"model": "tiny"}
FREE = Bounds(1000)
DONE = Outcome("completed", None, ["told"], {"bytes": 100, "sha256": "x", "seconds": {"denoise": 2.0}})


def opened(place, **values):
    """Open the store of a place again, as another process does. Leases of Postgres have run out at once."""
    if isinstance(place, str):
        return PostgresJobs(place, **{"lease_seconds": 0.0, **values})
    return SqliteJobs(place, **values)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    return request.getfixturevalue("cluster").database() if request.param == "postgres" else tmp_path / "jobs.sqlite3"


@pytest.fixture
def jobs(place):
    made = opened(place)
    yield made
    made.close()


@pytest.fixture
def sqlite(tmp_path):
    made = SqliteJobs(tmp_path / "jobs.sqlite3", busy_seconds=0.2)
    yield made
    made.close()


def pass_time(jobs, seconds):
    """Let everything age: by the service's own clock, or by what a test adds to the database's."""
    if isinstance(jobs, PostgresJobs):
        jobs.pass_time(seconds)
        seconds = 0
    jobs.tick(seconds)


def add(jobs, owner="me", **values):
    return jobs.submit(owner, {"prompt": "a"}, ABOUT, FREE, **values)[0]


def test_jobs_run_in_the_order_of_submission_though_the_clock_goes_back(jobs, monkeypatch):
    wall = iter(range(2_000_000_000, 0, -1_000_000))
    monkeypatch.setattr(module.time, "time", lambda: float(next(wall)))
    names = [add(jobs).id for _ in range(5)]
    assert [jobs.claim("w").id for _ in range(5)] == names
    assert jobs.claim("w") is None
    assert [job.id for job in jobs.page("me", limit=10, after=None, order="asc")[0]] == names


def test_a_claim_that_is_lost_changes_nothing(jobs):
    job = add(jobs)
    jobs.claim("first")
    jobs.recover("worker")
    assert jobs.claim("second").deaths == 1
    jobs.report(job.id, "first", "denoise", 5, 9, 77)
    assert not jobs.finish(job.id, "first", DONE)
    jobs.park(job.id, "first")
    assert not jobs.is_wanted(job.id, "first")
    found = jobs.get(job.id, "me")
    assert (found.state, found.worker, found.step, found.progress) == ("in_progress", "second", 0, 0)
    assert jobs.finish(job.id, "second", DONE)
    assert not jobs.finish(job.id, "second", Outcome("failed"))
    assert jobs.get(job.id, "me").state == "completed"
    assert jobs.totals() == {"submitted": 1, "completed": 1, "seconds_denoise": 2.0}


def test_who_cancels_first_wins(jobs):
    job = add(jobs)
    jobs.claim("w")
    assert jobs.cancel(job.id, "me").state == "cancelling"
    assert jobs.cancel(job.id, "me").state == "cancelling"
    assert not jobs.finish(job.id, "w", DONE)
    assert jobs.finish(job.id, "w", Outcome("cancelled"))
    later = add(jobs)
    jobs.claim("w")
    assert jobs.finish(later.id, "w", DONE)
    assert jobs.cancel(later.id, "me").state == "completed"
    assert jobs.cancel(add(jobs).id, "me").state == "cancelled"
    assert jobs.totals()["cancelled"] == 2


def test_one_that_is_parked_begins_anew_and_one_that_was_cancelled_before_is_counted(jobs):
    job = add(jobs)
    jobs.claim("w")
    jobs.report(job.id, "w", "denoise", 5, 9, 40)
    jobs.park(job.id, "w")
    parked = jobs.get(job.id, None)
    assert (parked.state, parked.stage, parked.step, parked.progress) == ("queued", None, 0, 0)
    jobs.claim("w")
    jobs.cancel(job.id, None)
    jobs.park(job.id, "w")
    assert jobs.get(job.id, None).state == "cancelled"
    assert jobs.totals()["cancelled"] == 1


@pytest.mark.parametrize(("cause", "most"), [("worker", MOST_DEATHS), ("server", MOST_RESTARTS)])
def test_a_job_that_ends_every_worker_fails(jobs, cause, most):
    job = add(jobs)
    for _ in range(most - 1):
        assert jobs.claim("w").id == job.id
        assert [each.state for each in jobs.recover(cause)] == ["queued"]
    jobs.claim("w")
    assert [each.state for each in jobs.recover(cause)] == ["failed"]
    assert jobs.get(job.id, None).error["code"] == f"{cause}_died"
    assert jobs.recover(cause) == []


def test_a_job_keeps_its_place_when_its_worker_dies(jobs):
    first, second = add(jobs), add(jobs)
    jobs.claim("w")
    jobs.recover("worker")
    assert [job.id for job in jobs.waiting()] == [first.id, second.id]
    assert jobs.claim("w").id == first.id
    jobs.park(first.id, "w")
    assert jobs.claim("w").id == first.id
    jobs.cancel(first.id, None)
    assert [job.state for job in jobs.recover("worker")] == ["cancelled"]


def test_bounds(jobs):
    bounds = Bounds(queue=3, own=2, per_day=3)

    def submit(owner):
        return jobs.submit(owner, {"prompt": "a"}, ABOUT, bounds)[0]

    first = submit("a")
    submit("a")
    with pytest.raises(QueueFull) as own:
        submit("a")
    submit("b")
    with pytest.raises(QueueFull) as queue:
        submit("c")
    jobs.cancel(first.id, "a")
    jobs.delete(first.id, "a")
    submit("a")
    jobs.cancel(jobs.waiting()[-1].id, "a")
    with pytest.raises(QueueFull) as day:
        submit("a")  # what was deleted counts too
    assert [each.value.code for each in (own, queue, day)] == ["quota_queued", "queue_full", "quota_per_day"]
    pass_time(jobs, 86401)
    submit("a")


def test_the_same_request_twice_is_one_job(jobs):
    first, new = jobs.submit("me", {"prompt": "a"}, ABOUT, FREE, idempotency=("k", "d"))
    again, newer = jobs.submit("me", {"prompt": "a"}, ABOUT, FREE, idempotency=("k", "d"))
    other, _ = jobs.submit("you", {"prompt": "a"}, ABOUT, FREE, idempotency=("k", "d"))
    assert (new, newer, first.id == again.id, other.id == first.id) == (True, False, True, False)
    with pytest.raises(KeyReused):
        jobs.submit("me", {"prompt": "b"}, ABOUT, FREE, idempotency=("k", "e"))


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_have_every_job_once_and_only_of_their_owner(jobs, order):
    names = [add(jobs).id for _ in range(7)]
    add(jobs, "you")
    seen, after, more = [], None, True
    while more:
        page, more = jobs.page("me", limit=3, after=after, order=order)
        seen += [job.id for job in page]
        after = seen[-1]
    assert seen == (names if order == "asc" else names[::-1])
    assert jobs.page("you", limit=3, after=names[0], order=order) is None
    assert jobs.get(names[0], "you") is None
    assert jobs.cancel(names[0], "you") is None
    assert jobs.delete(names[0], "you") is None


def test_one_that_runs_is_not_deleted(jobs):
    job = add(jobs)
    jobs.claim("w")
    assert jobs.delete(job.id, "me") == "in_progress"
    assert jobs.get(job.id, "me") is not None
    jobs.finish(job.id, "w", DONE)
    assert jobs.delete(job.id, "me") == "completed"
    assert jobs.get(job.id, "me") is None


def test_results_expire_by_age_and_by_size_but_not_by_a_jump_of_the_clock(jobs, monkeypatch):
    names = [add(jobs).id for _ in range(4)]
    for name in names:
        jobs.claim("w")
        jobs.finish(name, "w", DONE)
    jobs.tick(0)
    monkeypatch.setattr(module.time, "time", lambda: 9e9)
    assert jobs.expire(older=100, most_bytes=400) == []
    assert jobs.expire(older=100, most_bytes=250) == [names[1], names[0]]
    pass_time(jobs, 101)
    assert jobs.expire(older=100, most_bytes=250) == [names[2], names[3]]
    assert jobs.expire(older=100, most_bytes=250) == []
    assert jobs.holds() == {}
    assert jobs.get(names[0], "me").expired
    assert jobs.forget(1000) == 0
    pass_time(jobs, 1000)
    assert jobs.forget(1000) == 4


def test_a_locked_database_is_said_and_nothing_is_lost(sqlite):
    job = add(sqlite)
    other = sqlite3.connect(sqlite.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for change in (lambda: add(sqlite), lambda: sqlite.claim("w"), lambda: sqlite.cancel(job.id, None)):
        with pytest.raises(StoreUnavailable) as said:
            change()
        assert not said.value.full
    assert sqlite.get(job.id, "me").state == "queued"  # readers do not wait for writers
    other.execute("ROLLBACK")
    other.close()
    assert sqlite.claim("w").id == job.id


def test_a_full_disk_is_said(sqlite):
    pages = sqlite._writer.execute("PRAGMA page_count").fetchone()[0]
    sqlite._writer.execute(f"PRAGMA max_page_count = {pages}")
    said = None
    for _ in range(100):
        try:
            sqlite.submit("me", {"prompt": "a" * 5000}, ABOUT, FREE)
        except StoreUnavailable as error:
            said = error
    assert said is not None
    assert said.full
    sqlite._writer.execute("PRAGMA max_page_count = 100000")
    kept = len(sqlite.waiting())
    add(sqlite)
    assert len(sqlite.waiting()) == kept + 1


def test_the_reserve_lets_jobs_end_and_go_though_the_disk_is_full(sqlite, monkeypatch):
    running, waiting = add(sqlite), add(sqlite)
    sqlite.claim("w")
    broken = sqlite3.OperationalError("database or disk is full")
    broken.sqlite_errorcode = sqlite3.SQLITE_FULL

    def times(db):
        if sqlite.reserve._path.exists():
            raise broken
        return 0.0

    monkeypatch.setattr(sqlite, "_now", times)
    room = {"f_bavail": 1, "f_frsize": 4096}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**room))
    assert not sqlite.is_full()
    assert sqlite.finish(running.id, "w", DONE)
    assert sqlite.cancel(waiting.id, "me").state == "cancelled"
    assert sqlite.delete(waiting.id, "me") == "cancelled"
    assert sqlite.is_full()
    with pytest.raises(StoreUnavailable) as said:
        add(sqlite)
    assert said.value.full
    monkeypatch.undo()
    assert not sqlite.is_full(), "there is room again"
    last = add(sqlite)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**room))
    sqlite.reserve.release()
    assert sqlite.claim("w") is None, "it waits: it could not be written"
    monkeypatch.undo()
    assert sqlite.claim("w").id == last.id


def test_time_passes_while_no_service_runs(tmp_path, monkeypatch):
    """By the machine's own clock since the same start of it, else by the wall clock, which may have been set back."""
    path = tmp_path / "jobs.sqlite3"

    def clock_after(**times):
        monkeypatch.setattr(module, "_times", lambda: {"clock_wall": 0.0, "clock_up": 0.0, "clock_start": 1.0, **times})
        jobs = SqliteJobs(path)
        jobs.catch_up()
        now = jobs.tick(0.0)
        jobs.close()
        return now

    assert clock_after(clock_wall=1000.0, clock_up=10.0) == 0
    assert clock_after(clock_wall=9000.0, clock_up=30.0) == 20, "the wall clock was set"
    assert clock_after(clock_wall=9500.0, clock_up=5.0, clock_start=2.0) == 520, "the machine was started again"
    assert clock_after(clock_wall=100.0, clock_up=5.0, clock_start=3.0) == 520, "and its clock set back"
    real = SqliteJobs(tmp_path / "other.sqlite3")
    monkeypatch.undo()
    real.catch_up()
    real.catch_up()
    assert 0 <= real.tick(0.0) < 60


def test_foreign_databases_are_refused(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to be read as one" * 100)
    with pytest.raises(InputError, match="cannot be opened"):
        SqliteJobs(tmp_path / "text")
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(InputError, match="version 99"):
        SqliteJobs(tmp_path / "newer")
    with pytest.raises(InputError, match="mysql:// is not supported"):
        open_store("mysql://host/name")


def _claim_all(place, name, begin, out):
    jobs = opened(place)
    begin.wait()
    while (job := jobs.claim(name)) is not None:
        out.put((job.id, jobs.finish(job.id, name, DONE)))
    out.put(None)


def test_processes_that_claim_at_once_share_the_jobs_without_doubles(place, jobs):
    names = [add(jobs).id for _ in range(60)]
    spawn = multiprocessing.get_context("spawn")
    begin, out = spawn.Event(), spawn.Queue()
    workers = [spawn.Process(target=_claim_all, args=(place, f"w{n}", begin, out)) for n in range(3)]
    for worker in workers:
        worker.start()
    begin.set()
    seen, ended = [], 0
    while ended < len(workers):
        found = out.get(timeout=60)
        ended += found is None
        seen += [] if found is None else [found]
    for worker in workers:
        worker.join()
    assert Counter(seen) == Counter((name, True) for name in names)
    assert jobs.totals()["completed"] == 60


def _submit_for_ever(place, pipe):
    jobs = opened(place)
    for number in range(100_000):
        pipe.send(jobs.submit("me", {"prompt": str(number)}, ABOUT, Bounds(10**6))[0].id)


@pytest.mark.parametrize("milliseconds", [5, 40, 90])
def test_what_was_told_before_a_kill_is_there_after_it(place, milliseconds):
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_submit_for_ever, args=(place, theirs))
    child.start()
    theirs.close()
    told = [ours.recv()]
    end = time.monotonic() + milliseconds / 1000
    while time.monotonic() < end:
        if ours.poll(0.001):
            told.append(ours.recv())
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    try:
        while True:
            told.append(ours.recv())
    except EOFError:
        pass
    jobs = opened(place)
    there = [job.id for job in jobs.waiting()]
    assert there[: len(told)] == told
    assert len(there) <= len(told) + 1
    if isinstance(jobs, SqliteJobs):
        assert jobs._read("PRAGMA integrity_check")[0][0] == "ok"
    jobs.close()


def test_threads_of_one_process_share_a_store(jobs):
    threads = [threading.Thread(target=lambda: [add(jobs) for _ in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job in jobs.waiting()}) == 80
