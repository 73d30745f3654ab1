"""`mochi-tt cache ...` and `mochi-tt download`: the store of converted weights, and where weights come from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from models.device import quiet_ttnn
from models.jobs.weights_benchmark import run_benchmark
from models.machine.errors import InputError, MissingInputError
from models.machine.files import check_writable, write_json
from models.machine.paths import is_dir
from models.mochi.precision import Precision
from models.mochi.setup import Request, resolve
from scripts.options import HELP
from scripts.progress import make_reporter
from weight_cache.checkpoints.download import download as fetch
from weight_cache.store import Store

_MODEL = "A checkpoint: directory, .safetensors file, Hugging Face id in the local cache, or tiny."
_NAMES = "Parts of entries' names. [default: all]"
_JSON = "Also write the result to this file."
CacheDir = Annotated[str | None, typer.Option(help=HELP["cache_dir"])]
Json = Annotated[str | None, typer.Option("--json", help=_JSON)]
Names = Annotated[list[str] | None, typer.Argument(help=_NAMES)]

app = typer.Typer(help="The store of converted weights.", rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def build(
    model: Annotated[str, typer.Option(help=_MODEL)] = "tiny",
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as bf16.")] = None,
    base: Annotated[str | None, typer.Option(help=HELP["base"])] = None,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    layout: Annotated[str | None, typer.Option(help="Such as sp0tp1. [default: by the mesh]")] = None,
    precision: Annotated[str, typer.Option(help=HELP["precision"])] = "default",
    lora: Annotated[list[str] | None, typer.Option(help=HELP["lora"])] = None,
    cache_dir: CacheDir = None,
    encoder: Annotated[
        bool, typer.Option("--encoder", help="Also the VAE's encoder, which runs from videos and images need.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how large it will be: no weights are read.")] = False,
    model_config: Annotated[
        str | None, typer.Option(help="With --plan: sizes of the model by name (preview) instead of --model.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Convert a checkpoint's weights for a mesh, unless that was done before."""
    if model_config is not None and not plan:
        raise InputError("--model-config goes with --plan: without weights there is nothing to convert")
    _check(json_file)
    setup = resolve(
        Request(
            model=model,
            variant=variant,
            base=base,
            model_config=model_config,
            mesh=mesh,
            layout=layout,
            mode="dry-run",
            precision=precision,
            loras=tuple(lora or ()),
            cache_dir=cache_dir,
        )
    )
    from models.jobs.weights import build_weights, plan_weights, unfit

    if plan:
        plans = plan_weights(setup, encoder=encoder)
        sizes = {name: sum(getattr(planned, name) for planned in plans) for name in ("disk_bytes", "chip_bytes")}
        for planned in plans:
            print("\n".join(planned.lines()))
        print(f"together: {sizes['disk_bytes'] / 1e9:.3f} GB on disk, {sizes['chip_bytes'] / 1e9:.3f} GB per chip")
        problem = unfit(setup)
        if problem is not None:
            print(f"this does not fit: {problem}")
        _write({"fits": problem is None, "components": [planned.as_json() for planned in plans], **sizes}, json_file)
        return
    with make_reporter() as reporter:
        built = build_weights(setup, reporter.progress, lambda line: reporter.line(f"warning: {line}"), encoder=encoder)
    for entry in built:
        print(f"{entry['component']}: {entry['tensors']} tensors, {entry['bytes'] / 1e9:.3f} GB in {entry['path']}")
    _write({"entries": built}, json_file)


@app.command("list")
def list_(cache_dir: CacheDir = None, json_file: Json = None) -> None:
    """Show what the store holds: state (complete, unfinished, outdated, ...), size, age, mesh and precision."""
    _check(json_file)
    store = Store(cache_dir)
    found = store.entries()
    print(f"{store.root}: {len(found)} entries, {sum(e.bytes + e.set_aside_bytes for e in found) / 1e9:.3f} GB")
    for entry in found:
        value = entry.as_json()
        print(
            f"{entry.name}\n  {entry.state}, {entry.bytes / 1e9:.3f} GB, last used {value['age_days']:.1f} days ago, "
            f"layout {value.get('layout', '?')}, precision {value.get('precision', '?')}, "
            f"from {value.get('source', '?')}"
        )
        if "why" in value:
            print(f"  {value['why']}{': mochi-tt cache prune' if entry.state in ('outdated', 'unreadable') else ''}")
        if entry.set_aside_bytes:
            print(f"  {entry.set_aside_bytes / 1e9:.3f} GB of damaged files set aside: mochi-tt cache prune")
    _write({"store": str(store.root), "entries": [entry.as_json() for entry in found]}, json_file)


@app.command()
def verify(names: Names = None, cache_dir: CacheDir = None, json_file: Json = None) -> None:
    """Read every stored file and compare its checksum; exit code 1 if any is damaged."""
    _check(json_file)
    with make_reporter() as reporter:
        found = Store(cache_dir).verify(names or (), reporter.progress)
    for name, wrong in found.items():
        print(f"{name}: {'sound' if not wrong else f'{len(wrong)} files damaged'}")
        for file, why in wrong.items():
            print(f"  {file}: {why}")
    _write({"entries": found}, json_file)
    if any(found.values()):
        print("damaged files are set aside and made again at the next use")
        raise typer.Exit(1)


@app.command()
def prune(
    names: Annotated[list[str] | None, typer.Argument(help="Also delete entries whose name contains this.")] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0.0, help="Also delete entries not used for so many days.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete every entry.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Delete unfinished, unreadable and outdated entries and damaged files set aside, and others if asked.

    Outdated entries were made by an older version of this program or of ttnn, and are never read again. Entries of a
    newer version stay unless they are named.
    """
    removed = Store(cache_dir).prune(names or (), older_than_days=older_than, everything=everything, on_message=print)
    for entry in removed:
        print(f"deleted {entry.name} ({entry.state}, {entry.bytes / 1e9:.3f} GB)")
    if not removed:
        print("nothing to delete")


@app.command()
def benchmark(
    gigabytes: Annotated[float, typer.Option(min=0.01, help="Size of the synthetic checkpoint.")] = 4.0,
    mesh: Annotated[str, typer.Option(help="ROWSxCOLUMNS of chips.")] = "2x4",
    precision: Annotated[str, typer.Option(help=HELP["precision"])] = "default",
    rounds: Annotated[int, typer.Option(min=1, help="How often to copy and to convert.")] = 3,
    folder: Annotated[str | None, typer.Option(help="Scratch folder. [default: the system's]")] = None,
    json_file: Json = None,
) -> None:
    """Measure conversion and loading on a synthetic checkpoint made on the spot: memory, and rates as ratios."""
    _check(json_file)
    if folder is not None and not is_dir(folder):
        raise MissingInputError(f"--folder {folder} is no directory: make it, or name another")
    quiet_ttnn()
    weights = Precision.named(precision).weights
    found = run_benchmark(gigabytes, mesh, weights, rounds, Path(folder) if folder else None, print)
    _write(found, json_file)


def download(
    repository: Annotated[str, typer.Argument(help="Hugging Face id.")] = "genmo/mochi-1-preview",
    variant: Annotated[str, typer.Option(help="Of the weight files; components without it come plain.")] = "bf16",
    genmo: Annotated[bool, typer.Option("--genmo", help="Genmo's own files instead of Diffusers' layout.")] = False,
    directory: Annotated[str | None, typer.Option(help="Where to. [default: the Hugging Face cache]")] = None,
) -> None:
    """Fetch a checkpoint from the Hugging Face hub, without what this program does not read."""
    where = fetch(repository, variant=variant or None, genmo=genmo, directory=directory, on_message=print)
    print(f"{repository} is in {where}")
    print(f'next: mochi-tt generate "a red ball" --model {shlex.quote(directory or repository)}')


def _check(json_file: str | None) -> None:
    if json_file is not None:
        check_writable(Path(json_file), ".json")


def _write(value: Any, json_file: str | None) -> None:
    if json_file is not None:
        write_json(value, Path(json_file))
        print(f"wrote {json_file}")
