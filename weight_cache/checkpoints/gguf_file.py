"""GGUF files: quantised weights in blocks, read tensor by tensor, with a header that is judged before anything else.

Format: ggml-org/ggml `docs/gguf.md`, versions 2 and 3, little-endian. The header has key-value pairs, then name, sizes
(the fastest first), type and offset of each tensor; the data begin at the next multiple of `general.alignment`. Files
for ComfyUI keep Genmo's names, and the shapes that GGUF cannot say under `comfy.gguf.orig_shape.NAME` (city96's
ComfyUI-GGUF). Values are those of the package `gguf`, whose `dequantize` is called: quantised tensors become float32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.machine.errors import InputError
from models.machine.extras import require
from models.machine.headers import DIMENSIONS, HEADER_BYTES
from weight_cache.checkpoints.held import HeldFile

if TYPE_CHECKING:
    import torch

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_ENTRIES, _LONGEST_NAME = 1 << 16, 1 << 10
_ALIGNMENT, _MOST_ALIGNMENT = 32, 1 << 20
_ORIGINAL = "comfy.gguf.orig_shape."
_MEND = "download it again"
# Number of a kind of value -> its format for `struct`; two kinds are made of others.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Names of types that torch has -> safetensors' names of them.
_PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
# Quantised values are made in pieces of about so many, so that memory stays a small multiple of the tensor.
_PIECE = 1 << 20


@dataclass(frozen=True)
class GgufTensor:
    """What a header says of one tensor.

    Attributes:
        shape: the slowest dimension first, as torch has it.
        kind: number of its type.
        begin: byte offset in the data.
        stored: shape of what is stored, whose last dimension is in whole blocks.
    """

    shape: tuple[int, ...]
    kind: int
    begin: int
    stored: tuple[int, ...]

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """A header whose rules were checked but for what needs the sizes of types."""

    tensors: Mapping[str, GgufTensor]
    values: Mapping[str, Any]
    data: int
    """Byte of the file at which the data begin."""


class _Broken(Exception):
    """A rule that a header breaks."""


class _Cursor:
    """Reads the header from its beginning."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def take(self, form: str) -> Any:
        """Return the next number."""
        return struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))[0]

    def bytes(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self.content) - self.place:
            raise _Broken(f"its header ends at byte {len(self.content)}, in the middle")
        self.place += count
        return self.content[self.place - count : self.place]

    def text(self, most: int = HEADER_BYTES) -> str:
        """Return the next text, of at most `most` bytes."""
        count = self.take("Q")
        if count > most:
            raise _Broken(f"a text has {count} bytes, and {most} are read at most")
        try:
            return self.bytes(count).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Broken("a text is no UTF-8") from error

    def value(self, kind: int) -> Any:
        """Return the next value of a kind; of arrays those of numbers only, and of others None."""
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _Broken(f"a value is of the unknown kind {kind}")
        inner, count = self.take("I"), self.take("Q")
        if inner in _SCALARS:
            form = _SCALARS[inner]
            content = self.bytes(count * struct.calcsize(f"<{form}"))
            return struct.unpack(f"<{count}{form}", content) if count <= DIMENSIONS else None
        if inner != _STRING:
            raise _Broken(f"an array is of the kind {inner}, which is not read")
        for _ in range(count):  # each takes at least eight bytes of the header, so this ends
            self.text()
        return None


def is_gguf(path: str | Path) -> bool:
    """Return whether a file is GGUF by its name."""
    return Path(path).suffix.lower() == ".gguf"


def read_gguf_header(file: HeldFile) -> GgufHeader:
    """Read the header of a GGUF file, and check it against itself.

    Raises:
        InputError: it is truncated, or breaks a rule of the format or of these limits.
    """
    content = bytearray(min(file.bytes, HEADER_BYTES))
    file.read(0, content)
    try:
        return _header(bytes(content), file.bytes)
    except _Broken as error:
        raise InputError(f"{file.path} ({file.bytes} bytes) is truncated or no GGUF file ({error}): {_MEND}") from error


def _header(content: bytes, size: int) -> GgufHeader:
    cursor = _Cursor(content)
    if cursor.bytes(4) != MAGIC:
        raise _Broken("it does not begin with GGUF")
    version = cursor.take("I")
    if version not in _VERSIONS:
        raise _Broken(f"it is of version {version}, and {' and '.join(map(str, _VERSIONS))} are read, little-endian")
    tensors, pairs = cursor.take("Q"), cursor.take("Q")
    for count, what in ((tensors, "tensors"), (pairs, "values")):
        if count > _MOST_ENTRIES:
            raise _Broken(f"it has {count} {what}, and {_MOST_ENTRIES} are read at most")
    values: dict[str, Any] = {}
    for _ in range(pairs):
        name = cursor.text(1 << 16)
        if name in values:
            raise _Broken(f"the value {_shown(name)} is there twice")
        values[name] = cursor.value(cursor.take("I"))
    alignment = values.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
        raise _Broken(f"its alignment is {str(alignment)[:40]}, which is no power of two")
    found: dict[str, GgufTensor] = {}
    for _ in range(tensors):
        name = cursor.text(_LONGEST_NAME)
        if name in found:
            raise _Broken(f"the tensor {_shown(name)} is there twice")
        found[name] = _tensor(name, cursor, values.get(f"{_ORIGINAL}{name}"), alignment)
    data = -(-cursor.place // alignment) * alignment
    if found and data > size:
        raise _Broken(f"its data begin at byte {data}")
    return GgufHeader(found, values, data)


def _tensor(name: str, cursor: _Cursor, original: Any, alignment: int) -> GgufTensor:
    shown = _shown(name)
    dimensions = cursor.take("I")
    if not 1 <= dimensions <= DIMENSIONS:
        raise _Broken(f"{shown} has {dimensions} dimensions, and 1 to {DIMENSIONS} are read")
    sizes = tuple(cursor.take("Q") for _ in range(dimensions))
    kind, begin = cursor.take("I"), cursor.take("Q")
    if not all(0 < size < 1 << 48 for size in sizes) or prod(sizes) >= 1 << 48:
        raise _Broken(f"{shown} has the sizes {str(list(sizes))[:80]}")
    if begin % alignment:
        raise _Broken(f"{shown} begins at byte {begin} of the data, which is no multiple of {alignment}")
    stored = sizes[::-1]
    shape = stored
    if original is not None:
        whole = isinstance(original, tuple) and all(type(size) is int and size > 0 for size in original)
        if not whole or prod(original) != prod(stored):
            raise _Broken(f"{shown} has {list(stored)}, and {_ORIGINAL}{shown} says {str(original)[:80]}")
        shape = tuple(original)
    return GgufTensor(shape, kind, begin, stored)


def _shown(name: str) -> str:
    """Return a name of a file's as a message has it: in one line, and not too long."""
    return name[:80].encode("unicode_escape").decode()


class HeldGguf:
    """An open GGUF file. It answers as `HeldTensors` does, with the values that quantised tensors stand for."""

    def __init__(self, path: Path):
        """Open `path` and check its header.

        Raises:
            MissingInputError: there is no such file, or the package `gguf` is not installed.
            InputError: it is no whole GGUF file, or has tensors of a type that is not read.
        """
        self.file = HeldFile(path)
        if self.file.bytes < len(MAGIC):
            raise InputError(f"{path} ({self.file.bytes} bytes) is truncated or no GGUF file (it is empty): {_MEND}")
        self._header = read_gguf_header(self.file)
        self._package = require("gguf", "gguf", f"reading {path.name}")
        self._quants: dict[int, _Quant] = {}
        for kind in sorted({tensor.kind for tensor in self._header.tensors.values()}):
            self._quants[kind] = self._quant(kind)
        self._check_places()
        self.file.check()

    def keys(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._header.tensors)

    def metadata(self) -> dict[str, str] | None:
        """Return None: its key-value pairs say nothing of values."""
        return None

    def get_slice(self, name: str) -> _Entry:
        """Return one tensor without reading it."""
        tensor = self._header.tensors[name]
        return _Entry(tensor, self._quants[tensor.kind])

    def get_tensor(self, name: str) -> torch.Tensor:
        """Read one tensor to the host: float16, bfloat16 and float32 as they are, quantised ones as float32.

        Raises:
            InputError: the file ends before.
        """
        import numpy as np
        import torch

        tensor = self._header.tensors[name]
        quant = self._quants[tensor.kind]
        start = self._header.data + tensor.begin
        if quant.dtype is not None:
            plain = torch.empty(prod(tensor.shape), dtype=getattr(torch, quant.dtype))
            self.file.read(start, plain.view(torch.uint8).numpy())
            return plain.reshape(tensor.shape)
        blocks = prod(tensor.stored) // quant.values
        made = torch.empty(blocks * quant.values, dtype=torch.float32)
        piece = max(1, _PIECE // quant.values)
        for first in range(0, blocks, piece):
            count = min(piece, blocks - first)
            content = np.empty((count, quant.bytes), dtype=np.uint8)
            self.file.read(start + first * quant.bytes, content)
            values = quant.dequantize(content).reshape(-1)
            made[first * quant.values : (first + count) * quant.values] = torch.from_numpy(values)
        return made.reshape(tensor.shape)

    def _quant(self, kind: int) -> _Quant:
        """Return how a type is read.

        Raises:
            InputError: it is not.
        """
        import numpy as np
        from numpy.typing import NDArray

        types, sizes = self._package.GGMLQuantizationType, self._package.GGML_QUANT_SIZES
        try:
            found = types(kind)
            values, size = sizes[found]
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{self.file.path} has tensors of type {kind}, which the package gguf does not know: use a file in "
                "Q8_0, Q4_0, float16 or bfloat16"
            ) from error
        if found.name in _PLAIN:
            return _Quant(found.name, 1, size, {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[found.name])

        def dequantize(content: NDArray[Any]) -> NDArray[Any]:
            made = self._package.quants.dequantize(content, found)
            return np.ascontiguousarray(made, dtype=np.float32)

        try:
            dequantize(np.zeros((1, size), dtype=np.uint8))
        except NotImplementedError as error:
            raise InputError(
                f"{self.file.path} has tensors of type {found.name}, which the package gguf does not dequantise: use a "
                "file in Q8_0, Q4_0, float16 or bfloat16"
            ) from error
        return _Quant(found.name, values, size, None, dequantize)

    def _check_places(self) -> None:
        """Check that the tensors lie one after the other, within the file, in whole blocks."""
        named = f"{self.file.path} ({self.file.bytes} bytes) is truncated or no GGUF file"
        end = 0
        for name, tensor in sorted(self._header.tensors.items(), key=lambda item: item[1].begin):
            quant = self._quants[tensor.kind]
            if tensor.stored[-1] % quant.values:
                raise InputError(
                    f"{named} ({_shown(name)} has rows of {tensor.stored[-1]}, {quant.name} blocks of {quant.values}): "
                    f"{_MEND}"
                )
            if tensor.begin < end:
                raise InputError(f"{named} ({_shown(name)} begins within another tensor): {_MEND}")
            end = tensor.begin + prod(tensor.stored) // quant.values * quant.bytes
            if self._header.data + end > self.file.bytes:
                raise InputError(f"{named} ({_shown(name)} ends at byte {self._header.data + end}): {_MEND}")


@dataclass(frozen=True)
class _Quant:
    """A type of GGUF: `values` numbers in a block of `bytes`; `dtype` is torch's name where a block is one number."""

    name: str
    values: int
    bytes: int
    dtype: str | None = None
    dequantize: Callable[[Any], Any] = lambda content: content


@dataclass(frozen=True)
class _Entry:
    """Type and shape of a tensor, as `HeldTensor` says them."""

    tensor: GgufTensor
    quant: _Quant

    def get_shape(self) -> list[int]:
        """Return its shape."""
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        """Return the type of its values in safetensors' notation: F32 if it is quantised."""
        return _PLAIN.get(self.quant.name, "F32")
