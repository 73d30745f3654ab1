"""Checks of values that come from files and from callers: one line that names the value, the rule and the mend."""

from __future__ import annotations

import json
import math
import operator
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, MappingView, Set
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from models.machine.errors import InputError, MissingInputError
from models.machine.paths import refused

MOST_WHOLE, MOST_PARTS = 1 << 20, 256
"""Largest whole number and longest list that a record of `typed` takes, where its fields do not name others."""
JSON_BYTES, JSON_DEPTH = 16 << 20, 64
"""Most bytes and levels of a JSON text: the largest of a true checkpoint, T5's tokenizer.json, has 2.4 MB."""
_FOREIGN = "the file is damaged or of another kind"

_WRITTEN = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)", re.ASCII | re.IGNORECASE)

# What can be gone through, but has no order, or parts that nobody means.
_NO_SEQUENCES = (str, bytes, bytearray, memoryview, Mapping, MappingView, Set)
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


def text(name: str, value: Any) -> str:
    """Return a text that a caller gave.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, str):
        raise InputError(f"{name} {short(value)} must be text")
    return check_text(name, value)


def path_text(name: str, value: Any) -> str:
    """Return a text or a path that a caller gave, as text.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(value, (str, Path)):
        raise InputError(f"{name} {short(value)} must be a path or text")
    if not str(value).strip():
        raise InputError(f"{name} is empty: name one, or leave it out")
    return str(value)


def function[Given](name: str, value: Given) -> Given:
    """Return a function that a caller gave, or None for none.

    Raises:
        InputError: it cannot be called.
    """
    if value is not None and not callable(value):
        raise InputError(f"{name} {short(value)} must be a function, or None for none")
    return value


def number(name: str, value: Any) -> float:
    """Return a Python, NumPy or torch number as a float.

    Raises:
        InputError: it is no number, or not finite.
    """
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise InputError(f"{name} {short(value)} must be a number")
    try:
        made = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{name} {short(value)} must be one number ({_first_line(error)})") from error
    if not math.isfinite(made):
        raise InputError(f"{name} {made} must be finite")
    return made


def numbers(name: str, values: Any) -> list[float]:
    """Return a list, tuple, array or one-dimensional tensor of numbers as floats.

    Raises:
        InputError: it is no sequence, or a part is no finite number.
    """
    return [number(name, value) for value in sequence(name, values, "a list of numbers")]


def sequence(name: str, values: Any, rule: str) -> list[Any]:
    """Return the parts of a list, tuple, array or one-dimensional tensor, or of what else has an order.

    Args:
        name: of the value, for the message.
        values: as the caller gave them.
        rule: what it must be, for the message.

    Raises:
        InputError: it is text, bytes, a set or a mapping, or cannot be gone through.
    """
    if isinstance(values, _NO_SEQUENCES) or not hasattr(values, "__iter__") or getattr(values, "ndim", 1) != 1:
        raise InputError(f"{name} {short(values)} must be {rule}")
    return list(values)


def stated_number(name: str, text: str) -> float:
    """Return the number that a user wrote, such as `-0.5` or `1e-3`.

    Raises:
        InputError: it is not written in the digits 0 to 9 (Python itself reads `1_0` as 10), or not finite.
    """
    if not _WRITTEN.fullmatch(text.strip()):
        raise InputError(f"{name} {short(text)} must be a number such as 0.8")
    return number(name, float(text))


def whole(name: str, value: Any, least: int, most: int) -> int:
    """Return a Python, NumPy or torch whole number as an int.

    Raises:
        InputError: it is no whole number, or not from `least` to `most`.
    """
    made = integer(name, value, f"a whole number from {least} to {most}")
    if not least <= made <= most:
        raise InputError(f"{name} {short(made)} must be from {least} to {most}")
    return made


def integer(name: str, value: Any, rule: str = "a whole number") -> int:
    """Return a Python, NumPy or torch whole number as an int; `rule` is what it must be, for the message.

    Raises:
        InputError: it is no whole number.
    """
    try:
        if not isinstance(value, bool) and hasattr(value, "__index__"):
            return operator.index(value)
    except TypeError:  # a tensor of several, or of others than whole numbers
        pass
    raise InputError(f"{name} {short(value)} must be {rule}")


def json_object(text: str | bytes, where: str, mend: str = _FOREIGN) -> dict[str, Any]:
    """Return the object that a JSON text holds: the one reader of JSON that others wrote.

    Args:
        text: as it was read.
        where: it was, for messages.
        mend: what the user does about a bad one.

    Raises:
        InputError: it is too long, is no JSON, is nested too deeply, is no object, names an entry twice, or holds text
            that is no Unicode or a number that is not finite.
    """
    if len(text) > JSON_BYTES:
        raise InputError(
            f"{where} has {len(text) / 1e6:.0f} MB, and {JSON_BYTES / 1e6:.0f} MB are read at most: {mend}"
        )
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        why = _first_line(error)
        raise InputError(f"{where} is not valid JSON ({why}): {mend}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} holds JSON of {type(value).__name__}, not an object: {mend}")
    _check_tree(value, where, mend)
    return value


def json_file(path: str | Path, what: str, mend: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: the file.
        what: it is, for messages, such as "machine profile".
        mend: what the user does about a bad one, such as "download it again".

    Raises:
        MissingInputError: there is no such file.
        InputError: it cannot be read, or is not what `json_object` takes.
    """
    return json_object(read_bytes(path, what, mend, JSON_BYTES), _named(what, path), mend)


def read_bytes(path: str | Path, what: str, mend: str, most: int) -> bytes:
    """Return all bytes of a file of limited size.

    Raises:
        MissingInputError: there is no such file.
        InputError: it cannot be read, is no plain file, or has more than `most` bytes.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{_named(what, path)} is no plain file: {mend}")
            read = file.read(most + 1)
    except FileNotFoundError as error:
        raise MissingInputError(f"{_named(what, path)} does not exist: {mend}") from error
    except OSError as error:
        raise refused(_named(what, path), error) from error
    except ValueError as error:
        raise InputError(f"{_named(what, path)} cannot be read ({_first_line(error)}): {mend}") from error
    if len(read) > most:
        raise InputError(f"{_named(what, path)} has more than {most / 1e6:.0f} MB, the most that is read: {mend}")
    return read


def _named(what: str, path: str | Path) -> str:
    return f"{what} {path}".strip()


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_unicode(part: str) -> bool:
    try:
        part.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{short(name)} is there twice")
    return made


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _check_tree(value: dict[str, Any], where: str, mend: str) -> None:
    """Check the depth and the texts of what a JSON text gave, without recursion."""
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                below += part.keys()
                below += part.values()
            elif isinstance(part, list):
                below += part
            elif isinstance(part, str) and not _is_unicode(part):
                raise InputError(f"{where} holds text that is no UTF-8: {mend}")
        if not below:
            return
        level = below
    raise InputError(f"{where} is nested more than {JSON_DEPTH} levels deep: {mend}")


def typed[Record](record: type[Record], values: Mapping[str, Any], where: str) -> Record:
    """Make a dataclass of the values that it knows, and check each against its annotation.

    Whole numbers are from 1 to `MOST_WHOLE` and numbers above 0, if the field's metadata does not name another `least`
    or `most` (None for no bound). Lists become tuples of at most `MOST_PARTS`, or of the metadata's
    `parts`. Values of other names are left out.

    Args:
        record: a dataclass with annotations of int, float, bool, str, tuples of these, and None.
        values: by field name.
        where: for messages, such as "transformer config".

    Raises:
        InputError: a value is missing, of another type, not finite, too small or too large.
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
            raise InputError(f"{where} is {short(value)}, but must be a list")
        most_parts = field.metadata.get("parts", MOST_PARTS)
        if len(value) > most_parts:
            raise InputError(f"{where} has {len(value)} entries, but must have at most {most_parts}")
        return tuple(_value(part, get_args(hint)[0], field, where) for part in value)
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        right = True
    if not right:
        raise InputError(f"{where} is {short(value)}, but must be {_KINDS[hint]}")
    if hint not in (int, float):
        return value
    try:
        finite = hint is int or math.isfinite(value)
    except OverflowError:  # a whole number where a float is meant
        finite = False
    if not finite:
        raise InputError(f"{where} is {short(value)}, but must be finite")
    least = field.metadata.get("least", 1 if hint is int else 0.0)
    if least is not None and (value < least or (hint is float and value == least)):
        raise InputError(f"{where} is {short(value)}, but must be {'at least' if hint is int else 'above'} {least:g}")
    most = field.metadata.get("most", MOST_WHOLE if hint is int else None)
    if most is not None and value > most:
        raise InputError(f"{where} is {short(value)}, but must be at most {most}")
    return value


def short(value: Any) -> str:
    """Return a value as a message names it: at most 60 characters."""
    try:
        text = repr(value)
    except Exception:  # numbers of thousands of digits, and objects of others
        text = f"of type {type(value).__name__}"
    return text if len(text) < 60 else f"{text[:57]}..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
