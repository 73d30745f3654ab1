"""Settings against the full run: what a row counts, and the command on the built-in model."""

import json

import pytest

from models.jobs.compare_settings import COMPARED, FULL, Row, compare_settings, plot, project, report, table
from models.mochi.sampling.reuse import Blocks, Forwards
from models.tiny.vision import Sight
from scripts.cli import main

ASKED = Sight("red", "left", "ball")


def row(settings, steps, psnr, seconds, seen=ASKED) -> Row:
    made = Row(settings, seconds={"quietbox": seconds, "galaxy": seconds / 4})
    for value in psnr:
        made.add(Forwards(list(steps)), value, seen, ASKED)
    return made


@pytest.fixture
def rows():
    computed = (2, Blocks.COMPUTED)
    full = row(FULL, [computed] * 4, [99.0, 99.0], 42.0)
    half = row({"num_inference_steps": 4, "reuse": 0.1}, [computed, (2, Blocks.REUSED)] * 2, [30.0, 24.0], 26.04)
    few = row(
        {"num_inference_steps": 2, "solver": "unipc"}, [computed] * 2, [28.0, 27.0], 18.0, Sight("red", "left", None)
    )
    return [full, half, few]


def test_forwards_of_both_branches_are_counted(rows):
    assert (rows[1].number(Blocks.COMPUTED), rows[1].number(Blocks.REUSED)) == (4, 4)
    assert rows[0].number(Blocks.REUSED) == 0


def test_the_table_has_the_slowest_first_and_names_every_setting(rows):
    lines = table(rows)
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [
        "euler 64",
        "euler 4, reuse 0.1",
        "unipc 2",
    ]
    assert lines[3].endswith("| 27.0 | 24.0 | 100% |")
    assert lines[4].endswith("| 67% |")


def test_a_report_and_a_plot(rows, tmp_path):
    made = json.loads(json.dumps(report(rows, "golden")))
    assert made["rows"][2]["psnr_worst"] == 27.0
    assert made["rows"][1]["seconds"]["quietbox"] == 26.0
    plot(rows, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


def test_names_are_apart():
    names = [Row(each).name for each in (FULL, *COMPARED)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "a.png"], "--plot draws what --compare-settings measures"),
        (["--compare-settings", "--sheet", "a.png"], "--sheet is of the evaluation without"),
        (["--compare-settings", "--plot", "a.pdf"], "must end with .png or .svg"),
        (["--compare-settings", "--limit", "0"], "--limit 0 must be at least 1"),
    ],
)
def test_what_cannot_be_together(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_the_full_run_against_itself_and_a_reused_one():
    # With four steps a reused one ends in another video (5 dB).
    same, reused = {"num_inference_steps": 8}, {"num_inference_steps": 8, "reuse": "steps:3"}
    rows = compare_settings("tiny", 1, mesh="1x1", precision="default", settings=[same, reused], full=same)
    assert rows[1].psnr == [99.0], "the same settings give the same video"
    assert rows[2].number(Blocks.COMPUTED) == 14
    assert rows[2].number(Blocks.REUSED) == 2
    assert 20 < rows[2].psnr[0] < 99
    project(rows, "default")
    for system in ("quietbox", "galaxy"):
        same, also, reused = (row.seconds[system] for row in rows)
        assert same == also
        assert 0.86 * same < reused < 0.93 * same, "two of sixteen forwards reuse 47 of 48 blocks"
