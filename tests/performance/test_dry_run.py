"""Full-size dry runs: the real program fits and validates; each in a process of its own (one cluster a process)."""

import json
import os
import subprocess
import sys

import pytest

from models.machine.systems import system

SMALL = ("--mesh", "1x1", "--width", "208", "--height", "112", "--num-frames", "7")
CHIP_DRAM = system("quietbox").architecture.dram_bytes


def dry_run(tmp_path, *arguments: str) -> dict:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "scripts.cli", "dry-run", "--json", str(report), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    return json.loads(report.read_text())


@pytest.mark.parametrize(("mesh", "tokens_per_chip"), [("2x4", 11_136), ("4x8", 5_568)])
def test_one_block_at_full_size(tmp_path, mesh, tokens_per_chip):
    """44,520 tokens, 24 heads of 128: one block completes; DRAM per chip is printed."""
    report = dry_run(tmp_path, "--mesh", mesh, "--blocks", "1", "--stage", "denoise")
    assert report["mode"] == "dry run"
    assert report["visual_tokens"] == 44_520
    stage = report["stages"]["denoise"]
    # Activations of one block: a gathered 3072-wide bfloat16 row per token, at least, on top of the weights.
    assert sum(report["weight_bytes"].values()) + tokens_per_chip * 3072 * 2 < stage["dram_peak_bytes"] < CHIP_DRAM / 2
    # 2 x 44,776^2 x 24 x 128 x 2 attention FLOPs over the chips, and more for the projections.
    chips = int(mesh[0]) * int(mesh[2])
    assert stage["flops"] > 4 * 44_520**2 * 24 * 128 / chips
    assert stage["link_bytes"] > 0


def test_steps_that_reuse_blocks_are_traced(tmp_path):
    """A preset's steps and solver, and a forward that runs one block of two."""
    report = dry_run(
        tmp_path, "--blocks", "2", "--stage", "denoise", "--preset", "fast", "--reuse", "steps:3,4", *SMALL
    )
    assert report["forwards"]["conditional"] == {"computed": 14, "reused": 2}
    assert report["forwards"]["reused_steps"] == [3, 4]
    stages = report["stages"]
    for part in (
        "denoise",
        "guide",
    ):  # one block of two, and what is around the blocks, which counts in so small a video
        assert 0.4 < stages[f"{part}_reused"]["flops"] / stages[part]["flops"] < 0.6
    assert stages["guide"]["device_calls"] > stages["denoise"]["device_calls"] + 20, "unipc keeps two tensors"


# 44,520 tokens are 1391.25 tiles. In `accurate` attention fills L1, and must leave room for the sockets of halves.
@pytest.mark.full
@pytest.mark.parametrize(
    "arguments",
    [
        ("--mesh", "1x2", "--layout", "sp0tp1", "--precision", "bf8"),
        ("--mesh", "1x8", "--layout", "sp0tp1"),
        ("--mesh", "2x4", "--layout", "cfg0sp0tp1"),
        ("--mesh", "2x4", "--layout", "cfg0sp1tp0fsdp", "--precision", "accurate"),
        ("--mesh", "4x8", "--layout", "cfg0sp1tp0", "--precision", "accurate"),
        ("--mesh", "1x1", "--precision", "bf8", "--num-frames", "31"),
    ],
    ids=lambda arguments: "-".join(arguments).replace("--", ""),
)
def test_two_blocks_in_layouts_without_sp_and_on_halves(tmp_path, arguments):
    report = dry_run(tmp_path, *arguments, "--blocks", "2", "--stage", "denoise")
    assert report["dram_peak_bytes"] < 11.8e9


@pytest.mark.full
@pytest.mark.parametrize(
    "arguments",
    [
        ("--mesh", "2x4"),
        ("--mesh", "4x8"),
        ("--mesh", "2x4", "--precision", "accurate"),
        ("--mesh", "4x8", "--width", "1280", "--height", "720", "--num-frames", "61"),
        ("--mesh", "4x8", "--width", "1280", "--height", "720"),
        ("--mesh", "2x4", "--width", "480", "--height", "848", "--num-frames", "25"),
        ("--mesh", "2x4", "--width", "16", "--height", "16", "--num-frames", "7", "--text-tokens", "1"),
    ],
    ids=lambda arguments: "-".join(arguments).replace("--", ""),
)
def test_the_whole_transformer_fits(tmp_path, arguments):
    report = dry_run(tmp_path, *arguments)
    assert report["dram_peak_bytes"] < 11.5e9
    assert report["blocks"] == 48


def test_a_layout_that_does_not_fit_fails(tmp_path):
    """TP=1 puts 20 GB of weights on a chip of 12.8 GB: the allocator says so."""
    command = [sys.executable, "-m", "scripts.cli", "dry-run", "--mesh", "1x2", "--layout", "sp1tp0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "mochi-tt: error: a chip's memory is too small: Out of Memory: Not enough space" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-config", "huge"], "model config 'huge' does not exist: choose one of preview"),
        (["--mesh", "1x5", "--layout", "sp0tp1"], "TP=5 does not divide"),
        (["--mesh", "5x5"], "mesh 5x5 does not fit any system that is known"),
        (["--num-frames", "8"], "num_frames 8 must be 6k + 1"),
        (["--json", "report.txt"], "must end with .json"),
        (["--stage", "dream"], "--stage 'dream' does not exist: choose from encode, denoise, decode"),
    ],
)
def test_bad_input(arguments, message, capsys):
    from scripts.cli import main

    assert main(["dry-run", *arguments]) == 2
    assert message in capsys.readouterr().err
