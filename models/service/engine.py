"""What makes videos in the worker's process: one open pipeline, kept from job to job.

`Engine` is what `models.service.worker` needs of it; the tests have a quick one. `PipelineEngine` is the real one.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from models.jobs import generate
from models.machine.checks import json_file
from models.machine.errors import InputError
from models.machine.files import Reservation, write_json
from models.mochi.setup import Request
from models.service.files import LATENTS, PREVIEW, RECORD, VIDEO
from models.service.inputs import Inputs
from models.service.jobs import Job
from models.service.requests import Planned, Planner

if TYPE_CHECKING:
    from models.mochi.pipeline import MochiPipeline

Progress = Callable[[str, int, int], None]
Message = Callable[[str], None]
PREVIEWS = 8
"""Pictures of a run while it is made; each costs two downloads of the latents, 8.5 MB at full size."""
MOST_PROGRAMS = 1000
"""Programs in ttnn's cache, above which it is cleared between two jobs: about 100 come with each new geometry."""


@dataclass(frozen=True)
class Result:
    """What a run made. Its video lies in the job's folder.

    Attributes:
        seconds: of each stage.
        forwards: numbers of forwards "computed" and "reused", and "inverted" to the noise of a source.
    """

    seconds: Mapping[str, float]
    forwards: Mapping[str, int] = field(default_factory=dict)


class Engine(Protocol):
    """Makes videos, one at a time."""

    def load(self, progress: Progress, tell: Message) -> None:
        """Open what all jobs share.

        Raises:
            InputError: it cannot be, for a reason that the user can mend.
        """
        ...

    def run(self, job: Job, folder: Path, progress: Progress, tell: Message) -> Result:
        """Make the video of a job in its folder, which may hold latents of an earlier try.

        Raises:
            Cancelled: `interrupt` ended the run.
            InputError: the job breaks a rule.
        """
        ...

    def interrupt(self) -> None:
        """End the present run after its step. Another thread calls this, again and again until the run has ended."""
        ...

    def tidy(self) -> dict[str, float]:
        """Free what a job has left, and return figures for the metrics."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class PipelineEngine:
    """The real engine: a `MochiPipeline` on a mesh that stays open. Another set of LoRAs loads the weights anew."""

    def __init__(
        self,
        request: Request,
        lora_folder: Path | None = None,
        inputs: Inputs | None = None,
        most_programs: int = MOST_PROGRAMS,
    ) -> None:
        """Take what `load` will open."""
        self._request, self._lora_folder, self._inputs, self._most_programs = (
            request,
            lora_folder,
            inputs,
            most_programs,
        )
        self._planner: Planner | None = None
        self._pipe: MochiPipeline | None = None
        self._loaded: tuple[Any, ...] = ()
        self._mesh: Any = None
        self._tell: Message = lambda line: None
        self._cleared = 0

    def load(self, progress: Progress, tell: Message) -> None:
        """See `Engine.load`."""
        self._planner = Planner(self._request, self._lora_folder, inputs=self._inputs)
        self._open(self._planner.setup, progress)

    def _open(self, setup: Any, progress: Progress) -> MochiPipeline:
        """Return a pipeline of a set-up's weights: the one at hand, or another on the same mesh."""
        from models.device import open_mesh
        from models.machine.watchdog import operation_seconds
        from models.mochi.pipeline import MochiPipeline

        wanted = tuple(lora.identity() for lora in setup.loras)
        if self._pipe is not None and wanted == self._loaded:
            return self._pipe
        if self._mesh is None:
            progress("load", 0, 2)
            self._mesh = open_mesh(
                setup.mesh_shape,
                setup.request.mode,
                system=setup.request.system,
                ring=setup.ring,
                operation_seconds=operation_seconds(
                    setup.layout.sp * setup.layout.tp, setup.configs.transformer.inner_dim
                ),
            )
        self._pipe = None
        gc.collect()  # A model and its layers refer to each other: its weights go first, the next ones need the room.
        opened = replace(setup, request=replace(setup.request, mesh=self._mesh), video=None)
        self._pipe = MochiPipeline.load(opened, progress, lambda line: self._tell(line))
        self._loaded = wanted
        return self._pipe

    def run(self, job: Job, folder: Path, progress: Progress, tell: Message) -> Result:
        """See `Engine.run`."""
        assert self._planner is not None
        planned = _planned(self._planner, job)
        self._tell = tell
        try:
            pipe = self._open(planned.setup, progress)
            out = folder / VIDEO
            made = _job_of(planned, out)
            try:
                kept = self._kept(made, folder)
                if kept is None:
                    output = generate.make_latents(pipe, made, progress, tell, self._preview(made, folder))
                    record = generate.record(generate.Made(None, output, pipe.mesh.system, output.seconds), made)  # type: ignore[arg-type]
                    generate.keep_latents(output, made)
                    write_json(record | {"weights": self._weights(made)}, folder / RECORD)
                    latents = output.frames
                else:
                    latents, record = kept
                frames, record["seconds"]["decode"] = generate.make_frames(pipe, latents, progress, tell)
                record["seconds"]["write"] = _written(frames, made, progress)
                write_json(record, out.with_suffix(".json"))
            finally:
                made.reservation.release()
        finally:
            self._tell = lambda line: None
        both = [record["forwards"][branch] for branch in ("conditional", "unconditional")]
        forwards = {kind: sum(branch[kind] for branch in both) for kind in ("computed", "reused")}
        return Result(record["seconds"], forwards | {"inverted": record.get("inversion_forwards", 0)})

    def _kept(self, made: generate.Job, folder: Path) -> tuple[Any, dict[str, Any]] | None:
        """Return the latents of an earlier try, and what was recorded of it, if they are of the very same weights."""
        from models.jobs.latents import load_latents

        with suppress(InputError):  # none, or damaged: the run begins anew
            record = json_file(folder / RECORD, "record", "")
            if record.pop("weights", None) != self._weights(made):
                return None
            latents, _ = load_latents(folder / LATENTS)
            return latents, record
        return None

    def _weights(self, made: generate.Job) -> list[Any]:
        """Return what latents depend on beside the job's own fields."""
        checkpoint = made.setup.checkpoint
        assert checkpoint is not None
        merged = sorted(lora.identity() for lora in made.setup.loras)
        return [json.loads(json.dumps(checkpoint.identity(), default=str)), made.setup.precision.name, merged]

    def _preview(self, made: generate.Job, folder: Path) -> Callable[[int, Any], None] | None:
        """Return what keeps a picture of the estimate in the job's folder, `PREVIEWS` times in a run; None for none.

        One that cannot be written is left out: it never costs the video.
        """
        from models.jobs.previews import write_png
        from models.mochi.preview import LatentRgb, strip

        assert made.setup.checkpoint is not None
        try:
            look = LatentRgb.of(made.setup.checkpoint)
        except InputError:
            return None
        every = -(-len(made.video.guidance) // PREVIEWS)

        def keep(video: int, state: Any) -> None:
            if state.step % every == 0:
                with suppress(OSError):
                    write_png(strip(look.pictures(state.estimate())), folder / PREVIEW)

        return keep

    def interrupt(self) -> None:
        """See `Engine.interrupt`."""
        if self._pipe is not None:
            self._pipe.interrupt()

    def tidy(self) -> dict[str, float]:
        """See `Engine.tidy`; the program cache is cleared where it has grown above its bound."""
        gc.collect()
        device = None if self._mesh is None else self._mesh.device
        programs = 0 if device is None else device.num_program_cache_entries()
        if device is not None and programs > self._most_programs:
            device.clear_program_cache()
            self._cleared += 1
            programs = device.num_program_cache_entries()
        with suppress(OSError, AttributeError):  # what was freed goes back to the system
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return {"programs": programs, "program_cache_clearings": self._cleared}

    def close(self) -> None:
        """See `Engine.close`."""
        self._pipe = None
        if self._mesh is not None:
            self._mesh.close()
            self._mesh = None


def _planned(planner: Planner, job: Job) -> Planned:
    """Check a job again, whose rules another server may have checked for another model.

    Raises:
        InputError: it breaks a rule of this one.
    """
    from models.service.errors import ServiceError

    try:
        return planner.plan(job.fields)
    except ServiceError as error:
        raise InputError(error.message) from error


def _job_of(planned: Planned, out: Path) -> generate.Job:
    prompt, negative = planned.prompts
    start = {} if planned.start is None else planned.start.options
    request = generate.GenerateRequest(
        prompt, planned.setup.request, negative, save_latents=True, out=str(out), **start
    )
    assert planned.setup.video is not None
    return generate.Job(request, planned.setup, planned.setup.video, out, Reservation(out), pictures=planned.pictures)


def _written(frames: Any, made: generate.Job, progress: Progress) -> float:
    from time import perf_counter

    from models.jobs.video import write_mp4

    start = perf_counter()
    write_mp4(frames, made.out, made.video.settings.fps, on_frame=lambda done, total: progress("write", done, total))
    return round(perf_counter() - start, 3)
