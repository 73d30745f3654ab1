"""Jobs as clients see them, by a server with the fake engine that all tests of this file share."""

import errno
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time

import numpy as np
import openai
import pytest

from models.jobs.video import write_mp4
from tests.service.fake import SIZE, video_of
from tests.service.harness import ROOT, Server, until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("service") / "s") as made:
        yield made


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_openai_client_makes_a_video(client):
    video = client.videos.create_and_poll(
        prompt="steps=2",
        size="848x480",
        seconds="4",
        extra_body={"num_inference_steps": 8, "seed": 7},
        poll_interval_ms=50,
    )
    assert (video.status, video.progress, video.size, video.error) == ("completed", 100, "848x480", None)
    assert video.model_extra["settings"]["num_inference_steps"] == 8
    assert video.model_extra["settings"]["num_frames"] == 121
    assert client.videos.download_content(video.id).read() == video_of(video.id)
    assert client.videos.download_content(video.id, variant="video").read() == video_of(video.id)
    raw = client.videos.with_raw_response.retrieve(video.id)
    assert raw.headers["openai-poll-after-ms"] == "2000"
    assert video.id in [each.id for each in client.videos.list(limit=100)]
    assert client.videos.retrieve(video.id).id == video.id
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl: apt-get install curl")
def test_the_commands_of_the_documentation_by_curl(server, tmp_path):
    text = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    lines = [line.partition("#")[0] for line in text.splitlines() if line.startswith("curl ")]
    assert len(lines) >= 7
    write_mp4(np.zeros((30, 32, 32, 3), np.uint8), tmp_path / "clip.mp4", 30)
    name, answers = None, []
    for line in lines:
        if "cancel" in line:  # The one that was made has ended; this one waits.
            server.create("steps=30 pause=0.05")
            name = server.create("waits")["id"]
        command = shlex.split(
            line.replace("localhost:8000", server.url.removeprefix("http://")).replace("ID", name or "")
        )
        ran = subprocess.run(
            [*command, "-w", "\n%{http_code}"], cwd=tmp_path, capture_output=True, text=True, timeout=30
        )
        answer, _, status = ran.stdout.rpartition("\n")
        assert (ran.returncode, status) == (0, "200"), (line, answer)
        answers.append(json.loads(answer) if answer else None)
        if name is None:
            name = answers[0]["id"]
            server.wait(name)
    assert answers[0]["size"] == "96x64"
    assert answers[2]["status"] == "completed"
    assert (tmp_path / "video.mp4").read_bytes() == video_of(answers[0]["id"])
    assert answers[4]["status"] == "cancelled"
    assert answers[6]["deleted"] is True
    assert answers[7]["settings"]["strength"] == 0.7
    again = ["curl", "-s", "-C", "-", "-o", "video.mp4", f"{server.url}/v1/videos/{answers[0]['id']}/content"]
    (tmp_path / "video.mp4").write_bytes(video_of(answers[0]["id"])[:1000])
    assert subprocess.run(again, cwd=tmp_path, timeout=30).returncode == 0
    assert (tmp_path / "video.mp4").read_bytes() == video_of(answers[0]["id"]), "a download goes on where it stopped"


@pytest.mark.parametrize(
    ("values", "extra", "param"),
    [
        ({"size": "850x480"}, {}, "size"),
        ({"seconds": "-1"}, {}, "seconds"),
        ({"seconds": "9999"}, {}, "seconds"),
        ({}, {"num_frames": "62"}, "num_frames"),
        ({}, {"num_frames": 10**9 * 6 + 1}, "num_frames"),
        ({}, {"num_inference_steps": 0}, "num_inference_steps"),
        ({}, {"num_inference_steps": "1e1"}, "num_inference_steps"),
        ({}, {"guidance_scale": "nan"}, "guidance_scale"),
        ({}, {"guidance_scale": 0.5}, "guidance_scale"),
        ({}, {"solver": "heun"}, "solver"),
        ({}, {"preset": "slow"}, "preset"),
        ({}, {"reuse": "steps:/etc/passwd"}, "reuse"),
        ({}, {"reuse": "5"}, "reuse"),
        ({}, {"lora": "../secret"}, "lora"),
        ({}, {"seed": -1}, "seed"),
        ({}, {"seed": 2**64}, "seed"),
        ({}, {"fps": 0}, "fps"),
        ({}, {"linear_steps": 999}, "linear_steps"),
        ({}, {"guidance_interval": "0.9:0.1"}, "guidance_interval"),
        ({}, {"unknown": "1"}, "unknown"),
        ({"size": "64x64"}, {"width": 64}, "size"),
        ({"seconds": "1"}, {"num_frames": 7}, "seconds"),
        ({"model": "sora-2"}, {}, "model"),
    ],
)
def test_bad_fields_are_refused_by_name(server, client, values, extra, param):
    before = server.client.get("/v1/videos").json()["first_id"]
    with pytest.raises(openai.APIStatusError) as error:
        client.videos.create(prompt="x", **values, extra_body=extra)
    assert error.value.status_code in (404, 422)
    assert error.value.body["param"] == param
    assert error.value.body["type"] == "invalid_request_error"
    assert server.client.get("/v1/videos").json()["first_id"] == before


def test_json_and_form_are_the_same(server):
    values = {"prompt": "x", "num_frames": "61", "num_inference_steps": 3, "guidance_scale": "2.5"}
    one = server.client.post("/v1/videos", json=values).json()
    two = server.client.post("/v1/videos", files={name: (None, str(value)) for name, value in values.items()}).json()
    three = server.client.post("/v1/videos", data=values).json()
    assert one["settings"] == two["settings"] == three["settings"]
    assert (one["settings"]["num_frames"], one["settings"]["guidance_scale"]) == (61, 2.5)


def test_progress_position_and_estimate(server):
    server.wait(server.create("steps=2")["id"])
    first = server.create("steps=50 pause=0.03")
    second = server.create("steps=2")
    server.wait(first["id"], "in_progress")
    until(lambda: server.get(first["id"])["step"] and server.get(first["id"])["progress"] > 3, "progress")
    running, waiting = server.get(first["id"]), server.get(second["id"])
    assert (running["stage"], running["steps"], running["position"], waiting["position"]) == ("denoise", 50, 0, 1)
    assert running["estimate_source"] == waiting["estimate_source"] == "measured"
    assert 0 < running["estimated_seconds"] < waiting["estimated_seconds"]
    done = server.wait(first["id"])
    assert (done["progress"], done["messages"][-1], done["timings"]["denoise"]) == (100, "a message", 0.5)


def test_cancel_takes_effect_within_one_step(server):
    name = server.create("steps=1000 pause=0.2")["id"]
    until(lambda: server.get(name)["step"] > 1, "steps")
    asked = server.client.post(f"/v1/videos/{name}/cancel").json()["status"]
    steps = sum(words == ["step", name] for words in server.journal())
    assert asked in ("cancelling", "cancelled")
    assert server.wait(name)["status"] == "cancelled"
    assert sum(words == ["step", name] for words in server.journal()) <= steps + 2  # the present one, and polling
    assert not (server.folder / "jobs" / name).exists()
    again = server.client.post(f"/v1/videos/{name}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    content = server.client.get(f"/v1/videos/{name}/content")
    assert (content.status_code, content.json()["error"]["code"]) == (404, "not_ready")


def test_one_that_waits_is_cancelled_at_once_and_one_that_runs_is_not_deleted(server):
    running = server.create("steps=1000 pause=0.05")["id"]
    waiting = server.create("x")["id"]
    server.wait(running, "in_progress")
    assert server.client.post(f"/v1/videos/{waiting}/cancel").json()["status"] == "cancelled"
    refused = server.client.delete(f"/v1/videos/{running}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "running")
    server.client.post(f"/v1/videos/{running}/cancel")
    server.wait(running)
    assert server.client.delete(f"/v1/videos/{running}").json() == {
        "id": running,
        "object": "video.deleted",
        "deleted": True,
    }


@pytest.mark.parametrize(
    ("word", "code", "restarts"),
    [("full", "disk_full", 0), ("bad", "invalid_value", 0), ("raise", "internal_error", 1)],
)
def test_a_job_fails_and_the_service_goes_on(server, word, code, restarts):
    worker = server.worker()
    failed = server.wait(server.create(word)["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", code)
    assert str(server.folder) not in str(failed)
    assert os.strerror(errno.ENOSPC) not in str(failed)
    assert server.wait(server.create("x")["id"])["status"] == "completed"
    assert (server.worker() != worker) == bool(restarts)  # after an unknown error the next job has a fresh mesh
    traced = [line for line in server.lines() if line["event"] == "job failed" and line["job"] == failed["id"]]
    assert "Traceback" in traced[0]["traceback"]


def test_ranges_and_tags(server):
    name = server.create("x")["id"]
    server.wait(name)
    path, whole = f"/v1/videos/{name}/content", video_of(name)

    def get(**headers):
        return server.client.get(path, headers={key.replace("_", "-"): value for key, value in headers.items()})

    tag = get().headers["etag"]
    for asked, first, end in (("0-9", 0, 10), ("5-", 5, SIZE), ("-7", SIZE - 7, SIZE), (f"9-{10 * SIZE}", 9, SIZE)):
        answer = get(range=f"bytes={asked}")
        assert (answer.status_code, answer.content) == (206, whole[first:end])
        assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{SIZE}"
    for asked in ("9-2", "a-b", "-", "0-1,4-5"):
        assert get(range=f"bytes={asked}").status_code == 200
    for asked in (f"{SIZE}-", "-0"):
        answer = get(range=f"bytes={asked}")
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{SIZE}")
        assert answer.json()["error"]["code"] == "bad_range"
    assert get(if_none_match=f'"x", {tag}').status_code == 304
    assert get(if_none_match='"x"').status_code == 200
    assert get(range="bytes=0-1", if_range=tag).status_code == 206
    assert get(range="bytes=0-1", if_range='"x"').status_code == 200
    head = server.client.head(path)
    assert (head.headers["content-length"], head.content) == (str(SIZE), b"")


def test_a_download_goes_on_though_the_video_is_deleted(server):
    name = server.create("x")["id"]
    server.wait(name)
    with server.client.stream("GET", f"/v1/videos/{name}/content") as answer:
        chunks = answer.iter_bytes(1000)
        got = next(chunks)
        assert server.client.delete(f"/v1/videos/{name}").status_code == 200
        assert got + b"".join(chunks) == video_of(name)
    assert server.client.get(f"/v1/videos/{name}/content").status_code == 404


def test_the_same_idempotency_key_is_one_job(server):
    def post(prompt):
        return server.client.post("/v1/videos", json={"prompt": prompt}, headers={"Idempotency-Key": "mine"})

    assert post("x").json()["id"] == post("x").json()["id"]
    assert (post("y").status_code, post("y").json()["error"]["code"]) == (409, "idempotency_key_reused")


def test_the_preview_of_an_engine_is_served(server):
    name = server.create("steps=100 pause=0.05")["id"]
    server.wait(name, "in_progress")
    assert server.client.get(f"/v1/videos/{name}/preview").json()["error"]["code"] == "no_preview"
    (folder,) = until(lambda: list((server.folder / "jobs" / name).glob("*")), "folder of the claim")
    (folder / "preview.png").write_bytes(b"picture")
    assert server.client.get(f"/v1/videos/{name}/preview").content == b"picture"
    server.client.post(f"/v1/videos/{name}/cancel")


def test_tt_media_server_and_replicate(server):
    made = server.client.post("/v1/videos/generations", json={"prompt": "x", "num_inference_steps": 4, "seed": 3})
    assert (made.status_code, made.json()["status"], made.json()["job_type"]) == (202, "queued", "video")
    name = made.json()["id"]
    server.wait(name)
    assert server.client.get(f"/v1/videos/generations/{name}").json()["status"] == "completed"
    assert server.client.get(f"/v1/videos/generations/{name}/download").content == video_of(name)
    assert server.client.get("/v1/videos/jobs").json()[0]["id"] == name
    assert server.client.get("/tt-liveness").status_code == 200
    assert server.client.post("/v1/videos/generations/i2v", json={}).status_code == 404

    done = server.client.post("/v1/predictions", json={"input": {"prompt": "x"}}, headers={"Prefer": "wait=30"})
    assert (done.status_code, done.json()["status"]) == (201, "succeeded")
    assert server.client.get(done.json()["output"]).content == video_of(done.json()["id"])
    assert server.client.get(done.json()["urls"]["get"]).json()["id"] == done.json()["id"]
    refused = server.client.post("/v1/predictions", json={"input": {"prompt": "x", "steps": 4}})
    assert refused.json()["error"]["param"] == "steps"
    assert server.client.post("/v1/predictions", json={"input": {"prompt": "x"}, "webhook": "u"}).status_code == 422
    running = server.client.post("/v1/predictions", json={"input": {"prompt": "steps=900 pause=0.05"}}).json()["id"]
    server.client.post(f"/v1/predictions/{running}/cancel")
    server.wait(running)
    assert server.client.get(f"/v1/predictions/{running}").json()["status"] == "canceled"


def test_a_locked_database_is_answered_with_503_and_the_job_still_ends(server):
    name = server.create("steps=30 pause=0.02")["id"]
    server.wait(name, "in_progress")
    other = sqlite3.connect(server.folder / "jobs.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    refused = server.client.post("/v1/videos", json={"prompt": "x"})
    assert server.client.get("/health").status_code == 200
    assert server.get(name)["status"] == "in_progress"  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_busy"), time.monotonic() - start
    assert "retry-after" in refused.headers
    assert server.wait(name)["status"] == "completed"


def test_metrics_logs_and_openapi(server):
    name = server.create("a secret prompt")["id"]
    server.wait(name)
    until(lambda: any(line["event"] == "job ended" and line["job"] == name for line in server.lines()), "log")
    assert "secret prompt" not in server.log.read_text()
    text = server.client.get("/metrics").text
    for figure in (
        "mochi_tt_jobs{",
        "mochi_tt_stage_seconds_total{",
        "mochi_tt_forwards_total{",
        "mochi_tt_worker_programs 7",
    ):
        assert figure in text
    paths = server.client.get("/openapi.json").json()
    assert "/v1/videos/{video_id}/content" in paths["paths"]
    assert paths["components"]["schemas"]["VideoCreate"]["examples"]
    assert paths["components"]["schemas"]["VideoCreate"]["additionalProperties"] is False


def test_the_worker_is_stopped_without_a_job(server):
    """Killed while nothing runs: the next job is made by the next worker."""
    os.kill(server.worker(), signal.SIGKILL)
    assert server.wait(server.create("x")["id"])["status"] == "completed"
    health = server.client.get("/metrics").text
    assert "mochi_tt_worker_restarts_total 0" not in health
