"""`mochi-tt evaluate`: does the tiny model make what it is asked for, on the mesh and in PyTorch?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from models.device import quiet_ttnn
from models.machine.files import check_writable, renamed_when_done, write_json
from scripts.options import HELP
from scripts.progress import make_reporter, quiet_libraries


def evaluate(
    model: Annotated[str, typer.Option(help="The built-in tiny, or a directory that train_tiny wrote.")] = "tiny",
    limit: Annotated[int | None, typer.Option(help="Only so many of the 64 prompts.")] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    precision: Annotated[str, typer.Option(help=HELP["precision"])] = "default",
    json_file: Annotated[str | None, typer.Option("--json", help="Also write the report to this file.")] = None,
    sheet: Annotated[str | None, typer.Option(help="Also write a .png with a row of frames per prompt.")] = None,
) -> None:
    """Generate held-out prompts, look at the frames, and compare with PyTorch from the same noise."""

    targets = {".json": json_file, ".png": sheet}
    for suffix, name in targets.items():
        if name is not None:
            check_writable(name, suffix)
    quiet_libraries()
    quiet_ttnn()
    from models.jobs.evaluate import contact_sheet, plan
    from models.jobs.evaluate import evaluate as run

    checkpoint, settings, prompts = plan(model, limit)
    with make_reporter() as reporter:
        found = run(checkpoint, settings, prompts, mesh, precision, reporter.progress)
    print("\n".join(found.lines()))
    if json_file is not None:
        write_json(found.to_json(), json_file)
    if sheet is not None:
        with renamed_when_done(Path(sheet)) as scratch:
            Image.fromarray(contact_sheet(found.videos).numpy()).save(scratch, format="png")
    for name in filter(None, targets.values()):
        print(f"wrote {name}")
