"""`mochi-tt evaluate`: does the tiny model make what it is asked for, on the mesh and in PyTorch?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from models.device import choose_mode, quiet_ttnn
from models.machine.errors import InputError
from models.machine.files import check_writable, renamed_when_done, write_json
from models.performance.plots import check_plot
from scripts.options import HELP
from scripts.progress import make_reporter, quiet_libraries


def evaluate(
    model: Annotated[str, typer.Option(help="The built-in tiny, or a directory that train_tiny wrote.")] = "tiny",
    prompt_set: Annotated[
        str,
        typer.Option(
            "--set",
            help="held-out: 64 prompts in the training's words; free: 96 as people type, of one thing or two; "
            "edits: 18 videos that get another colour.",
        ),
    ] = "held-out",
    limit: Annotated[int | None, typer.Option(help="Only so many of the prompts.")] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    precision: Annotated[str, typer.Option(help=HELP["precision"])] = "default",
    json_file: Annotated[str | None, typer.Option("--json", help="Also write the report to this file.")] = None,
    sheet: Annotated[str | None, typer.Option(help="Also write a .png with a row of frames per prompt.")] = None,
    compare_settings: Annotated[
        bool,
        typer.Option(
            "--compare-settings",
            help="Instead compare solvers, reuse and guidance with the full run: PSNR, and seconds at full size. "
            "3 prompts unless --limit says otherwise; minutes.",
        ),
    ] = False,
    plot_file: Annotated[
        str | None, typer.Option("--plot", help="With --compare-settings: draw seconds against PSNR, .png or .svg.")
    ] = None,
) -> None:
    """Generate prompts that were not trained on, look at the frames, and compare with PyTorch from the same noise."""

    targets = {".json": json_file, ".png": sheet}
    for suffix, name in targets.items():
        if name is not None:
            check_writable(name, suffix)
    if plot_file is not None and not compare_settings:
        raise InputError("--plot draws what --compare-settings measures: give both")
    if compare_settings:
        if prompt_set != "held-out":
            raise InputError("--set is of the evaluation without --compare-settings: leave one of them out")
        if sheet is not None:
            raise InputError("--sheet is of the evaluation without --compare-settings: leave one of them out")
        if plot_file is not None:
            check_writable(plot_file, check_plot(plot_file).suffix.lower())
        return _compared(model, limit, mesh, precision, json_file, plot_file)
    quiet_libraries()
    quiet_ttnn()
    from models.jobs.evaluate import contact_sheet, plan
    from models.jobs.evaluate import evaluate as run

    checkpoint, settings, prompts = plan(model, limit, prompt_set)
    with make_reporter() as reporter:
        found = run(checkpoint, settings, prompts, mesh, precision, reporter.progress, prompt_set)
    print("\n".join(found.lines()))
    if json_file is not None:
        write_json(found.to_json(), json_file)
    if sheet is not None:
        with renamed_when_done(Path(sheet)) as scratch:
            Image.fromarray(contact_sheet(found.videos).numpy()).save(scratch, format="png")
    for name in filter(None, targets.values()):
        print(f"wrote {name}")


def _compared(
    model: str, limit: int | None, mesh: str, precision: str, json_file: str | None, plot_file: str | None
) -> None:
    quiet_libraries()
    quiet_ttnn()
    from models.jobs.compare_settings import SYSTEMS, compare_settings, plot, project, report, table
    from models.performance.calibration import used

    with make_reporter() as reporter:
        rows = compare_settings(model, limit, mesh=mesh, precision=precision, progress=reporter.progress)
        reporter.progress("project", 0, 1)
        project(rows, precision)
        reporter.progress("project", 1, 1)
    mode = choose_mode("auto")
    print(f"{len(rows[0].psnr)} held-out prompts, mode {mode}, mesh {mesh}, precision {precision}; PSNR in dB against")
    print("the first setting below; seconds are projections of Mochi 1 at full size, no card was used")
    print("\n".join([*(line for system in SYSTEMS for line in used(system, precision)), ""]))
    print("\n".join(table(rows)))
    if json_file is not None:
        write_json(report(rows, mode), json_file)
    if plot_file is not None:
        plot(rows, Path(plot_file))
    for name in filter(None, (json_file, plot_file)):
        print(f"wrote {name}")
