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

# Raised whenever entries of the version before must not be read any more. It stands for what is in a manifest and in a
# key, and for the bytes of tensor files apart from the kinds of conversion: rounding, tiling, sharding, order.
# 2: versions of conversions in the key instead of hashes of source text, names of tensors from the checkpoint's.
FORMAT_VERSION = 3


@dataclass(frozen=True)
class TensorRecord:
    """One stored tensor: its name (`weight_cache.key.stored_name`), its file, and what is in it."""

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

    @staticmethod
    def read_value(path: Path) -> dict[str, Any]:
        """Read a manifest of any version as plain JSON values.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not a JSON object.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"manifest {path} is damaged ({' '.join(str(error).split())})") from error
        if not isinstance(value, dict):
            raise InputError(f"manifest {path} is damaged (it is a {type(value).__name__})")
        return value

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            FileNotFoundError: there is no manifest.
            ValueError: it is damaged, or of another version of the store.
        """
        value = cls.read_value(path)
        version = value.get("format")
        if version != FORMAT_VERSION:
            raise InputError(f"manifest {path} is of version {version!r}, this program reads {FORMAT_VERSION}")
        try:
            tensors = [TensorRecord.from_json(tensor) for tensor in value["tensors"]]
            for name in ("key_fields", "about"):
                if not isinstance(value[name], dict):
                    raise InputError(f"its {name} is a {type(value[name]).__name__}")
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
