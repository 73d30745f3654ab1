"""The job behind `mochi-tt evaluate --compare-settings`: what fewer forwards cost in quality, and what they save.

Each setting makes the same prompts from the same noise through TTNN on a mesh. Its videos are compared with those of
the full run (64 Euler steps, guidance in all, nothing reused), and looked at. Beside that stand the seconds that the
forwards of such a run are projected to take with Mochi 1 at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from models.jobs.evaluate import ATTRIBUTES, plan, worst_psnr
from models.machine.files import renamed_when_done
from models.machine.processes import fresh_processes
from models.mochi.config import CONFIGS
from models.mochi.geometry import Geometry
from models.mochi.inputs import make_latents
from models.mochi.pipeline import MochiPipeline
from models.mochi.sampling.reuse import Blocks, Forwards, ReuseBelow
from models.mochi.setup import check_configs
from models.performance.projection import Projection
from models.tiny.vision import Sight, look

Settings = Mapping[str, Any]
SYSTEMS = ("quietbox", "galaxy")
FULL: Settings = {"num_inference_steps": 64}
PROMPTS = 3
COMPARED: tuple[Settings, ...] = (
    *({"num_inference_steps": steps} for steps in (32, 16, 12, 8)),
    *({"num_inference_steps": steps, "solver": "unipc"} for steps in (32, 24, 16, 12, 8)),
    *({"num_inference_steps": steps, "solver": "ab2"} for steps in (32, 16)),
    {"num_inference_steps": 64, "guidance_interval": "0.1:1"},
    {"num_inference_steps": 64, "guidance_reuse": 3},
    *({"num_inference_steps": 64, "reuse": threshold} for threshold in (0.05, 0.1, 0.2)),
    {"num_inference_steps": 32, "solver": "unipc", "reuse": 0.1},
    {"num_inference_steps": 24, "solver": "unipc", "guidance_reuse": 3},
)


@dataclass
class Row:
    """What one setting did: the forwards of each prompt, the PSNR of its worst frame in dB, and what is right in it.

    `seconds` are those of a full-size video by system, the mean over prompts (`project`).
    """

    settings: Settings
    forwards: list[Forwards] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, forwards: Forwards, psnr: float, seen: Sight, asked: Sight) -> None:
        """Take the video of one prompt."""
        self.forwards.append(forwards)
        self.psnr.append(psnr)
        self.right.append(mean(getattr(seen, name) == getattr(asked, name) for name in ATTRIBUTES))

    def number(self, wanted: Blocks) -> float:
        """Return the number of forwards that did this with their blocks, of both branches, the mean over prompts."""
        return mean(sum(number for number, blocks in run.steps if blocks is wanted) for run in self.forwards)

    @property
    def name(self) -> str:
        """The settings in words, such as `unipc 16`."""
        rest = dict(self.settings)
        words = [rest.pop("solver", "euler"), str(rest.pop("num_inference_steps"))]
        return ", ".join([" ".join(words), *(f"{key.replace('_', ' ')} {value}" for key, value in rest.items())])

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {
            "settings": dict(self.settings),
            "name": self.name,
            "forwards_computed": self.number(Blocks.COMPUTED),
            "forwards_reused": self.number(Blocks.REUSED),
            "seconds": {system: round(seconds, 1) for system, seconds in self.seconds.items()},
            "psnr_mean": round(mean(self.psnr), 2),
            "psnr_worst": round(min(self.psnr), 2),
            "attributes_right": round(mean(self.right), 4),
        }


def compare_settings(
    model: str,
    limit: int | None,
    *,
    mesh: str,
    precision: str,
    settings: Sequence[Settings] = COMPARED,
    full: Settings = FULL,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Row]:
    """Make the held-out prompts' videos in every setting. The first row is the full run.

    Raises:
        InputError: a value breaks its rule, or weights do not fit.
    """
    checkpoint, defaults, prompts = plan(model, PROMPTS if limit is None else limit)
    geometry = Geometry(defaults.height, defaults.width, defaults.num_frames, check_configs(checkpoint))
    rows = [Row(full), *(Row(each) for each in settings)]
    with MochiPipeline.from_pretrained(checkpoint, mesh=mesh, precision=precision) as pipe:
        done, whole = 0, len(prompts) * len(rows)
        for number, prompt in enumerate(prompts):
            text, asked = prompt.text, prompt.asked[0]
            noise = make_latents(geometry, 1, None, None, defaults.seed + number)
            expected = None
            for row in rows:
                progress("compare", done, whole)
                made = pipe(
                    text,
                    latents=noise,
                    height=defaults.height,
                    width=defaults.width,
                    num_frames=defaults.num_frames,
                    guidance_scale=defaults.guidance_scale,
                    output_type="np",
                    **row.settings,
                )
                frames = torch.from_numpy(made.frames[0])  # type: ignore[union-attr]
                expected = frames if expected is None else expected
                row.add(made.forwards[0], worst_psnr(frames, expected), look(frames), asked)  # type: ignore[union-attr]
                done += 1
        progress("compare", whole, whole)
    return rows


def project(rows: Sequence[Row], precision: str) -> None:
    """Fill in the seconds of rows: those of a full-size video of Mochi 1 with the forwards that the rows made.

    Each system, with reuse and without, is traced in a process of its own.
    """
    with fresh_processes() as pool:
        for system in SYSTEMS:
            for reuses in (False, True):
                some = [row for row in rows if ("reuse" in row.settings) is reuses]
                made = pool.submit(_seconds, system, precision, [row.forwards for row in some], reuses=reuses).result()
                for row, seconds in zip(some, made, strict=True):
                    row.seconds[system] = seconds


def _seconds(name: str, precision: str, rows: Sequence[Sequence[Forwards]], *, reuses: bool) -> list[float]:
    """Return the expected seconds of each row's videos, the mean of the row."""
    from models.device import open_mesh
    from models.machine.systems import system
    from models.mochi.precision import Precision
    from models.parallel import Layout, place
    from models.performance.dry_run import Sampling, dry_run, preview_geometry

    if not rows:
        return []
    machine, steps = system(name), 2
    layout = Layout.default(machine.mesh, CONFIGS["preview"].num_attention_heads)
    sampling = Sampling(reuse=ReuseBelow.of(1.0, steps) if reuses else None)
    with open_mesh(machine.mesh, "dry-run", system=name) as opened:
        placed = place(opened.device, layout)
        run = dry_run(placed, preview_geometry(), precision=Precision.named(precision), steps=steps, sampling=sampling)
    made = Projection.on_this_machine(machine, run, steps)
    return [mean(replace(made, forwards=each).seconds()["total"].expected for each in row) for row in rows]


def table(rows: Sequence[Row]) -> list[str]:
    """Return a Markdown table, the slowest setting first."""
    names = ["setting", "forwards", "reused", *(f"{system}, s" for system in SYSTEMS)]
    names += ["mean PSNR", "worst PSNR", "attributes right"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in sorted(rows, key=lambda row: -row.seconds[SYSTEMS[0]]):
        cells = [row.name, f"{row.number(Blocks.COMPUTED):.0f}", f"{row.number(Blocks.REUSED):.0f}"]
        cells += [f"{row.seconds[system]:.0f}" for system in SYSTEMS]
        same = row is rows[0]
        cells += ["-", "-"] if same else [f"{mean(row.psnr):.1f}", f"{min(row.psnr):.1f}"]
        lines.append(f"| {' | '.join([*cells, f'{mean(row.right):.0%}'])} |")
    return lines


def report(rows: Sequence[Row], mode: str) -> dict[str, Any]:
    """Return all of it as plain data."""
    return {
        "mode": mode,
        "note": "PSNR on the model that was named; seconds are projections of Mochi 1 at full size, no card was used",
        "rows": [row.to_json() for row in rows],
    }


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw seconds against the worst PSNR, a panel for each system."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 8, "svg.hashsalt": "mochi-tt"}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        for axes, system in zip(figure.subplots(1, len(SYSTEMS)), SYSTEMS, strict=True):
            for row in rows[1:]:
                at = row.seconds[system], min(row.psnr)
                axes.plot(*at, "o")
                axes.annotate(row.name, at, textcoords="offset points", xytext=(4, 3))
            axes.axvline(rows[0].seconds[system], linestyle=":", label="the full run")
            axes.set(xlabel=f"projected seconds on {system}", ylabel="PSNR of the worst frame on tiny, dB")
            axes.legend()
        with renamed_when_done(path) as scratch:
            figure.savefig(scratch, format=path.suffix[1:].lower(), dpi=120)
