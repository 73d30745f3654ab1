"""The measuring path on golden execution with the built-in model, and what the command refuses."""

import sys

import pytest

from models.device import cards
from models.machine.systems import system
from models.mochi.geometry import Geometry
from models.performance.compare import baseline, ratios
from models.performance.measure import measure, time_calls, utilisation
from models.performance.plots import plot
from models.performance.report import markdown
from models.performance.trace import Trace
from scripts.cli import main

QUIETBOX = system("quietbox")


GEOMETRY = Geometry(16, 16, 7)
CALIBRATIONS = []


@pytest.fixture(scope="module")
def measured(small_checkpoint):
    from models.mochi import MochiPipeline

    lines, written = [], []
    with MochiPipeline.from_pretrained(small_checkpoint, mesh="1x2", layout="sp1tp0", mode="golden") as pipe:
        report = measure(
            pipe,
            QUIETBOX,
            GEOMETRY,
            num_steps=2,
            runs=1,
            precision="default",
            write=lambda frames: written.append(frames.shape),
            on_message=lines.append,
        )
        step = report["seconds"]["step"]["median"]
        CALIBRATIONS.append(time_calls(pipe, QUIETBOX, GEOMETRY, step_seconds=step, precision="default"))
    assert written == [(7, 16, 16, 3)] * 3, "warm-up, run, counting"
    assert lines == ["warm-up", "run 1 of 1", "counting"]
    return report


def test_fewer_forwards_are_timed_beside_a_full_step(small_checkpoint):
    """The counts and the compile time are of full steps; the report says what the timed videos computed."""
    from models.mochi import MochiPipeline

    options = {"guidance_interval": "0:0.5", "reuse": [1]}
    with MochiPipeline.from_pretrained(small_checkpoint, mesh="1x1", mode="golden") as pipe:
        report = measure(pipe, QUIETBOX, GEOMETRY, num_steps=4, runs=1, precision="default", options=options)
    assert report["forwards"]["conditional"] == {"computed": 3, "reused": 1}
    assert report["forwards"]["unconditional"] == {"computed": 1, "reused": 1}
    assert report["guidance"] is True
    assert report["counts"]["step"]["flops"] > 0


def test_a_golden_run_is_never_taken_for_silicon(measured):
    assert measured["mode"] == "golden"
    assert "nothing of silicon" in markdown(measured)[0]
    assert "utilisation" not in measured


def test_stages_and_total(measured):
    seconds = measured["seconds"]
    assert set(seconds) == {"encode", "denoise", "decode", "output", "total", "step"}
    for stage in seconds.values():
        assert 0 < stage["min"] <= stage["median"] <= stage["max"]
    assert seconds["step"]["median"] == pytest.approx(seconds["denoise"]["median"] / 2, rel=0.5)
    assert seconds["total"]["max"] >= seconds["denoise"]["max"]


def test_counts_of_one_step_are_two_forwards(measured):
    """Guidance runs the transformer twice a step; what is prepared before the first step is counted apart."""
    step = measured["counts"]["step"]
    attention = [row for row in measured["per_op"] if row["stage"] == "step" and "ring_joint" in row["op"]]
    assert sum(row["calls"] for row in attention) % 2 == 0
    assert step["flops"] > 0
    assert not any("ring_joint" in row["op"] for row in measured["per_op"] if row["stage"] == "prepare")
    assert {"encode", "prepare", "step", "decode"} == set(measured["counts"])
    assert measured["dram_peak_bytes"] > 0


def test_each_call_of_a_step_is_timed(measured):
    """On golden the times are this host's; what is tested is that every kind of a step has one."""
    (made,) = CALIBRATIONS
    assert {"attention", "norm", "elementwise"} <= set(made.ratios)
    assert all(ratio > 0 for ratio in made.ratios.values())
    assert (made.system, made.layout, made.precision) == ("quietbox", "1x2sp1tp0", "default")


def test_a_measurement_compares_with_itself(measured):
    assert {ratio.growth for ratio in ratios(baseline(measured), measured)} == {0.0}


def test_markdown_of_a_measurement(measured):
    text = "\n".join(markdown(measured))
    assert "| stage | median | min | max |" in text
    assert "Compiling before it: decode" in text


def test_plots_are_of_projections(measured, tmp_path):
    with pytest.raises(ValueError, match="only projections have a time per op"):
        plot(measured, tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def test_utilisation_is_counted_work_over_peak_and_time():
    class Fixed(Trace):
        def total(self, what):
            return {"flops": 131.072e12, "dram_bytes": 28.8e9, "link_bytes": 1.25e9}[what]

    parts = {name: Fixed() for name in ("encode", "prepare", "step", "decode")}
    seconds = {"encode": {"median": 1.0}, "denoise": {"median": 10.0}, "decode": {"median": 2.0}}
    shares = utilisation(parts, seconds, 4, QUIETBOX)
    assert shares["encode"] == pytest.approx({"matrix": 1.0, "dram": 0.1, "links": 0.1})
    assert shares["denoise"] == pytest.approx({"matrix": 0.5, "dram": 0.05, "links": 0.05})
    assert shares["decode"]["matrix"] == pytest.approx(0.5)


@pytest.mark.parametrize(("steps", "runs"), [(1, 3), (50, 0)])
def test_too_little_to_measure(steps, runs):
    with pytest.raises(ValueError, match="needs at least 2 steps and 1 run"):
        measure(None, QUIETBOX, Geometry(32, 32, 7), num_steps=steps, runs=runs, precision="default")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "t4000"], "system 't4000' does not exist: choose from n150"),
        (["--mode", "dream"], "mode 'dream' does not exist: choose from auto, hardware, projection"),
        (["--mode", "hardware"], "mode 'hardware' needs a Tenstorrent card"),
        (["--layout", "1x1sp0tp1"], "is for mesh 1x1, but the mesh is 2x4"),
        (["--precision", "fp8"], "precision 'fp8' does not exist"),
        (["--num-frames", "8"], "num_frames 8 must be 6k + 1"),
        (["--reuse", "0.1"], "a projection cannot know which steps the reuse threshold 0.1 will reuse"),
        (["--preset", "slow"], "preset 'slow' must be one of quality"),
        (["--calibration", "none.json"], "calibration none.json does not exist"),
        (["--scaling", "--preset", "draft", "--guidance-interval", "0:0.2"], "leave out --preset, --guidance-interval"),
        (["--scaling", "--width", "640", "--json", "a.json"], "leave out --width, --json"),
        (["--scaling", "--mode", "hardware", "--reuse", "steps:3"], "needs a Tenstorrent card"),
        (["--json", "report.txt"], "must end with .json"),
        (["--plot", "plot.pdf"], "plot plot.pdf must end with .png or .svg"),
        (["--system", "blackhole-galaxy"], "blackhole-galaxy cannot be projected yet"),
    ],
)
@pytest.mark.skipif(bool(cards()), reason="what is refused on a machine without cards")
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["measure", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_plot_without_its_package_is_refused_at_once(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["measure", "--plot", str(tmp_path / "a.png")]) == 2
    assert "--plot needs the package matplotlib, which is not installed: pip install 'mochi-tt[plots]'" in (
        capsys.readouterr().err
    )
    assert main(["measure", "--compare", str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2
    assert "none.json does not exist" in capsys.readouterr().err


def test_a_measured_run_says_its_notes_once_and_counts_its_forwards(small_checkpoint, capsys):
    """The report has them; the pipeline of each run does not repeat them."""
    from models.mochi.setup import Request, VideoRequest, resolve
    from scripts.measure import _measured

    options = {"guidance_interval": "0.5:1", "guidance_reuse": 2, "threshold_noise": 0.3, "reuse": "steps:2"}
    video = VideoRequest(height=16, width=16, num_frames=7, num_steps=4, **options)
    setup = resolve(Request(small_checkpoint, mesh="1x2", layout="cfg1sp0tp1", mode="golden", video=video))
    notes = setup.notes()
    assert len(notes) == 3
    report = _measured(setup, QUIETBOX, 2, "none", options | {"reuse": setup.video.reuse})
    assert not set(notes) & set(capsys.readouterr().out.splitlines())
    assert report["forwards"]["reused_steps"] == []
    assert report["forwards"]["unconditional"] == {"computed": 2, "reused": 0}
    assert [line for line in markdown(report | {"notes": notes}) if line.startswith("Note: ")] == [
        f"Note: {note}." for note in notes
    ]
