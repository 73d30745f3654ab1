"""`mochi-tt layouts`: which layout of a mesh is the fastest that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.device import quiet_ttnn
from models.machine.errors import InputError
from models.machine.files import check_writable, write_json
from models.machine.systems import system as named
from models.mochi.config import CONFIGS
from models.mochi.precision import Precision
from models.mochi.setup import Request, VideoRequest, resolve
from scripts.options import HELP


def layouts(
    system: Annotated[str, typer.Option(help="A system with a mock, such as quietbox or galaxy.")] = "quietbox",
    precision: Annotated[
        list[str] | None, typer.Option(help=f"{HELP['precision']} May be repeated. [default: default]")
    ] = None,
    layout: Annotated[
        list[str] | None, typer.Option(help="Compare this one. May be repeated. [default: all of the system's mesh]")
    ] = None,
    width: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = 848,
    height: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = 480,
    num_frames: Annotated[int, typer.Option(help="6k + 1.")] = 163,
    num_steps: Annotated[int, typer.Option(min=1, help="Guided steps of the video.")] = 50,
    jobs: Annotated[int, typer.Option(min=1, help="Dry runs at a time, each in a process of its own.")] = 2,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write the table to this file.")] = None,
) -> None:
    """Compare all layouts of a system: dry runs on a mock mesh, times from the cost model; no card is used."""
    machine = named(system)
    policies = [Precision.named(name) for name in precision or ["default"]]
    target = Path(json_file) if json_file else None
    if target is not None:
        check_writable(target, ".json")
    if machine.mock is None:
        raise InputError(f"system {system!r} has no mock, so nothing can be run for it")
    setup = resolve(
        Request(
            model=None,
            mesh=machine.mesh,
            mode="dry-run",
            system=machine.name,
            video=VideoRequest(height=height, width=width, num_frames=num_frames, num_steps=num_steps),
        )
    )
    assert setup.video is not None
    quiet_ttnn()
    from models.parallel import Layout
    from models.performance.calibration import used
    from models.performance.layouts import advice, compare, layouts_of, lines

    heads = CONFIGS["preview"].num_attention_heads
    candidates = [Layout.parse(text, machine.mesh) for text in layout or []] or list(layouts_of(machine.mesh, heads))
    for candidate in candidates:
        candidate.check_heads(heads)
    found = compare(
        machine,
        candidates,
        policies,
        setup.video.geometry,
        steps=num_steps,
        jobs=jobs,
        on_message=lambda line: print(line, flush=True),
    )
    print(f"PROJECTION for {machine.name}: dry runs on a mock mesh, times from a cost model; no card was used")
    print("\n".join([*used(machine.name, *(policy.name for policy in policies)), *lines(found), "", *advice(found)]))
    if target is not None:
        write_json({"system": machine.name, "candidates": [row.to_json() for row in found]}, target)
        print(f"wrote {target}")
