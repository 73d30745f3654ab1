"""Projected time of a video on a system that nobody measured: the dry run's op trace through the cost model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from models.machine.attention_steps import is_covered, is_measured
from models.machine.systems import System
from models.mochi.sampling.reuse import Blocks, Forwards
from models.mochi.sampling.schedule import NUM_STEPS
from models.performance.calibration import Calibration, find
from models.performance.cost_model import OpTime, Seconds, attention_chunks, dispatch, op_time, output, total
from models.performance.dry_run import DryRun
from models.performance.trace import Record, Trace

FIRST_LINE = "PROJECTION: no card was used; op trace of a full-size dry run on a mock mesh, times from a cost model"
# Stages of the report, and the number of runs of each traced part in one video of n guided steps.
_PARTS = {
    "encode": {"encode": "once"},
    "denoise": {
        "prepare": "once",
        "denoise": "steps",
        "guide": "steps",
        "denoise_reused": "steps",
        "guide_reused": "steps",
    },
    "decode": {"decode": "once"},
    # Of a video that is given, and only where the dry run traced it.
    "encode_video": {"encode_video": "once"},
}
_OPTIONAL = frozenset({"encode_video"})
_CAPTURED = ("denoise", "guide", "denoise_reused", "guide_reused")
NOT_COUNTED = (
    "a second text encoding (an empty negative prompt of zeros needs none); compilation; host work outside of op "
    "dispatch and of the output"
)


@dataclass(frozen=True)
class OpRow:
    """All calls of one op in one stage of a whole video, per chip."""

    stage: str
    op: str
    kind: str
    calls: int
    flops: float
    dram_bytes: float
    link_bytes: float
    exposed_link_bytes: float
    seconds: Seconds
    bound: str

    def to_json(self) -> dict:
        """Return the row as plain data."""
        return {**vars(self), "seconds": self.seconds.to_json()}


@dataclass(frozen=True)
class Projection:
    """Projected seconds of one video with guidance in every step, and their parts.

    With a `calibration` the time of each kind of op is what was measured on the machine. With `forwards` the steps are
    those that they tell, in place of `num_steps` guided ones that are computed; the run must have traced what they
    reuse.
    """

    system: System
    run: DryRun
    num_steps: int
    calibration: Calibration | None = None
    forwards: Forwards | None = None

    @classmethod
    def on_this_machine(
        cls, system: System, run: DryRun, num_steps: int, *, named: str | None = None, forwards: Forwards | None = None
    ) -> "Projection":
        """Project with the calibration that is named or that this machine has (`models.performance.calibration.find`).

        Raises:
            InputError: the file is no calibration, or one of another system.
        """
        return cls(system, run, num_steps, find(named, system.name, run.precision.name), forwards)

    def __post_init__(self) -> None:
        if self.forwards is not None and self.forwards.reused:
            assert "denoise_reused" in self.run.stages, "the dry run traced no step that reuses blocks"

    def repeats(self, part: str) -> int:
        """Return the number of runs of a traced part in one video."""
        if any(parts.get(part) == "once" for parts in _PARTS.values()):
            return 1
        name, _, reused = part.partition("_")
        if self.forwards is None:
            return 0 if reused else self.num_steps
        wanted = Blocks.REUSED if reused else Blocks.COMPUTED
        return sum(blocks is wanted for branches, blocks in self.forwards.steps if name == "denoise" or branches > 1)

    def part_seconds(self, part: str) -> Seconds:
        """Return the seconds of one run of a traced part.

        It is the time of its calls in a row, or of the host's dispatch of them if that is longer. A denoising step is
        captured and replayed on cards (`models.parallel.Replay`), so only the slow case waits for the host there.
        """
        trace = self.run.stages[part]
        device = total(time.seconds for _, time in self._times(trace))
        sent = device.at_least(dispatch(trace.device_calls, self.system))
        return replace(device, high=sent.high) if part in _CAPTURED else sent

    def seconds(self) -> dict[str, Seconds]:
        """Return the seconds of `encode`, `denoise`, `decode`, `output` and `total`, and of one denoising step.

        `output` is the way of the frames to the host and into an mp4; it is there if the video is decoded.
        """
        stages = {
            stage: total(self.part_seconds(part) * self.repeats(part) for part in parts if part in self.run.stages)
            for stage, parts in _PARTS.items()
            if stage not in _OPTIONAL or stage in self.run.stages
        }
        if "decode" in self.run.stages:
            geometry = self.run.geometry
            stages["output"] = output(geometry.num_frames * geometry.height * geometry.width)
        step = total(self.part_seconds(part) for part in ("denoise", "guide") if part in self.run.stages)
        return {**stages, "total": total(stages.values()), "step": step}

    def of_steps(self, num_steps: int) -> Seconds:
        """Return the seconds of a whole video of another number of steps."""
        return replace(self, num_steps=num_steps, forwards=None).seconds()["total"]

    def unmeasured_chunks(self) -> dict[str, str]:
        """Return the chunks of attention in a denoising step that no published time is of, and what stands in."""
        traces = [self.run.stages[part] for part in _CAPTURED if part in self.run.stages]
        costs = {record.cost for trace in traces for record in trace.records if record.cost.steps}
        shapes = {attention_chunks(cost) for cost in costs}
        return {
            f"{q:g}x{k:g}": "their time lies between published ones of other shapes"
            if is_covered(q, k)
            else "nobody has published a time near it, so a line stands in"
            for q, k in sorted(shapes)
            if not is_measured(q, k)
        }

    def rows(self) -> list[OpRow]:
        """Return the time of the whole video by stage and op, longest first."""
        made: dict[tuple[str, str], list[tuple[Record, OpTime, float]]] = {}
        for stage, parts in _PARTS.items():
            for part in parts:
                if part in self.run.stages and self.repeats(part):
                    for record, time in self._times(self.run.stages[part]):
                        made.setdefault((stage, record.name), []).append((record, time, self.repeats(part)))
        rows = [_row(stage, op, calls) for (stage, op), calls in made.items()]
        return sorted(rows, key=lambda row: -row.seconds.expected)

    def by_kind(self) -> dict[str, dict[str, Seconds]]:
        """Return the seconds per stage and kind of op. Kinds are in the order of `rows`, longest op first."""
        table: dict[str, dict[str, Seconds]] = {stage: {} for stage in _PARTS if stage not in _OPTIONAL}
        for row in self.rows():
            stage = table.setdefault(row.stage, {})
            stage[row.kind] = stage.get(row.kind, Seconds()) + row.seconds
        return table

    def to_json(self) -> dict:
        """Return the report as plain data."""
        geometry = self.run.geometry
        return {
            "mode": "projection",
            "note": FIRST_LINE,
            "not_counted": NOT_COUNTED,
            "calibration": str(self.calibration) if self.calibration is not None else None,
            "unmeasured_chunks": self.unmeasured_chunks(),
            "system": self.system.name,
            "verified_system": self.system.verified,
            "layout": self.run.mesh,
            "precision": self.run.precision.name,
            "height": geometry.height,
            "width": geometry.width,
            "num_frames": geometry.num_frames,
            "num_steps": self.num_steps,
            "guidance": True,
            "forwards": self.forwards.to_json() if self.forwards is not None else None,
            "seconds": {stage: seconds.to_json() for stage, seconds in self.seconds().items()},
            "default_steps": {"num_steps": NUM_STEPS, "total": self.of_steps(NUM_STEPS).to_json()},
            "dram_peak_bytes": self.run.dram_peak_bytes,
            "counts": {part: trace.counts() for part, trace in self.run.stages.items()},
            "by_kind": {
                stage: {kind: seconds.to_json() for kind, seconds in kinds.items()}
                for stage, kinds in self.by_kind().items()
            },
            "per_op": [row.to_json() for row in self.rows()],
        }

    def _times(self, trace: Trace) -> Iterator[tuple[Record, OpTime]]:
        for record in trace.records:
            time = op_time(record, self.system)
            yield record, time if self.calibration is None else self.calibration.applied(time)


def _row(stage: str, op: str, calls: list[tuple[Record, OpTime, float]]) -> OpRow:
    def counted(what: str) -> float:
        return sum(getattr(record.cost, what) * times for record, _, times in calls)

    bounds: dict[str, float] = {}
    for _, time, times in calls:
        bounds[time.bound] = bounds.get(time.bound, 0.0) + time.seconds.expected * times
    return OpRow(
        stage=stage,
        op=op,
        kind=calls[0][1].kind,
        calls=round(sum(times for _, _, times in calls)),
        flops=counted("flops"),
        dram_bytes=counted("dram_bytes"),
        link_bytes=counted("link_bytes"),
        exposed_link_bytes=counted("exposed_link_bytes"),
        seconds=total(time.seconds * times for _, time, times in calls),
        bound=max(bounds, key=lambda name: bounds[name]),
    )
