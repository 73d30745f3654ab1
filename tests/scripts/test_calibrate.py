"""`mochi-tt calibrate`, and a video with the list of steps that it wrote."""

import json
import shutil

import pytest

from scripts.cli import main

SMALL = ["--width", "32", "--height", "32", "--num-frames", "7", "--num-steps", "3", "--mesh", "1x1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_calibrated_list_makes_a_video(small_checkpoint, here, capsys):
    """The weights are random, so only a threshold that anything is below reuses a step."""
    model = ["--model", str(small_checkpoint), *SMALL]
    without_vae = here.parent / "model"
    shutil.copytree(small_checkpoint, without_vae)
    next((without_vae / "vae").glob("*.safetensors")).unlink()
    options = ["--threshold", "1", "--out", "found.json", "--solver", "ab2"]
    assert main(["calibrate", "a red ball", *options, "--model", str(without_vae), *SMALL]) == 0
    found = json.loads((here / "found.json").read_text())
    assert (found["solver"], found["precision"]) == ("ab2", "default")
    assert (found["num_steps"], found["threshold"], found["prompts"]) == (3, 1.0, ["a red ball"])
    assert found["reused_steps"] == [1]
    assert found["reused_steps_of_each_prompt"] == [[1]]
    assert "1 of 3 steps are reused: 1" in capsys.readouterr().out

    assert main(["generate", "a red ball", "--reuse", "steps:found.json", "--out", "a.mp4", *model]) == 0
    record = json.loads((here / "a.json").read_text())
    assert record["forwards"] == {
        "conditional": {"computed": 2, "reused": 1},
        "unconditional": {"computed": 2, "reused": 1},
        "reused_steps": [1],
    }
    assert record["arguments"]["reuse"] == "steps:found.json"

    capsys.readouterr()
    for arguments, said in (
        (["--model", "tiny", *SMALL], "is for another checkpoint"),
        ([*model, "--num-steps", "4"], "is for 3 steps, not 4"),
    ):
        assert main(["generate", "x", "--reuse", "steps:found.json", "--out", "b.mp4", *arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert said in lines[0]
    assert sorted(path.name for path in here.iterdir()) == ["a.json", "a.mp4", "found.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--threshold", "0"], "must be above 0 and at most 1"),
        (["x", "--threshold", "nan"], "must be finite"),
        (["x", "--out", "found.txt"], "must end with .json"),
        (["x", "--out", "other.json"], "is no earlier calibration"),
        (["x", "--mode", "dry-run"], "makes no video"),
        ([], "Missing argument"),
    ],
)
def test_a_wrong_calibration_is_one_line_and_leaves_nothing(small_checkpoint, here, capsys, arguments, said):
    (here / "other.json").write_text('{"a": 1}')
    assert main(["calibrate", "--model", str(small_checkpoint), *SMALL, *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert [path.name for path in here.iterdir()] == ["other.json"]
