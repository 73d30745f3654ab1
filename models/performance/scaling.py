"""Growth of projected time and memory with the video and with smaller meshes, and the limiting part of each."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from models.device import open_mesh
from models.machine.systems import System
from models.mochi.components import Configs, choose_layout
from models.mochi.geometry import Geometry
from models.mochi.precision import Precision
from models.parallel import Layout, place
from models.performance.cost_model import Seconds, dispatch, op_time, total
from models.performance.dry_run import dry_run
from models.performance.projection import Projection
from models.performance.trace import Record, Trace

FRAMES = (25, 61, 109, 163, 217, 289)
SIZES = ((480, 848), (576, 1024), (720, 1280))
MESHES = ((1, 2), (1, 4), (2, 4), (4, 4), (4, 8))
# Machines of several Galaxies as (Galaxies, links between two of them), from tt-metal fabric/mesh_graph_descriptors:
# dual_galaxy (8x8, 4 channels) and quad_galaxy (8x16, 1 channel). Each Galaxy has its own host.
SEVERAL = ((2, 4), (4, 1))


@dataclass(frozen=True)
class Point:
    """One projection of a sweep: seconds per stage and peak DRAM bytes, or the reason why there are none."""

    name: str
    seconds: dict[str, Seconds]
    peak: int = 0
    note: str = ""

    def row(self) -> str:
        """Return the point as a row for `table`."""
        if not self.seconds:
            return f"| {self.name} | - | - | - | - | {self.note} |"
        cells = [f"{self.seconds[stage].expected:.3g}" for stage in ("total", "step", "decode")]
        peak = f"{self.peak / 1e9:.1f}" if self.peak else "-"
        return f"| {self.name} | {' | '.join(cells)} | {peak} | {self.note} |"


def table(points: list[Point]) -> list[str]:
    """Return points as a Markdown table."""
    head = ["| | total, s | one step, s | decode, s | peak DRAM, GB | |", "|---|---|---|---|---|---|"]
    return head + [point.row() for point in points]


def sweep(
    system: System,
    num_steps: int,
    precision: Precision,
    geometry: Callable[[int, int, int], Geometry],
    pool: Executor,
) -> Iterator[Point]:
    """Project videos of several lengths and sizes on the whole system, then one video on parts of it.

    Args:
        system: the machine; smaller meshes are parts of it.
        num_steps: number of denoising steps.
        precision: precision of the transformer.
        geometry: function of (height, width, frames) that returns a geometry.
        pool: executor of the dry runs, one task each; see `models.machine.processes`.
    """
    usual = (*SIZES[0], 163)
    videos = [(*SIZES[0], frames) for frames in FRAMES] + [(*size, usual[2]) for size in SIZES[1:]]
    whole = choose_layout(Configs(), system.mesh, precision)
    smaller = [shape for shape in MESHES if shape[0] <= system.mesh[0] and shape[1] <= system.mesh[1]]
    tasks = [
        (f"{width}x{height}, {frames} frames, {whole}", whole, (height, width, frames))
        for height, width, frames in videos
    ]
    for shape in smaller:
        if shape != system.mesh:
            layout = choose_layout(Configs(), shape, precision)
            tasks.append((f"part {layout}", layout, usual))
    running = [
        (video, layout, pool.submit(_point, name, system, layout, geometry(*video), num_steps, precision))
        for name, layout, video in tasks
    ]
    last = None
    for video, layout, future in running:
        point, made = future.result()
        last = made if video == usual and layout == whole else last
        yield point
    if last is not None and system.chips == 32:
        for count, links in SEVERAL:
            yield on_paper(last, count, links)


def _point(
    name: str, system: System, layout: Layout, geometry: Geometry, num_steps: int, precision: Precision
) -> tuple[Point, Projection | None]:
    part = replace(system, mesh=layout.mesh_shape)
    try:
        with open_mesh(layout.mesh_shape, "dry-run", system=system.name) as opened:
            run = dry_run(place(opened.device, layout), geometry, steps=num_steps, precision=precision)
    except RuntimeError as error:
        if "Out of Memory" not in str(error):
            raise
        return Point(name, {}, note="does not fit DRAM"), None
    made = Projection.on_this_machine(part, run, num_steps)
    return Point(name, made.seconds(), run.dram_peak_bytes, _limit(made)), made


def _limit(made: Projection) -> str:
    """Describe the largest part of a step, or the host's dispatch.

    The dispatch is described if, without capture, it would take longer than the chips.
    """
    trace = made.run.stages["denoise"]
    device = total(op_time(record, made.system).seconds for record in trace.records)
    host = dispatch(trace.device_calls, made.system)
    if host.expected > device.expected:
        return (
            f"{device.expected:.2g} s a forward on the chips, and {host.expected:.2g} s of the host's dispatch if the "
            "step is not captured"
        )
    largest = next(row for row in made.rows() if row.stage == "denoise")
    share = largest.seconds.expected / made.seconds()["denoise"].expected
    return f"{largest.kind} {share:.0%} of denoising"


def on_paper(made: Projection, count: int, links: int) -> Point:
    """Project one Galaxy's video on `count` Galaxies with sequence parallelism over all of them. No dry run is made.

    Work per visual row is divided by `count`, and so is decoding. Work on text stays the same. The ring of attention
    carries every chip's keys and values past every other chip, over `links` links between two Galaxies. Each Galaxy has
    its own host. Peak memory is not estimated.
    """
    layout = Layout.parse(made.run.mesh)
    tokens = math.ceil(made.run.geometry.num_tokens / layout.sp)
    rows = math.ceil(tokens / 32) * 32
    stages = {
        name: Trace([_spread(record, rows, layout.sp, count, links) for record in trace.records], 0)
        for name, trace in made.run.stages.items()
    }
    spread = replace(made, run=replace(made.run, stages=stages))
    seconds = spread.seconds()
    decode = made.seconds()["decode"] * (1 / count)
    whole = total([seconds["encode"], seconds["denoise"], decode])
    name = f"{count} Galaxies on paper, SP={layout.sp * count}, TP={layout.tp}"
    return Point(name, {**seconds, "decode": decode, "total": whole}, note=_limit(spread))


def _spread(record: Record, rows: int, ring: int, count: int, links: int) -> Record:
    if not any(rows in shape for shape in record.shapes):
        return record
    cost, settings = record.cost, record.settings
    share = 1 / count
    link_share = share
    if cost.steps:
        link_share = (ring * count - 1) / (count * (ring - 1))
        settings = replace(settings, links=min(links, settings.links or links))
    spread = replace(
        cost,
        flops=cost.flops * share,
        dram_bytes=cost.dram_bytes * share,
        link_bytes=cost.link_bytes * link_share,
        exposed_link_bytes=cost.exposed_link_bytes * link_share,
        steps=cost.steps * share,
    )
    return replace(record, cost=spread, settings=settings)
