"""PEFT's `rank_pattern` and `alpha_pattern`: values for modules whose name, or the end of it, fits a pattern.

PEFT runs each key as a regular expression, `(.*\\.)?(KEY)$`, and the first that fits wins (huggingface/peft
`utils/other.py`, `get_pattern_key`). A file must not decide how long that takes, so keys are not run: the part of the
language that such keys are written in is matched here, in time proportional to the lengths of key and name, and
another key is refused.

That part: letters, digits, `_` and `-`; `.` for any character; `\\.`; `\\d` and `\\w`; `[0-9a-f]`; each of these with
`*`, `+` or `?`; alternatives `a|b`, also in groups `(a|b)` without a repetition; `^` at the beginning and `$` at the
end.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.machine.errors import InputError

# Limits on what a file may ask for; names that trainers write as keys are not counted.
_MOST_PATTERNS, _MOST_CHARACTERS, _MOST_ALTERNATIVES = 10_000, 500, 64
_WORD = frozenset(string.ascii_letters + string.digits + "_")
_LITERAL = _WORD | {"-"}
_CLASSES = {"d": frozenset(string.digits), "w": _WORD, ".": frozenset(".")}
# The characters that one place takes (None: any), and how often: "1", "?", "*" or "+".
_Atom = tuple[frozenset[str] | None, str]


@dataclass(frozen=True)
class Patterns:
    """Keys with their values, in order."""

    keys: tuple[tuple[_Pattern, Any], ...]

    @classmethod
    def read(cls, value: Any, where: str, check: Callable[[str, Any], Any]) -> Patterns:
        """Read a JSON object of key -> value; None and an absent one are empty.

        Args:
            value: the object.
            where: for messages.
            check: called with a name and each value, returns the value to use.

        Raises:
            InputError: it is no object, holds too much, or a key is not in the part of the language above.
        """
        if value is None:
            return cls(())
        if not isinstance(value, Mapping):
            raise InputError(f"{where} is a {type(value).__name__}, but must be an object of name -> value")
        if len(value) > _MOST_PATTERNS:
            raise InputError(f"{where} has {len(value)} entries, at most {_MOST_PATTERNS} are read")
        keys = [(_Pattern.parse(key, where), check(f"{where}: {key[:80]}", found)) for key, found in value.items()]
        if sum(len(pattern.text) for pattern, _ in keys if pattern.plain is None) > _MOST_CHARACTERS:
            raise InputError(f"{where} has more than {_MOST_CHARACTERS} characters of patterns: write whole names")
        return cls(tuple(keys))

    def first(self, name: str, default: Any) -> Any:
        """Return the value of the first key that fits the module `name`, or `default`."""
        return next((value for pattern, value in self.keys if pattern.fits(name)), default)


@dataclass(frozen=True)
class _Pattern:
    """A key. `plain` is its text if it is only a name; `begins` says whether it has to fit the whole name."""

    text: str
    plain: str | None
    begins: bool
    alternatives: tuple[tuple[_Atom, ...], ...]

    @classmethod
    def parse(cls, text: str, where: str) -> _Pattern:
        begins = text.startswith("^")
        body = text.removeprefix("^")
        body = body[:-1] if body.endswith("$") and not body.endswith("\\$") else body
        if body and set(body) <= _LITERAL | {"."}:
            return cls(text, body, begins, ())
        if begins and "|" in body:
            # In PEFT the sign would belong to the first alternative alone.
            raise _refused(text, where)
        return cls(text, None, begins, tuple(tuple(_atoms(part, text, where)) for part in _expand(body, text, where)))

    def fits(self, name: str) -> bool:
        if self.plain is not None:
            end = name[len(name) - len(self.plain) :] if len(self.plain) <= len(name) else ""
            before = name[: len(name) - len(end)]
            return (
                bool(end)
                and (not before or (before.endswith(".") and not self.begins))
                and all(wanted in (found, ".") for wanted, found in zip(self.plain, end, strict=True))
            )
        return any(_fits(atoms, name, self.begins) for atoms in self.alternatives)


def _fits(atoms: tuple[_Atom, ...], name: str, begins: bool) -> bool:
    """Return whether the atoms fit the name, or what follows one of its dots, up to its end."""

    def reached(states: set[int]) -> set[int]:
        """Add the places that can be reached without a character."""
        found = set()
        for state in states:
            while state not in found:
                found.add(state)
                if state < len(atoms) and atoms[state][1] in "?*":
                    state += 1
        return found

    states = reached({0})
    for index, character in enumerate(name):
        if index and not begins and name[index - 1] == ".":
            states |= reached({0})
        after = set()
        for state in states:
            if state < len(atoms) and (atoms[state][0] is None or character in atoms[state][0]):  # type: ignore[operator]
                after |= {state, state + 1} if atoms[state][1] in "*+" else {state + 1}
        # A repeated place that took a character may stop or go on; a "+" must not be skipped before that.
        states = reached(after)
    return len(atoms) in states


def _atoms(part: str, text: str, where: str) -> list[_Atom]:
    """Read a pattern without groups and alternatives."""
    found: list[_Atom] = []
    index = 0
    while index < len(part):
        character, index = part[index], index + 1
        accepted: frozenset[str] | None
        if character == ".":
            accepted = None
        elif character == "\\" and index < len(part) and part[index] in _CLASSES:
            accepted, index = _CLASSES[part[index]], index + 1
        elif character == "[" and "]" in part[index:]:
            end = part.index("]", index)
            accepted, index = _class(part[index:end], text, where), end + 1
        elif character in _LITERAL:
            accepted = frozenset(character)
        else:
            raise _refused(text, where)
        often = "1"
        if index < len(part) and part[index] in "?*+":
            often, index = part[index], index + 1
        found.append((accepted, often))
    if not found:
        raise _refused(text, where)
    return found


def _class(inside: str, text: str, where: str) -> frozenset[str]:
    """Read the inside of square brackets: characters and ranges."""
    found: set[str] = set()
    index = 0
    while index < len(inside):
        first = inside[index]
        if index + 2 < len(inside) and inside[index + 1] == "-":
            last, index = inside[index + 2], index + 3
        else:
            last, index = first, index + 1
        if first not in _LITERAL or last not in _LITERAL or first > last:
            raise _refused(text, where)
        found |= {chr(code) for code in range(ord(first), ord(last) + 1)}
    if not found:
        raise _refused(text, where)
    return frozenset(found)


def _expand(body: str, text: str, where: str) -> list[str]:
    """Return the alternatives of a pattern, with groups multiplied out."""
    if len(body) > _MOST_CHARACTERS:
        raise _refused(text, where)
    parts = _split(body, text, where)
    if len(parts) > 1:
        made = [pattern for part in parts for pattern in _expand(part, text, where)]
    elif "(" in body:
        start = body.index("(")
        depth, end = 0, -1
        for index in range(start, len(body)):
            depth += {"(": 1, ")": -1}.get(body[index], 0)
            if depth == 0:
                end = index
                break
        inner = body[start + 1 : end].removeprefix("?:")
        if end < 0 or body[end + 1 : end + 2] in ("*", "+", "?", "{") or body[start - 1 : start] == "\\":
            raise _refused(text, where)
        middles, tails = _expand(inner, text, where), _expand(body[end + 1 :], text, where)
        if len(middles) * len(tails) > _MOST_ALTERNATIVES:
            raise _refused(text, where)
        made = [body[:start] + middle + tail for middle in middles for tail in tails]
    else:
        made = [body]
    if len(made) > _MOST_ALTERNATIVES:
        raise _refused(text, where)
    return made


def _split(body: str, text: str, where: str) -> list[str]:
    """Split at the bars that no group encloses."""
    parts, depth = [""], 0
    for character in body:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0 or depth > 8:
            raise _refused(text, where)
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _refused(text: str, where: str) -> InputError:
    return InputError(
        f"{where} has the key {text[:60]!r}, a regular expression of a kind that is not read: write module names, with "
        r"., \d+, .* or (a|b)"
    )
