"""A quick engine in the place of the pipeline, and a server with it: a job's prompt says what the engine does.

Prompts are words with values: `steps=5 pause=0.01 die=denoise once full bad raise`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from models.machine.errors import Cancelled, InputError
from models.service.engine import Result
from models.service.files import LATENTS, VIDEO
from models.service.jobs import Job
from models.service.keys import Keys
from models.service.serve import serve
from models.service.settings import Settings

SIZE, BIG = 300_000, 60_000_000


def video_of(name: str) -> bytes:
    """The bytes that the engine makes for a job."""
    return (name.encode() * (SIZE // len(name) + 1))[:SIZE]


class FakeEngine:
    def __init__(self, journal: Path | None = None, load_seconds: float = 0.0, refuse: str | None = None):
        self.journal, self.load_seconds, self.refuse = journal, load_seconds, refuse
        self._interrupted = False

    def _note(self, *words: str) -> None:
        if self.journal is not None:
            with open(self.journal, "a") as file:
                file.write(" ".join(words) + "\n")

    def load(self, progress, tell) -> None:
        if self.refuse:
            raise InputError(self.refuse)
        progress("load", 0, 2)
        time.sleep(self.load_seconds)
        progress("load", 2, 2)

    def run(self, job: Job, folder: Path, progress, tell) -> Result:
        self._interrupted = False
        words = dict(word.partition("=")[::2] for word in job.fields["prompt"].split())
        pause, steps = float(words.get("pause", 0)), int(words.get("steps", 2))
        self._note("run", job.id, f"deaths={job.deaths}")
        tell("a message")

        def meet(stage: str) -> None:
            if words.get("die") == stage and not ("once" in words and job.deaths + job.restarts):
                os.kill(os.getpid(), signal.SIGKILL)
            if "full" in words:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
            if "bad" in words:
                raise InputError("prompt is bad: write another")
            if "raise" in words:
                raise RuntimeError(f"secret {folder}")

        progress("encode", 1, 1)
        if not (folder / LATENTS).exists():
            progress("denoise", 0, steps)
            for step in range(steps):
                if self._interrupted:
                    raise Cancelled("cancelled")
                time.sleep(pause)
                meet("denoise")
                self._note("step", job.id)
                progress("denoise", step + 1, steps)
            if self._interrupted:
                raise Cancelled("cancelled")
            (folder / LATENTS).write_bytes(b"latents")
        progress("decode", 0, 1)
        meet("decode")
        progress("write", 0, 1)
        (folder / VIDEO).write_bytes(b"x" * BIG if "big" in words else video_of(job.id))
        meet("write")
        self._note("made", job.id)
        return Result({"denoise": 0.5, "decode": 0.25}, {"computed": 2 * steps, "reused": 0})

    def interrupt(self) -> None:
        self._interrupted = True

    def tidy(self) -> dict[str, float]:
        return {"programs": 7}

    def close(self) -> None:
        self._note("closed")


def main() -> None:
    """`python -m tests.service.fake FOLDER PORT [finish] [small] [slow] [stall] [real] [DATABASE]`: to be killed."""
    from functools import partial

    from models.mochi.setup import Request
    from scripts import interrupts

    folder, words = Path(sys.argv[1]), sys.argv[3:]
    settings = Settings(folder, queue=3 if "small" in words else 1000)
    if "finish" in words:
        settings = replace(settings, on_stop="finish")
    if "stall" in words:
        settings = replace(settings, stall_seconds=1.5)
    if "slow" in words:
        settings = replace(settings, body_seconds=2.0, send_seconds=2.0)
    settings = replace(settings, shared=next((word for word in words if "://" in word), None), lease_seconds=4.0)
    stated = os.environ.get("MOCHI_TT_KEYS", "")
    keys = Keys.read(stated[1:], None) if stated.startswith("@") else Keys.read(None, stated)
    with interrupts.remembered():
        serve(
            settings,
            Request("tiny", mesh="1x1", mode="golden"),
            port=int(sys.argv[2]),
            keys=keys,
            make_engine=None if "real" in words else partial(FakeEngine, folder / "journal"),
            on_start=lambda address: print(address, flush=True),
        )
    print("ended in order", flush=True)


if __name__ == "__main__":
    main()
