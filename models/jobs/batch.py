"""Several videos of one request, of one seed after the other, with one opening of the mesh."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.jobs.generate import GenerateRequest, Job, Made, Message, Progress, plan, run_all
from models.machine.checks import json_file, whole
from models.machine.errors import InputError
from models.machine.files import check_writable, write_json
from models.machine.paths import is_taken
from models.mochi.setup import resolve

MOST_VIDEOS = 10_000
"""More are a mistake: each is a job of a minute or more."""


@dataclass(frozen=True)
class Batch:
    """Videos that differ in their seed, checked, and the file that lists them."""

    jobs: list[Job]
    record: Path


def plan_batch(request: GenerateRequest, videos: int) -> Batch:
    """Check a request, and reserve a name for each of its videos, of seeds s, s + 1, ...

    With `out` the files are `NAME-SEED.mp4`. The record is `NAME.batch.json`, or has the first video's name.

    Raises:
        InputError: a value breaks its rule, or a file of one of the names is none of ours.
    """
    whole("the number of videos", videos, 1, MOST_VIDEOS)
    if request.out is not None:
        check_writable(request.out)
    if request.edit and videos > 1:
        raise InputError(f"an edit has no noise of its own, so {videos} videos would be the same one: ask for one")
    setup = resolve(request.request)
    if setup.video is None or request.request.video is None:
        raise InputError("a video has to be asked for: give the request a VideoRequest")
    first = setup.video.settings.seed
    whole(f"the last of {videos} seeds", first + videos - 1, 0, 2**63 - 1)
    jobs: list[Job] = []
    try:
        for seed in range(first, first + videos):
            video = replace(request.request.video, seed=seed)
            out = Path(request.out) if request.out is not None else None
            own = replace(
                request,
                request=replace(request.request, video=video),
                out=None if out is None else str(out.with_stem(f"{out.stem}-{seed}")),
            )
            jobs.append(plan(own, setup.for_video(video)))
        record = Path(request.out or jobs[0].out).with_suffix(".batch.json")
        check_writable(record, ".json")
        if is_taken(record) and "batch" not in json_file(record, "", "move it away, or choose another --out"):
            raise InputError(f"{record} exists and lists no videos of ours: move it away, or choose another --out")
    except BaseException:
        for job in jobs:
            job.reservation.release()
        raise
    return Batch(jobs, record)


def run_batch(batch: Batch, progress: Progress | None = None, on_message: Message | None = None) -> list[Path]:
    """Make the videos and return their files. The record is written anew after each of them.

    Raises:
        InputError, OSError: as `models.jobs.generate.run`; the videos that were made before stay.
    """
    done: list[dict[str, Any]] = []
    created = datetime.now(UTC).isoformat(timespec="seconds")

    def on_made(job: Job, made: Made) -> None:
        done.append({"video": job.out.name, "seed": job.video.settings.seed, "seconds": made.seconds})
        write_json(
            {
                "batch": batch.record.name,
                "created": created,
                "prompt": job.request.prompt,
                "complete": len(done) == len(batch.jobs),
                "seeds": [each.video.settings.seed for each in batch.jobs],
                "videos": done,
            },
            batch.record,
        )

    return run_all(batch.jobs, progress, on_message, on_made)
