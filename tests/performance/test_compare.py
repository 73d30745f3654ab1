"""Comparing reports: ratios, thresholds, exit codes, and what cannot be compared."""

import json

import pytest

from models.performance.compare import baseline, ratios, regressions
from scripts.cli import main

COUNTS = {
    "device_calls": 100,
    "flops": 1e12,
    "dram_bytes": 1e9,
    "link_bytes": 1e6,
    "exposed_link_bytes": 0.0,
    "dram_peak_bytes": 10_000_000,
}
REPORT = {
    "mode": "projection",
    "system": "galaxy",
    "layout": "4x8sp1tp0",
    "precision": "bf16",
    "height": 480,
    "width": 848,
    "num_frames": 163,
    "seconds": {"total": {"low": 1.0, "expected": 2.0, "high": 3.0}},
    "by_kind": {"denoise": {"attention": {"low": 1.0, "expected": 1.5, "high": 2.0}}},
    "counts": {"denoise": COUNTS},
}


def changed(**counts) -> dict:
    return REPORT | {"counts": {"denoise": COUNTS | counts}}


def compare(tmp_path, before, after, *arguments) -> int:
    files = []
    for name, report in (("a", before), ("b", after)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(report))
    return main(["measure", "--compare", *map(str, files), *arguments])


def test_the_same_is_no_regression(tmp_path, capsys):
    assert compare(tmp_path, REPORT, REPORT) == 0
    assert "0 of 8 figures grew by more than 2.0%" in capsys.readouterr().out


def test_a_count_over_the_threshold_is_one(tmp_path, capsys):
    grown = changed(dram_bytes=1.03e9)
    assert compare(tmp_path, REPORT, grown) == 1
    assert "regression: dram_bytes of denoise" in capsys.readouterr().out
    assert compare(tmp_path, REPORT, grown, "--threshold", "0.05") == 0


def test_seconds_count_too(tmp_path, capsys):
    slower = REPORT | {"seconds": {"total": {"low": 1.0, "expected": 2.2, "high": 3.0}}}
    assert compare(tmp_path, REPORT, slower) == 1
    assert "regression: seconds of total" in capsys.readouterr().out


def test_something_where_there_was_nothing_is_a_regression():
    assert [ratio.name for ratio in regressions(ratios(REPORT, changed(exposed_link_bytes=1.0)))] == [
        "exposed_link_bytes of denoise"
    ]


def test_less_is_no_regression():
    assert not regressions(ratios(REPORT, changed(dram_bytes=0.5e9, device_calls=50)))


def test_a_baseline_has_counts_only():
    kept = baseline(REPORT)
    assert "seconds" not in kept
    assert {ratio.growth for ratio in ratios(kept, REPORT)} == {0.0}


def test_a_measurement_against_a_projection():
    """Both have the same stages, so hardware can be held against what was projected for it."""
    measured = REPORT | {"mode": "hardware", "seconds": {"total": {"min": 1.0, "median": 3.0, "max": 4.0}}}
    assert next(iter(ratios(REPORT, measured))).growth == 0.5


@pytest.mark.parametrize("name", ["system", "layout", "precision", "num_frames"])
def test_other_subjects_do_not_compare(tmp_path, capsys, name):
    assert compare(tmp_path, REPORT, REPORT | {name: "another"}) == 2
    assert f"reports differ in {name}" in capsys.readouterr().err


def test_files_that_are_no_reports(tmp_path, capsys):
    assert compare(tmp_path, REPORT, {"counts": {}}) == 2
    assert "is not one of mochi-tt measure" in capsys.readouterr().err
    (tmp_path / "b.json").write_text("{")
    assert main(["measure", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "is not valid JSON" in capsys.readouterr().err
    assert main(["measure", "--compare", str(tmp_path / "a.json"), str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
