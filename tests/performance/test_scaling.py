"""Sweeps and what is put on paper, with dry runs replaced by traces made by hand."""

from concurrent.futures import Executor, Future
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from models.machine.systems import system
from models.mochi.geometry import Geometry
from models.mochi.precision import PRECISIONS
from models.performance import scaling
from models.performance.cost_model import op_time
from models.performance.counts import Cost
from models.performance.dry_run import DryRun
from models.performance.projection import Projection
from models.performance.scaling import MESHES, Point, on_paper, sweep, table
from models.performance.settings import Settings
from models.performance.trace import Record, Trace

GALAXY = system("galaxy")
VIDEO = Geometry(480, 848, 163)
ROWS = 5_568  # visual rows of a chip at SP=8
VISUAL = Record("ttnn.linear", ((1, 1, ROWS, 768),), Cost(flops=1e12), Settings("HiFi2"))
TEXT = Record("ttnn.linear", ((1, 1, 256, 768),), Cost(flops=1e12), Settings("HiFi2"))
RING = Record(
    "ttnn.transformer.ring_joint_scaled_dot_product_attention",
    ((1, 6, ROWS, 128),),
    Cost(flops=1e12, steps=300, step_tiles=96, step_keys=16, link_bytes=120e6),
    Settings("HiFi2", links=4),
)


def run(denoise: list[Record], layout: str = "4x8sp1tp0") -> DryRun:
    stages = {"denoise": denoise, "guide": denoise, "decode": [TEXT]}
    traces = {name: Trace(records, 10**9) for name, records in stages.items()}
    return DryRun(layout, PRECISIONS["default"], VIDEO, 48, {}, traces, {})


def projected(*records: Record) -> Projection:
    return Projection(GALAXY, run(list(records)), 50)


def test_work_on_visual_rows_divides_and_the_rest_stays():
    visual, text = (op_time(record, GALAXY).seconds.expected for record in (VISUAL, TEXT))
    launch = op_time(Record("ttnn.add", (), Cost(), Settings()), GALAXY).seconds.expected
    step = on_paper(projected(VISUAL, TEXT), 2, 4).seconds["step"].expected
    assert step == pytest.approx(2 * ((visual - launch) / 2 + launch + text))


def test_the_ring_carries_almost_as_much_however_many_share_the_work():
    """Every chip still sees all keys and values: with one link where Galaxies meet, links bound attention."""
    alone = projected(RING).seconds()["step"].expected
    two, four = (on_paper(projected(RING), *several).seconds["step"].expected for several in ((2, 4), (4, 1)))
    assert two < 0.7 * alone
    assert four > two


def test_what_a_step_waits_for():
    small = Record("ttnn.add", ((1, 1, 32, 32),), Cost(dram_bytes=1e3), Settings())
    assert on_paper(projected(*[small] * 100), 2, 4).note.endswith("of the host's dispatch if the step is not captured")
    assert on_paper(projected(RING, RING), 2, 4).note == "attention 100% of denoising"


class InThisProcess(Executor):
    """Runs tasks at once."""

    def submit(self, task, /, *arguments, **named):
        future = Future()
        try:
            future.set_result(task(*arguments, **named))
        except RuntimeError as error:
            future.set_exception(error)
        return future


def replace_dry_runs(monkeypatch, dry_run):
    monkeypatch.setattr(scaling, "dry_run", dry_run)
    monkeypatch.setattr(scaling, "open_mesh", lambda *_, **__: nullcontext(SimpleNamespace(device=None)))
    monkeypatch.setattr(scaling, "place", lambda device, layout: SimpleNamespace(layout=layout))


def test_a_sweep_says_what_does_not_fit(monkeypatch):
    def dry_run(mesh, geometry, *, steps, precision):
        if mesh.layout.tp * mesh.layout.sp < 4:
            raise RuntimeError("TT_FATAL\ninfo:\nOut of Memory: Not enough space")
        return run([VISUAL], str(mesh.layout))

    replace_dry_runs(monkeypatch, dry_run)
    points = list(sweep(GALAXY, 50, PRECISIONS["default"], Geometry, InThisProcess()))
    assert [point.name for point in points if point.note == "does not fit DRAM"] == ["part 1x2sp0tp1"]
    assert sum(point.name.startswith("part") for point in points) == len(MESHES) - 1
    assert [point.name[:19] for point in points[-2:]] == ["2 Galaxies on paper", "4 Galaxies on paper"]


def test_another_error_is_no_point(monkeypatch):
    def dry_run(*arguments, **named):
        raise RuntimeError("TT_FATAL: shape")

    replace_dry_runs(monkeypatch, dry_run)
    with pytest.raises(RuntimeError, match="shape"):
        next(sweep(GALAXY, 50, PRECISIONS["default"], Geometry, InThisProcess()))


def test_table():
    lines = table([Point("small", {}, note="does not fit DRAM"), on_paper(projected(VISUAL), 2, 4)])
    assert lines[2] == "| small | - | - | - | - | does not fit DRAM |"
    assert lines[3].startswith("| 2 Galaxies on paper, SP=16, TP=4 |")
    assert len({line.count("|") for line in lines}) == 1
