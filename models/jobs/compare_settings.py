"""The job behind `mochi-tt evaluate --compare-settings`: what fewer forwards cost in quality, and what they save.

Each setting makes the same prompts from the same noise through TTNN on a mesh. Its videos are compared with those of
the full run (64 Euler steps, guidance in all, nothing reused), and looked at. Beside that stand the seconds that the
forwards of such a run are projected to take with Mochi 1 at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from models.mochi.sampling.reuse import Blocks, Forwards
from models.mochi.setup import check_configs
from models.performance.projection import REUSED_BLOCKS, Projection
from models.tiny.vision import Sight, look

Settings = Mapping[str, Any]
SYSTEMS = ("quietbox", "galaxy")
FULL: Settings = {"num_inference_steps": 64}
PROMPTS = 3
COMPARED: tuple[Settings, ...] = (
    *({"num_inference_steps": steps} for steps in (32, 16, 12)),
    *({"num_inference_steps": steps, "solver": "unipc"} for steps in (32, 24, 16, 12, 8)),
    {"num_inference_steps": 16, "solver": "ab2"},
    {"num_inference_steps": 64, "guidance_interval": "0.1:1"},
    {"num_inference_steps": 64, "guidance_reuse": 3},
    *({"num_inference_steps": 64, "reuse": threshold} for threshold in (0.05, 0.1, 0.2)),
    {"num_inference_steps": 32, "solver": "unipc", "reuse": 0.1},
    {"num_inference_steps": 24, "solver": "unipc", "guidance_reuse": 3},
)
_BLOCKS = CONFIGS["preview"].num_layers


@dataclass(frozen=True)
class FullSize:
    """Projected seconds of Mochi 1 on a system: what each video takes besides forwards, and one forward."""

    system: str
    besides: float
    forward: float

    def seconds(self, computed: float, reused: float) -> float:
        """Return the seconds of a video; forwards that reuse are counted as in a projection."""
        return self.besides + self.forward * (computed + REUSED_BLOCKS / _BLOCKS * reused)


@dataclass
class Row:
    """What one setting did: means over prompts, but the PSNR of each, in dB, of its worst frame."""

    settings: Settings
    computed: list[int] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)

    def add(self, forwards: Forwards, psnr: float, seen: Sight, asked: Sight) -> None:
        """Take the video of one prompt."""
        self.computed.append(sum(number for number, blocks in forwards.steps if blocks is Blocks.COMPUTED))
        self.reused.append(sum(number for number, blocks in forwards.steps if blocks is Blocks.REUSED))
        self.psnr.append(psnr)
        self.right.append(mean(getattr(seen, name) == getattr(asked, name) for name in ATTRIBUTES))

    @property
    def name(self) -> str:
        """The settings in words, such as `unipc 16`."""
        rest = dict(self.settings)
        words = [rest.pop("solver", "euler"), str(rest.pop("num_inference_steps"))]
        return ", ".join([" ".join(words), *(f"{key.replace('_', ' ')} {value}" for key, value in rest.items())])

    def to_json(self, full_size: Sequence[FullSize]) -> dict[str, Any]:
        """Return the row as plain data."""
        return {
            "settings": dict(self.settings),
            "name": self.name,
            "forwards_computed": mean(self.computed),
            "forwards_reused": mean(self.reused),
            "seconds": {each.system: round(self.seconds(each), 1) for each in full_size},
            "psnr_mean": round(mean(self.psnr), 2),
            "psnr_worst": round(min(self.psnr), 2),
            "attributes_right": round(mean(self.right), 4),
        }

    def seconds(self, full_size: FullSize) -> float:
        """Return the projected seconds of a full-size video of these settings."""
        return full_size.seconds(mean(self.computed), mean(self.reused))


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
        for number, (text, asked) in enumerate(prompts):
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


def full_size(precision: str) -> list[FullSize]:
    """Project a full-size video on both systems, each in a process of its own."""
    with fresh_processes() as pool:
        return [pool.submit(_full_size, system, precision).result() for system in SYSTEMS]


def _full_size(name: str, precision: str) -> FullSize:
    from models.device import open_mesh
    from models.machine.systems import system
    from models.mochi.precision import Precision
    from models.parallel import Layout, place
    from models.performance.dry_run import dry_run, preview_geometry

    machine, steps = system(name), 2
    layout = Layout.default(machine.mesh, CONFIGS["preview"].num_attention_heads)
    with open_mesh(machine.mesh, "dry-run", system=name) as opened:
        run = dry_run(
            place(opened.device, layout), preview_geometry(), precision=Precision.named(precision), steps=steps
        )
        seconds = Projection(machine, run, steps).seconds()
    step = seconds["step"].expected
    return FullSize(name, seconds["total"].expected - steps * step, step / 2)


def table(rows: Sequence[Row], sizes: Sequence[FullSize]) -> list[str]:
    """Return a Markdown table, the slowest setting first."""
    names = ["setting", "forwards", "reused", *(f"{each.system}, s" for each in sizes)]
    names += ["mean PSNR", "worst PSNR", "attributes right"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in sorted(rows, key=lambda row: -row.seconds(sizes[0])):
        cells = [row.name, f"{mean(row.computed):.0f}", f"{mean(row.reused):.0f}"]
        cells += [f"{row.seconds(each):.0f}" for each in sizes]
        same = row is rows[0]
        cells += ["-", "-"] if same else [f"{mean(row.psnr):.1f}", f"{min(row.psnr):.1f}"]
        lines.append(f"| {' | '.join([*cells, f'{mean(row.right):.0%}'])} |")
    return lines


def report(rows: Sequence[Row], sizes: Sequence[FullSize], mode: str) -> dict[str, Any]:
    """Return all of it as plain data."""
    return {
        "mode": mode,
        "note": "PSNR on the model that was named; seconds are projections of Mochi 1 at full size, no card was used",
        "full_size": [asdict(each) for each in sizes],
        "rows": [row.to_json(sizes) for row in rows],
    }


def plot(rows: Sequence[Row], sizes: Sequence[FullSize], path: Path) -> None:
    """Draw seconds against the worst PSNR, a panel for each system."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 8, "svg.hashsalt": "mochi-tt"}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        for axes, size in zip(figure.subplots(1, len(sizes)), sizes, strict=True):
            for row in rows[1:]:
                at = row.seconds(size), min(row.psnr)
                axes.plot(*at, "o")
                axes.annotate(row.name, at, textcoords="offset points", xytext=(4, 3))
            axes.axvline(rows[0].seconds(size), linestyle=":", label="the full run")
            axes.set(xlabel=f"projected seconds on {size.system}", ylabel="PSNR of the worst frame on tiny, dB")
            axes.legend()
        with renamed_when_done(path) as scratch:
            figure.savefig(scratch, format=path.suffix[1:].lower(), dpi=120)
