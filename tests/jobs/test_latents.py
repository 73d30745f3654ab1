"""Latents on disk, and videos decoded from them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from models.jobs.latents import load_latents, save_latents
from scripts.cli import main


def test_round_trip(tmp_path):
    latents = torch.randn(1, 12, 2, 4, 6)
    save_latents(latents, tmp_path / "a.safetensors", {"prompt": "x", "fps": 24})
    loaded, about = load_latents(tmp_path / "a.safetensors")
    assert torch.equal(loaded, latents)
    assert about == {"prompt": "x", "fps": 24}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_latents(torch.zeros(1, 12, 1, 2, 2), tmp_path / "a.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_decode_gives_the_video_that_generate_gave(tmp_path, capsys):
    video, again = tmp_path / "video.mp4", tmp_path / "again.mp4"
    size = ["--width", "48", "--height", "32", "--num-frames", "7", "--num-steps", "2"]
    store = ["--cache-dir", str(tmp_path / "store")]
    ways = ["--first-frames", "genmo", "--empty-prompt", "encoded"]
    assert main(["generate", "a ball", "--out", str(video), "--save-latents", *ways, *size, *store]) == 0
    record = json.loads(video.with_suffix(".json").read_text())
    assert (record["first_frames"], record["empty_prompt"]) == ("genmo", "encoded"), "tiny's own are others"
    assert record["arguments"]["first_frames"] == "genmo"
    assert record["tokens"]["negative_prompt"]["used"] == 1
    latents = tmp_path / "video.latents.safetensors"
    said = capsys.readouterr().out
    assert f"kept the latents in {latents}" in said
    assert "first frames genmo, empty prompt encoded" in said
    assert main(["decode", str(latents), "--out", str(again), *store]) == 0
    assert again.read_bytes() == video.read_bytes()
    record = json.loads(again.with_suffix(".json").read_text())
    assert record["made_with"]["prompt"] == "a ball"
    assert record["first_frames"] == "genmo", "the video's, not the checkpoint's"
    everything = ["--keep-all-frames", "--vae-split", "w1"]
    assert main(["decode", str(latents), "--out", str(again), *everything, *store]) == 2
    refused = capsys.readouterr().err.splitlines()
    assert len(refused) == 1
    assert "all frames cannot be kept where first_frames is genmo" in refused[0]
    assert main(["decode", str(latents), "--out", str(again), "--first-frames", "diffusers", *everything, *store]) == 0
    assert again.read_bytes() != video.read_bytes()


def make(tmp_path, kind):
    path = tmp_path / "latents.safetensors"
    good = torch.randn(1, 12, 2, 4, 6)
    if kind == "missing":
        return path
    if kind == "foreign":
        save_file({"latents": good}, path)
    elif kind == "truncated":
        save_latents(good, path, {})
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "text":
        path.write_text("not latents")
    elif kind == "channels":
        save_latents(good[:, :5], path, {})
    elif kind == "rank":
        save_latents(good[0], path, {})
    elif kind == "nan":
        good[0, 3, 1] = float("nan")
        save_latents(good, path, {})
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "do not exist: give a file made by encode or generate --save-latents"),
        ("foreign", "is a safetensors file but not one of latents"),
        ("truncated", "is truncated or not a safetensors file"),
        ("text", "is truncated or not a safetensors file"),
        ("channels", "latents must be [1, 12, T, H, W], not [1, 5, 2, 4, 6]"),
        ("rank", "latents must be [1, 12, T, H, W], not [12, 2, 4, 6]"),
        ("nan", "latents"),
    ],
)
def test_bad_latents(tmp_path, capsys, kind, message):
    out = tmp_path / "out.mp4"
    assert main(["decode", str(make(tmp_path, kind)), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vae-split", "h0h1"], "both mesh axes split the same dim"),
        (["--vae-split", "x0"], "is not a split"),
        (["--out", "video.avi"], "must end with .mp4"),
        (["--fps", "0"], "fps 0 must be at least 1"),
        (["--first-frames", "all"], "first_frames 'all' must be genmo"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, message):
    path = make(tmp_path, "good")
    save_latents(torch.randn(1, 12, 2, 4, 6), path, {})
    assert main(["decode", str(path), *arguments]) == 2
    assert message in capsys.readouterr().err
