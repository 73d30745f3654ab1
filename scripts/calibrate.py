"""`mochi-tt calibrate`: which steps of a checkpoint may reuse blocks."""

from __future__ import annotations

from typing import Annotated

import typer

from models.device import MODES
from models.jobs.calibrate import THRESHOLD, plan, run
from models.jobs.generate import check_mode
from scripts.options import HELP, request
from scripts.progress import make_reporter, quiet_libraries


def calibrate(
    prompts: Annotated[list[str], typer.Argument(help="A few prompts of the kind that will be used.")],
    threshold: Annotated[
        float,
        typer.Option(help="A step is reused where the first block's residual changed by no more than this share."),
    ] = THRESHOLD,
    num_steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: the checkpoint's]")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Guidance. [default: the checkpoint's]")] = None,
    guidance_interval: Annotated[str | None, typer.Option(help=HELP["guidance_interval"])] = None,
    guidance_reuse: Annotated[int | None, typer.Option(help=HELP["guidance_reuse"])] = None,
    threshold_noise: Annotated[float | None, typer.Option(help=HELP["threshold_noise"])] = None,
    linear_steps: Annotated[int | None, typer.Option(help=HELP["linear_steps"])] = None,
    solver: Annotated[str | None, typer.Option(help=HELP["solver"])] = None,
    preset: Annotated[str | None, typer.Option(help=HELP["preset"])] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16. [default: the checkpoint's]")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16. [default: the checkpoint's]")] = None,
    num_frames: Annotated[int | None, typer.Option(help="6k + 1. [default: the checkpoint's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first prompt's noise; later ones count up.")] = None,
    out: Annotated[str, typer.Option(help="The .json to write; generate --reuse steps:FILE reads it.")] = "reuse.json",
    model: Annotated[str, typer.Option(help="The checkpoint, as for generate.")] = "tiny",
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as bf16.")] = None,
    base: Annotated[str | None, typer.Option(help=HELP["base"])] = None,
    precision: Annotated[
        str | None, typer.Option(help=f"{HELP['precision']} [default: the preset's, else default]")
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(help=HELP["lora"])] = None,
    cache_dir: Annotated[str | None, typer.Option(help=HELP["cache_dir"])] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[str | None, typer.Option(help="Such as sp0tp1. [default: by the mesh]")] = None,
    mode: Annotated[str, typer.Option(help="hardware, simulator, golden, or auto: hardware where there are cards.")] = (
        "auto"
    ),
    profile: Annotated[str | None, typer.Option(help=HELP["profile"])] = None,
) -> None:
    """Run a few prompts, and write the list of steps that reused blocks in all of them."""
    options = locals()
    print(f"mode {MODES[check_mode(mode)]}", flush=True)
    job = plan(prompts, request(options, reuse=threshold), out)
    quiet_libraries()
    with make_reporter() as reporter:
        found = run(job, reporter.progress, lambda line: reporter.line(f"warning: {line}"))
    if not found.reused_steps:
        print("no step was reused for every prompt: a higher --threshold reuses more")
    steps = ",".join(map(str, found.reused_steps)) or "none"
    print(f"{len(found.reused_steps)} of {found.num_steps} steps are reused: {steps}")
    print(f"wrote {job.out}; use it with --reuse steps:{job.out}")
