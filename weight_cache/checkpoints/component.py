"""Components of checkpoints in Diffusers layout, read one tensor at a time from memory-mapped safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from models.machine.checks import json_file
from models.machine.errors import InputError, MissingInputError
from models.machine.headers import read_header

if TYPE_CHECKING:
    import torch

# Stems of weight file names: those of Diffusers and of transformers.
_STEMS = ("diffusion_pytorch_model", "model")
_FINGERPRINT_BYTES = 1 << 20


class Component:
    """One model of a checkpoint: its configuration and its weights, read lazily by name.

    `form` is the arrangement of names and values. Here it is that of Diffusers, which is canonical.

    Opening reads the configuration. The first access to weights opens the safetensors files (their headers only) and
    checks them against the index.
    """

    form = "diffusers"

    def __init__(self, directory: str | Path, variant: str | None = None):
        """Open the component in `directory`, whose name is the component's name.

        Raises:
            FileNotFoundError: there is no `config.json`.
            ValueError: the configuration is not a JSON object.
        """
        self.directory = Path(directory)
        self.name = self.directory.name
        self.variant = variant
        path = self.directory / "config.json"
        if not path.is_file():
            raise MissingInputError(f"checkpoint component {self.name} has no config.json in {self.directory}")
        self.config = read_json(path)

    @property
    def class_name(self) -> str:
        """The model class that the configuration names (in the way of Diffusers or of transformers)."""
        architectures = self.config.get("architectures") or [None]
        return str(self.config.get("_class_name") or architectures[0])

    def require_class(self, expected: str) -> None:
        """Check that the configuration names the class `expected`.

        Raises:
            ValueError: it names another class.
        """
        if self.class_name != expected:
            raise InputError(
                f"checkpoint component {self.name} in {self.directory} is a {self.class_name}, "
                f"not a {expected}: these are the weights of another model"
            )

    @cached_property
    def has_variant(self) -> bool:
        """Whether there are weight files of the requested variant (False if none was requested)."""
        return self.variant is not None and self._entry(self.variant) is not None

    @cached_property
    def files(self) -> list[Path]:
        """The safetensors files in use, sorted by name."""
        return sorted({self.directory / name for name in self._handles})

    def keys(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._locations)

    def __contains__(self, key: str) -> bool:
        return key in self._locations

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of tensor `key`, read from the file's header alone."""
        return tuple(self._handle(key).get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """Return the stored type of tensor `key` in safetensors' notation, such as `BF16` or `F32`."""
        return str(self._handle(key).get_slice(key).get_dtype())

    def tensor(self, key: str) -> torch.Tensor:
        """Return tensor `key` on the host, in its stored dtype, backed by the mapped file until it is changed.

        Raises:
            KeyError: the component has no such tensor.
        """
        return self._handle(key).get_tensor(key)

    def where(self, key: str) -> str:
        """Return the file that holds tensor `key`, for messages."""
        return str(self.directory / self._locations.get(key, ""))

    def check(self) -> None:
        """Open every weight file and check its header, without reading a tensor.

        Raises:
            FileNotFoundError: there are no weights, or a shard that the index names is missing.
            ValueError: a file is truncated or not safetensors, or the index names a tensor that its file lacks.
        """
        _ = self._locations

    def fingerprint(self) -> str:
        """Return 16 hex digits of the configuration and of the files' beginnings and ends.

        See the function `fingerprint`.
        """
        return fingerprint(self.files, (self.directory / "config.json").read_bytes())

    def forget_pages(self) -> None:
        """Release the mapped files, so that the pages read from them no longer count as memory of this process."""
        self.__dict__.pop("_handles", None)

    def _handle(self, key: str) -> Any:
        if key not in self._locations:
            raise KeyError(f"checkpoint component {self.name} has no tensor {key}")
        return self._handles[self._locations[key]]

    def _entry(self, variant: str | None) -> Path | None:
        """Return the file to start from: an index of shards or a single safetensors file."""
        for stem in _STEMS:
            if variant is None:
                names = [f"{stem}.safetensors.index.json", f"{stem}.safetensors"]
            else:
                names = [
                    f"{stem}.safetensors.index.{variant}.json",
                    f"{stem}.{variant}.safetensors.index.json",
                    f"{stem}.{variant}.safetensors",
                ]
            for name in names:
                if (self.directory / name).is_file():
                    return self.directory / name
        return None

    @cached_property
    def _weight_map(self) -> dict[str, str] | Path:
        entry = (self._entry(self.variant) if self.variant else None) or self._entry(None)
        if entry is None:
            raise MissingInputError(
                f"checkpoint component {self.name} has no weights in {self.directory}: expected "
                f"{_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors, or its index{self._other_files()}"
            )
        if entry.suffix != ".json":
            return entry
        weight_map = read_json(entry).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{entry} has no weight_map: it is not an index of safetensors shards")
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise InputError(f"{entry} places a tensor in what is no file name: download it again")
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard:
                raise InputError(f"{entry} names a shard outside its folder: {shard!r}")
            if not (self.directory / shard).is_file():
                raise MissingInputError(
                    f"checkpoint component {self.name} lacks the shard {shard} that {entry.name} names, "
                    f"in {self.directory}: download it again"
                )
        return weight_map

    def _other_files(self) -> str:
        if list(self.directory.glob("*.bin")):
            return "; there are only .bin files, which are not read: convert them to safetensors"
        others = sorted(p.name for p in self.directory.glob("*.safetensors*"))
        return f"; found {', '.join(others[:3])}: is a variant to be named?" if others else ""

    @cached_property
    def _handles(self) -> dict[str, Any]:
        weights = self._weight_map
        names = [weights.name] if isinstance(weights, Path) else sorted(set(weights.values()))
        return {name: open_safetensors(self.directory / name) for name in names}

    @cached_property
    def _locations(self) -> dict[str, str]:
        """Tensor name -> file name, checked against the files' headers."""
        held = {name: set(handle.keys()) for name, handle in self._handles.items()}
        weights = self._weight_map
        if isinstance(weights, Path):
            return {key: weights.name for key in held[weights.name]}
        for key, shard in weights.items():
            if key not in held[shard]:
                raise InputError(
                    f"the index of checkpoint component {self.name} places {key} in {shard}, which lacks it, "
                    f"in {self.directory}: index and shards are of different versions"
                )
        return weights


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file, whose tensors are mapped and not read.

    Raises:
        ValueError: it is truncated or not a safetensors file.
    """
    read_header(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not a safetensors file "
            f"({one_line(error)}): download it again"
        ) from error


def fingerprint(files: Sequence[Path], config: bytes) -> str:
    """Return 16 hex digits from a configuration and every file's name, header, size, and first and last mebibyte.

    This distinguishes checkpoints without reading tens of gigabytes. It does not protect against tampering.
    """
    digest = hashlib.sha256(config)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            header = file.read(8)
            digest.update(header + file.read(int.from_bytes(header, "little")))
            digest.update(file.read(_FINGERPRINT_BYTES))
            file.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint.

    Raises:
        ValueError: the file is not valid JSON, or not an object.
    """
    return json_file(path, "", "download it again")


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split())
