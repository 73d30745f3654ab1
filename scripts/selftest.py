"""`mochi-tt selftest`: the first ten minutes on a card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.device import MODES
from models.jobs.selftest import HEADING, KINDS, Row, SelfTest, resolve_mode, run
from models.machine.errors import InputError
from models.machine.files import check_writable, write_json
from models.machine.host import quiet_ttnn
from models.machine.profile import TOPOLOGIES, default_file, read
from models.machine.systems import system as system_called
from models.machine.ways import Ways, parse_plain
from models.mochi.geometry import Geometry, Scales
from models.mochi.precision import Precision

FOUND = 1


def selftest(
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[str | None, typer.Option(help="Such as sp0tp1. [default: by the mesh]")] = None,
    mode: Annotated[str, typer.Option(help="hardware, simulator, golden, or auto.")] = "auto",
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="small (ops alone), shape (ops at the shapes of the video), whole (a block, a tiny video); may be "
            "repeated. [default: all; on the simulator small]"
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Part of the name of a case; may be repeated.")] = None,
    width: Annotated[int, typer.Option(help="Pixels of the video whose shapes are tried.")] = 848,
    height: Annotated[int, typer.Option(help="Pixels of the video whose shapes are tried.")] = 480,
    num_frames: Annotated[int, typer.Option(help="Frames of the video whose shapes are tried.")] = 163,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a case counts as hung.")] = 120.0,
    plain: Annotated[
        str | None, typer.Option(help="Ops to avoid, such as norm,halo: do the ways around work? [default: none]")
    ] = None,
    links: Annotated[int | None, typer.Option(help="Most Ethernet links to use. [default: all]")] = None,
    topology: Annotated[
        str | None, typer.Option(help="line or ring: how the fabric is started and used. [default: by the system]")
    ] = None,
    attention_chunks: Annotated[
        str | None, typer.Option(help="Chunks of queries and keys, such as 256x384. [default: by rule]")
    ] = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write the report to this file.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Add what to avoid to the profile of this machine; only on hardware.")
    ] = False,
    costs: Annotated[
        bool, typer.Option("--costs", help="Only say what each way around an op costs, by the cost model; no card.")
    ] = False,
    system: Annotated[str, typer.Option(help="With --costs: the system, such as quietbox or galaxy.")] = "quietbox",
    profile_file: Annotated[
        str | None, typer.Option(help="Add it to this file instead, for generate --profile FILE; in every mode.")
    ] = None,
) -> int:
    """Try every op on the device at hand, and say what passed, what deviates, what hung or was refused.

    The machine profile is not read: what is tested is what the options say. The exit code is 1 if a case did not pass.
    """
    if costs:
        return _costs(system, Geometry(height, width, num_frames, Scales()))
    chosen, shape = resolve_mode(mode, mesh)
    kinds = tuple(kind or (("small",) if chosen == "simulator" else KINDS))
    for name in kinds:
        if name not in KINDS:
            raise InputError(f"--kind {name!r} does not exist: choose from {', '.join(KINDS)}")
    if profile and not profile_file and chosen != "hardware":
        raise InputError(f"--profile is for what hardware shows, and this is {chosen}: use --profile-file FILE")
    if topology is not None and topology not in TOPOLOGIES:
        raise InputError(f"--topology {topology!r} must be one of {', '.join(TOPOLOGIES)}")
    target = Path(profile_file) if profile_file else default_file() if profile else None
    for file in (json_file, target):
        if file is not None:
            check_writable(file, ".json")
    before = read(target) if target is not None and target.exists() else None
    test = SelfTest(
        mode=chosen,
        mesh=shape,
        layout=layout,
        ways=Ways(parse_plain(plain) if plain else frozenset(), links, topology == "line"),
        topology=topology,
        chunks=_checked(attention_chunks),
        kinds=kinds,
        only=tuple(only or ()),
        tokens=Geometry(height, width, num_frames, Scales()).num_tokens,
        timeout=timeout,
    )
    headed = False

    def show(row: Row) -> None:
        nonlocal headed
        if not headed:
            print(f"mode {MODES[chosen]}\n{HEADING}", flush=True)
            headed = True
        print(row, flush=True)

    report = run(test, on_row=show)
    print(", ".join(f"{count} {verdict}" for verdict, count in report.counts().items()))
    for line in report.advice():
        print(line)
    if json_file is not None:
        write_json(report.to_json(), json_file)
        print(f"wrote {json_file}")
    if target is not None and (report.is_empty or report.interrupted):
        print(f"{target} was left as it is: no case came to its end, or not all")
    elif target is not None:
        made = report.profile(before)
        made.write(target)
        print(f"wrote {target}: {made}" + (f" (it held: {before})" if before is not None else ""))
    if report.interrupted:
        raise KeyboardInterrupt
    return FOUND if report.failed else 0


def _checked(chunks: str | None) -> str | None:
    if chunks is None:
        return None
    quiet_ttnn()
    from models.layers import Chunks

    return str(Chunks.parse(chunks))


def _costs(system: str, geometry: Geometry) -> int:
    machine = system_called(system)
    if machine.mock is None:
        raise InputError(f"system {machine.name} cannot be projected yet: no mock stands for it")
    quiet_ttnn()
    from models.parallel import Layout
    from models.performance.fallbacks import fallbacks
    from models.performance.projection import FIRST_LINE

    print(f"{FIRST_LINE}\n")
    layout = Layout.default(machine.mesh, 24)
    for line in fallbacks(machine, layout, Precision.named("default"), geometry, 50):
        print(line, flush=True)
    return 0
