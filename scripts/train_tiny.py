"""Train the tiny Mochi from nothing, or a trained one on: `python -m scripts.train_tiny --work DIRECTORY`.

Everything is seeded, and whatever a folder holds of an earlier run is continued.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from models.tiny.prompts import SETS
from models.tiny.trainer import ALONE, Job, run
from scripts.progress import make_reporter
from weight_cache.checkpoints import TINY

_DEFAULT = Job(Path(), Path())


def train_tiny(
    work: Annotated[Path, typer.Option(help="Folder of states and loss curves; what is there is continued.")],
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")] = TINY,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Time for all. The parts then end by time; steps are bounds.")
    ] = None,
    vae_steps: Annotated[int, typer.Option(min=1, help="Of encoder and decoder together.")] = _DEFAULT.vae_steps,
    decoder_steps: Annotated[int, typer.Option(min=1, help="Of the decoder alone.")] = _DEFAULT.decoder_steps,
    refining_steps: Annotated[
        int, typer.Option(min=1, help="Of the decoder on small things.")
    ] = _DEFAULT.refining_steps,
    text_steps: Annotated[int, typer.Option(min=1, help="Of the text encoder alone.")] = _DEFAULT.text_steps,
    transformer_steps: Annotated[int, typer.Option(min=1)] = _DEFAULT.transformer_steps,
    wording_steps: Annotated[
        int, typer.Option(min=1, help="Of the text encoder on other wordings, after all else.")
    ] = _DEFAULT.wording_steps,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes that the transformer sees.")] = _DEFAULT.scenes,
    captions: Annotated[int, typer.Option(min=1, help="Captions of a scene.")] = _DEFAULT.captions,
    batch: Annotated[int, typer.Option(min=1, help="Scenes of a step of the transformer.")] = _DEFAULT.batch,
    vae_batch: Annotated[int, typer.Option(min=1, help="Scenes of a step of the VAE.")] = _DEFAULT.vae_batch,
    device: Annotated[str, typer.Option(help="Of torch: cpu, cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile; needs a C++ compiler.")] = False,
    start: Annotated[
        Path | None, typer.Option(help="A checkpoint of this training: keep its VAE, and train the rest on.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help=f"Train one part of --start alone, {' or '.join(ALONE)}; needs --out.")
    ] = None,
    judged: Annotated[int | None, typer.Option(min=1, help="Judge only so many prompts of each set.")] = None,
) -> None:
    """Train the tokenizer, the VAE, the text encoder and the transformer of the built-in model."""
    job = Job(
        work=work,
        out=out,
        vae_steps=vae_steps,
        decoder_steps=decoder_steps,
        refining_steps=refining_steps,
        text_steps=text_steps,
        transformer_steps=transformer_steps,
        wording_steps=wording_steps,
        scenes=scenes,
        captions=captions,
        batch=batch,
        vae_batch=vae_batch,
        minutes=minutes,
        device=device,
        compiled=compiled,
        judged=judged,
        start=start,
        only=only,
    )
    with make_reporter() as reporter:

        def progress(stage: str, done: int, total: int, text: str) -> None:
            reporter.progress(stage, done, total)
            if text:
                reporter.line(f"{stage} {text}")

        found = run(job, progress)
    for name in SETS:
        shares = ", ".join(f"{what} {share:.1%}" for what, share in found[name]["accuracy"].items())
        print(f"{name} prompts in PyTorch: {shares}")
    print(f"wrote {out}; the loss curves are losses.jsonl in the folders of {work}")


def main() -> int:
    """Run the command line; a wrong value is one line on standard error and exit code 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(train_tiny)
    try:
        app(standalone_mode=False)
    except (typer.TyperException, ValueError, OSError) as error:
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        print(f"train_tiny: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train_tiny: interrupted; the same command goes on from the last saved step", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
