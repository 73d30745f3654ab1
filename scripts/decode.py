"""`mochi-tt decode`: frames from latents that `mochi-tt generate --save-latents` kept."""

from __future__ import annotations

from typing import Annotated

import typer
from loguru import logger

from models.device import MODES
from models.jobs.decode import DecodeRequest, plan, run
from models.jobs.generate import check_mode
from scripts.options import HELP, request
from scripts.progress import make_reporter


def decode(
    latents: Annotated[str, typer.Argument(help="A .safetensors file made by generate --save-latents.")],
    model: Annotated[str | None, typer.Option(help="The checkpoint. [default: the one of the latents]")] = None,
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as bf16.")] = None,
    base: Annotated[str | None, typer.Option(help=HELP["base"])] = None,
    cache_dir: Annotated[str | None, typer.Option(help=HELP["cache_dir"])] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[str | None, typer.Option(help="Such as sp0tp1. [default: by the mesh]")] = None,
    vae_split: Annotated[
        str | None,
        typer.Option(help="Dims split over the mesh axes: t time, h height, w width; such as h0w1. [default: by size]"),
    ] = None,
    keep_all_frames: Annotated[
        bool, typer.Option("--keep-all-frames", help="Keep the decoder's surplus leading frames too.")
    ] = False,
    first_frames: Annotated[
        str | None, typer.Option(help=HELP["first_frames"].replace("by the", "that of the latents, else by the"))
    ] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second. [default: that of the latents]")] = None,
    out: Annotated[str | None, typer.Option(help="The .mp4 to write. [default: the latents' name with .mp4]")] = None,
    mode: Annotated[str, typer.Option(help="hardware, simulator, golden, or auto.")] = "auto",
    plain: Annotated[str | None, typer.Option(help=HELP["plain"])] = None,
    profile: Annotated[str | None, typer.Option(help=HELP["profile"])] = None,
) -> None:
    """Decode saved latents, with the very decoder that generate uses."""
    options = locals()
    logger.disable("models")
    print(f"mode {MODES[check_mode(mode)]}", flush=True)
    job = plan(
        DecodeRequest(
            latents=latents,
            request=request(options),
            keep_all_frames=keep_all_frames,
            fps=fps,
            out=out,
        )
    )
    with make_reporter() as reporter:
        path = run(job, reporter.progress, reporter.line)
    print(f"wrote {path} and {path.with_suffix('.json').name}")
