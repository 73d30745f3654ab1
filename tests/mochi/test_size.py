"""Size is judged before anything is allocated; what is refused does not fit, and what is suggested does."""

import json
from pathlib import Path

import pytest

from models.machine.errors import InputError
from models.machine.systems import chip_dram
from models.mochi import size
from models.mochi.components import Configs, choose_layout
from models.mochi.geometry import Geometry
from models.mochi.precision import PRECISIONS
from models.mochi.sampling.reuse import ReuseBelow, ReuseSteps
from models.mochi.setup import Request, VideoRequest, resolve
from models.mochi.size import Subject, check_size
from models.parallel import Layout
from scripts.cli import main

BASELINES = Path(__file__).parents[1] / "performance" / "baselines"
FULL = Geometry(480, 848, 163)


@pytest.fixture(autouse=True)
def large_host(monkeypatch):
    """The verdict on the mesh does not depend on the machine that the tests run on."""
    monkeypatch.setattr(size, "host_bytes", lambda: 256 << 30)


def subject(mesh, precision="default", **more):
    configs, policy = Configs(), PRECISIONS[precision]
    rows, columns = map(int, mesh.split("x"))
    return Subject(configs, choose_layout(configs, (rows, columns), policy), policy, **more)


@pytest.mark.parametrize(
    ("mesh", "video", "words"),
    [
        ("1x1", None, "the weights do not fit 1x1: a chip would hold 26.2 GB at precision default"),
        ("1x2", None, "--precision fast would fit"),
        ("1x2", FULL, "--mesh 1x4 would fit"),
        ("1x4", Geometry(720, 1280, 1627), "does not fit 1x4"),
    ],
)
def test_full_size_on_few_chips_is_refused_and_says_what_fits(mesh, video, words):
    with pytest.raises(InputError) as caught:
        check_size(subject(mesh), video)
    assert words in str(caught.value)
    assert "would fit" in str(caught.value)


@pytest.mark.parametrize(("mesh", "video"), [("1x4", FULL), ("2x4", FULL), ("4x8", Geometry(720, 1280, 163))])
def test_what_dry_runs_have_shown_to_fit_is_not_refused(mesh, video):
    check_size(subject(mesh), video)


@pytest.mark.parametrize(("system", "mesh"), [("quietbox", "2x4"), ("galaxy", "4x8")])
def test_the_estimate_is_below_what_a_dry_run_counts_and_near_it(system, mesh):
    counts = json.loads((BASELINES / f"{system}.json").read_text())["counts"]
    judged = subject(mesh)
    counted = counts["guide"]["dram_peak_bytes"]
    estimated = judged.weights[0] + judged.denoising(FULL)
    assert 0.9 * counted < estimated <= counted < chip_dram()


@pytest.mark.parametrize(
    ("layout", "policy", "is_guided", "kept"),
    [
        ("2x4sp1tp0", None, True, 0),
        ("2x4sp1tp0", ReuseBelow.of(0.1, 64), True, 8),
        ("2x4sp1tp0", ReuseBelow.of(0.1, 64), False, 4),
        ("2x4sp1tp0", ReuseSteps(frozenset({3})), True, 2),
        ("2x4cfg1sp1tp0", ReuseBelow.of(0.1, 64), True, 4),
    ],
)
def test_what_reuse_keeps_counts(layout, policy, is_guided, kept):
    plain = Subject(Configs(), Layout.parse(layout), PRECISIONS["default"])
    keeping = plain.keeping(policy, is_guided=is_guided)
    assert keeping.denoising(FULL) == plain.denoising(FULL) * (12 + kept) / 12


def test_the_frames_that_are_suggested_fit_and_the_next_do_not():
    long = Geometry(480, 848, 60_001)
    with pytest.raises(InputError, match=r"--num-frames \d+ would fit") as caught:
        check_size(subject("2x4"), long)
    frames = int(str(caught.value).split("--num-frames ")[1].split()[0])
    check_size(subject("2x4"), Geometry(480, 848, frames))
    with pytest.raises(InputError, match=r"do(es)? not fit"):
        check_size(subject("2x4"), Geometry(480, 848, frames + 6))


def test_this_host_is_judged_too(monkeypatch):
    monkeypatch.setattr(size, "host_bytes", lambda: 1 << 30)
    with pytest.raises(InputError, match="does not fit this host: it takes"):
        check_size(subject("4x8"), FULL)
    tiny = Subject(Configs(), subject("4x8").layout, PRECISIONS["default"], components=("vae",))
    small = Geometry(64, 96, 7)
    check_size(tiny, small, videos=100)
    with pytest.raises(InputError, match="make fewer in one call"):
        check_size(tiny, small, videos=10_000)
    assert size.host_bytes() == 1 << 30


def test_host_memory_is_a_figure_of_this_machine(monkeypatch):
    monkeypatch.undo()
    assert 1 << 28 < size.host_bytes() < 1 << 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--width", "100000000"], "width 100000000 must be from"),
        (["--width", "16000", "--height", "16000"], "do not fit: 1 frames a chip take 70.7 GB"),
        (["--num-frames", "100000000000000000000003"], "num_frames"),
        (["--num-frames", "107995", "--width", "848", "--height", "480"], "does not fit this host"),
        (["--mesh", "16x16"], "mesh 16x16 does not fit any system that is known; the largest is"),
        (["--mesh", "1" * 5000 + "x1"], "is not ROWSxCOLUMNS"),
        (["--mesh", "999999x999999"], "does not fit any system"),
        (["--cfg-scale", "1e30"], "guidance scale 1e+30 must be at least 1"),
        (["--cfg-scale", "nan"], "must be finite"),
        (["--vae-split", "q7"], "is not a split"),
        (["--lora", "{here}/log.txt"], "is truncated or not a safetensors file"),
        (["--lora", "{here}"], "no LoRA file"),
        (["--cache-dir", "{here}/log.txt"], "is a file; choose another --cache-dir"),
        (["--cache-dir", "{here}/log.txt/deeper"], "is a file; choose another --cache-dir"),
        (["--cache-dir", "x" * 300], "cannot be written"),
        (["--fps", "1000000"], "fps 1000000 must be at least 1 and at most 1000"),
        (["--seed", "-1"], "seed -1 must be from 0"),
        (["--num-steps", "1000000"], "the number of steps"),
    ],
)
def test_a_plan_refuses_what_cannot_be(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.txt").write_text("12:00 all well, nothing to see")
    filled = [argument.replace("{here}", str(tmp_path)) for argument in arguments]
    assert main(["generate", "x", "--mode", "golden", *filled]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"], "nothing was made"


@pytest.mark.parametrize(("mesh", "fits"), [("1x1", False), ("1x2", False), ("1x4", True)])
def test_a_plan_of_weights_says_whether_a_chip_holds_them(tmp_path, capsys, mesh, fits):
    out = tmp_path / "plan.json"
    assert main(["cache", "build", "--plan", "--model-config", "preview", "--mesh", mesh, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert ("this does not fit: the weights do not fit" in said) == (not fits)
    assert json.loads(out.read_text())["fits"] == fits


def test_numbers_of_numpy_serve_as_a_request():
    import numpy as np

    from models.mochi.setup import as_arguments

    video = VideoRequest(
        height=np.int64(32),
        width=np.int32(48),
        num_frames=np.uint8(7),
        num_steps=np.int64(3),
        guidance_scale=np.float32(2.5),
        linear_steps=np.int64(1),
        seed=np.int64(3),
        fps=np.int16(24),
        reuse=np.array([1]),
    )
    setup = resolve(Request(mode="golden", mesh=(np.int64(1), np.int64(2)), video=video))
    assert setup.video is not None
    assert setup.video.settings.seed == 3
    assert setup.mesh_shape == (1, 2)
    assert json.loads(json.dumps(as_arguments(setup.request)))["video"]["linear_steps"] == 1
    assert as_arguments(setup.request)["video"]["reuse"] == [1]


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": 1.5}, {"height": "64"}, {"fps": True}, {"guidance_scale": 1j}]
)
def test_wrong_values_of_a_request_are_one_line(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        resolve(Request(mode="golden", mesh="1x2", video=VideoRequest(**wrong)))
