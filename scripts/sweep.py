"""`mochi-tt sweep`: many videos, one opening of the mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.device import MODES
from models.jobs.generate import about_the_machine, check_mode
from models.jobs.sweep import RESULTS, SHEET, plan_sweep, run_sweep, summary
from models.jobs.sweep_file import BadLines
from scripts.options import HELP, request
from scripts.progress import make_reporter, quiet_libraries


def sweep(
    file: Annotated[
        str,
        typer.Argument(
            help="A .jsonl file with an object in each line, or a .csv file with a header: prompt, and any of "
            "negative_prompt, cfg_scale, num_steps, threshold_noise, linear_steps, seed, width, height, num_frames, "
            "fps, solver, guidance_interval, guidance_reuse, preset, reuse, sigma_schedule, cfg_schedule."
        ),
    ],
    out: Annotated[
        str | None, typer.Option(help="The folder of all files. [default: outputs/<name of the file>]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Most videos to make now; the same command makes the rest.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Note a job that fails, and go on with the next; exit code 1 then.")
    ] = False,
    model: Annotated[str, typer.Option(help="As for mochi-tt generate.")] = "tiny",
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as bf16.")] = None,
    base: Annotated[str | None, typer.Option(help=HELP["base"])] = None,
    precision: Annotated[str | None, typer.Option(help=f"{HELP['precision']} [default: default]")] = None,
    lora: Annotated[list[str] | None, typer.Option(help=HELP["lora"])] = None,
    cache_dir: Annotated[str | None, typer.Option(help=HELP["cache_dir"])] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[str | None, typer.Option(help="Mesh axes, such as sp0tp1. [default: by the mesh]")] = None,
    mode: Annotated[str, typer.Option(help="hardware, simulator, golden, or auto: hardware where cards are.")] = "auto",
    capture: Annotated[
        bool | None, typer.Option(help="On cards, record a denoising step once and replay it. [default: do]")
    ] = None,
    plain: Annotated[str | None, typer.Option(help=HELP["plain"])] = None,
    links: Annotated[int | None, typer.Option(help=HELP["links"])] = None,
    topology: Annotated[str | None, typer.Option(help=HELP["topology"])] = None,
    profile: Annotated[str | None, typer.Option(help=HELP["profile"])] = None,
    first_frames: Annotated[str | None, typer.Option(help=HELP["first_frames"])] = None,
    empty_prompt: Annotated[str | None, typer.Option(help=HELP["empty_prompt"])] = None,
) -> None:
    """Make the videos of a file's lines. All lines are checked first; what is there already is not made again."""
    options = locals()
    print(f"mode {MODES[check_mode(mode)]}", flush=True)
    folder = Path(out) if out is not None else Path("outputs") / Path(file).stem
    try:
        planned = plan_sweep(file, request(options), folder, limit)
    except BadLines as error:
        for problem in error.problems:
            print(f"{file}, {problem}")
        raise
    waiting = len(planned.waiting())
    print(f"{len(planned.jobs)} lines, {len(planned.jobs) - waiting} videos are there already, {waiting} to make")
    quiet_libraries()
    with make_reporter() as reporter:
        about = about_the_machine(planned.setup)
        if about is not None:
            reporter.line(about)
        failed = run_sweep(
            planned,
            reporter.progress,
            lambda line: reporter.line(f"warning: {line}"),
            lambda job, place, count: reporter.line(f"{place}/{count}: line {job.line.number}, {job.out.name}"),
            keep_going=keep_going,
        )
    for line in summary(planned):
        print(line)
    print(f"{folder / RESULTS} has the table, {folder / SHEET} the pictures")
    if failed:
        raise typer.Exit(1)
