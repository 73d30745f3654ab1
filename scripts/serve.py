"""`mochi-tt serve`: the service."""

from __future__ import annotations

import inspect
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from models.device import MODES
from models.jobs.generate import check_mode
from models.machine.errors import InputError
from models.machine.extras import require
from models.machine.paths import is_dir
from models.service.keys import ENVIRONMENT, Keys
from models.service.log import log
from models.service.settings import GIGABYTE, Settings
from scripts import interrupts
from scripts.options import HELP, request


def serve(
    host: Annotated[str, typer.Option(help="Address to listen at. A public one needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8000,
    keys: Annotated[
        str | None,
        typer.Option(
            help="File of bearer keys: NAME:KEY lines, or TOML with quotas (docs/service.md). The variable "
            "MOCHI_TT_KEYS may hold NAME:KEY entries with commas between."
        ),
    ] = None,
    folder: Annotated[
        str,
        typer.Option(help="Of the results, and of the database where none is named: then one service has it."),
    ] = "service",
    database: Annotated[
        str | None,
        typer.Option(
            help="postgresql://... of jobs that several boxes share, and --folder with it (docs/service.md). "
            "[default: SQLite in the folder]"
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="As for generate.")] = "tiny",
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as bf16.")] = None,
    base: Annotated[str | None, typer.Option(help=HELP["base"])] = None,
    precision: Annotated[str | None, typer.Option(help=f"{HELP['precision']} [default: default]")] = None,
    lora: Annotated[list[str] | None, typer.Option(help=f"Merged for all videos. {HELP['lora']}")] = None,
    lora_folder: Annotated[
        str | None, typer.Option(help="Folder whose LoRAs a request may name. [default: none may be named]")
    ] = None,
    cache_dir: Annotated[str | None, typer.Option(help=HELP["cache_dir"])] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[str | None, typer.Option(help="Such as sp0tp1. [default: by the mesh]")] = None,
    mode: Annotated[str, typer.Option(help="hardware, simulator, golden, or auto.")] = "auto",
    capture: Annotated[
        bool | None, typer.Option(help="On cards, record a denoising step once and replay it. [default: do]")
    ] = None,
    plain: Annotated[str | None, typer.Option(help=HELP["plain"])] = None,
    links: Annotated[int | None, typer.Option(help=HELP["links"])] = None,
    topology: Annotated[str | None, typer.Option(help=HELP["topology"])] = None,
    attention_chunks: Annotated[str | None, typer.Option(help="As for generate. [default: by rule]")] = None,
    profile: Annotated[str | None, typer.Option(help=HELP["profile"])] = None,
    vae_split: Annotated[str | None, typer.Option(help="As for generate. [default: by size]")] = None,
    first_frames: Annotated[str | None, typer.Option(help=HELP["first_frames"])] = None,
    empty_prompt: Annotated[str | None, typer.Option(help=HELP["empty_prompt"])] = None,
    queue: Annotated[int, typer.Option(min=1, help="Most videos that wait or run.")] = 100,
    keep_hours: Annotated[float, typer.Option(min=0.0, help="After which a result is deleted.")] = 168.0,
    keep_gb: Annotated[float, typer.Option(min=0.0, help="Of all results; above, the oldest are deleted.")] = 50.0,
    stall_minutes: Annotated[
        float, typer.Option(min=0.1, help="Without progress of a video, after which the worker is started anew.")
    ] = 360.0,
    on_stop: Annotated[
        str, typer.Option(help="finish or park: what SIGTERM does with the video that is made at the moment.")
    ] = "park",
) -> None:
    """Serve videos over HTTP: /v1/videos, as OpenAI's clients speak it. SIGTERM or Ctrl-C ends it in order."""
    _run(locals(), page=False)


def ui(**options: Any) -> None:
    """Serve videos with a page for browsers at /ui, and over HTTP as `serve` does, with the same options."""
    _run(options, page=True)


# typer reads a command's options from its signature.
ui.__signature__ = inspect.signature(serve, eval_str=True)  # type: ignore[attr-defined]
ui.__annotations__ = serve.__annotations__


def _warn_of_readers(keys: str) -> None:
    """Say of a file of keys that others than its owner can read it."""
    with suppress(OSError):  # `Keys.read` says why
        if os.stat(keys).st_mode & 0o077:
            log("others can read the keys", level="warning", file=keys, mend=f"chmod 600 {keys}")


def _run(options: dict[str, Any], *, page: bool) -> None:
    command = "mochi-tt ui" if page else "mochi-tt serve"
    for package in ("fastapi", "uvicorn", "pydantic", "python_multipart", "prometheus_client"):
        require(package, "serve", command)
    if page:
        require("gradio", "ui", command)
    from models.service.serve import serve as run

    own = {name: options.pop(name) for name in ("host", "port", "keys", "folder", "database", "lora_folder")}
    if own["database"] is not None:
        if not own["database"].startswith(("postgresql://", "postgres://")):
            raise InputError("database must be postgresql://...: leave it out for SQLite in --folder")
        require("psycopg_pool", "boxes", f"{command} --database")
    if own["lora_folder"] is not None and not is_dir(own["lora_folder"]):
        raise InputError(f"lora-folder {own['lora_folder']} is no folder: name one")
    settings = Settings(
        Path(own["folder"]),
        queue=options["queue"],
        keep_seconds=3600 * options["keep_hours"],
        keep_bytes=round(GIGABYTE * options["keep_gb"]),
        stall_seconds=60 * options["stall_minutes"],
        on_stop=options["on_stop"],
        shared=own["database"],
    )
    if own["keys"] is not None:
        _warn_of_readers(own["keys"])
    print(f"mode {MODES[check_mode(options['mode'])]}", flush=True)
    interrupts.silence()

    def started(address: str) -> None:
        print(f"serving {options['model']} at {address}" + (f", its page at {address}/ui" if page else ""), flush=True)

    run(
        settings,
        request(options),
        host=own["host"],
        port=own["port"],
        keys=Keys.read(own["keys"], os.environ.get(ENVIRONMENT)),
        lora_folder=None if own["lora_folder"] is None else Path(own["lora_folder"]),
        page=page,
        on_start=started,
    )
