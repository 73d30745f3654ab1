"""The manifest of an entry. It describes the files, and it is the only sign that all of them exist."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from models.machine.errors import InputError

# Increase it whenever entries of the previous version must not be read any more.
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TensorRecord:
    """One stored tensor: the parameter's path in the model, its file, and the content of the file."""

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    sp: int | None
    tp: int | None
    bytes: int
    checksum: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TensorRecord:
        """Read a record that `asdict` wrote.

        Raises:
            ValueError: fields are missing, or there are unknown fields.
        """
        if not isinstance(value, Mapping) or set(value) != {f.name for f in fields(cls)}:
            raise InputError("a tensor's record has other fields than this version writes")
        return cls(**{**value, "shape": tuple(value["shape"])})


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
        """Write the manifest to `path` in one step."""
        value = {"format": FORMAT_VERSION, **asdict(self)}
        write_atomically(path, json.dumps(value, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            FileNotFoundError: there is no manifest.
            ValueError: it is damaged, or of another version of the store.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"manifest {path} is damaged ({' '.join(str(error).split())})") from error
        version = value.get("format") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(f"manifest {path} is of version {version!r}, this program reads {FORMAT_VERSION}")
        try:
            tensors = [TensorRecord.from_json(tensor) for tensor in value["tensors"]]
            return cls(value["key"], value["key_fields"], tensors, value["about"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"manifest {path} is damaged ({' '.join(str(error).split())})") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` with a file of `text` in one step, after flushing it to the disk.

    Raises:
        OSError: the file cannot be written; the old one stays.
    """
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
