"""Comparison of candidate layouts of a system, by the time and memory that a dry run and the cost model give them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field, replace
from math import isinf

from models.device import open_mesh
from models.machine.processes import fresh_processes
from models.machine.systems import System
from models.mochi.config import CONFIGS, TransformerConfig
from models.mochi.geometry import Geometry
from models.mochi.precision import Precision
from models.parallel import Layout, place
from models.performance.cost_model import Seconds
from models.performance.dry_run import DryRun, dry_run
from models.performance.projection import Projection

# Numbers of blocks in the two dry runs. Blocks are alike except the last one, so from here on all counts grow linearly
# with their number.
_FEW, _MORE = 2, 4
# DRAM of a chip that weights and denoising may take: 11.5 of 12.85 GB. The rest is for memory that the counts do not
# see.
BUDGET_BYTES = 11.5e9
# Words in ttnn's error when DRAM or L1 is too small.
_TOO_LARGE = ("Out of Memory", "beyond max L1 size")


@dataclass(frozen=True)
class Candidate:
    """One layout and precision, per chip. `video` is the time of the whole video with `steps` guided steps."""

    layout: Layout
    precision: Precision
    peak_bytes: float
    step: Seconds = field(default_factory=Seconds)
    decode: Seconds = field(default_factory=Seconds)
    video: Seconds = field(default_factory=Seconds)
    dram_bytes: float = 0.0
    link_bytes: float = 0.0
    exposed_link_bytes: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether the peak stays within `BUDGET_BYTES`."""
        return self.peak_bytes <= BUDGET_BYTES

    def to_json(self) -> dict:
        """Return the row as plain data."""
        return {
            "layout": str(self.layout),
            "precision": self.precision.name,
            "fits": self.fits,
            "peak_bytes": None if isinf(self.peak_bytes) else round(self.peak_bytes),
            "step_seconds": self.step.to_json(),
            "decode_seconds": self.decode.to_json(),
            "video_seconds": self.video.to_json(),
            "step_dram_bytes": round(self.dram_bytes),
            "step_link_bytes": round(self.link_bytes),
            "step_exposed_link_bytes": round(self.exposed_link_bytes),
        }


def layouts_of(mesh_shape: tuple[int, int], heads: int) -> Iterator[Layout]:
    """Yield every layout of a mesh whose TP divides the heads. Weights are sharded over SP only if there is SP."""
    for cfg in (None, 0, 1):
        if cfg is not None and mesh_shape[cfg] % 2:
            continue
        for sp_axis in (0, 1):
            for fsdp in (False, True):
                layout = Layout(mesh_shape, sp_axis, 1 - sp_axis, cfg, fsdp)
                if heads % layout.tp == 0 and (layout.sp > 1 or not fsdp):
                    yield layout


def compare(
    system: System,
    layouts: Sequence[Layout],
    precisions: Sequence[Precision],
    geometry: Geometry,
    *,
    config: TransformerConfig = CONFIGS["preview"],
    steps: int = 50,
    jobs: int = 1,
    on_message: Callable[[str], None] | None = None,
) -> list[Candidate]:
    """Dry-run layouts of a system at every precision. Candidates that fit come first, the fastest first.

    Each candidate runs with a few blocks and with a few more; the whole model follows from these linearly. The decoder
    runs whole, once per shape of the mesh that it works on. A candidate that does not fit the chips even with few
    blocks has no times. Every run has its own process, because only the end of a process frees the memory of a mock
    mesh.

    Args:
        system: the machine.
        layouts: layouts of its mesh, such as those of `layouts_of`.
        precisions: precisions of the transformer.
        geometry: size of the video.
        config: transformer sizes.
        steps: number of guided steps of the video.
        jobs: number of processes at a time.
        on_message: called with a line for each run that ends.

    Raises:
        RuntimeError: a mesh of the system cannot be opened as a mock, or ttnn refuses a program.
    """
    tell = on_message or (lambda line: None)
    with fresh_processes(jobs) as pool:
        shapes = {layout.branch.mesh_shape: layout.branch for layout in layouts}
        decoding = {
            shape: pool.submit(_decoding, system, layout, precisions[0], geometry, steps)
            for shape, layout in shapes.items()
        }
        running = {
            pool.submit(_measure, system, layout, precision, geometry, config, steps): (layout, precision)
            for layout in layouts
            for precision in precisions
        }
        made = []
        for future in as_completed(running):
            layout, precision = running[future]
            decode = decoding[layout.branch.mesh_shape].result()
            found = future.result() or Candidate(layout, precision, float("inf"))
            made.append(found if isinf(found.peak_bytes) else replace(found, decode=decode, video=found.video + decode))
            tell(f"{layout} {precision.name}: {len(made)} of {len(running)}")
    return sorted(made, key=lambda row: (not row.fits, row.video.expected))


def _decoding(system: System, layout: Layout, precision: Precision, geometry: Geometry, steps: int) -> Seconds:
    """Return the seconds of decoding on the mesh of `layout`, beside models of few blocks."""
    run = _run(system, replace(layout, fsdp=layout.sp > 1), precision, geometry, CONFIGS["preview"], _FEW, ["decode"])
    return Projection.on_this_machine(system, run, steps).seconds()["decode"]


def _measure(
    system: System, layout: Layout, precision: Precision, geometry: Geometry, config: TransformerConfig, steps: int
) -> Candidate | None:
    """Return one candidate without decoding, or None if ttnn reports that memory is too small for a few blocks."""
    try:
        few, more = (
            _run(system, layout, precision, geometry, config, blocks, ["encode", "denoise"]) for blocks in (_FEW, _MORE)
        )
    except RuntimeError as error:
        if any(words in str(error) for words in _TOO_LARGE):
            return None
        raise
    return _candidate(system, layout, few, more, config.num_layers, steps)


def _run(
    system: System,
    layout: Layout,
    precision: Precision,
    geometry: Geometry,
    config: TransformerConfig,
    blocks: int,
    stages: Sequence[str],
) -> DryRun:
    with open_mesh(layout.mesh_shape, "dry-run", system=system.name) as opened:
        placed = place(opened.device, layout)
        run = dry_run(placed, geometry, stages=stages, config=config, precision=precision, blocks=blocks)
        placed.release()
        return run


def _candidate(system: System, layout: Layout, few: DryRun, more: DryRun, blocks: int, steps: int) -> Candidate:
    factor = (blocks - _FEW) / (_MORE - _FEW)

    def of(what: Callable[[DryRun], float]) -> float:
        return what(few) + (what(more) - what(few)) * factor

    times = [Projection.on_this_machine(system, run, steps).seconds() for run in (few, more)]

    def seconds(name: str) -> Seconds:
        return times[0][name] + (times[1][name] + times[0][name] * -1.0) * factor

    def step_total(what: str) -> float:
        return of(lambda run: sum(run.stages[part].total(what) for part in ("denoise", "guide")))

    return Candidate(
        layout=layout,
        precision=few.precision,
        peak_bytes=of(lambda run: max(run.stages[part].dram_peak_bytes for part in ("prepare", "denoise", "guide"))),
        step=seconds("step"),
        video=seconds("encode") + seconds("denoise"),
        dram_bytes=step_total("dram_bytes"),
        link_bytes=step_total("link_bytes"),
        exposed_link_bytes=step_total("exposed_link_bytes"),
    )


def lines(candidates: Sequence[Candidate]) -> list[str]:
    """Return the comparison as a Markdown table."""
    table = [
        "| layout | precision | peak DRAM GB | s per guided step | decode s | video s | DRAM GB | link GB (exposed) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in candidates:
        if isinf(row.peak_bytes):
            table.append(f"| {row.layout} | {row.precision.name} | too large for DRAM or L1 | | | | | |")
            continue
        peak = f"{row.peak_bytes / 1e9:.1f}" + ("" if row.fits else ", does not fit")
        table.append(
            f"| {row.layout} | {row.precision.name} | {peak} | {row.step.expected:.2f} | {row.decode.expected:.1f} | "
            f"{row.video.expected:.0f} | {row.dram_bytes / 1e9:.0f} | "
            f"{row.link_bytes / 1e9:.1f} ({row.exposed_link_bytes / 1e9:.1f}) |"
        )
    return table


def advice(candidates: Sequence[Candidate]) -> list[str]:
    """Return the best layout for each precision, as text lines.

    It is the fastest that fits. If that has halves, the fastest without halves is added.

    Args:
        candidates: result of `compare`, fastest first.
    """
    made = []
    for precision in dict.fromkeys(row.precision.name for row in candidates):
        fitting = [row for row in candidates if row.fits and row.precision.name == precision]
        if not fitting:
            made.append(f"{precision}: no layout fits")
            continue
        best = fitting[0]
        line = f"{precision}: --layout {best.layout} is the fastest that fits, {best.video.expected:.0f} s"
        whole = next((row for row in fitting if row.layout.cfg_axis is None), None)
        if best.layout.cfg_axis is not None and whole is not None:
            line += (
                "; its halves exchange their predictions through sockets, which no card has run yet: "
                f"without them {whole.layout}, {whole.video.expected:.0f} s"
            )
        made.append(line)
    return made
