"""`mochi-tt`: the command line. Parses and prints; the work is in `models`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from models.mochi.defaults import DEFAULTS_FILE, Defaults
from scripts import cache, interrupts
from scripts.cache import HELP
from scripts.decode import decode
from scripts.dry_run import dry_run
from scripts.evaluate import evaluate
from scripts.layouts import layouts
from scripts.measure import measure
from weight_cache.checkpoints import TINY

BAD_INPUT, INTERRUPTED = 2, 130
_GENMO = Defaults()
_TINY = json.loads((TINY / DEFAULTS_FILE).read_text(encoding="utf-8"))

app = typer.Typer(
    help="Mochi 1 text-to-video on Tenstorrent Wormhole meshes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _default(name: str) -> str:
    """The defaults of a real model and of `tiny`, for the help."""
    genmo = getattr(_GENMO, name)
    tiny = _TINY.get(name, genmo)
    return f"[default: {genmo}]" if tiny == genmo else f"[default: {genmo}; tiny: {tiny}]"


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows. Up to 256 tokens are used.")],
    negative_prompt: Annotated[str, typer.Option(help="What to steer away from.")] = "",
    width: Annotated[int | None, typer.Option(help=f"Pixels, a multiple of 16. {_default('width')}")] = None,
    height: Annotated[int | None, typer.Option(help=f"Pixels, a multiple of 16. {_default('height')}")] = None,
    num_frames: Annotated[int | None, typer.Option(help=f"6k + 1. {_default('num_frames')}")] = None,
    num_steps: Annotated[int | None, typer.Option(help=f"Denoising steps. {_default('num_steps')}")] = None,
    cfg_scale: Annotated[
        float | None, typer.Option(help=f"Guidance; 1 turns it off and halves the time. {_default('cfg_scale')}")
    ] = None,
    threshold_noise: Annotated[
        float | None, typer.Option(help=f"Noise removed in the linear part. {_default('threshold_noise')}")
    ] = None,
    linear_steps: Annotated[
        int | None, typer.Option(help="Steps of the linear part. [default: half of the steps]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=f"Of the noise. {_default('seed')}")] = None,
    fps: Annotated[int | None, typer.Option(help=f"Frames per second of the file. {_default('fps')}")] = None,
    out: Annotated[str | None, typer.Option(help="The .mp4 to write. [default: outputs/<prompt>-<seed>.mp4]")] = None,
    model: Annotated[
        str,
        typer.Option(
            help="A directory in Diffusers' or Genmo's layout, a ComfyUI .safetensors file, a Hugging Face id in the "
            "local cache (genmo/mochi-1-preview), or the built-in tiny."
        ),
    ] = "tiny",
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as bf16.")] = None,
    base: Annotated[str | None, typer.Option(help=HELP["base"])] = None,
    precision: Annotated[str, typer.Option(help=HELP["precision"])] = "default",
    lora: Annotated[list[str] | None, typer.Option(help=HELP["lora"])] = None,
    cache_dir: Annotated[str | None, typer.Option(help=HELP["cache_dir"])] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[
        str | None,
        typer.Option(
            help="Mesh axes of sequence (sp) and tensor (tp) parallelism, such as sp0tp1. [default: by the mesh]"
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="hardware, golden (a mock mesh, numbers computed on this host), or auto: hardware where there "
            "are cards."
        ),
    ] = "auto",
    capture: Annotated[bool, typer.Option(help="On cards, record a denoising step once and replay it.")] = True,
    vae_split: Annotated[
        str | None,
        typer.Option(help="How the decoder is split over the mesh, such as h0w1. [default: by size]"),
    ] = None,
    save_latents: Annotated[
        bool, typer.Option("--save-latents", help="Keep the latents beside the video; mochi-tt decode reads them.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make a video from a text: an .mp4, and a .json with everything that went into it."""
    from models.jobs.generate import MODES, Request, latents_file, plan, resolve_mode, run
    from scripts.progress import make_reporter, quiet_libraries

    print(f"mode {MODES[resolve_mode(mode)]}", flush=True)
    request = Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        model=model,
        variant=variant,
        base=base,
        precision=precision,
        lora=tuple(lora or ()),
        cache_dir=cache_dir,
        mesh=mesh,
        layout=layout,
        mode=mode,
        height=height,
        width=width,
        num_frames=num_frames,
        num_steps=num_steps,
        cfg_scale=cfg_scale,
        threshold_noise=threshold_noise,
        linear_steps=linear_steps,
        seed=seed,
        fps=fps,
        vae_split=vae_split,
        capture=capture,
        save_latents=save_latents,
        out=out,
    )
    quiet_libraries()
    job = plan(request)
    with make_reporter() as reporter:
        reporter.line(
            f"{job.geometry.num_frames} frames of {job.geometry.width}x{job.geometry.height}, "
            f"{job.settings.num_steps} steps, model {model}, layout {job.layout}"
        )
        path = run(job, reporter.progress, lambda line: reporter.line(f"warning: {line}"))
    print(f"wrote {path} and {path.with_suffix('.json').name}")
    if save_latents:
        print(f"kept the latents in {latents_file(path)}")


@app.command()
def doctor() -> None:
    """Say what is here: cards, ttnn, compiler, mesh, mode, and the way to hardware."""
    from models.device import describe

    print(describe())


app.command("decode")(decode)
app.command("dry-run")(dry_run)
app.command("layouts")(layouts)
app.command("measure")(measure)
app.command("evaluate")(evaluate)
cache.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 is success, 2 bad input (one line on standard error), 130 an interrupt. An error in the program itself
    is raised with its traceback, as are all with `--debug`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # Read by OpenMP when torch loads it. Golden matrices are small, and threads that spin while they wait take the
    # cores from whatever else runs: on a busy machine a demo took 178 s so, and 40 s with this.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        with interrupts.remembered():
            code = app(arguments, prog_name="mochi-tt", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (typer.TyperException, ValueError, OSError) as error:
        if "--debug" in arguments:
            raise
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        print(f"mochi-tt: error: {' '.join(text.split())}", file=sys.stderr)
        return BAD_INPUT
    except RuntimeError as error:
        found = re.search("Out of Memory: .*", str(error))
        if found is None or "--debug" in arguments:
            raise
        print(
            f"mochi-tt: error: a chip's memory is too small: {found[0].strip()}; "
            "choose a smaller video, a larger mesh, a layout with fsdp, or --precision fast",
            file=sys.stderr,
        )
        return BAD_INPUT
    if code == INTERRUPTED:
        print("mochi-tt: interrupted, no file is left half-written", file=sys.stderr)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
