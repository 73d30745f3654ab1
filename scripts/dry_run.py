"""`mochi-tt dry-run`: does it fit, and what does a step cost, before there is a card or a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.device import open_mesh
from models.machine.errors import InputError
from models.machine.files import check_writable, write_json
from models.mochi.sampling.reuse import Forwards, check_reused
from models.mochi.setup import Video, planned_forwards, resolve
from scripts.options import HELP, request

STEPS, FRAMES = 50, 163


def dry_run(
    model_config: Annotated[str, typer.Option(help="Sizes of the model: preview (genmo/mochi-1-preview).")] = "preview",
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[str | None, typer.Option(help="Such as sp0tp1. [default: by the mesh]")] = None,
    precision: Annotated[
        str | None, typer.Option(help=f"{HELP['precision']} [default: the preset's, else default]")
    ] = None,
    width: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = 848,
    height: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = 480,
    num_frames: Annotated[int | None, typer.Option(help="6k + 1. [default: 163, or the preset's]")] = None,
    num_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps that modulations are prepared for. [default: the preset's, else 50]"),
    ] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Guidance; 1 turns it off. [default: 4.5]")] = None,
    guidance_interval: Annotated[str | None, typer.Option(help=HELP["guidance_interval"])] = None,
    guidance_reuse: Annotated[int | None, typer.Option(help=HELP["guidance_reuse"])] = None,
    solver: Annotated[str | None, typer.Option(help=HELP["solver"])] = None,
    preset: Annotated[str | None, typer.Option(help=HELP["preset"])] = None,
    threshold_noise: Annotated[float | None, typer.Option(help=HELP["threshold_noise"])] = None,
    linear_steps: Annotated[int | None, typer.Option(help=HELP["linear_steps"])] = None,
    reuse: Annotated[str | None, typer.Option(help=HELP["reuse"])] = None,
    text_tokens: Annotated[int, typer.Option(min=1, max=256, help="Tokens of each prompt.")] = 256,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="encode, denoise, decode or encode_video; may be repeated. [default: the first three]"),
    ] = None,
    attention_chunks: Annotated[
        str | None, typer.Option(help="Rows of queries and of keys that a core takes, e.g. 256x384. [default: by rule]")
    ] = None,
    vae_split: Annotated[str | None, typer.Option(help="How the decoder is split. [default: by the size]")] = None,
    first_frames: Annotated[str | None, typer.Option(help=HELP["first_frames"])] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Build only so many blocks. [default: all]")] = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write the report to this file.")] = None,
) -> None:
    """Put all models at full size on a mock mesh and run the stages of one video: no weights, no numbers.

    ttnn validates every op, builds its program and allocates its buffers, and fails where the real machine would.
    """
    options = locals()
    setup = resolve(
        request(
            options,
            model=None,
            mode="dry-run",
            num_frames=num_frames if num_frames is not None or preset is not None else FRAMES,
            num_steps=num_steps if num_steps is not None or preset is not None else STEPS,
        )
    )
    from models.parallel import place
    from models.performance.dry_run import FURTHER_STAGES, STAGES, Sampling
    from models.performance.dry_run import dry_run as run

    assert setup.video is not None
    on_halves = setup.on_halves
    if setup.video.reuse is not None and blocks is not None:
        check_reused(setup.video.reuse, len(setup.video.guidance), blocks)
    stages = tuple(stage) if stage else STAGES
    for name in stages:
        if name not in (known := (*STAGES, *FURTHER_STAGES)):
            raise InputError(f"--stage {name!r} does not exist: choose from {', '.join(known)}")
    target = Path(json_file) if json_file else None
    if target is not None:
        check_writable(target, ".json")
    with open_mesh(setup.mesh_shape, "dry-run") as opened:
        report = run(
            place(opened.device, setup.layout, setup.ways),
            setup.video.geometry,
            stages=stages,
            split=vae_split,
            first_frames=setup.conventions.first_frames,
            chunks=setup.chunks,
            config=setup.configs.transformer,
            precision=setup.precision,
            blocks=blocks,
            text_tokens=text_tokens,
            steps=setup.video.settings.num_steps,
            sampling=Sampling.of(setup.video, on_halves=on_halves),
            on_stage=lambda stage: print(f"{stage} ...", flush=True),
        )
    forwards = planned_forwards(setup.video, on_halves=on_halves)
    notes = setup.notes()
    print(
        "\n".join([*report.lines(), forwards_line(setup.video, forwards), *(f"note          {note}" for note in notes)])
    )
    if target is not None:
        write_json(report.to_json() | {"forwards": forwards.to_json(), "notes": notes}, target)
        print(f"wrote {target}")


def forwards_line(video: Video, forwards: Forwards) -> str:
    """Return what the steps of the video compute, in words."""
    counts = forwards.to_json()
    each = ", ".join(
        f"{branch} {counts[branch]['computed']} computed"
        + (f" and {counts[branch]['reused']} reused" if counts[branch]["reused"] else "")
        for branch in ("conditional", "unconditional")
    )
    decided = getattr(video.reuse, "threshold", None) is not None
    return f"forwards      {each}" + ("; the threshold decides how many of them reuse blocks" if decided else "")
