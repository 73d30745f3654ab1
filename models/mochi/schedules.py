"""Schedules that a user writes down: noise levels and guidance scales, one for each step, in Genmo's meaning.

Source: genmoai/mochi `src/genmo/mochi_preview/pipelines.py`, `sample_model`: `sigma_schedule` has n + 1 values from 1
to 0, `cfg_schedule` has n scales.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from models.machine.checks import json_file, numbers, read_bytes, short
from models.machine.errors import InputError
from models.machine.paths import is_taken

# Many times what the longest schedule has (`models.mochi.sampling.schedule.MOST_STEPS`).
_MOST_BYTES = 1 << 18
_FIELDS = {"sigma_schedule": "sigmas", "cfg_schedule": "cfg_schedule"}
_STEPS_MEND = "give a JSON object with sigma_schedule, cfg_schedule or both, each a list of numbers"
_BETWEEN = re.compile(r"[\s,;]")
_A_LIST = re.compile(r"[\s\[\](),;]*([-+.\d][-+.\deE\s\[\](),;]*)?")


def schedule_of(name: str, value: Any) -> list[float]:
    """Return a list of numbers that a user gave.

    Args:
        name: of the setting, for messages.
        value: a sequence of numbers; a text of numbers, with commas or spaces between them; or the path of a file that
            holds such a text, which a JSON array is.

    Raises:
        MissingInputError: the text is no list, and there is no file of that name.
        InputError: it is neither, or holds something else than finite numbers.
    """
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return numbers(name, value)
    if _A_LIST.fullmatch(value) or (_BETWEEN.search(value) and not is_taken(Path(value))):
        return _parsed(name, value, "")
    mend = "give numbers with commas between them, such as 1,0.5,0, or a file of them"
    content = read_bytes(value, name, mend, _MOST_BYTES)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} {value} is no text of numbers: {mend}") from error
    return _parsed(name, text, f" in {value}")


def steps_of(path: str | Path) -> dict[str, list[float]]:
    """Return the schedules of a steps file, by the names `sigmas` and `cfg_schedule`.

    The file is a JSON object with Genmo's names: `sigma_schedule`, `cfg_schedule`, or both.

    Raises:
        MissingInputError: there is no such file.
        InputError: it is no such object, names something else, or a schedule is no list of numbers.
    """
    found = json_file(path, "steps file", _STEPS_MEND)
    unknown = sorted(set(found) - set(_FIELDS))
    if unknown:
        raise InputError(f"steps file {path} has {short(unknown[0])}, which is no schedule: {_STEPS_MEND}")
    if not found:
        raise InputError(f"steps file {path} is empty: {_STEPS_MEND}")
    return {ours: numbers(f"{theirs} of {path}", found[theirs]) for theirs, ours in _FIELDS.items() if theirs in found}


def _parsed(name: str, text: str, where: str) -> list[float]:
    parts = [part for part in re.split(r"[\s\[\](),;]+", text) if part]
    if not parts:
        raise InputError(f"{name}{where} has no numbers: give numbers with commas between them, such as 1,0.5,0")
    values = []
    for part in parts:
        try:
            values.append(float(part))
        except ValueError:
            raise InputError(f"{name}{where} has {short(part)}, which is no number: write it as 0.5 or 5e-1") from None
    return numbers(name, values)
