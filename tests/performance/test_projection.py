"""From traces to the seconds of a video, on traces made by hand."""

import json
from dataclasses import replace

import pytest

from models.machine.systems import system
from models.mochi.geometry import Geometry
from models.mochi.precision import PRECISIONS
from models.mochi.sampling.reuse import Blocks, Forwards
from models.mochi.sampling.schedule import NUM_STEPS
from models.performance.cost_model import constants, dispatch, op_time, output
from models.performance.counts import Cost
from models.performance.dry_run import DryRun
from models.performance.plots import plot
from models.performance.projection import FIRST_LINE, Projection
from models.performance.report import markdown
from models.performance.settings import Settings
from models.performance.trace import Record, Trace

GALAXY = system("galaxy")
PRODUCT = Record("ttnn.linear", (), Cost(flops=1e12, dram_bytes=1e8), Settings("HiFi2"))
SMALL = Record("ttnn.add", (), Cost(dram_bytes=1e3), Settings())
STEPS = 10


def projection(**stages: list[Record]) -> Projection:
    traces = {name: Trace(records, 5_000_000_000) for name, records in stages.items()}
    run = DryRun("4x8sp1tp0", PRECISIONS["default"], Geometry(480, 848, 163), 48, {"transformer": 1}, traces, {})
    return Projection(GALAXY, run, STEPS)


@pytest.fixture
def whole() -> Projection:
    return projection(
        encode=[PRODUCT], prepare=[PRODUCT], denoise=[PRODUCT] * 2, guide=[PRODUCT] * 3, decode=[PRODUCT, SMALL]
    )


def test_steps_repeat_and_the_rest_runs_once(whole):
    one = op_time(PRODUCT, GALAXY).seconds.expected
    seconds = whole.seconds()
    assert seconds["encode"].expected == pytest.approx(one)
    assert seconds["denoise"].expected == pytest.approx(one * (1 + STEPS * 5))
    assert seconds["step"].expected == pytest.approx(one * 5)
    parts = (seconds[stage].expected for stage in ("encode", "denoise", "decode", "output"))
    assert seconds["total"].expected == pytest.approx(sum(parts))


def test_the_host_bounds_a_stage_of_small_calls():
    """Sending a call to 32 chips takes longer than a small call runs; the host is beside the device, not before it."""
    few = projection(encode=[SMALL] * 100)
    assert few.part_seconds("encode") == dispatch(100, GALAXY)
    assert few.seconds()["total"].expected > 100 * constants()["launch"]["seconds"][1]


def test_rows_add_up_to_the_device_time(whole):
    rows = whole.rows()
    assert sum(row.calls for row in rows) == 1 + 1 + STEPS * 5 + 2
    seconds = whole.seconds()
    on_device = seconds["total"].expected - seconds["output"].expected
    assert sum(row.seconds.expected for row in rows) == pytest.approx(on_device)
    assert [row.seconds.expected for row in rows] == sorted((row.seconds.expected for row in rows), reverse=True)
    assert (rows[0].stage, rows[0].op, rows[0].kind, rows[0].bound) == ("denoise", "ttnn.linear", "matmul", "matrix")


def test_frames_and_mp4_are_counted_by_pixels(whole):
    """10 s at most for a video of 848x480 and 163 frames."""
    pixels = 163 * 480 * 848
    assert whole.seconds()["output"] == output(pixels)
    assert 2 < output(pixels).low < output(pixels).high < 11
    assert "output" not in projection(denoise=[PRODUCT], guide=[PRODUCT]).seconds()


def test_the_default_number_of_steps_is_shown_beside(whole):
    report = whole.to_json()
    step = whole.seconds()["step"].expected
    more = report["default_steps"]["total"]["expected"] - report["seconds"]["total"]["expected"]
    assert report["default_steps"]["num_steps"] == NUM_STEPS
    assert more == pytest.approx((NUM_STEPS - STEPS) * step, rel=1e-4)
    assert any(line.startswith(f"With {NUM_STEPS} steps") for line in markdown(report))


def test_chunks_that_nobody_has_measured_are_named():
    def attention(q, k):
        name = "ttnn.transformer.ring_joint_scaled_dot_product_attention"
        return Record(name, (), Cost(flops=1, steps=9, step_tiles=q * k / 1024, step_keys=k / 32), Settings("HiFi2"))

    made = projection(denoise=[attention(320, 512), attention(256, 512), attention(320, 384)], guide=[PRODUCT])
    assert list(made.unmeasured_chunks()) == ["320x384", "320x512"]
    said = "\n".join(markdown(made.to_json()))
    assert "chunks of 320x384 was never timed: their time lies between" in said
    assert "chunks of 320x512 was never timed: nobody" in said


def test_report_says_first_that_it_is_a_projection(whole):
    report = json.loads(json.dumps(whole.to_json()))
    assert report["mode"] == "projection"
    assert markdown(report)[0] == FIRST_LINE
    assert set(report["seconds"]["total"]) == {"low", "expected", "high"}
    assert report["counts"]["guide"]["flops"] == 3e12
    assert report["by_kind"]["denoise"]["matmul"]["expected"] > 0
    assert "| denoise | linear | 51 |" in "\n".join(markdown(report))


def test_fewer_stages_than_all():
    assert projection(denoise=[PRODUCT], guide=[PRODUCT]).seconds()["decode"].expected == 0


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plot(whole, tmp_path, suffix, start):
    target = tmp_path / f"plot.{suffix}"
    plot(whole.to_json(), target)
    assert target.read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [target.name]


def test_forwards_that_are_left_out_or_reuse_blocks_take_less():
    """Five steps: guided, two of one branch, both branches reused, one branch reused."""
    parts = {"prepare": 1, "denoise": 20, "guide": 30, "denoise_reused": 2, "guide_reused": 3}
    made = projection(**{name: [PRODUCT] * count for name, count in parts.items()})
    both, one = (2, Blocks.COMPUTED), (1, Blocks.COMPUTED)
    steps = [both, one, one, (2, Blocks.REUSED), (1, Blocks.REUSED)]
    fewer = replace(made, forwards=Forwards(steps))
    product = op_time(PRODUCT, GALAXY).seconds.expected
    assert made.seconds()["denoise"].expected == pytest.approx(product * (1 + 10 * (20 + 30)))
    assert fewer.seconds()["denoise"].expected == pytest.approx(product * (1 + 3 * 20 + 30 + 2 * 2 + 3))
    report = fewer.to_json()
    assert "Forwards: 4 computed, 3 of one block only." in markdown(report)
    assert report["default_steps"] == made.to_json()["default_steps"], "which are all computed"
    assert sum(row["calls"] for row in report["per_op"]) == 1 + 3 * 20 + 30 + 2 * 2 + 3


def test_reused_forwards_are_not_guessed(whole):
    """What a step that reuses costs is traced, or there is no projection."""
    with pytest.raises(AssertionError, match="traced no step"):
        replace(whole, forwards=Forwards([(2, Blocks.COMPUTED), (2, Blocks.REUSED)]))
