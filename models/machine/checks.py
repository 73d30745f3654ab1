"""Checks of values that come from files and from callers: one line that names the value, the rule and the mend."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from models.machine.errors import InputError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_text(name: str, text: str) -> str:
    """Return a text that a tokenizer can read.

    Raises:
        InputError: it holds bytes that are no UTF-8, which Python keeps as surrogates.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has a byte that is no UTF-8 text at character {error.start + 1}: type it again or save it as UTF-8"
        ) from None
    return text


def number(name: str, value: Any) -> float:
    """Return a Python, NumPy or torch number as a float.

    Raises:
        InputError: it is no number, or not finite.
    """
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise InputError(f"{name} {_short(value)} must be a number")
    try:
        made = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{name} {_short(value)} must be one number ({_first_line(error)})") from error
    if not math.isfinite(made):
        raise InputError(f"{name} {made} must be finite")
    return made


def numbers(name: str, values: Any) -> list[float]:
    """Return a list, tuple, array or one-dimensional tensor of numbers as floats.

    Raises:
        InputError: it cannot be gone through, or a part is no finite number.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} {_short(values)} must be a list of numbers")
    return [number(name, value) for value in values]


def whole(name: str, value: Any, least: int, most: int) -> int:
    """Return a Python, NumPy or torch whole number as an int.

    Raises:
        InputError: it is no whole number, or not from `least` to `most`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"{name} {_short(value)} must be a whole number")
    try:
        made = operator.index(value)
    except TypeError as error:
        raise InputError(f"{name} {_short(value)} must be a whole number") from error
    if not least <= made <= most:
        raise InputError(f"{name} {made} must be from {least} to {most}")
    return made


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the object that a JSON text holds.

    Raises:
        InputError: it is no JSON, is nested too deeply, or is no object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = _first_line(error)
        raise InputError(f"{where} is no JSON ({why}): the file is damaged or of another kind") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} holds {type(value).__name__}, not an object: the file is damaged or of another kind")
    return value


def typed[Record](record: type[Record], values: Mapping[str, Any], where: str) -> Record:
    """Make a dataclass of the values that it knows, and check each against its annotation.

    Whole numbers are at least 1 and numbers above 0, if the field's metadata does not name another `least` (None for
    no bound). Lists become tuples. Values of other names are left out.

    Args:
        record: a dataclass with annotations of int, float, bool, str, tuples of these, and None.
        values: by field name.
        where: for messages, such as "transformer config".

    Raises:
        InputError: a value is missing, of another type, not finite, or too small.
    """
    hints = get_type_hints(record)
    made = {}
    for field in fields(record):  # type: ignore[arg-type]
        if not field.init:
            continue
        if field.name in values:
            made[field.name] = _value(values[field.name], hints[field.name], field, f"{where}: {field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where}: {field.name} is missing")
    return record(**made)


def _value(value: Any, hint: Any, field: Field, where: str) -> Any:
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        if value is None and len(kinds) < len(get_args(hint)):
            return None
        hint = kinds[0]
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where} is {value!r}, but must be a list")
        return tuple(_value(part, get_args(hint)[0], field, where) for part in value)
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        right = True
    if not right:
        raise InputError(f"{where} is {_short(value)}, but must be {_KINDS[hint]}")
    if hint not in (int, float):
        return value
    if not math.isfinite(value):
        raise InputError(f"{where} is {value}, but must be finite")
    least = field.metadata.get("least", 1 if hint is int else 0.0)
    if least is not None and (value < least or (hint is float and value == least)):
        raise InputError(f"{where} is {value}, but must be {'at least' if hint is int else 'above'} {least:g}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
