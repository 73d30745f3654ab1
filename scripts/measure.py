"""`mochi-tt measure`: how long a video takes on a system; measured where there are cards, projected where not."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from models.device import cards, open_mesh, quiet_ttnn
from models.jobs.generate import once
from models.jobs.video import write_mp4
from models.machine.errors import InputError
from models.machine.files import check_writable, write_json
from models.machine.processes import fresh_processes
from models.machine.systems import System
from models.machine.systems import system as system_called
from models.mochi.precision import Precision
from models.mochi.sampling.reuse import Forwards
from models.mochi.setup import Setup, planned_forwards, resolve
from models.performance.compare import baseline, ratios, read, regressions
from models.performance.plots import check_plot, plot
from models.performance.report import markdown
from scripts.options import HELP, request

MODES = ("auto", "hardware", "projection")
REGRESSION = 1
STEPS, FRAMES, WIDTH, HEIGHT, RUNS = 50, 163, 848, 480, 3
CHOICES = (
    "preset",
    "solver",
    "guidance_interval",
    "guidance_reuse",
    "threshold_noise",
    "linear_steps",
    "reuse",
)
"""Options that change which forwards a video computes, and what a list of reused steps was made with."""


def measure(
    system: Annotated[str, typer.Option(help="quietbox (2x4), galaxy (4x8), or another system's name.")] = ("quietbox"),
    layout: Annotated[str | None, typer.Option(help="Such as sp0tp1. [default: the system's]")] = None,
    precision: Annotated[
        str | None, typer.Option(help=f"{HELP['precision']} [default: the preset's, else default]")
    ] = None,
    num_steps: Annotated[
        int | None, typer.Option(min=2, help="Denoising steps, with guidance. [default: the preset's, else 50]")
    ] = None,
    width: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = WIDTH,
    height: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = HEIGHT,
    num_frames: Annotated[int | None, typer.Option(help="6k + 1. [default: 163, or the preset's]")] = None,
    preset: Annotated[str | None, typer.Option(help=HELP["preset"])] = None,
    solver: Annotated[str | None, typer.Option(help=HELP["solver"])] = None,
    guidance_interval: Annotated[str | None, typer.Option(help=HELP["guidance_interval"])] = None,
    guidance_reuse: Annotated[int | None, typer.Option(help=HELP["guidance_reuse"])] = None,
    threshold_noise: Annotated[float | None, typer.Option(help=HELP["threshold_noise"])] = None,
    linear_steps: Annotated[int | None, typer.Option(help=HELP["linear_steps"])] = None,
    reuse: Annotated[
        str | None,
        typer.Option(
            help="off, steps:3,4,6, or steps:FILE of mochi-tt calibrate. A projection cannot know what a threshold "
            "decides."
        ),
    ] = None,
    attention_chunks: Annotated[
        str | None, typer.Option(help="Rows of queries and of keys that a core takes, e.g. 256x384. [default: by rule]")
    ] = None,
    vae_split: Annotated[str | None, typer.Option(help="How the decoder is split. [default: by the size]")] = None,
    first_frames: Annotated[str | None, typer.Option(help=HELP["first_frames"])] = None,
    mode: Annotated[str, typer.Option(help="hardware, projection, or auto: hardware where there are cards.")] = "auto",
    model: Annotated[str | None, typer.Option(help="On hardware: the checkpoint, as for generate.")] = None,
    cache_dir: Annotated[str | None, typer.Option(help="On hardware: of the converted weights.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="On hardware: videos that are timed, after a warm-up.")] = RUNS,
    json_file: Annotated[str | None, typer.Option("--json", help="Write the report to this file.")] = None,
    baseline_file: Annotated[
        str | None, typer.Option("--baseline", help="Write the exact counts to this file, for later comparisons.")
    ] = None,
    plot_file: Annotated[str | None, typer.Option("--plot", help="Draw a projection to this .png or .svg.")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Only compare two reports; exit code 1 if B is worse.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=0.0, help="Share that a figure of B may be above A's.")] = 0.02,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Project many videos and meshes of the system instead of one; minutes.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="File of a machine's measured times. On hardware it is written, in a projection it is read; none for "
            "neither. [default: the machine's own]"
        ),
    ] = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="Only show the cost model beside published times.")
    ] = False,
) -> int:
    """Report the seconds of encoding, denoising and decoding one video, and where they go.

    The first line says whether it is a measurement or a projection. A projection needs neither card nor weights.
    """
    options = locals()
    if compare is not None:
        return _compare(*compare, threshold)
    if validation:
        quiet_ttnn()
        from models.performance.validation import errors, table

        print("\n".join([*table(), "", *errors()]))
        return 0
    machine = system_called(system)
    if mode not in MODES:
        raise InputError(f"mode {mode!r} does not exist: choose from {', '.join(MODES)}")
    on_hardware = mode == "hardware" or (mode == "auto" and bool(cards()))
    outputs = {"json": json_file, "baseline": baseline_file, "plot": plot_file}
    if on_hardware and calibration not in (None, "none"):
        check_writable(calibration, ".json")
    for name, file in outputs.items():
        if file is not None:
            check_writable(file, check_plot(file).suffix.lower() if name == "plot" else ".json")
    if not on_hardware and machine.mock is None:
        raise InputError(f"system {machine.name} cannot be projected yet: no mock stands for it")
    setup = resolve(
        request(
            options,
            model=model if on_hardware else None,
            mesh=machine.mesh,
            mode="hardware" if on_hardware else "dry-run",
            system=machine.name,
            num_frames=num_frames if num_frames is not None or preset is not None else FRAMES,
            num_steps=num_steps if num_steps is not None or preset is not None else STEPS,
        )
    )
    if on_hardware and model is None:
        raise InputError("a measurement needs weights: give --model, or --mode projection for none")
    if not on_hardware and setup.video is not None and getattr(setup.video.reuse, "threshold", None) is not None:
        raise InputError(
            f"a projection cannot know which steps the reuse threshold {reuse} will reuse: give them as steps:3,4,6 or "
            "steps:FILE (mochi-tt calibrate writes one)"
        )
    is_usual = all(options[name] in (None, "off") for name in CHOICES)
    if on_hardware and not is_usual and calibration not in (None, "none"):
        raise InputError(
            f"--calibration {calibration} needs videos of full steps: leave out {_named(options)}, or give none"
        )
    if scaling:
        _check_scaling(options)
    quiet_ttnn()
    if scaling:
        return _scaling(machine, num_steps or STEPS, setup.precision)
    assert setup.video is not None
    if on_hardware:
        chosen = {name: options[name] for name in CHOICES} | {"reuse": setup.video.reuse}
        report = _measured(setup, machine, runs, calibration, None if is_usual else chosen)
    else:
        forwards = None if is_usual else planned_forwards(setup.video, on_halves=setup.on_halves)
        report = _projected(setup, machine, forwards, calibration)
    report["notes"] = setup.notes()

    print("\n".join(markdown(report)))
    if json_file is not None:
        write_json(report, json_file)
    if baseline_file is not None:
        write_json(baseline(report), baseline_file)
    if plot_file is not None:
        plot(report, plot_file)
    for file in filter(None, outputs.values()):
        print(f"wrote {file}")
    return 0


def _named(options: Mapping[str, Any]) -> str:
    """Return the options that were given of those that change which forwards are computed."""
    given = [name for name in CHOICES if options[name] not in (None, "off")]
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def _check_scaling(options: Mapping[str, Any]) -> None:
    """Refuse what a sweep has its own values for, or cannot write.

    Raises:
        InputError: such an option was given.
    """
    own = {"width": WIDTH, "height": HEIGHT, "mode": "auto", "runs": RUNS, "reuse": None}
    names = [*CHOICES, "layout", "width", "height", "num_frames", "attention_chunks", "vae_split", "first_frames"]
    names += ["model", "cache_dir", "runs", "json_file", "baseline_file", "plot_file", "calibration"]
    given = [name for name in names if options[name] not in (own.get(name), "off")]
    if given or options["mode"] == "hardware":
        named = ", ".join(f"--{name.removesuffix('_file').replace('_', '-')}" for name in given or ["mode"])
        raise InputError(
            f"--scaling projects full steps of videos and layouts of its own, and only prints them: leave out {named}"
        )


def _compare(before: str, after: str, threshold: float) -> int:
    old, new = read(before), read(after)
    compared = ratios(old, new)
    print(f"{'A: ' + old.get('mode', 'baseline'):<44} {'A':>14} {'B':>14} {'B over A':>8}")
    print("\n".join(str(ratio) for ratio in compared))
    worse = regressions(compared, threshold)
    print(f"{len(worse)} of {len(compared)} figures grew by more than {threshold:.1%}")
    for ratio in worse:
        print(f"regression: {ratio}")
    return REGRESSION if worse else 0


def _scaling(system: System, num_steps: int, precision: Precision) -> int:
    from models.performance.calibration import used
    from models.performance.dry_run import preview_geometry
    from models.performance.projection import FIRST_LINE
    from models.performance.scaling import sweep, table

    print(f"{FIRST_LINE}\n\n{system.name}, precision {precision.name}, {num_steps} steps with guidance\n")
    print("\n".join([*used(system.name, precision.name), *table([])]))
    with fresh_processes(jobs=2) as pool:
        for point in sweep(system, num_steps, precision, preview_geometry, pool):
            print(point.row(), flush=True)
    return 0


def _projected(setup: Setup, system: System, forwards: Forwards | None, calibration: str | None) -> dict:
    from models.parallel import place
    from models.performance.calibration import find
    from models.performance.dry_run import Sampling, dry_run
    from models.performance.projection import Projection

    assert setup.video is not None
    num_steps = setup.video.settings.num_steps
    find(calibration, system.name, setup.precision.name)  # Refuse a wrong file before a minute's work.
    with open_mesh(setup.mesh_shape, "dry-run", system=system.name) as opened:
        run = dry_run(
            place(opened.device, setup.layout, setup.ways),
            setup.video.geometry,
            steps=num_steps,
            sampling=Sampling.of(setup.video, on_halves=setup.on_halves),
            split=setup.request.vae_split,
            first_frames=setup.conventions.first_frames,
            chunks=setup.chunks,
            precision=setup.precision,
        )
    return Projection.on_this_machine(system, run, num_steps, named=calibration, forwards=forwards).to_json()


def _measured(setup: Setup, system: System, runs: int, calibration: str | None, options: dict[str, Any] | None) -> dict:
    from models.mochi.pipeline import MochiPipeline
    from models.mochi.vae.frames import to_uint8
    from models.performance.calibration import default_file
    from models.performance.measure import measure as time_videos
    from models.performance.measure import time_calls

    assert setup.video is not None
    geometry = setup.video.geometry
    # The report has the notes of the set-up, which a pipeline would say in each run.
    tell = once(print, setup.notes())
    with (
        MochiPipeline.load(setup, on_message=tell) as pipe,
        tempfile.TemporaryDirectory(prefix="mochi-tt-measure-") as folder,
    ):
        report = time_videos(
            pipe,
            system,
            geometry,
            num_steps=setup.video.settings.num_steps,
            runs=runs,
            options=options,
            precision=setup.precision.name,
            write=lambda frames: write_mp4(to_uint8(frames), Path(folder, "video.mp4")),
            on_message=print,
        )
        if options is not None and calibration != "none":
            print(
                "no calibration is written, because it is of full steps: measure without a preset and the like for one"
            )
        elif calibration != "none":
            print("timing each call of a step")
            file = Path(calibration) if calibration is not None else default_file(system.name)
            step = report["seconds"]["step"]["median"]
            made = time_calls(pipe, system, geometry, step_seconds=step, precision=setup.precision.name)
            made.write(file)
            print(f"wrote {file}, which projections of {system.name} on this machine take from now on")
    return report
