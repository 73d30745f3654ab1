"""Comparing layouts: which there are, how they are ranked, and one comparison as a user runs it."""

import json

import pytest

from models.mochi.precision import PRECISIONS
from models.parallel import Layout
from models.performance.cost_model import Seconds
from models.performance.layouts import Candidate, advice, layouts_of, lines
from scripts.cli import main


def test_every_layout_of_a_mesh():
    found = {str(layout) for layout in layouts_of((2, 4), 24)}
    assert {"2x4sp0tp1", "2x4sp1tp0", "2x4sp1tp0fsdp", "2x4cfg0sp0tp1", "2x4cfg1sp1tp0fsdp"} <= found
    assert "2x4cfg0sp0tp1fsdp" not in found, "SP=1 has nothing to shard weights over"
    assert all(24 % Layout.parse(text).tp == 0 for text in found)
    assert {str(layout) for layout in layouts_of((1, 5), 24)} == {"1x5sp1tp0", "1x5sp1tp0fsdp"}


def test_a_row_says_what_does_not_fit():
    layout, precision = Layout.parse("2x4sp1tp0"), PRECISIONS["default"]
    video = Seconds(300, 437, 500)
    small = Candidate(layout, precision, 10.1e9, video=video)
    large = Candidate(layout, precision, 12.0e9, video=video)
    never = Candidate(layout, precision, float("inf"))
    assert (small.fits, large.fits, never.fits) == (True, False, False)
    rows = lines([small, large, never])[2:]
    assert "| 10.1 |" in rows[0]
    assert "| 437 |" in rows[0]
    assert "12.0, does not fit" in rows[1]
    assert "too large for DRAM or L1" in rows[2]
    assert never.to_json()["peak_bytes"] is None


def test_advice_names_what_needs_no_sockets():
    def row(layout: str, precision: str, seconds: float, peak: float = 1e9) -> Candidate:
        video = Seconds(seconds, seconds, seconds)
        return Candidate(Layout.parse(layout), PRECISIONS[precision], peak, video=video)

    rows = [
        row("4x8cfg0sp1tp0", "default", 88),
        row("4x8sp1tp0", "fast", 90),
        row("4x8sp1tp0", "default", 101),
        row("4x8sp0tp1", "bf16", 50, peak=12e9),
    ]
    halves, whole, none = advice(rows)
    assert halves.startswith("default: --layout 4x8cfg0sp1tp0 is the fastest that fits, 88 s; its halves")
    assert halves.endswith("which no card has run yet: without them 4x8sp1tp0, 101 s")
    assert whole == "fast: --layout 4x8sp1tp0 is the fastest that fits, 90 s"
    assert none == "bf16: no layout fits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "t4000"], "system 't4000' does not exist"),
        (["--system", "blackhole-loudbox"], "has no mock"),
        (["--layout", "4x8sp0tp1"], "is for mesh 4x8, but the mesh is 2x4"),
        (["--precision", "fp4"], "precision 'fp4' does not exist"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main(["layouts", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.full
def test_a_comparison(tmp_path, capfd):
    """Full-size models and a small video: dry runs in processes of their own, ranked by projected seconds."""
    out = tmp_path / "layouts.json"
    size = ["--width", "64", "--height", "64", "--num-frames", "7", "--num-steps", "2"]
    assert main(["layouts", *size, "--layout", "sp0tp1", "--layout", "cfg1sp0tp1fsdp", "--json", str(out)]) == 0
    text = capfd.readouterr().out
    assert "PROJECTION for quietbox" in text
    rows = json.loads(out.read_text())["candidates"]
    assert {row["layout"] for row in rows} == {"2x4sp0tp1", "2x4cfg1sp0tp1fsdp"}
    assert all(row["fits"] and row["video_seconds"]["expected"] > 0 for row in rows)
    seconds = [row["video_seconds"]["expected"] for row in rows]
    assert seconds == sorted(seconds)
