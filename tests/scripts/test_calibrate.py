"""`mochi-tt calibrate`, and a video with the list of steps that it wrote."""

import json
import shutil
import warnings

import pytest
from safetensors.torch import save_file

from models.machine.errors import InputError
from models.mochi.pipeline import MochiPipeline
from models.mochi.setup import Request, VideoRequest, planned_forwards, resolve
from scripts.cli import main
from tests.support import randn
from weight_cache.checkpoints.component import Component

pytestmark = pytest.mark.alone  # Every run opens a mesh, of which ttnn keeps 50 MB.

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

    solved = ["--solver", "ab2"]
    assert main(["generate", "a red ball", "--reuse", "steps:found.json", "--out", "a.mp4", *solved, *model]) == 0
    assert "warning" not in capsys.readouterr().out
    record = json.loads((here / "a.json").read_text())
    assert record["forwards"] == {
        "conditional": {"computed": 2, "reused": 1},
        "unconditional": {"computed": 2, "reused": 1},
        "reused_steps": [1],
    }
    assert record["arguments"]["reuse"] == "steps:found.json"

    capsys.readouterr()
    lora(small_checkpoint, here.parent / "style.safetensors")
    for arguments, said in (
        ([*solved, "--model", "tiny", *SMALL], "is for another checkpoint"),
        ([*solved, *model, "--num-steps", "4"], "is for 3 steps, not 4"),
        (model, "is for solver ab2, not euler: calibrate again with these options"),
        ([*solved, *model, "--threshold-noise", "0.3"], "is for other sigmas (0.975 at step 1, not 0.7)"),
        ([*solved, *model, "--linear-steps", "2"], "is for other sigmas (0.975 at step 1"),
        ([*solved, *model, "--lora", f"{here.parent / 'style.safetensors'}:0.5"], "is for no LoRA, not LoRA style.saf"),
    ):
        assert main(["generate", "x", "--reuse", "steps:found.json", "--out", "b.mp4", *arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert said in lines[0]
    assert sorted(path.name for path in here.iterdir()) == ["a.json", "a.mp4", "found.json"]


def lora(checkpoint, path, seed=1):
    """Write a LoRA of the model's first q."""
    weights = Component(checkpoint / "transformer")
    rows, columns = weights.shape("transformer_blocks.0.attn1.to_q.weight")
    name = "transformer.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{name}.lora_A.weight": randn(2, columns, seed=seed), f"{name}.lora_B.weight": randn(rows, 2, seed=seed + 1)},
        path,
    )


def test_a_list_is_bound_to_loras_by_content(small_checkpoint, here, capsys):
    model = ["--model", str(small_checkpoint), *SMALL]
    lora(small_checkpoint, here / "style.safetensors")
    assert main(["calibrate", "x", "--threshold", "1", "--lora", "style.safetensors:0.5", *model]) == 0
    found = json.loads((here / "reuse.json").read_text())
    assert found["lora_names"] == ["style.safetensors:0.5"]
    (here / "style.safetensors").rename(here / "moved.safetensors")
    lora(small_checkpoint, here / "style.safetensors", seed=5)
    capsys.readouterr()
    asked = ["generate", "x", "--reuse", "steps:reuse.json", "--out", "a.mp4", *model]
    for used in (["style.safetensors:0.5"], ["moved.safetensors"], ["moved.safetensors:0.5", "style.safetensors"], []):
        assert main([*asked, *(part for name in used for part in ("--lora", name))]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "is for LoRA style.safetensors:0.5 (" in line
    assert main([*asked, "--lora", "moved.safetensors:0.5"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_what_a_list_was_made_with_and_is_no_reason_to_refuse_is_said(small_checkpoint, here, capsys):
    """On the command line before weights are read, and in Python; once."""
    model = ["--model", str(small_checkpoint), *SMALL]
    assert main(["calibrate", "x", "--threshold", "1", "--cfg-scale", "3", *model]) == 0
    capsys.readouterr()
    other = ["--cfg-scale", "20", "--num-frames", "13", "--precision", "bf16"]
    assert main(["generate", "x", "--reuse", "steps:reuse.json", "--out", "a.mp4", *model, *other]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "calibrated with" in line]
    assert len(said) == 1
    assert "guidance 3, not guidance 20; size 32x32 of 7 frames, not size 32x32 of 13 frames; precision" in said[0]

    with MochiPipeline.from_pretrained(small_checkpoint, mesh="1x1", mode="golden") as pipe:
        video = {"height": 32, "width": 32, "num_frames": 7, "seed": 0, "output_type": "latent"}
        steps = {"num_inference_steps": 3, "reuse": "steps:reuse.json"}
        with pytest.warns(UserWarning, match="was calibrated with guidance 3, not guidance 2") as told:
            made = pipe("x", guidance_scale=2, **video, **steps)
        assert told[0].filename == __file__
        assert made.forwards[0].reused == [1]
        with pytest.raises(InputError, match="is for solver euler, not unipc"):
            pipe("x", guidance_scale=3, solver="unipc", **video, **steps)
        with pytest.raises(InputError, match="is for other sigmas"):
            pipe("x", guidance_scale=3, sigmas=[1, 0.5, 0.1, 0], **video, reuse="steps:reuse.json")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe("x", guidance_scale=3, **video, **steps)


def test_listed_steps_that_have_nothing_fresh_are_computed_and_named(small_checkpoint, here, capsys):
    model = ["--model", str(small_checkpoint), *SMALL, "--num-steps", "4"]
    assert main(["calibrate", "x", "--threshold", "1", *model]) == 0
    assert json.loads((here / "reuse.json").read_text())["reused_steps"] == [1, 2]
    capsys.readouterr()
    asked = ["generate", "x", "--reuse", "steps:reuse.json", "--out", "a.mp4", *model]
    assert main([*asked, "--guidance-interval", "0.5:1"]) == 0
    out = capsys.readouterr().out
    assert out.count("step 2 is computed, because the last computed step before it left out the unconditional") == 1
    record = json.loads((here / "a.json").read_text())
    assert record["forwards"] == {
        "conditional": {"computed": 3, "reused": 1},
        "unconditional": {"computed": 2, "reused": 0},
        "reused_steps": [1],
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--num-steps", "4", "--threshold-noise", "0.3", "--linear-steps", "1", "--guidance-reuse", "2"],
        ["--num-steps", "4", "--guidance-interval", "0.5:1"],
        ["--preset", "fast-mochi"],
        pytest.param(["--preset", "fast"], marks=pytest.mark.full),
        pytest.param(["--preset", "draft"], marks=pytest.mark.full),
    ],
    ids=" ".join,
)
def test_lists_of_any_schedule_are_made_and_used(small_checkpoint, here, capsys, options):
    """The same options make a list and use it, in silence; a projection takes it too."""
    model = ["--model", str(small_checkpoint), *SMALL[:6], *SMALL[8:], *options]
    assert main(["calibrate", "x", "--threshold", "1", *model]) == 0
    found = json.loads((here / "reuse.json").read_text())
    assert found["reused_steps"]
    capsys.readouterr()
    assert main(["generate", "x", "--reuse", "steps:reuse.json", "--out", "a.mp4", *model]) == 0
    assert "warning" not in capsys.readouterr().out
    forwards = json.loads((here / "a.json").read_text())["forwards"]
    assert forwards["reused_steps"] == found["reused_steps"]
    asked = {
        name[2:].replace("-", "_"): value if ":" in value or name == "--preset" else json.loads(value)
        for name, value in zip(options[::2], options[1::2], strict=True)
    }
    projected = resolve(Request(model=None, mode="dry-run", video=VideoRequest(reuse="steps:reuse.json", **asked)))
    assert planned_forwards(projected.video, on_halves=False).to_json() == forwards


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
