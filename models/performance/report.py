"""Reports as text, the same for a projection and for a measurement.

A report is plain data. `mode` is `projection`, `hardware` or `golden`. `seconds` has a range per stage: low / expected
/ high in a projection, min / median / max in a measurement. `counts` are exact, per traced part. `per_op` has one row
per stage and op.
"""

from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]
STAGES = ("encode", "denoise", "decode", "output", "total")
_GB = 1e9


def typical(seconds: Mapping[str, float]) -> float:
    """Return the middle of a range: expected, or median."""
    return seconds["expected"] if "expected" in seconds else seconds["median"]


def markdown(report: Report, *, most: int = 12) -> list[str]:
    """Return a report as Markdown: its subject, seconds per stage, and the `most` ops that take longest."""
    lines = [report["note"], "", _subject(report), ""]
    low, middle, high = ("low", "expected", "high") if report["mode"] == "projection" else ("min", "median", "max")
    lines += [f"| stage | {middle} | {low} | {high} |", "|---|---|---|---|"]
    for stage in (*STAGES, "step"):
        if stage in report["seconds"]:
            seconds = report["seconds"][stage]
            name = "one denoising step" if stage == "step" else stage
            lines.append(f"| {name} | {_time(seconds[middle])} | {_time(seconds[low])} | {_time(seconds[high])} |")
    lines += ["", *_facts(report), "", *_ops(report, most)]
    return lines


def _subject(report: Report) -> str:
    return (
        f"{report['system']}, layout {report['layout']}, precision {report['precision']}, "
        f"{report['width']}x{report['height']}, {report['num_frames']} frames, "
        f"{report['num_steps']} steps"
        + (" with guidance" if report.get("forwards") is None else "")
        + ("" if report.get("verified_system", True) else "; a system that nothing here has ever opened")
    )


def _facts(report: Report) -> list[str]:
    facts = [f"Peak DRAM per chip {report['dram_peak_bytes'] / _GB:.2f} GB."]
    if "default_steps" in report:
        of = report["default_steps"]
        seconds = of["total"]
        facts.append(
            f"With {of['num_steps']} steps, as generate makes by default: {_time(seconds['expected'])} "
            f"({_time(seconds['low'])} to {_time(seconds['high'])})."
        )
    if report.get("forwards"):
        facts.append(_forwards(report["forwards"]))
    facts += [f"Note: {note}." for note in report.get("notes", [])]
    if report.get("calibration"):
        facts.append(f"Calibrated: {report['calibration']}.")
    for chunks, instead in report.get("unmeasured_chunks", {}).items():
        facts.append(
            f"Attention in chunks of {chunks} was never timed: {instead}. A faster total is no advice to use it."
        )
    if "not_counted" in report:
        facts.append(f"Not counted: {report['not_counted']}.")
    for stage, seconds in report.get("compile_seconds", {}).items():
        facts.append(f"Compiling before it: {stage} {_time(seconds)}.")
    for stage, parts in report.get("utilisation", {}).items():
        shares = ", ".join(f"{name} {share:.1%}" for name, share in parts.items())
        facts.append(f"Utilisation in {stage}: {shares} of peak.")
    return facts


def _forwards(forwards: Mapping[str, Any]) -> str:
    branches = [forwards["conditional"], forwards["unconditional"]]
    computed, reused = (sum(branch[name] for branch in branches) for name in ("computed", "reused"))
    return f"Forwards: {computed} computed, {reused} of one block only."


def _ops(report: Report, most: int) -> list[str]:
    rows = report["per_op"][:most]
    lines = [
        "| stage | op | calls | TFLOP | DRAM GB | link GB | seconds | bound by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = _time(typical(row["seconds"])) if "seconds" in row else "-"
        lines.append(
            f"| {row['stage']} | {row['op'].removeprefix('ttnn.')} | {row['calls']} | {row['flops'] / 1e12:.1f} | "
            f"{row['dram_bytes'] / _GB:.1f} | {row['link_bytes'] / _GB:.1f} | {seconds} | {row.get('bound', '-')} |"
        )
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
