"""The job behind `mochi-tt sweep`: many videos with one opening of the mesh, each of them once.

A video is done when the JSON beside it is there, which is written last. So the folder itself is the journal: whatever
ends a sweep, the next one of the same file and folder makes what is not there yet, and nothing twice. A file's name has
the identity of its job in it: a changed line, another checkpoint, LoRA or precision is a new job.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.jobs.generate import GenerateRequest, Message, Progress, check_mode, make, name_of, once, plan, write
from models.jobs.previews import write_png
from models.jobs.start import from_source, name_as_text, used_of_source
from models.jobs.sweep_file import MOST_LINES, BadLines, Line, read_lines
from models.machine.checks import json_file, whole
from models.machine.errors import Cancelled, InputError, MachineError
from models.machine.files import Reservation, check_writable, renamed_when_done
from models.machine.paths import is_taken
from models.mochi.setup import Request, Setup, Video, plain, planned_forwards, resolve

if TYPE_CHECKING:
    from models.jobs.generate import Job
    from models.mochi.pipeline import MochiPipeline

RESULTS, SHEET = "results.csv", "contact-sheet.png"
_COLUMNS = (
    "line",
    "state",
    "file",
    "prompt",
    "source",
    "seed",
    "width",
    "height",
    "num_frames",
    "num_steps",
    "encode_s",
    "denoise_s",
    "decode_s",
    "write_s",
    "forwards",
    "reused",
    "inversion_forwards",
    "error",
)
_TILE, _LABEL, _TILES = (192, 112), 14, 8


@dataclass(frozen=True)
class SweepJob:
    """A line whose rules are checked: what it asks for, its set-up, the steps that are done, and the video's file."""

    line: Line
    request: GenerateRequest
    setup: Setup
    video: Video
    key: str
    out: Path

    def done(self) -> dict[str, Any] | None:
        """Return the record of its video if it was made, whole; else None."""
        record = self.out.with_suffix(".json")
        if not is_taken(record) or not is_taken(self.out):
            return None
        with suppress(InputError):
            found = json_file(record, "", "")
            if found.get("sweep") == {"job": self.key} and found.get("video") == self.out.name:
                return found
        return None


@dataclass
class Sweep:
    """A checked sweep, whose folder no other process writes to.

    Attributes:
        jobs: one for each line, in their order.
        setup: of the models.
        folder: of all files.
        reservation: of the folder.
        limit: most videos that are made in this run; None for all.
        failed: why a job failed, by its key.
    """

    jobs: list[SweepJob]
    setup: Setup
    folder: Path
    reservation: Reservation
    limit: int | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def waiting(self) -> list[SweepJob]:
        """Return the jobs that are not done."""
        return [job for job in self.jobs if job.done() is None]


def plan_sweep(file: str | Path, request: Request, folder: str | Path, limit: int | None = None) -> Sweep:
    """Read a sweep and check every line of it; nothing is started.

    `limit` is the most videos that `run_sweep` makes; None for all.

    Raises:
        BadLines: lines break a rule, or two are the same; all of them are listed.
        InputError: the file or the request breaks a rule, or another process works in the folder.
    """
    check_mode(request.mode)
    if limit is not None:
        whole("limit", limit, 1, MOST_LINES)
    file, folder = Path(file), Path(folder)
    lines, problems = read_lines(file)
    count = len(lines) + len(problems)
    setup = resolve(replace(request, video=None))
    models = _identity(setup)
    jobs: list[SweepJob] = []
    first: dict[str, int] = {}
    for line in lines:
        try:
            own = setup.for_video(line.video)
            asked = _request(line, own)
            begun, _ = from_source(asked, own)
            key = _key(asked, begun, models)
            if key in first:
                raise InputError(f"it makes the same video as line {first[key]}: change its seed, or leave it out")
        except InputError as error:
            problems.append(f"line {line.number}: {error}")
            continue
        first[key] = line.number
        assert begun.video is not None
        name = name_of(line.prompt, begun.video.settings.seed)
        jobs.append(SweepJob(line, asked, own, begun.video, key, folder / f"{name}-{key[:10]}.mp4"))
    if problems:
        raise BadLines(file, sorted(problems, key=_number_of), count)
    check_writable(folder / RESULTS, ".csv")
    return Sweep(jobs, setup, folder, Reservation(folder / RESULTS), limit)


def _number_of(problem: str) -> int:
    return int(problem.split(":")[0].removeprefix("line "))


def _identity(setup: Setup) -> dict[str, Any]:
    """Return what of the models decides the numbers of a video."""
    assert setup.checkpoint is not None
    return {
        "components": {component.name: component.fingerprint() for component in setup.checkpoint.components},
        "loras": setup.weights.merged(),
        "precision": setup.precision.name,
        "mode": setup.mode,
        **asdict(setup.conventions),
    }


def _request(line: Line, setup: Setup) -> GenerateRequest:
    """Return what a line asks for, without the name of its file."""
    begins = asdict(line.beginning)
    video, image = begins.pop("video"), begins.pop("image")
    return GenerateRequest(
        line.prompt,
        setup.request,
        line.negative_prompt,
        source=video if image is None else image,
        is_image=image is not None,
        **begins,
    )


def _key(request: GenerateRequest, setup: Setup, models: dict[str, Any]) -> str:
    """Return 64 hex digits: what a line makes, whatever its names, its order and its place.

    `setup` has the steps that are done.
    """
    video = setup.video
    assert video is not None
    made = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "sigmas": video.sigmas,
        "guidance": video.guidance,
        "solver": video.solver,
        "guidance_reuse": video.used_guidance_reuse(on_halves=setup.on_halves),
        "reuse": plain(video.chosen["reuse"]),
        "reused_steps": planned_forwards(video, on_halves=setup.on_halves).reused,
        "size": [video.geometry.width, video.geometry.height, video.geometry.num_frames],
        "seed": video.settings.seed,
        "fps": video.settings.fps,
        "models": models,
    }
    if request.source is not None and (request.edit or video.sigmas[0] < 1):
        with open(request.source, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        used = used_of_source(request)
        names = ("is_image", "fit", "edit", "eta", "eta_end")
        made["source"] = {"sha256": content} | {name: used[name] for name in names}
        if request.edit:
            made["seed"] = None  # has no effect
        if not request.edit and not video.guidance:
            made |= dict.fromkeys(("prompt", "negative_prompt", "seed", "solver", "guidance_reuse", "reuse"))
    return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()


def run_sweep(
    sweep: Sweep,
    progress: Progress | None = None,
    on_message: Message | None = None,
    on_job: Callable[[SweepJob, int, int], None] | None = None,
    *,
    keep_going: bool = False,
) -> int:
    """Make the videos that are not there yet, and return how many jobs failed.

    Args:
        sweep: what `plan_sweep` gave; its folder is free afterwards.
        progress: called as `progress(stage, done, total)`.
        on_message: called with a line for what the user should know.
        on_job: called before each job with it, its place from 1 and the number of jobs of this run.
        keep_going: whether a job that fails is noted and the next one begun. What the machine refuses ends the sweep in
            any case, because it would refuse the rest too.

    Raises:
        InputError: a job failed and `keep_going` is not set; the machine refuses something.
        Cancelled: `pipe.interrupt()` ended a job.
    """
    from models.mochi.pipeline import MochiPipeline

    with sweep.reservation:
        todo = sweep.waiting()[: sweep.limit]
        tell = once(on_message)
        try:
            if todo:
                with MochiPipeline.load(sweep.setup, progress, tell) as pipe:
                    for place, job in enumerate(todo, 1):
                        if on_job is not None:
                            on_job(job, place, len(todo))
                        try:
                            _make(pipe, job, progress, tell)
                        except (Cancelled, MachineError):
                            raise
                        except Exception as error:
                            of_the_system = isinstance(error, OSError) and not isinstance(error, InputError)
                            sweep.failed[job.key] = _why(error)
                            if of_the_system or not keep_going:
                                raise
                            tell(f"line {job.line.number} failed: {_why(error)}")
                        write_results(sweep)
        finally:
            write_results(sweep)
            write_sheet(sweep)
    return len(sweep.failed)


def _why(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if isinstance(error, InputError) else f"{type(error).__name__}: {said}"[:500]


def _make(pipe: MochiPipeline, sweep_job: SweepJob, progress: Progress | None, tell: Message) -> None:
    """Make the video of a job, with a picture for the contact sheet; its JSON comes last."""
    out = sweep_job.out
    if not is_taken(out.with_suffix(".json")):
        out.unlink(missing_ok=True)  # of a sweep that ended between the video and its JSON
    job: Job = plan(replace(sweep_job.request, out=str(out)), sweep_job.setup)
    with job.reservation:
        for line in job.setup.notes():
            tell(line)
        made = make(pipe, job, progress, tell)
        write_png(_small(made.frames[len(made.frames) // 2]), _picture(out))
        write(made, job, progress, {"sweep": {"job": sweep_job.key}})


def _picture(out: Path) -> Path:
    return out.with_suffix(".png")


def _small(frame: Any) -> Any:
    """Return a frame uint8 [H, W, 3] that fits a tile of the contact sheet."""
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(frame)
    picture.thumbnail(_TILE)
    return np.asarray(picture)


def write_results(sweep: Sweep) -> None:
    """Write the table of all jobs, whole or not at all: what is done, what failed, and what waits.

    Raises:
        OSError: it could not be written.
    """
    table = io.StringIO()
    rows = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
    rows.writeheader()
    rows.writerows(_row(job, sweep.failed.get(job.key)) for job in sweep.jobs)
    with renamed_when_done(sweep.folder / RESULTS) as scratch:
        scratch.write_text(table.getvalue(), encoding="utf-8")


def _row(job: SweepJob, failed: str | None) -> dict[str, Any]:
    video, made = job.video, job.done()
    source = job.line.beginning.video or job.line.beginning.image
    row: dict[str, Any] = {
        "line": job.line.number,
        "state": "done" if made is not None else "waiting" if failed is None else "failed",
        "prompt": job.line.prompt,
        "source": None if source is None else name_as_text(source),
        "seed": video.settings.seed,
        "width": video.geometry.width,
        "height": video.geometry.height,
        "num_frames": video.geometry.num_frames,
        "num_steps": len(video.guidance),
        "error": failed if made is None else None,
    }
    if made is None:
        return row
    row["file"] = job.out.name
    row |= {f"{stage}_s": made["seconds"].get(stage) for stage in ("encode", "denoise", "decode", "write")}
    branches = [counts for counts in made["forwards"].values() if isinstance(counts, dict)]
    return row | {
        "forwards": sum(counts["computed"] for counts in branches),
        "reused": sum(counts["reused"] for counts in branches),
        "inversion_forwards": made.get("inversion_forwards"),  # not in records of earlier versions
    }


def write_sheet(sweep: Sweep) -> None:
    """Write a picture with the middle frame of each video that is done, in the order of the lines.

    Raises:
        OSError: it could not be written.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    done = [job for job in sweep.jobs if job.done() is not None]
    if not done:
        return
    columns = min(_TILES, len(done))
    height = _TILE[1] + _LABEL
    sheet = Image.new("RGB", (columns * _TILE[0], -(-len(done) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, job in enumerate(done):
        left, top = index % columns * _TILE[0], index // columns * height
        with suppress(OSError), Image.open(_picture(job.out)) as picture:
            sheet.paste(picture.convert("RGB"), (left, top))
        draw.text((left + 2, top + _TILE[1] + 1), _label(job), fill="black")
    write_png(np.asarray(sheet), sweep.folder / SHEET)


def _label(job: SweepJob) -> str:
    words = job.line.prompt.encode("ascii", "replace").decode()
    return f"{job.line.number}: {words}"[:30]


def summary(sweep: Sweep) -> Sequence[str]:
    """Return what a sweep left, in lines."""
    waiting = [job for job in sweep.waiting() if job.key not in sweep.failed]
    lines = [f"{len(sweep.jobs) - len(sweep.waiting())} of {len(sweep.jobs)} videos are in {sweep.folder}"]
    if sweep.failed:
        lines.append(f"{len(sweep.failed)} failed: {RESULTS} says why; the same command tries them again")
    if waiting:
        lines.append(f"{len(waiting)} wait: the same command goes on with them")
    return lines
