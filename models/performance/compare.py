"""Comparison of two reports: ratios per stage and kind of op, and regressions beyond a threshold."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.machine.checks import json_file, number
from models.machine.errors import InputError
from models.performance.report import Report, typical

# Fields that two reports must have in common to be compared.
_SUBJECT = ("system", "layout", "precision", "height", "width", "num_frames")
# Counts that may not grow. A smaller count is never a regression.
COUNTED = ("device_calls", "flops", "dram_bytes", "link_bytes", "exposed_link_bytes", "dram_peak_bytes")
THRESHOLD = 0.02


@dataclass(frozen=True)
class Ratio:
    """One figure of both reports."""

    name: str
    before: float
    after: float

    @property
    def growth(self) -> float:
        """After over before, minus one; infinite if only the second report has a value."""
        if self.before:
            return self.after / self.before - 1
        return float("inf") if self.after else 0.0

    def __str__(self) -> str:
        return f"{self.name:<44} {self.before:>14.6g} {self.after:>14.6g} {self.growth:>+8.1%}"


def read(path: str | Path) -> dict[str, Any]:
    """Read a report or a baseline.

    Raises:
        InputError: the file cannot be read, or is not a report of `mochi-tt measure`.
    """
    report = json_file(path, "report", "give a file of mochi-tt measure --json")
    if any(name not in report for name in ("counts", *_SUBJECT)):
        raise InputError(f"report {path} is not one of mochi-tt measure: it has no counts of a system and a video")
    _check_figures(report, f"report {path}")
    return report


def _check_figures(report: dict[str, Any], where: str) -> None:
    """Check what `ratios` goes through: tables of figures, by stage or part, and for kinds of ops below them.

    Raises:
        InputError: a table is none, lacks a count, or a figure is no number.
    """
    for name, depth in {"seconds": 1, "by_kind": 2}.items():
        for place, range_ in _tables(report.get(name, {}), depth, f"{where}: {name}"):
            number(place, range_.get("expected", range_.get("median")))
    for place, counts in _tables(report["counts"], 1, f"{where}: counts"):
        for what in COUNTED:
            number(f"{place}, {what}", counts.get(what))


def _tables(value: Any, depth: int, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables that lie `depth` tables deep in a value, each with its place."""
    if not isinstance(value, dict):
        raise InputError(f"{where} is no table: give a file of mochi-tt measure --json")
    if depth == 0:
        yield where, value
        return
    for name, below in value.items():
        yield from _tables(below, depth - 1, f"{where} of {name}")


def baseline(report: Report) -> dict[str, Any]:
    """Return the exact part of a report, which is the same on every host. Tests store it."""
    return {name: report[name] for name in (*_SUBJECT, "counts")}


def ratios(before: Report, after: Report) -> list[Ratio]:
    """Return every figure that both reports have: seconds per stage and kind, then counts per traced part.

    Raises:
        ValueError: the reports are of different systems, layouts, precisions or videos.
    """
    for name in _SUBJECT:
        if before[name] != after[name]:
            raise InputError(f"reports differ in {name}: {before[name]} and {after[name]}; compare like with like")
    return [*_seconds(before, after), *_counts(before, after)]


def regressions(compared: list[Ratio], threshold: float = THRESHOLD) -> list[Ratio]:
    """Return the ratios that grew by more than `threshold` (a fraction: 0.02 is 2%)."""
    return [ratio for ratio in compared if ratio.growth > threshold]


def _seconds(before: Report, after: Report) -> Iterator[Ratio]:
    for stage in _both(before.get("seconds", {}), after.get("seconds", {})):
        yield Ratio(f"seconds of {stage}", typical(before["seconds"][stage]), typical(after["seconds"][stage]))
    for stage in _both(before.get("by_kind", {}), after.get("by_kind", {})):
        old, new = before["by_kind"][stage], after["by_kind"][stage]
        for kind in {**old, **new}:
            pair = (typical(table[kind]) if kind in table else 0.0 for table in (old, new))
            yield Ratio(f"seconds of {stage}, {kind}", *pair)


def _counts(before: Report, after: Report) -> Iterator[Ratio]:
    for part in _both(before["counts"], after["counts"]):
        for what in COUNTED:
            yield Ratio(f"{what} of {part}", before["counts"][part][what], after["counts"][part][what])


def _both(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [name for name in before if name in after]
