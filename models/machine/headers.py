"""Headers of safetensors files, read and judged before any tensor is mapped or allocated.

Format: huggingface/safetensors README, "Format": eight bytes with the length of a JSON header, the header, the data.
Tensors follow each other without holes and fill the data exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from models.machine.checks import json_object
from models.machine.errors import InputError, MissingInputError
from models.machine.paths import exists, is_file, refused

# A header of Mochi 1 has 0.2 MB; all models in one file, with metadata, stay below 1 MB.
HEADER_BYTES = 16 << 20
DIMENSIONS = 8
# Bytes of a value of each type that torch reads.
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_METADATA = "__metadata__"


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor; `begin` and `end` are byte offsets in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header whose every rule was checked."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(path: str | Path, what: str = "", mend: str = "download it again") -> Header:
    """Read the header of a safetensors file, and check it against itself and against the size of the file.

    Args:
        path: the file.
        what: it is, for messages, such as "LoRA".
        mend: what the user does about a bad one.

    Raises:
        MissingInputError: there is no such file.
        InputError: the file is truncated, or its header breaks a rule of the format or of these limits.
    """
    path = Path(path)
    named = f"{what} {path}".strip()
    try:
        if not is_file(path):
            if not exists(path):
                raise MissingInputError(f"{named} does not exist: {mend}")
            raise InputError(f"{named} is no plain file: {mend}")
        size = path.stat().st_size
        return _header(path, size)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise refused(named, error) from error
    except _Broken as error:
        raise InputError(f"{named} ({size} bytes) is truncated or not a safetensors file ({error}): {mend}") from error


class _Broken(Exception):
    """A rule that a header breaks."""


def _header(path: Path, size: int) -> Header:
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length + 8 > size:
            raise _Broken(f"its header should have {length} bytes")
        if length > HEADER_BYTES:
            raise _Broken(f"its header has {length} bytes, and {HEADER_BYTES} are read at most")
        text = file.read(length)
    try:
        value = json_object(text, "its header", "")
    except InputError as error:
        raise _Broken(str(error).removesuffix(": ")) from error
    metadata = value.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(part, str) for part in metadata.values()):
        raise _Broken("its metadata is no table of texts")
    tensors = {name: _entry(name, entry) for name, entry in value.items()}
    _check_places(tensors, size - 8 - length)
    return Header(tensors, metadata)


def _entry(name: str, entry: Any) -> TensorEntry:
    shown = name if len(name) < 80 else f"{name[:77]}..."
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Broken(f"{shown} has not a dtype, a shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise _Broken(f"{shown} is of a type that is not read: {str(dtype)[:20]}")
    if not _are_sizes(shape) or len(shape) > DIMENSIONS:
        raise _Broken(f"{shown} has no shape of whole numbers, at most {DIMENSIONS}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _Broken(f"{shown} has no two data_offsets")
    begin, end = offsets
    if prod(shape) * SIZES[dtype] != end - begin:
        raise _Broken(f"{shown}, {dtype} {shape}, does not fill its {end - begin} bytes")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_places(tensors: Mapping[str, TensorEntry], data: int) -> None:
    place = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            raise _Broken(f"{name[:80]} begins at byte {entry.begin} of the data, not at {place}")
        place = entry.end
    if place != data:
        raise _Broken(f"its tensors have {place} bytes, the file has {data}")
