"""A server with the fake engine as a process of its own, and what tests do with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]


ADDRESS = re.compile(r"http://[^\s,]+")


class Server:
    """A running server. `folder` outlives it: start another on it."""

    def __init__(self, folder: Path, *options: str, keys: str = "", ready: bool = True, command=()):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.log = folder / f"log-{time.monotonic_ns()}"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command or [sys.executable, "-m", "tests.service.fake", str(folder), "0", *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=os.environ | {"MOCHI_TT_KEYS": keys},
                start_new_session=True,
            )
        found = None
        while found is None:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(self.log.read_text()[-2000:])
            found = ADDRESS.search(line)
        self.url = found[0]
        self.client = httpx.Client(base_url=self.url, timeout=30)
        if ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        until(lambda: self.client.get("/ready").status_code == 200, "ready")

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def worker(self) -> int:
        """Number of the worker's process, which may be gone."""
        return int([line for line in self.lines() if line["event"] == "worker ready"][-1]["worker"].split("-")[0])

    def journal(self) -> list[list[str]]:
        path = self.folder / "journal"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def create(self, prompt: str, **values) -> dict:
        answer = self.client.post("/v1/videos", json={"prompt": prompt, **values})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, name: str) -> dict:
        return self.client.get(f"/v1/videos/{name}").json()

    def wait(self, name: str, *states: str) -> dict:
        wanted = states or ("completed", "failed", "cancelled")
        return until(lambda: (found := self.get(name))["status"] in wanted and found, f"{name}: {wanted}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.client.close()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.client.close()
        return code

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.kill()


def until(done, what: str, seconds: float = 60.0):
    """Wait for what `done` returns to be true, and return it."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)
    return found


def unique(texts) -> bool:
    return len(set(texts)) == len(texts)


ID = re.compile(r"video_[0-9a-f]{32}")
