"""Timing of the pipeline on its mesh: whole videos after a warm-up, and one traced video for the counts."""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from models.machine.errors import InputError
from models.machine.systems import System
from models.mochi.geometry import Geometry
from models.mochi.outputs import MochiOutput
from models.mochi.pipeline import MochiPipeline
from models.mochi.sampling.reuse import Forwards
from models.performance.calibration import Calibration, calibrate
from models.performance.trace import Trace, trace
from weight_cache.store import Progress

NOTES = {
    "hardware": "MEASURED on hardware: seconds of whole videos after a warm-up, min / median / max over the runs",
    "simulator": "SIMULATOR: seconds of this host executing the kernels; they say nothing of silicon",
    "golden": "GOLDEN: seconds of this host computing a mock mesh's numbers; they say nothing of silicon",
}
PROMPT = (
    "A paper boat drifts down a rain-washed street, past reflections of neon signs, seen from just above the water."
)
_STAGES = ("encode", "denoise", "decode")
Write = Callable[[np.ndarray], None]
"""Writes the frames [F, H, W, C] of a video, floats from 0 to 1, into a file."""


@dataclass
class _Marks:
    """Positions in a trace where the stages of a run begin, and where each denoising step ends."""

    made: Trace
    starts: dict[str, int] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done == 0:
            self.starts[stage] = self.made.device_calls
        elif stage == "denoise":
            self.steps.append(self.made.device_calls)

    def parts(self) -> dict[str, Trace]:
        """Return the calls of each stage. Denoising is a second, warm step, and the calls before the first step."""
        made, starts = self.made, self.starts
        first, second = self.steps[:2]
        step = second - first
        return {
            "encode": made.part(starts["encode"], starts["denoise"]),
            "prepare": made.part(starts["denoise"], first - step),
            "step": made.part(first, second),
            "decode": made.part(starts["decode"]),
        }


def measure(
    pipe: MochiPipeline,
    system: System,
    geometry: Geometry,
    *,
    num_steps: int,
    runs: int = 3,
    precision: str,
    prompt: str = PROMPT,
    write: Write | None = None,
    options: Mapping[str, Any] | None = None,
    on_message: Callable[[str], None] = lambda line: None,
) -> dict:
    """Make videos with a loaded pipeline and time them.

    First comes a warm-up of two steps, which compiles every program; with `options` a whole video with them follows,
    which compiles theirs. The compile time in the report is that of the two steps minus that of warm ones. Then come
    `runs` whole videos. Last come two traced steps without timing, for counts and peak DRAM.

    Args:
        pipe: an open pipeline; its mode goes into the report.
        system: the machine of the mesh, for utilisation.
        geometry: size of the video.
        num_steps: number of denoising steps, at least 2.
        runs: number of timed videos, at least 1.
        precision: precision of the pipeline, for the report.
        prompt: prompt of the videos; the negative prompt is empty, guidance is on.
        write: writes each video; its time is the stage `output`, which is left out without it.
        options: further arguments of the timed videos, such as `solver` and `reuse`. Their steps are not alike, so the
            report then has no utilisation of denoising.
        on_message: called with a line before each part of the work.

    Returns:
        A report as described in `models.performance.report`.

    Raises:
        ValueError: there are too few steps or runs.
    """
    if num_steps < 2 or runs < 1:
        raise InputError(f"{num_steps} steps and {runs} runs: a measurement needs at least 2 steps and 1 run")

    forwards: list[Forwards] = []
    guidance: list[float] = []

    def video(
        steps: int, progress: Progress | None = None, options: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        out = pipe(
            prompt,
            height=geometry.height,
            width=geometry.width,
            num_frames=geometry.num_frames,
            num_inference_steps=steps,
            seed=0,
            output_type="np",
            progress=progress,
            **(options or {}),
        )
        assert isinstance(out, MochiOutput)  # This is the default return type.
        forwards[:], guidance[:] = out.forwards, out.guidance
        seconds = {stage: out.seconds[stage] for stage in _STAGES}
        if write is not None:
            start = perf_counter()
            write(out.frames[0])
            seconds["output"] = perf_counter() - start
        return {**seconds, "total": sum(seconds.values())}

    on_message("warm-up")
    cold, warm_step = video(2), 0.0
    if options:
        warm_step = video(2)["denoise"] / 2
        video(num_steps, options=options)
    timed = []
    for run in range(runs):
        on_message(f"run {run + 1} of {runs}")
        timed.append(video(num_steps, options=options))
    computed, is_guided = forwards[0].to_json(), max(guidance) > 1
    on_message("counting")
    with trace(pipe.transformer.mesh.device) as made:
        marks = _Marks(made)
        video(2, marks)
    seconds = {stage: _range([run[stage] for run in timed]) for stage in timed[0]}
    seconds["step"] = _range([run["denoise"] / num_steps for run in timed])
    parts = marks.parts()
    warm = {"encode": seconds["encode"]["median"], "decode": seconds["decode"]["median"]}
    warm["denoise"] = 2 * (warm_step if options else seconds["step"]["median"])
    report = {
        "mode": pipe.mode,
        "note": NOTES[pipe.mode],
        "system": system.name,
        "layout": str(pipe.layout),
        "precision": precision,
        "height": geometry.height,
        "width": geometry.width,
        "num_frames": geometry.num_frames,
        "num_steps": num_steps,
        "guidance": is_guided,
        "forwards": computed if options else None,
        "runs": runs,
        "seconds": seconds,
        "compile_seconds": {stage: round(max(cold[stage] - warm[stage], 0.0), 3) for stage in _STAGES},
        "dram_peak_bytes": made.dram_peak_bytes,
        "counts": {name: part.counts() for name, part in parts.items()},
        "per_op": [
            {"stage": name, "op": op, **row} for name, part in parts.items() for op, row in part.by_op().items()
        ],
    }
    if pipe.mode == "hardware":
        used = utilisation(parts, seconds, num_steps, system)
        report["utilisation"] = {stage: part for stage, part in used.items() if stage != "denoise" or not options}
    return report


def time_calls(
    pipe: MochiPipeline, system: System, geometry: Geometry, *, step_seconds: float, precision: str
) -> Calibration:
    """Time every call of a warm denoising step, one after the other, and compare it with the cost model.

    Args:
        pipe: an open pipeline that has made a video of this size.
        system: the machine of the mesh.
        geometry: size of the video.
        step_seconds: of a whole step, as `measure` has found it without options: both branches, every block.
        precision: of the pipeline.
    """
    capture, pipe.capture = pipe.capture, False
    try:
        with trace(pipe.transformer.mesh.device, timed=True) as made:
            marks = _Marks(made)
            pipe(
                PROMPT,
                height=geometry.height,
                width=geometry.width,
                num_frames=geometry.num_frames,
                num_inference_steps=2,
                seed=0,
                output_type="latent",
                progress=marks,
            )
    finally:
        pipe.capture = capture
    first, second = marks.steps[:2]
    return calibrate(
        made.part(first, second),
        system,
        step_seconds=step_seconds,
        layout=str(pipe.layout),
        precision=precision,
        ttnn=importlib.metadata.version("ttnn"),
    )


def utilisation(
    parts: dict[str, Trace], seconds: dict[str, dict[str, float]], num_steps: int, system: System
) -> dict[str, dict[str, float]]:
    """Return the fractions of a chip's HiFi2 peak, DRAM and link bandwidth that the median run used, per stage.

    Args:
        parts: traces of `encode`, `prepare`, one `step` and `decode`.
        seconds: times per stage, with `median`.
        num_steps: number of denoising steps of a run.
        system: the machine.
    """
    chip = system.architecture
    peaks = {
        "flops": system.peak_flops("HiFi2"),
        "dram_bytes": chip.dram_bytes_per_second,
        "link_bytes": chip.link_bytes_per_second * min(system.links),
    }
    names = {"flops": "matrix", "dram_bytes": "dram", "link_bytes": "links"}
    repeats = {"encode": {"encode": 1}, "denoise": {"prepare": 1, "step": num_steps}, "decode": {"decode": 1}}
    return {
        stage: {
            names[what]: sum(parts[part].total(what) * times for part, times in made.items())
            / (peak * seconds[stage]["median"])
            for what, peak in peaks.items()
        }
        for stage, made in repeats.items()
    }


def _range(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}
