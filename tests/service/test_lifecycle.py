"""Killed, stopped, started again: every job ends exactly once, and what is served is whole."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.service.fake import video_of
from tests.service.harness import ROOT, Server, unique, until

ENDED = ("completed", "failed", "cancelled")


def check(server: Server, names: list[str]) -> None:
    """Every job has ended once, as completed, and its file is its own."""
    for name in names:
        assert server.wait(name)["status"] == "completed"
        assert server.client.get(f"/v1/videos/{name}/content").content == video_of(name)
    totals = dict(line.split() for line in server.client.get("/metrics").text.splitlines() if line[0] != "#")
    ended = sum(float(totals[f'mochi_tt_ended_total{{state="{state}"}}']) for state in ENDED)
    assert ended == float(totals["mochi_tt_submitted_total"]) == len(names)
    assert unique(names)


def test_the_worker_is_killed_again_and_again(tmp_path):
    """At random moments, and at each stage by the job itself."""
    chance = random.Random(7)
    with Server(tmp_path / "s") as server:
        stages = ("denoise", "decode", "write")
        names = [server.create(f"steps=2 die={stage} once")["id"] for stage in stages]
        check(server, names)
        journal = Counter(tuple(words[:2]) for words in server.journal())
        for name, stage in zip(names, stages, strict=True):
            assert journal["made", name] == 1
            # Where denoising was done before the kill, its latents are taken.
            assert journal["step", name] == 2, stage
        more = [server.create(f"steps=6 pause=0.02 number={number}")["id"] for number in range(6)]
        for _ in range(2):
            time.sleep(chance.uniform(0.05, 0.4))
            server.wait_ready()
            os.kill(server.worker(), signal.SIGKILL)
        check(server, names + more)
        assert [line for line in server.lines() if line["event"] == "job recovered"]


def test_a_job_that_ends_every_worker_fails_and_the_next_is_made(tmp_path):
    with Server(tmp_path / "s") as server:
        bad = server.create("die=denoise")["id"]
        good = server.create("good")["id"]
        failed = server.wait(bad)
        assert (failed["status"], failed["error"]["code"]) == ("failed", "worker_died")
        assert server.wait(good)["status"] == "completed"


def test_a_worker_that_hangs_is_killed(tmp_path):
    """The job that hangs fails after its third worker; one that moves slowly is left alone."""
    with Server(tmp_path / "s", "stall") as server:
        slow = server.create("steps=6 pause=0.5")["id"]
        hung = server.create("pause=1000")["id"]
        assert server.wait(slow)["status"] == "completed"
        assert server.wait(hung)["error"]["code"] == "worker_died"
        assert server.wait(server.create("x")["id"])["status"] == "completed"
        assert len([words for words in server.journal() if words[:2] == ["run", slow]]) == 1


def kill_servers(folder, times: int, chance: random.Random) -> None:
    names: list[str] = []
    for _ in range(times):
        with Server(folder, ready=False) as server:
            names += [server.create(f"steps=4 pause=0.03 number={number}")["id"] for number in range(3)]
            time.sleep(chance.uniform(0.0, 2.5))
            server.kill()
    with Server(folder) as server:
        check(server, names)


def test_the_server_is_killed_and_started_again(tmp_path):
    kill_servers(tmp_path / "s", 1, random.Random(1))


@pytest.mark.full
def test_the_server_is_killed_twenty_times(tmp_path):
    kill_servers(tmp_path / "s", 20, random.Random(2))


@pytest.mark.full
def test_the_tiny_model_is_made_though_worker_and_server_are_killed(tmp_path):
    """The real engine on a mock mesh: killed in denoising, then the server too. The videos are those of a calm run."""
    small = {"width": 32, "height": 32, "num_frames": 7}
    with Server(tmp_path / "s", "real") as server:
        names = [server.create("a red ball", seed=seed, num_inference_steps=6, **small)["id"] for seed in (1, 2, 3)]
        until(lambda: server.get(names[0])["stage"] == "denoise", "denoise")
        os.kill(server.worker(), signal.SIGKILL)
        until(lambda: server.get(names[0])["status"] == "completed", "the first")
        until(lambda: server.get(names[1])["stage"] in ("denoise", "decode", "write"), "the second")
        server.kill()
    with Server(tmp_path / "s", "real") as server:
        assert [server.wait(name)["status"] for name in names] == ["completed"] * 3
        made = [server.client.get(f"/v1/videos/{name}/content").content for name in names]
    with Server(tmp_path / "calm", "real") as server:
        names = [server.create("a red ball", seed=seed, num_inference_steps=6, **small)["id"] for seed in (1, 2, 3)]
        assert [server.wait(name)["status"] for name in names] == ["completed"] * 3
        assert made == [server.client.get(f"/v1/videos/{name}/content").content for name in names]


def test_the_worker_ends_with_a_server_that_is_killed(tmp_path):
    with Server(tmp_path / "s") as server:
        server.create("steps=1000 pause=0.05")
        until(lambda: any(words[0] == "step" for words in server.journal()), "a step")
        worker = server.worker()
        server.kill()
        until(lambda: not os.path.exists(f"/proc/{worker}"), "the worker's end")


@pytest.mark.parametrize("how", ["park", "finish"])
def test_sigterm(tmp_path, how):
    """The present job is finished, or parked and made by the next server; the others wait for it."""
    with Server(tmp_path / "s", how) as server:
        first = server.create("steps=20 pause=0.05")["id"]
        second = server.create("second")["id"]
        server.wait(first, "in_progress")
        assert server.terminate() == 0
        assert server.process.stdout.read() == "ended in order\n"
        made = [words[1] for words in server.journal() if words[0] == "made"]
        assert made == ([first] if how == "finish" else [])
        assert ["closed"] in server.journal()
    with Server(tmp_path / "s") as server:
        check(server, [first, second])
        again = [words for words in server.journal() if words[0] == "run" and words[1] == first]
        assert len(again) == (1 if how == "finish" else 2)
        assert server.get(first)["error"] is None


def test_submissions_are_refused_while_it_stops_but_results_are_served(tmp_path):
    with Server(tmp_path / "s", "finish") as server:
        done = server.create("done")["id"]
        server.wait(done)
        name = server.create("steps=40 pause=0.05")["id"]
        server.wait(name, "in_progress")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.client.get("/ready").json().get("status") == "stopping", "stopping")
        refused = server.client.post("/v1/videos", json={"prompt": "late"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert "retry-after" in refused.headers
        assert server.client.get(f"/v1/videos/{done}/content").status_code == 200
        assert server.process.wait(30) == 0


def test_two_services_do_not_share_a_folder(tmp_path):
    with Server(tmp_path / "s", ready=False):
        other = subprocess.run(
            [sys.executable, "-m", "scripts.cli", "serve", "--folder", str(tmp_path / "s"), "--port", "0"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert other.returncode == 2
    assert "is in use by another service" in other.stderr
    assert other.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "needs keys"),
        (["--host", "::"], "needs keys"),
        (["--on-stop", "wait"], "finish or park"),
        (["--port", "70000"], "port 70000"),
        (["--host", "192.0.2.1", "--keys", "KEYS"], "cannot be had"),
        (["--keys", "/nonexistent"], "does not exist"),
        (["--lora-folder", "/nonexistent"], "is no folder"),
        (["--model", "/nonexistent"], "/nonexistent"),
        (["--folder", "/proc/x"], "cannot be used"),
        (["--mesh", "9x"], "mesh"),
    ],
)
def test_what_cannot_be_is_refused_with_a_line_at_the_start(tmp_path, arguments, said):
    (tmp_path / "keys").write_text("ann:a-key-of-one-person")
    (tmp_path / "keys").chmod(0o600)
    arguments = [str(tmp_path / "keys") if word == "KEYS" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "serve", "--port", "0", "--folder", str(tmp_path / "s"), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("mochi-tt: error:")
    assert done.stderr.count("\n") == 1


def test_what_lies_in_the_folder_is_its_users_alone(tmp_path):
    """Also where the folder was there before, open to all, with files of an earlier version."""
    folder = tmp_path / "s"
    folder.mkdir(mode=0o755)
    (folder / "service.lock").touch(0o644)
    with Server(folder) as server:
        server.wait(server.create("x")["id"])
        found = [path for path in folder.rglob("*") if not path.name.startswith("log-")]
        assert len(found) > 5
        assert [path for path in found if path.stat().st_mode & 0o077] == []
