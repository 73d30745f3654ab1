"""Files of a checkpoint that stay the files they were when they were opened, or say that they did not.

A file is opened once and never again by its path, so that all that is read of it is of one file, whatever is renamed
onto that path meanwhile. Values are read and not mapped: a file that is cut short while it is in use is then an error,
and not the end of the process. Writing into the open file is seen by its time of change, which no program can set.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.machine.checks import json_object
from models.machine.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import torch

# Clocks of files stand still between two ticks of the system: 10 ms at 100 Hz, the coarsest that Linux is built with.
_TICK_SECONDS = 0.02
# safetensors' names of types -> torch's.
_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
}


def signature(stat: os.stat_result) -> str:
    """Return what changes whenever a file is written or replaced: size, both times of change, inode and device."""
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}:{stat.st_dev}"


def settle(stat: os.stat_result) -> None:
    """Wait until a later write must give the file another time of change than `stat` has, at most 20 ms."""
    age = time.time() - stat.st_ctime
    if 0 <= age < _TICK_SECONDS:
        time.sleep(_TICK_SECONDS - age)


class HeldFile:
    """A file that is open for reading as long as this object lives.

    Attributes:
        path: as it was opened; for messages, and to see whether another file is there now.
        signature: of the file when it was opened.
    """

    def __init__(self, path: Path):
        """Open `path`.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: it is not a plain file.
        """
        self.path = path
        try:
            # Opening a pipe would wait for a writer.
            self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise MissingInputError(f"{path} is not there: it was moved or deleted") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): make it readable") from error
        weakref.finalize(self, os.close, self.descriptor)
        if not os.path.isfile(self.again):
            raise InputError(f"{path} is not a file: give a file")
        stat = os.fstat(self.descriptor)
        settle(stat)
        self.signature = signature(stat)
        self.bytes = stat.st_size

    @property
    def again(self) -> str:
        """A path that opens this very file once more, even if it was renamed or deleted (Linux)."""
        return f"/proc/self/fd/{self.descriptor}"

    def read(self, start: int, buffer: Any) -> None:
        """Fill a writable buffer with the bytes from `start` on.

        Raises:
            ValueError: the file ends before, which it did not when it was opened.
        """
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self.descriptor, [view[done:]], start + done)
            except OSError as error:
                raise InputError(f"{self.path} cannot be read ({error.strerror}): copy it to a sound disk") from error
            if count == 0:
                raise InputError(_changed(self.path))
            done += count

    def check(self) -> None:
        """Check that the open file, and the file at its path, are as they were when it was opened.

        Raises:
            ValueError: it was written, replaced, moved or deleted.
        """
        try:
            now = {signature(os.fstat(self.descriptor)), signature(os.stat(self.path))}
        except OSError:
            now = set()
        if now != {self.signature}:
            raise InputError(_changed(self.path))


def _changed(path: Path) -> str:
    return f"{path} changed while it was in use: leave the file alone (or finish writing it), then run it again"


class HeldTensors:
    """An open safetensors file. It answers like the one of `safetensors.safe_open`, and reads instead of mapping."""

    def __init__(self, path: Path):
        """Open `path` and check its header.

        Raises:
            OSError, SafetensorError: it cannot be opened, or is not a whole safetensors file.
            ValueError: its header is no JSON object, or it changed meanwhile.
        """
        from safetensors import safe_open

        self.file = HeldFile(path)
        # The library's own checks of header and sizes; nothing but the header is read.
        with safe_open(self.file.again, framework="pt") as checked:
            self._metadata = checked.metadata()
        length = bytearray(8)
        self.file.read(0, length)
        self._data = 8 + int.from_bytes(length, "little")
        if self._data > self.file.bytes:
            raise InputError(_changed(path))
        header = bytearray(self._data - 8)
        self.file.read(8, header)
        self._entries: Mapping[str, Any] = json_object(bytes(header), f"header of {path}")
        self.file.check()

    def keys(self) -> list[str]:
        """Return the names of all tensors."""
        return [name for name in self._entries if name != "__metadata__"]

    def metadata(self) -> dict[str, str] | None:
        """Return the metadata, None if there are none."""
        return self._metadata

    def get_slice(self, name: str) -> HeldTensor:
        """Return one tensor without reading it."""
        return HeldTensor(self._entries[name])

    def get_tensor(self, name: str) -> torch.Tensor:
        """Read one tensor to the host, in its stored type.

        Raises:
            ValueError: the type is none of torch's, or the file ends before.
        """
        import torch

        entry = self._entries[name]
        kind = _TYPES.get(entry["dtype"])
        if kind is None or not hasattr(torch, kind):
            raise InputError(f"{self.file.path}: {name} is of type {entry['dtype']}, which is not read")
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        value = torch.empty(prod(shape), dtype=getattr(torch, kind))
        content = value.view(torch.uint8)
        if content.numel() != end - begin:
            raise InputError(f"{self.file.path}: {name} has a wrong size: download it again")
        if content.numel():
            self.file.read(self._data + begin, content.numpy())
        return value.reshape(shape)


class HeldTensor:
    """Type and shape of a tensor in a `HeldTensors`."""

    def __init__(self, entry: Mapping[str, Any]):
        """Refer to an entry of a header."""
        self._entry = entry

    def get_shape(self) -> list[int]:
        """Return its shape."""
        return list(self._entry["shape"])

    def get_dtype(self) -> str:
        """Return its type in safetensors' notation."""
        return str(self._entry["dtype"])
