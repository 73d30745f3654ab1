"""Damaged files: what bad luck and attackers do to JSON, to safetensors and to any other file. Seeds decide all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Mangle = Callable[[bytes, random.Random], bytes]

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2.5,
    1e300,
    10**18,
    "",
    "x" * 5000,
    [],
    {},
    [0],
    [[]],
    {"a": []},
    "2",
    "../x",
]
RAW = [b"1e999", b"NaN", b"9" * 5000, b"[" * 2000, b'"\\ud800"']


def flipped(data: bytes, draw: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(draw.randrange(1, 8)):
        if made:
            # Headers are where damage is seen: half of the flips are there.
            made[draw.randrange(min(len(made), draw.choice((400, len(made)))))] ^= 1 << draw.randrange(8)
    return bytes(made)


def spliced(data: bytes, draw: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(len(made) + 1)
        made[place : place + draw.randrange(20)] = draw.randbytes(draw.randrange(20))
    return bytes(made)


ANY: dict[str, Mangle] = {
    "empty": lambda data, draw: b"",
    "cut": lambda data, draw: data[: draw.randrange(len(data) + 1)],
    "longer": lambda data, draw: data + draw.randbytes(draw.randrange(1, 5000)),
    "noise": lambda data, draw: draw.randbytes(2000),
    "zeros": lambda data, draw: bytes(len(data)),
    "flipped": flipped,
    "spliced": spliced,
    "page": lambda data, draw: b"<!doctype html><title>401 Unauthorized</title>",
    "pointer": lambda data, draw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
}


def another_value(data: bytes, draw: random.Random) -> bytes:
    """One value of a JSON text, at any depth, is another."""
    tree = json.loads(data)
    places = list(_places(tree))
    if not places:
        return json.dumps(draw.choice(VALUES)).encode()
    holder, key = draw.choice(places)
    holder[key] = "@@"
    new = draw.choice([json.dumps(value).encode() for value in VALUES] + RAW)
    return json.dumps(tree).encode().replace(b'"@@"', new)


def without_a_value(data: bytes, draw: random.Random) -> bytes:
    tree = json.loads(data)
    places = list(_places(tree))
    if places:
        holder, key = draw.choice(places)
        del holder[key]
    return json.dumps(tree).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in parts:
        yield tree, key
        yield from _places(value)


JSON: dict[str, Mangle] = {
    "null": lambda data, draw: b"null",
    "list": lambda data, draw: b"[]",
    "object": lambda data, draw: b"{}",
    "number": lambda data, draw: b"5",
    "deep": lambda data, draw: b'{"a":' * 100_000,
    "deep but whole": lambda data, draw: b'{"a":' * 900 + b"1" + b"}" * 900,
    "utf-16": lambda data, draw: data.decode().encode("utf-16"),
    "another value": another_value,
    "without a value": without_a_value,
}


def another_header(data: bytes, draw: random.Random) -> bytes:
    """One value of a safetensors header is another."""
    length = int.from_bytes(data[:8], "little")
    header = draw.choice((another_value, without_a_value))(data[8 : 8 + length], draw)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def no_numbers(data: bytes, draw: random.Random) -> bytes:
    """Bytes of the data that are infinite or no numbers in all types of floating point."""
    made = bytearray(data)
    length = 8 + int.from_bytes(data[:8], "little")
    if len(made) - length > 64:
        place = draw.randrange(length, len(made) - 32) // 4 * 4
        made[place : place + 8] = b"\xff" * 8
    return bytes(made)


SAFETENSORS: dict[str, Mangle] = {
    "long header": lambda data, draw: (draw.choice((len(data), 1 << 32, 2**64 - 1))).to_bytes(8, "little") + data[8:],
    "another header": another_header,
    "no numbers": no_numbers,
}


def kinds_for(path: Path) -> dict[str, Mangle]:
    """Every way to damage a file of this name."""
    more = {".json": JSON, ".safetensors": SAFETENSORS}.get(path.suffix, {})
    return ANY | more
