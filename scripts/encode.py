"""`mochi-tt encode`: latents of videos and images, which `mochi-tt decode` turns back into frames."""

from __future__ import annotations

from typing import Annotated

import typer
from loguru import logger

from models.device import MODES
from models.jobs.encode import EncodeRequest, plan, run
from models.jobs.generate import check_mode
from scripts.options import HELP, request
from scripts.progress import make_reporter


def encode(
    source: Annotated[str, typer.Argument(help="A video, an image, or a folder of them.")],
    model: Annotated[str, typer.Option(help="The checkpoint; see generate.")] = "tiny",
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as bf16.")] = None,
    base: Annotated[str | None, typer.Option(help=HELP["base"])] = None,
    cache_dir: Annotated[str | None, typer.Option(help=HELP["cache_dir"])] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[str | None, typer.Option(help="Such as sp0tp1. [default: by the mesh]")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16. [default: the checkpoint's]")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16. [default: the checkpoint's]")] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(help="6k + 1. [default: what the video has, up to the checkpoint's default]"),
    ] = None,
    fps: Annotated[
        int | None, typer.Option(help="Frames per second that the video is resampled to. [default: 30]")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Show the whole picture with black bars. [default: fill, cut the middle out]")
    ] = False,
    start: Annotated[float, typer.Option(help="Seconds of the video to leave out.")] = 0.0,
    seed: Annotated[
        int | None, typer.Option(help="Sample the latents with this seed. [default: take their mean]")
    ] = None,
    vae_split: Annotated[
        str | None, typer.Option(help="Dims split over the mesh axes: h height, w width; such as h0w1.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="The .safetensors to write; for a folder, a folder. [default: NAME.latents.safetensors]"),
    ] = None,
    mode: Annotated[str, typer.Option(help="hardware, simulator, golden, or auto.")] = "auto",
    plain: Annotated[str | None, typer.Option(help=HELP["plain"])] = None,
    profile: Annotated[str | None, typer.Option(help=HELP["profile"])] = None,
) -> None:
    """Encode videos and images to latents, with the VAE's encoder on the mesh."""
    options = locals()
    logger.disable("models")
    print(f"mode {MODES[check_mode(mode)]}", flush=True)
    own = {name: options[name] for name in ("height", "width", "num_frames", "fps", "fit", "start", "seed", "out")}
    kept = {name: value for name, value in options.items() if name not in own}
    job = plan(EncodeRequest(source=source, request=request(kept), **own))
    with make_reporter() as reporter:
        paths = run(job, reporter.progress, reporter.line)
    print("\n".join(f"wrote {path}" for path in paths))
