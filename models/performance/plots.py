"""Plots of a report: time by stage and kind of op, and the ops on the roofline of their system."""

from pathlib import Path

from models.machine.errors import InputError
from models.machine.extras import require
from models.machine.files import renamed_when_done
from models.machine.systems import system
from models.performance.report import Report, typical

SUFFIXES = (".png", ".svg")


def plot(report: Report, path: str | Path) -> None:
    """Draw a projection. The file appears under its name when it is complete.

    Args:
        report: result of `Projection.to_json`.
        path: output file; it ends with one of `SUFFIXES`, and its folder exists.

    Raises:
        ValueError: the suffix is another, or the report has no times per op.
        OSError: the file cannot be written.
    """
    path = check_plot(path)
    if "by_kind" not in report:
        raise InputError("only projections have a time per op to plot; a measurement has times per stage")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "mochi-tt"}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        stages, roofline = figure.subplots(1, 2)
        _stages(stages, report)
        _roofline(roofline, report)
        figure.suptitle(f"{report['mode']}: {report['system']}, {report['layout']}, {report['precision']}")
        with renamed_when_done(path) as scratch:
            figure.savefig(scratch, format=path.suffix[1:].lower(), dpi=150)


def check_plot(path: str | Path) -> Path:
    """Return the path if it ends with one of `SUFFIXES` and a plot can be drawn, before any long work.

    Raises:
        InputError: it ends otherwise.
        MissingInputError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"plot {path} must end with {' or '.join(SUFFIXES)}")
    require("matplotlib", "plots", "--plot")
    return path


def _stages(axes, report: Report) -> None:
    """Draw one bar per stage, stacked by kind of op.

    Bars show shares, because denoising is much longer than the other stages.
    """
    import matplotlib

    tables = {stage: kinds for stage, kinds in report["by_kind"].items() if kinds}
    kinds = list(dict.fromkeys(kind for table in tables.values() for kind in table))
    colours = {kind: matplotlib.colormaps["tab10"](index) for index, kind in enumerate(kinds)}
    for row, (stage, table) in enumerate(tables.items()):
        whole, left = sum(typical(seconds) for seconds in table.values()), 0.0
        for kind, seconds in table.items():
            share = typical(seconds) / whole
            axes.barh(row, share, left=left, color=colours[kind], label=kind)
            left += share
        axes.text(1.01, row, f"{typical(report['seconds'][stage]):.3g} s", va="center")
    axes.set_yticks(range(len(tables)), list(tables))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("share of the stage's device time, by kind of op")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)


def _roofline(axes, report: Report) -> None:
    """Draw FLOP/s against FLOP per DRAM byte for every op with matrix work. The area of a point is its time."""
    machine = system(report["system"])
    peak, bandwidth = machine.peak_flops("HiFi2"), machine.architecture.dram_bytes_per_second
    intensities = [1.0, peak / bandwidth, 1e5]
    axes.loglog(intensities, [min(peak, bandwidth * x) for x in intensities], color="black", label="HiFi2 peak, DRAM")
    marks = 0
    for row in report["per_op"]:
        took = typical(row["seconds"])
        if row["flops"] and row["dram_bytes"] and took > 1e-3 * typical(report["seconds"]["total"]):
            x, y = row["flops"] / row["dram_bytes"], row["flops"] / took
            area = 1500 * took / typical(report["seconds"]["total"])
            axes.scatter([], [], color=f"C{marks}", label=f"{row['op'].rpartition('.')[2]} ({row['stage']})")
            axes.scatter(x, y, s=max(area, 10), alpha=0.6, color=f"C{marks}")
            marks += 1
    axes.set_xlabel("matrix FLOP per byte of DRAM traffic")
    axes.set_ylabel("matrix FLOP/s of a chip")
    axes.set_title("roofline of a chip; area is time", fontsize=9)
    axes.legend(fontsize=7, loc="lower right")
