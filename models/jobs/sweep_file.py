"""What a sweep makes, line by line: JSON lines with Genmo's fields, or CSV with a header.

Source of the fields: genmoai/mochi `demos/cli.py`, `--sweep-file`. Settings of our own are those of `VideoRequest`, and
those of `Beginning`, by which a run starts from a video or an image.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from models.machine.checks import json_object, path_text, read_bytes, short, stated_number, text, typed
from models.machine.errors import InputError
from models.mochi.setup import VideoRequest

MOST_LINES, MOST_BYTES = 10_000, 64 << 20
# Genmo's and Diffusers' names -> ours.
_ALIASES = {
    "cfg_scale": "guidance_scale",
    "num_inference_steps": "num_steps",
    "sigma_schedule": "sigmas",
}
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_TEXTS = ("prompt", "negative_prompt")
_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True)
class Beginning:
    """From which file a run starts, and how; see `models.jobs.generate.GenerateRequest`.

    A path is beside the sweep's file, if it is not absolute.
    """

    video: str | None = None
    image: str | None = None
    strength: float | None = field(default=None, metadata={"least": None})
    fit: bool = False
    edit: bool = False
    eta: float | None = field(default=None, metadata={"least": None})
    eta_end: float | None = field(default=None, metadata={"least": None})


_BEGINNING = tuple(each.name for each in fields(Beginning))
_SETTINGS = tuple(each.name for each in fields(VideoRequest))
# Of a CSV file these stay text, and `fit` and `edit` are true or false; the other settings are numbers.
_WORDS = (*_TEXTS, "solver", "guidance_interval", "preset", "reuse", "sigmas", "cfg_schedule", "video", "image")
_MEND = "give a .jsonl file with an object in each line, or a .csv file with a header"
FIELDS = ("prompt", "negative_prompt", *sorted({*_SETTINGS, *_ALIASES, *_BEGINNING}))
"""All names that a line may have."""


@dataclass(frozen=True)
class Line:
    """What a line asks for.

    Attributes:
        number: of the line in its file, from 1.
        prompt: text.
        negative_prompt: text.
        video: settings; None for what the line leaves out.
        beginning: the file that the run starts from.
    """

    number: int
    prompt: str
    negative_prompt: str
    video: VideoRequest
    beginning: Beginning = Beginning()


class BadLines(InputError):
    """Lines of a sweep that break a rule; `problems` says which, and why, each in a line."""

    def __init__(self, path: Path, problems: list[str], lines: int):
        """Refuse `problems` of a file of `lines` lines."""
        self.problems = problems
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        super().__init__(
            f"{path}: nothing was started, because of {problems[0]}{more} ({lines} lines were read): correct them"
        )


def read_lines(path: Path) -> tuple[list[Line], list[str]]:
    """Read a sweep, and return its lines, and what is wrong with the others.

    Raises:
        MissingInputError: there is no such file.
        InputError: it cannot be read, is of another kind, has no lines or too many, or a header with unknown names.
    """
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise InputError(f"sweep {path} is of another kind: {_MEND}")
    content = read_bytes(path, "sweep", _MEND, MOST_BYTES)
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"sweep {path} has a byte in line {line} that is no UTF-8: save it as UTF-8") from error
    rows = _csv_rows(path, decoded) if path.suffix.lower() == ".csv" else _json_rows(decoded)
    found: list[Line] = []
    problems: list[str] = []
    for number, values in rows:
        if len(found) + len(problems) == MOST_LINES:
            raise InputError(f"sweep {path} has more than {MOST_LINES} lines: cut it in parts")
        try:
            found.append(_line(number, values() if callable(values) else values, path.parent))
        except InputError as error:
            problems.append(f"line {number}: {error}")
    if not found and not problems:
        raise InputError(f"sweep {path} has no lines: {_MEND}")
    return found, problems


def _json_rows(content: str) -> Iterator[tuple[int, Any]]:
    """Yield number and reader of each line that is not blank."""
    for number, row in enumerate(content.split("\n"), 1):
        if row.strip():
            yield number, lambda row=row: json_object(row, "it", "write an object with a prompt")


def _csv_rows(path: Path, content: str) -> Iterator[tuple[int, Any]]:
    """Yield number and values of each row under the header; an empty cell is left out."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise InputError(f"sweep {path} has no header: {_MEND}")
        header = [name.strip() for name in header]
        _check_names(header, f"the header of {path}")
        start = reader.line_num + 1
        for row in reader:
            number, start = start, reader.line_num + 1
            if row:
                yield number, lambda row=row: _cells(header, row)
    except csv.Error as error:
        raise InputError(f"sweep {path}, line {reader.line_num}, is no CSV ({error}): {_MEND}") from error


def _cells(header: list[str], row: list[str]) -> dict[str, Any]:
    if len(row) != len(header):
        raise InputError(f"it has {len(row)} cells, and the header {len(header)}: write one for each, empty for none")
    return {
        name: cell if _ALIASES.get(name, name) in _WORDS else _TRUTHS.get(cell.lower(), _number(cell))
        for name, cell in zip(header, row, strict=True)
        if cell != ""
    }


def _number(cell: str) -> Any:
    """Return a cell as a number; what is none stays text, which the rule of its setting refuses."""
    if _WHOLE.fullmatch(cell.strip()):
        return int(cell)
    try:
        return stated_number("it", cell)
    except InputError:
        return cell


def _check_names(names: list[str], where: str) -> None:
    ours = [_ALIASES.get(name, name) for name in names]
    for name, own in zip(names, ours, strict=True):
        if own not in (*_TEXTS, *_SETTINGS, *_BEGINNING):
            raise InputError(f"{where} has {short(name)}, which is no setting; known are {', '.join(FIELDS)}")
        if ours.count(own) > 1:
            raise InputError(f"{where} has {short(name)} twice, perhaps by two names: keep one")


def _line(number: int, values: Mapping[str, Any], folder: Path) -> Line:
    """Return the line of values by name, in a file of `folder`.

    Raises:
        InputError: a name is unknown or there twice, a text is none, or the run would start from two files.
    """
    _check_names(list(values), "it")
    named = {_ALIASES.get(name, name): value for name, value in values.items() if value is not None}
    if "prompt" not in named:
        raise InputError("it has no prompt: say what the video shows")
    prompt, negative = text("prompt", named.pop("prompt")), text("negative_prompt", named.pop("negative_prompt", ""))
    begins = {name: named.pop(name) for name in _BEGINNING if name in named}
    if "video" in begins and "image" in begins:
        raise InputError("it has a video and an image: a run starts from one of them")
    for name in ("video", "image"):
        if name in begins:
            begins[name] = str(folder / path_text(name, begins[name]))
    return Line(number, prompt, negative, VideoRequest(**named), typed(Beginning, begins, "it"))
