"""Bearer keys: who may ask, and how much. Only digests of keys are kept in memory."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.machine.checks import read_bytes, short
from models.machine.errors import InputError

ENVIRONMENT = "MOCHI_TT_KEYS"
LOCAL = "local"
"""The owner of all jobs where there are no keys."""
LEAST_KEY = 16
_MOST_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HEX = re.compile(r"[0-9a-f]{64}")
_MEND = "write NAME:KEY lines, or [[key]] tables of TOML (docs/service.md)"


@dataclass(frozen=True)
class Key:
    """Somebody who may ask.

    Attributes:
        name: owner of the jobs.
        digest: SHA-256 of the key.
        queued: most jobs that wait or run; None for no bound.
        per_day: most submissions in 24 hours; None for no bound.
    """

    name: str
    digest: bytes
    queued: int | None = None
    per_day: int | None = None


class Keys:
    """All keys of a service; without any, everybody is `LOCAL`."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        """Take the keys.

        Raises:
            InputError: two have one name, or are the same key.
        """
        self._keys = tuple(keys)
        for what, values in (("name", [key.name for key in self._keys]), ("key", [key.digest for key in self._keys])):
            twice = [index for index, value in enumerate(values) if value in values[:index]]
            if twice:
                raise InputError(f"keys: the {what} of {self._keys[twice[0]].name} is there twice: give each its own")

    def __bool__(self) -> bool:
        return bool(self._keys)

    def named(self, name: str) -> Key | None:
        """Return the key of an owner."""
        return next((key for key in self._keys if key.name == name), None)

    def find(self, header: str | None) -> Key | None:
        """Return the key that an Authorization header has; None if it has none of them.

        It is compared with every key by `hmac.compare_digest`: the time says nothing of how near a guess is.
        """
        scheme, _, token = (header or "").strip().partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogatepass")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found if scheme.lower() == "bearer" else None

    @classmethod
    def read(cls, file: str | Path | None, environment: str | None) -> Keys:
        """Read keys from a file and from the value of the environment variable, both where both are given.

        Raises:
            InputError: an entry breaks its rule; its key is never part of the message.
        """
        found: list[Key] = []
        if file is not None:
            try:
                text = read_bytes(file, "keys", _MEND, _MOST_BYTES).decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"keys {file} is no UTF-8 text: {_MEND}") from error
            found += _of_toml(text, str(file)) if "[[" in text else _of_lines(text.splitlines(), str(file))
            if not found:
                raise InputError(f"keys {file} has no key: {_MEND}")
        if environment:
            found += _of_lines(environment.split(","), ENVIRONMENT)
        return cls(found)


def _of_lines(lines: Iterable[str], where: str) -> list[Key]:
    found = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise InputError(f"{where}: entry {number} has no colon: write NAME:KEY")
        found.append(Key(_name(name.strip(), where), _digest(value.strip(), None, where, name.strip())))
    return found


def _of_toml(text: str, where: str) -> list[Key]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"keys {where} is not valid TOML (line {getattr(error, 'lineno', '?')}): {_MEND}") from None
    tables = data.pop("key", [])
    if data or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"keys {where} must have [[key]] tables only: {_MEND}")
    found = []
    for table in tables:
        unknown = set(table) - {"name", "key", "sha256", "queued", "per_day"}
        if unknown:
            raise InputError(
                f"keys {where}: {sorted(unknown)[0]!r} is not known: name, key, sha256, queued, per_day are"
            )
        name = _name(table.get("name"), where)
        bounds = {
            bound: _bound(table[bound], f"{where}, {name}: {bound}")
            for bound in ("queued", "per_day")
            if bound in table
        }
        found.append(Key(name, _digest(table.get("key"), table.get("sha256"), where, name), **bounds))
    return found


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(f"{where}: the name {short(value)} must have 1 to 64 of the letters A to Z, 0 to 9, _ . -")
    return value


def _digest(key: Any, sha256: Any, where: str, name: str) -> bytes:
    if (key is None) == (sha256 is None):
        raise InputError(f"{where}, {name}: give either key or sha256")
    if sha256 is not None:
        if not isinstance(sha256, str) or not _HEX.fullmatch(sha256.lower()):
            raise InputError(f"{where}, {name}: sha256 must be 64 hexadecimal digits")
        return bytes.fromhex(sha256)
    if not isinstance(key, str) or len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"{where}, {name}: a key must have {LEAST_KEY} printable ASCII letters or more: openssl rand -hex 24"
        )
    return hashlib.sha256(key.encode()).digest()


def _bound(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
        raise InputError(f"{where} {short(value)} must be a whole number from 0 to 1000000")
    return value


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
