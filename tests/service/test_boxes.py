"""Several boxes on one database: servers and workers, killed, stopped and cut off, and every job ends once."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import psycopg
import pytest

from models.service.jobs import Bounds, Outcome, QueueFull, StoreUnavailable
from models.service.postgres import PostgresJobs
from tests.service.fake import video_of
from tests.service.harness import ROOT, Server, until
from tests.service.test_lifecycle import check

DONE = Outcome("completed", None, [], {"bytes": 1, "sha256": "x"})
FREE = Bounds(10_000)


@pytest.fixture
def url(cluster):
    return cluster.database()


def add(jobs, **values):
    return jobs.submit("me", {"prompt": "a"}, {"model": "tiny"}, FREE, **values)[0]


def boxes(folder, url, number):
    """Start servers, each with its worker, all on one folder and one database."""
    return [Server(folder, url) for _ in range(number)]


def end(servers):
    for server in servers:
        server.__exit__()


def test_a_box_is_killed_and_nothing_is_lost_or_made_twice(tmp_path, url):
    servers = boxes(tmp_path / "s", url, 3)
    try:
        names = [servers[n % 3].create(f"steps=20 pause=0.05 number={n}")["id"] for n in range(9)]
        killed = until(lambda: servers[2].client.get("/metrics") and running_of(servers[2], names), "a job of the box")
        servers[2].kill()
        check(servers[0], names)
        for name in names:
            assert servers[1].client.get(f"/v1/videos/{name}/content").content == video_of(name)
        journal = servers[0].journal()
        assert Counter(words[1] for words in journal if words[0] == "made") == Counter(names)
        runs = Counter(words[1] for words in journal if words[0] == "run")
        assert {name for name, count in runs.items() if count > 1} == {killed}
    finally:
        end(servers)


def running_of(server, names):
    """Return the job that a server's worker has begun, by its log."""
    begun = [line["job"] for line in server.lines() if line["event"] == "job started"]
    return begun[-1] if begun and begun[-1] in names else None


def test_a_worker_that_was_taken_for_dead_ends_nothing(tmp_path, url):
    """It stands still until another has made its job, and then goes on."""
    servers = boxes(tmp_path / "s", url, 2)
    try:
        name = servers[0].create("steps=40 pause=0.05")["id"]
        first = until(lambda: next((s for s in servers if running_of(s, [name])), None), "a run")
        second = servers[1 - servers.index(first)]
        until(lambda: second.get(name)["step"] > 2, "a step")
        os.kill(first.worker(), signal.SIGSTOP)
        check(second, [name])
        assert running_of(second, [name])
        os.kill(first.worker(), signal.SIGCONT)
        until(lambda: [line for line in first.lines() if line["event"] == "job ended"], "the end of the first run")
        check(second, [name])
        assert [words for words in first.journal() if words[0] == "made"] == [["made", name]]
        later = [first.create(f"number={number}")["id"] for number in range(6)]  # it takes jobs again
        check(second, [name, *later])
    finally:
        end(servers)


def test_cancelling_at_one_server_reaches_the_worker_of_another(tmp_path, url):
    servers = boxes(tmp_path / "s", url, 2)
    try:
        name = servers[0].create("steps=1000 pause=0.2")["id"]
        first = until(lambda: next((s for s in servers if running_of(s, [name])), None), "a run")
        second = servers[1 - servers.index(first)]
        assert second.client.post(f"/v1/videos/{name}/cancel").json()["status"] == "cancelling"
        steps = len(first.journal())
        assert second.wait(name)["status"] == "cancelled"
        assert len(first.journal()) - steps <= 5  # a look each 0.5 s, a step each 0.2 s
        assert [line["state"] for line in first.lines() if line["event"] == "job ended"] == ["cancelled"]
    finally:
        end(servers)


@pytest.mark.full
def test_the_database_is_killed_and_comes_back(tmp_path, url, cluster):
    servers = boxes(tmp_path / "s", url, 2)
    try:
        names = [servers[n % 2].create(f"steps=10 pause=0.05 number={n}")["id"] for n in range(6)]
        until(lambda: any(running_of(server, names) for server in servers), "a run")
        cluster.stop()
        try:
            answer = servers[0].client.post("/v1/videos", json={"prompt": "a"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_busy")
            assert servers[0].client.get("/health").status_code == 200
            time.sleep(5)  # longer than a lease
        finally:
            cluster.start()

        def back():
            return servers[0].client.get("/v1/videos").status_code == 200

        until(back, "the database")
        check(servers[0], names)
        # Nobody was taken for dead: all had lacked the database.
        assert not [line for server in servers for line in server.lines() if line["event"] == "job recovered"]
        assert Counter(words[1] for words in servers[0].journal() if words[0] == "run") == Counter(names)
    finally:
        end(servers)


def test_connections_die_at_any_moment(url):
    """Jobs are submitted, claimed and ended while the database ends every connection again and again."""
    jobs = PostgresJobs(url, lease_seconds=0.5)
    over, told, finished = threading.Event(), set(), Counter()

    def submit():
        for number in range(40):
            while True:  # what a client with an Idempotency-Key does
                try:
                    told.add(add(jobs, idempotency=(str(number), "d")).id)
                    break
                except StoreUnavailable:
                    time.sleep(0.01)

    def work(worker):
        while not over.is_set():
            try:
                job = jobs.claim(worker)
                if job is None:
                    jobs.recover("server")
                    time.sleep(0.02)
                    continue
            except StoreUnavailable:
                continue
            while True:
                try:
                    finished[job.id] += jobs.finish(job.id, worker, DONE)
                    break
                except StoreUnavailable:
                    time.sleep(0.01)

    threads = [threading.Thread(target=submit), *(threading.Thread(target=work, args=(f"{n}-a",)) for n in range(3))]
    for thread in threads:
        thread.start()
    for _ in range(25):
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        time.sleep(0.05)
    until(lambda: len(told) == 40, "all submissions")
    until(lambda: jobs.counts()["completed"] == 40, "all ends")
    over.set()
    for thread in threads:
        thread.join()
    assert jobs.totals()["submitted"] == jobs.totals()["completed"] == 40
    assert max(finished.values()) == 1
    jobs.close()


def test_a_lease_runs_out_unless_it_is_renewed(url):
    jobs = PostgresJobs(url, lease_seconds=0.6)
    lost, kept = add(jobs), add(jobs)
    assert jobs.claim("a-1").id == lost.id
    assert jobs.claim("b-1").id == kept.id
    taken = until(lambda: jobs.is_wanted(kept.id, "b-1") and jobs.recover("server"), "a recovery")
    assert [(job.id, job.state, job.restarts) for job in taken] == [(lost.id, "queued", 1)]
    assert jobs.claim("c-1").id == lost.id
    assert not jobs.is_wanted(lost.id, "a-1")
    assert not jobs.finish(lost.id, "a-1", DONE)
    assert jobs.finish(lost.id, "c-1", DONE)
    assert jobs.recover("worker", "a-1") == []
    assert [job.id for job in jobs.recover("worker", "b-1")] == [kept.id]  # seen to be dead: at once
    jobs.close()


def test_who_has_just_come_takes_nobody_for_dead(url):
    jobs = PostgresJobs(url, lease_seconds=1.0)
    add(jobs)
    jobs.claim("a-1")
    jobs._read("UPDATE jobs SET lease = 0 RETURNING id")
    assert jobs.recover("server") == []
    assert until(lambda: jobs.recover("server"), "a recovery")
    jobs.close()


def test_bounds_hold_over_all_servers(url):
    stores = [PostgresJobs(url) for _ in range(3)]
    made, refused = [], []

    def submit(jobs):
        for _ in range(10):
            try:
                made.append(jobs.submit("me", {"prompt": "a"}, {"model": "tiny"}, Bounds(7))[0])
            except QueueFull as error:
                refused.append(error.code)

    threads = [threading.Thread(target=submit, args=(jobs,)) for jobs in stores for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(stores[0].waiting()) == 7
    assert Counter(refused) == {"queue_full": 83}
    assert [jobs.may_clean() for jobs in stores] == [True, False, False]
    for jobs in stores:
        jobs.close()


def test_names_that_no_database_takes_are_no_jobs(url):
    jobs = PostgresJobs(url)
    for name in ("video_\x00", "video_\ud800", "'; DROP TABLE jobs"):
        assert jobs.get(name, None) is jobs.cancel(name, None) is jobs.delete(name, None) is None
        assert jobs.page(None, limit=1, after=name, order="asc") is None
    prompt = "nul \x00, half \ud800, quote ' \\ % ?"
    made, _ = jobs.submit("me", {"prompt": prompt}, {"model": "tiny"}, FREE, idempotency=("caf\xe9 %s '", "d"))
    assert jobs.get(made.id, "me").fields["prompt"] == prompt
    jobs.close()


@pytest.mark.parametrize(
    ("database", "said"),
    [
        ("mysql://host/name", "must be postgresql://"),
        ("postgresql://h/n?colour=red", "database is no URL"),
        ("postgresql://secret:word@/none?host=/nonexistent", "cannot be reached"),
    ],
)
def test_databases_that_cannot_be_are_refused_with_a_line(tmp_path, database, said):
    pytest.importorskip("psycopg")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "serve", "--folder", str(tmp_path / "s"), "--database", database],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert said in done.stderr
    assert "word" not in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.full
def test_three_workers_make_more_than_one(tmp_path, url, cluster, capsys):
    """The ratio is printed; what is asserted is who worked."""
    seconds = {}
    for number, database in ((1, url), (3, cluster.database())):
        servers = boxes(tmp_path / f"s{number}", database, number)
        try:
            start = time.monotonic()
            names = [servers[0].create(f"steps=10 pause=0.1 number={n}")["id"] for n in range(9)]
            check(servers[0], names)
            seconds[number] = time.monotonic() - start
            assert all(running_of(server, names) for server in servers)
        finally:
            end(servers)
    with capsys.disabled():
        print(f"\nthree workers: {seconds[1] / seconds[3]:.2f} times the throughput of one")


def test_a_pooler_between_changes_nothing(cluster):
    """PgBouncer in transaction mode gives each transaction another connection."""
    with cluster.pooled() as url:
        stores = [PostgresJobs(url, lease_seconds=0.5) for _ in range(3)]
        names = [add(stores[n % 3]).id for n in range(30)]
        ended = []

        def work(jobs, worker):
            while (job := jobs.claim(worker)) is not None:
                jobs.report(job.id, worker, "denoise", 1, 2, 50)
                assert jobs.is_wanted(job.id, worker)
                assert jobs.finish(job.id, worker, DONE)
                ended.append(job.id)

        threads = [threading.Thread(target=work, args=(jobs, f"{n}-a")) for n, jobs in enumerate(stores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ended) == sorted(names)
        assert stores[0].totals()["completed"] == 30
        for jobs in stores:
            jobs.close()


@pytest.mark.full
def test_two_boxes_with_the_tiny_model(tmp_path, url):
    """The command line's own service with the real engine, a box killed in mid-job; the same request is one video."""
    import hashlib

    with Tiny(tmp_path / "s", url) as first, Tiny(tmp_path / "s", url) as second:
        small = {"size": "32x32", "num_frames": 7, "num_inference_steps": 8, "prompt": "a red ball"}
        names = [first.create(**small, seed=number % 2)["id"] for number in range(6)]
        until(lambda: any(second.get(name)["step"] >= 1 for name in names), "a step", 300)
        until(lambda: running_of(first, names), "a job of the first box", 300)
        first.kill()
        digests = set()
        for name in names:
            until(lambda name=name: second.get(name)["status"] == "completed", name, 300)  # a lease has 60 s
            body = second.client.get(f"/v1/videos/{name}/content").content
            assert body[4:8] == b"ftyp"
            digests.add(hashlib.sha256(body).hexdigest())
        assert len(digests) == 2  # the two seeds, whoever made them
        assert len(list((tmp_path / "s" / "jobs").glob("*/*/video.mp4"))) == 6


class Tiny(Server):
    """`mochi-tt serve` itself, with the built-in model on a mock mesh of one chip."""

    def __init__(self, folder, url):
        service = ["serve", "--model", "tiny", "--mesh", "1x1", "--mode", "golden", "--port", "0"]
        options = ["--folder", str(folder), "--database", url]
        super().__init__(folder, ready=False, command=[sys.executable, "-m", "scripts.cli", *service, *options])
        until(lambda: self.client.get("/ready").status_code == 200, "ready", 300)


def test_a_connection_that_died_idle_is_replaced_unseen(url):
    jobs = PostgresJobs(url)
    name = add(jobs).id
    for act in (lambda: jobs.get(name, None), lambda: add(jobs)):
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert act() is not None
    jobs.close()


def test_servers_that_begin_at_once_have_one_secret_for_links(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from models.service.page import _secret_of

    for number in range(10):
        path = tmp_path / str(number)
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(_secret_of, [path] * 8))) == 1
        assert path.stat().st_mode & 0o077 == 0
    assert len(list(tmp_path.iterdir())) == 10
    path.write_bytes(b"short")
    assert len(_secret_of(path)) == 32
    assert _secret_of(path) == path.read_bytes()


@pytest.mark.parametrize(
    ("act", "state", "answer"), [("cancel", "cancelling", None), ("delete", "in_progress", "in_progress")]
)
def test_a_worker_that_takes_a_job_in_the_same_moment_is_seen(url, act, state, answer):
    jobs, other = PostgresJobs(url), PostgresJobs(url)
    job = add(jobs)
    made = []
    with psycopg.connect(url) as claiming:  # A claim that is not committed yet.
        claiming.execute("UPDATE jobs SET state = 'in_progress', worker = 'w' WHERE id = %s", (job.id,))
        thread = threading.Thread(target=lambda: made.append(getattr(other, act)(job.id, "me")))
        thread.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        with psycopg.connect(url, autocommit=True) as looking:
            until(lambda: looking.execute(waits).fetchone()[0], "it waits for the claim")
        claiming.commit()
        thread.join()
    assert jobs.get(job.id, "me").state == state
    assert answer is None or made == [answer]
    jobs.close()
    other.close()
