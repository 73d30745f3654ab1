"""`mochi-tt`: the command line. Finds the command, and turns what goes wrong into a line and an exit code.

A command's module is imported when the command is asked for, so that `--help` costs nothing of the others.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from models.machine import paths
from models.machine.errors import Cancelled, InputError, MachineError
from models.machine.host import collect_rarely, ensure_home, wait_passively
from models.machine.version import __version__
from scripts import interrupts, streams

FAULT, BAD_INPUT, INTERRUPTED = 1, 2, 130
# What libraries' errors say of a limit of the operating system, where they are no OSError.
_LIMITS = {os.strerror(number): number for number in (errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ENOSPC)}
_WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
_EPILOG = "--debug, with any command, shows the traceback of an error."


@dataclass(frozen=True)
class _Command:
    """Where a command is, and what the list of commands says of it."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "generate": _Command("scripts.generate", "generate", "Make a video from a text: an .mp4, and a .json beside it."),
    "sweep": _Command("scripts.sweep", "sweep", "Make the videos of a file's lines, with one opening of the mesh."),
    "presets": _Command("scripts.presets", "presets", "Show the named settings of generate --preset."),
    "encode": _Command("scripts.encode", "encode", "Encode videos and images to latents, with the VAE's encoder."),
    "decode": _Command("scripts.decode", "decode", "Decode saved latents, with the decoder that generate uses."),
    "dry-run": _Command("scripts.dry_run", "dry_run", "Run all models at full size on a mock mesh: does it fit?"),
    "measure": _Command("scripts.measure", "measure", "Seconds of one video: measured on cards, projected without."),
    "layouts": _Command("scripts.layouts", "layouts", "Compare all layouts of a system by dry runs."),
    "calibrate": _Command("scripts.calibrate", "calibrate", "Find the steps that may reuse blocks of earlier ones."),
    "serve": _Command("scripts.serve", "serve", "Serve videos over HTTP: /v1/videos, as OpenAI's clients speak it."),
    "ui": _Command("scripts.serve", "ui", "Serve videos with a page for browsers at /ui, with the options of serve."),
    "fleet": _Command("scripts.fleet", "fleet", "On paper: what limits 1,000 boxes that share a database of jobs."),
    "evaluate": _Command("scripts.evaluate", "evaluate", "Judge the tiny model's videos, and compare with PyTorch."),
    "cache": _Command("scripts.cache", "app", "The store of converted weights: build, list, verify, prune."),
    "download": _Command("scripts.cache", "download", "Fetch a checkpoint from the Hugging Face hub."),
    "selftest": _Command("scripts.selftest", "selftest", "Try every op on this machine: the first minutes on a card."),
    "doctor": _Command("scripts.doctor", "doctor", "Say what is here, and the way to hardware."),
}


class _Commands(TyperGroup):
    """The group of all commands: knows their summaries, and imports the one that is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command for the list of commands: its summary only."""
        found = COMMANDS.get(cmd_name)
        return None if found is None else TyperCommand(cmd_name, help=found.summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is run, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and command.name is not None:
            command = load(COMMANDS[command.name])
        return name, command, rest


def load(found: _Command) -> Any:
    """Import a command and build what runs it."""
    value = getattr(importlib.import_module(found.module), found.attribute)
    if not isinstance(value, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(epilog=_EPILOG)(value)
        value = single
    return typer.main.get_command(value)


app = typer.Typer(
    cls=_Commands,
    help="Mochi 1 text-to-video on Tenstorrent Wormhole meshes.",
    epilog=_EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mochi-tt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0 is success. 2 is something that the user can mend, with one line on standard error. 130 is an interrupt, 143
    SIGTERM, 129 SIGHUP. 1 is a fault of this program: a line says where its traceback is. `--debug` shows the traceback
    of either as well.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    own = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:own]
    options = [_home_expanded(_decoded(argument)) for argument in arguments[:own] if argument != "--debug"]
    arguments = options + [_decoded(argument) for argument in arguments[own:]]
    streams.settle()
    try:
        with interrupts.remembered():
            _check_folder()
            ensure_home()
            wait_passively()
            collect_rarely()
            code = app(arguments, prog_name="mochi-tt", standalone_mode=False)
            sys.stdout.flush()
    except (KeyboardInterrupt, Cancelled):
        code = INTERRUPTED
    except Exception as error:
        if interrupts.received() is None or not isinstance(error, OSError):
            if debug:
                traceback.print_exception(error)
            return _failed(error)
        code = INTERRUPTED  # The terminal is gone with the signal: what is written to it fails.
    if code == INTERRUPTED:
        number = interrupts.received() or signal.SIGINT
        with contextlib.suppress(OSError):
            print(f"mochi-tt: {_WORDS[number]}, no file is left half-written", file=sys.stderr)
        return 128 + number
    return code if isinstance(code, int) else 0


def _decoded(argument: str) -> str:
    """Return an argument as UTF-8 text, where the locale is another and Python has kept its bytes as surrogates."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return argument


def _home_expanded(argument: str) -> str:
    """Expand the ~ of `--out=~/x.mp4`, which shells leave alone."""
    option, equals, value = argument.partition("=")
    if option.startswith("--") and equals and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"
    return argument


def _failed(error: Exception) -> int:
    """Say what went wrong, and return the exit code."""
    text = _user_error(error)
    if text is not None:
        print(f"mochi-tt: error: {' '.join(text.split())}", file=sys.stderr)
        return BAD_INPUT
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="mochi-tt-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write(text)
        where = f"its traceback is in {log.name}"
    except OSError:
        where = "its traceback cannot be written, but --debug shows it"
    kind = type(error).__name__
    print(
        f"mochi-tt: sorry, this is a fault of mochi-tt, not of yours ({kind}); {where}: please report it",
        file=sys.stderr,
    )
    return FAULT


def _limit(error: BaseException | None) -> int | None:
    """Return the number of what the operating system refuses, where that is the user's machine's; else None.

    Libraries hide it in an error of their own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in paths.MENDS:
            return error.errno
        for said, number in _LIMITS.items():
            if isinstance(error, (RuntimeError, ImportError)) and said in str(error):
                return number
        error = error.__cause__
    return None


def _check_folder() -> None:
    """See that the working folder is there: libraries take it for granted, and end the process without it.

    Raises:
        MachineError: it was deleted.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise MachineError(f"the working folder is gone ({error.strerror}): change to another, with cd") from error


def _user_error(error: Exception) -> str | None:
    """What the user can mend, as text; None for a fault of ours."""
    if isinstance(error, typer.TyperException):
        text = error.format_message()
        extra = re.search(r"unexpected extra arguments?(?:\(s\))? \((.*)\)", text)
        if extra is not None:
            text += ': a text of several words is one argument: quote it, such as "a red ball"'
        return text
    if isinstance(error, InputError):
        return str(error)
    number = _limit(error)
    if number is not None:
        where = getattr(error, "filename", None) or getattr(error, "filename2", None)
        said = os.strerror(number)
        return f"{f'{paths.shown(where)}: {said}' if where else said}: {paths.MENDS[number]}"
    memory = re.search("Out of Memory: .*", str(error)) if isinstance(error, RuntimeError) else None
    if memory is not None:
        return (
            f"a chip's memory is too small: {memory[0].strip()}; choose a smaller video, a larger mesh, a layout "
            "with fsdp, or --precision fast"
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
