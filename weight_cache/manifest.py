"""The manifest of an entry. It describes the files, and it is the only sign that all of them exist.

It carries a hash of itself, and so does each line of an entry's journal: a record whose name, file or checksum was
changed or exchanged with another's is known to be damaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from models.machine.checks import json_object, typed
from models.machine.errors import InputError
from models.machine.files import renamed_when_done
from weight_cache.inside import read_bytes

# Raised whenever entries of the version before must not be read any more. It stands for what is in a manifest and in a
# key, and for the bytes of tensor files apart from the kinds of conversion: rounding, tiling, sharding, order.
# 2: versions of conversions in the key instead of hashes of source text, names of tensors from the checkpoint's.
# 4: the manifest's hash of itself.
FORMAT_VERSION = 4
_HASH = "sha256"


@dataclass(frozen=True)
class TensorRecord:
    """One stored tensor: its name (`weight_cache.key.stored_name`), its file, and what is in it."""

    name: str
    file: str
    shape: tuple[int, ...] = field(metadata={"most": None})
    dtype: str
    layout: str
    sp: int | None = field(metadata={"least": 0})
    tp: int | None = field(metadata={"least": 0})
    bytes: int = field(metadata={"most": None})
    checksum: str

    @classmethod
    def from_json(cls, value: Any) -> TensorRecord:
        """Read a record that `asdict` wrote.

        Raises:
            ValueError: fields are missing, unknown or of other types, or the file is not the one of that name.
        """
        if not isinstance(value, Mapping) or set(value) != {f.name for f in fields(cls)}:
            raise InputError("a tensor's record has other fields than this version writes")
        record = typed(cls, value, "record")
        if record.file != f"{record.name}.tensorbin" or Path(record.file).name != record.file:
            raise InputError(f"the file of {record.name} is {record.file!r}")
        return record

    def line(self, key: str) -> str:
        """Return the record as a line of the journal of the entry with that key."""
        value = {"key": key, **asdict(self)}
        return json.dumps({_HASH: content_hash(value), **value}) + "\n"

    @classmethod
    def from_line(cls, line: str, key: str) -> TensorRecord:
        """Read a line that `line` made.

        Raises:
            ValueError: it is damaged, unfinished, or of another entry.
        """
        value = json_object(line, "journal")
        if value.pop(_HASH, None) != content_hash(value) or value.pop("key", None) != key:
            raise InputError("a line of the journal is damaged or of another entry")
        return cls.from_json(value)


def content_hash(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain JSON values in one spelling.

    Raises:
        ValueError: there is a number that JSON does not know, or the nesting is too deep.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, RecursionError) as error:
        raise InputError(f"it holds what no JSON holds ({' '.join(str(error).split())})") from error


@dataclass(frozen=True)
class Manifest:
    """Manifest of a complete entry.

    Attributes:
        key: hash of `key_fields`, in full.
        key_fields: all facts that distinguish this entry from others; see `weight_cache.key`.
        tensors: records in the order of the model's parameters.
        about: information for people: source, time of creation, seconds it took.
    """

    key: str
    key_fields: dict[str, Any]
    tensors: list[TensorRecord]
    about: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Size of all tensor files."""
        return sum(tensor.bytes for tensor in self.tensors)

    def write(self, path: Path) -> None:
        """Write the manifest to `path` in one step, and flush it and its directory to the disk."""
        value = {"format": FORMAT_VERSION, **asdict(self)}
        with renamed_when_done(path) as scratch:
            scratch.write_text(json.dumps({_HASH: content_hash(value), **value}, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read_value(path: Path) -> dict[str, Any]:
        """Read a manifest of any version as plain JSON values.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
            ValueError: it is not a plain file, or not a JSON object.
        """
        try:
            return json_object(read_bytes(path), "it")
        except InputError as error:
            raise InputError(f"manifest {path} is damaged ({error})") from error

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            FileNotFoundError: there is no manifest.
            OSError: it cannot be read.
            ValueError: it is damaged, or of another version of the store.
        """
        value = cls.read_value(path)
        version = value.get("format")
        if version != FORMAT_VERSION:
            raise InputError(f"manifest {path} is of version {version!r}, this program reads {FORMAT_VERSION}")
        try:
            if value.pop(_HASH, None) != content_hash(value):
                raise InputError("its hash of itself is wrong")
            tensors = [TensorRecord.from_json(tensor) for tensor in value["tensors"]]
            for name in ("key_fields", "about"):
                if not isinstance(value[name], dict):
                    raise InputError(f"its {name} is a {type(value[name]).__name__}")
            if not isinstance(value["key"], str) or len({tensor.name for tensor in tensors}) < len(tensors):
                raise InputError("its key or its tensors' names are wrong")
            return cls(value["key"], value["key_fields"], tensors, value["about"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"manifest {path} is damaged ({' '.join(str(error).split())})") from error
