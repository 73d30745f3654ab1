"""Components of checkpoints in Diffusers layout, read one tensor at a time from safetensors that stay open."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from models.machine.checks import JSON_BYTES, json_file, read_bytes
from models.machine.errors import InputError, MissingInputError
from models.machine.headers import read_header
from models.machine.paths import exists, is_file, is_taken, listed
from weight_cache.checkpoints.gguf_file import HeldGguf, is_gguf, read_gguf_header
from weight_cache.checkpoints.held import HeldFile, HeldTensors

if TYPE_CHECKING:
    import torch

# Stems of weight file names: those of Diffusers and of transformers.
_STEMS = ("diffusion_pytorch_model", "model")
_FINGERPRINT_BYTES = 1 << 20
_NAME_LENGTH = 200
_MEND = "download it again"
# Stored types of weights, in safetensors' notation. What has another type has a scale, or is no weight.
WEIGHT_TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# What bitsandbytes stores beside its weights (bitsandbytes `functional.py`, `QuantState`, and `nn/modules.py`).
_BITSANDBYTES = {
    ".quant_state.bitsandbytes__nf4": "NF4",
    ".quant_state.bitsandbytes__fp4": "FP4",
    ".weight.absmax": "4 bits",
    ".weight.quant_map": "4 bits",
    ".SCB": "int8",
}
_VARIANT = r"[A-Za-z0-9_]+"


class Component:
    """One model of a checkpoint: its configuration and its weights, read lazily by name.

    `form` is the arrangement of names and values. Here it is that of Diffusers, which is canonical.

    Opening reads the configuration. The first access to weights opens the safetensors files (their headers only) and
    checks them against the index.
    """

    form = "diffusers"

    def __init__(self, directory: str | Path, variant: str | None = None):
        """Open the component in `directory`, whose name is the component's name.

        Without `variant` the plain files are read, or those of the only variant that there is.

        Raises:
            FileNotFoundError: there is no `config.json`.
            ValueError: the configuration is not a JSON object, or says that the weights are quantised.
        """
        self.directory = Path(directory)
        self.name = self.directory.name
        self.variant = variant
        # Beginnings of names that belong to other parts of a larger model.
        self.left_out: tuple[str, ...] = ()
        path = self.directory / "config.json"
        if not is_file(path):
            raise MissingInputError(f"checkpoint component {self.name} has no config.json in {self.directory}")
        self.config = read_json(path)
        if self.config.get("quantization_config") is not None:
            raise InputError(
                f"{path} says that the weights are quantised (quantization_config{_method(self.config)}), which is not "
                "read: use the weights in bfloat16 or float32, ComfyUI's fp8 form or GGUF"
            )

    @property
    def class_name(self) -> str:
        """The model class that the configuration names (in the way of Diffusers or of transformers)."""
        architectures = self.config.get("architectures") or [None]
        first = architectures[0] if isinstance(architectures, list) else architectures
        return str(self.config.get("_class_name") or first)

    def require_class(self, expected: str, larger: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """Check that the configuration names the class `expected`, or a class that contains it.

        Args:
            expected: the class.
            larger: class that contains it -> beginnings of the names of its other tensors, which are left out.

        Raises:
            ValueError: it names another class.
        """
        if larger and self.class_name in larger:
            self.left_out = larger[self.class_name]
        elif self.class_name != expected:
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

    @property
    def held_files(self) -> list[HeldFile]:
        """The files in use, as they are open, sorted by name. They are open as long as the component lives."""
        return [self._handles[path.name].file for path in self.files]

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
        """Return tensor `key` on the host, in its stored dtype.

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
            ValueError: a file is truncated or not safetensors, index and files hold different tensors, or a tensor is
                of a type that weights do not have.
        """
        _ = self._locations

    def fingerprint(self) -> str:
        """Return 16 hex digits of the configuration and of the files' beginnings and ends.

        See the function `fingerprint`.
        """
        return fingerprint(self.files, read_bytes(self.directory / "config.json", "", _MEND, JSON_BYTES))

    def _handle(self, key: str) -> HeldTensors:
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
                # A link to nothing is a file that is missing, and no reason to read another.
                if is_taken(self.directory / name):
                    return self.directory / name
        return None

    def _variants(self) -> list[str]:
        """Return the variants that there are weights of."""
        stems = "|".join(_STEMS)
        form = re.compile(
            rf"(?:{stems})\.(?:safetensors\.index\.({_VARIANT})\.json|({_VARIANT})\.safetensors(?:\.index\.json)?)"
        )
        found = (form.fullmatch(path.name) for path in listed(self.directory))
        return sorted({match[1] or match[2] for match in found if match})

    @cached_property
    def _weight_map(self) -> dict[str, str] | Path:
        entry = (self._entry(self.variant) if self.variant else None) or self._entry(None)
        if entry is None and self.variant is None:
            variants = self._variants()
            if len(variants) > 1:
                raise MissingInputError(
                    f"checkpoint component {self.name} has weights of the variants {', '.join(variants)} in "
                    f"{self.directory}, and no plain ones: choose one with --variant"
                )
            entry = self._entry(variants[0]) if variants else None
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
        for key, shard in weight_map.items():
            if not isinstance(shard, str):
                raise InputError(f"{entry}: weight_map has {str(shard)[:40]!r} for {key}, but must have a file's name")
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard or len(shard) > _NAME_LENGTH:
                raise InputError(f"{entry} names a shard outside its folder: {shard[:_NAME_LENGTH]!r}")
            if not is_file(self.directory / shard):
                raise MissingInputError(
                    f"checkpoint component {self.name} lacks the shard {shard} that {entry.name} names, "
                    f"in {self.directory}: download it again"
                )
        return weight_map

    def _other_files(self) -> str:
        if list(self.directory.glob("*.bin")):
            return "; there are only .bin files, which are not read: convert them to safetensors"
        others = sorted(p.name for p in self.directory.glob("*.safetensors*"))
        return f"; found {', '.join(others[:3])}" if others else ""

    @cached_property
    def _handles(self) -> dict[str, HeldTensors]:
        weights = self._weight_map
        names = [weights.name] if isinstance(weights, Path) else sorted(set(weights.values()))
        return {name: open_safetensors(self.directory / name) for name in names}

    @cached_property
    def _locations(self) -> dict[str, str]:
        """Tensor name -> file name, checked against the files' headers."""
        held = {name: set(handle.keys()) for name, handle in self._handles.items()}
        for name, keys in held.items():
            refuse_bitsandbytes(self.directory / name, sorted(keys))
        weights = self._weight_map
        if isinstance(weights, Path):
            weights = dict.fromkeys(held[weights.name], weights.name)
        where = f"of checkpoint component {self.name}"
        for key, shard in weights.items():
            if key not in held[shard]:
                raise InputError(
                    f"the index {where} places {key} in {shard}, which lacks it, "
                    f"in {self.directory}: index and shards are of different versions"
                )
        for shard, keys in held.items():
            unlisted = sorted(key for key in keys if weights.get(key) != shard)
            if unlisted:
                more = f" and {len(unlisted) - 1} more" if len(unlisted) > 1 else ""
                raise InputError(
                    f"the shard {shard} {where} holds {unlisted[0]}{more}, which the index does not place there, "
                    f"in {self.directory}: index and shards are of different versions"
                )
        ours = {key: shard for key, shard in weights.items() if not key.startswith(self.left_out)}
        for key, shard in ours.items():
            check_weight_type(self.directory / shard, key, str(self._handles[shard].get_slice(key).get_dtype()))
        return ours


def _method(config: Mapping[str, Any]) -> str:
    """Return which quantisation a configuration names, for its refusal."""
    settings = config["quantization_config"]
    if not isinstance(settings, dict):
        return ""
    kind = settings.get("bnb_4bit_quant_type") if settings.get("load_in_4bit") else None
    kind = "int8" if settings.get("load_in_8bit") else kind
    named = " ".join(str(part)[:40] for part in (settings.get("quant_method"), kind) if part)
    return f": {named}" if named else ""


def check_weight_type(path: Path, key: str, dtype: str) -> None:
    """Check that a tensor has a type that weights have.

    Raises:
        InputError: it is of whole numbers, truth values or the like; the message names file and tensor.
    """
    if dtype not in WEIGHT_TYPES:
        raise InputError(
            f"{path}: {key} is of type {dtype}, but weights must be one of {', '.join(WEIGHT_TYPES)}: quantised "
            "weights are read only in ComfyUI's fp8 form and in GGUF"
        )


def open_safetensors(path: Path) -> HeldTensors:
    """Open a safetensors file, whose tensors are read one by one.

    Raises:
        MissingInputError: there is no such file.
        InputError: it cannot be read, is truncated, or is not a safetensors file.
    """
    read_header(path)
    try:
        return HeldTensors(path)
    except InputError:
        raise
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size if exists(path) else 0
        raise InputError(
            f"{path} ({size} bytes) is truncated or not a safetensors file ({one_line(error)}): download it again"
        ) from error


def open_tensors(path: Path) -> HeldTensors | HeldGguf:
    """Open a safetensors or GGUF file, whose tensors are read one by one.

    Raises:
        MissingInputError: there is no such file, or what reads it is not installed.
        InputError: it cannot be read, is truncated, or is of another kind.
    """
    return HeldGguf(path) if is_gguf(path) else open_safetensors(path)


def refuse_bitsandbytes(path: Path, names: Iterable[str]) -> None:
    """Refuse weights that bitsandbytes packed, by the tensors that it stores beside them.

    Raises:
        InputError: they are.
    """
    for name in names:
        kind = next((said for mark, said in _BITSANDBYTES.items() if mark in name), None)
        if kind is not None:
            raise InputError(
                f"{path} is quantised by bitsandbytes to {kind} ({name[:120]}), which is not read: use the weights in "
                "bfloat16, ComfyUI's fp8 or GGUF Q8_0"
            )


def fingerprint(files: Sequence[Path], config: bytes) -> str:
    """Return 16 hex digits from a configuration and every file's name, header, size, and first and last mebibyte.

    This distinguishes checkpoints without reading tens of gigabytes. It does not protect against tampering.
    """
    digest = hashlib.sha256(config)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        header = header_bytes(HeldFile(path))
        with path.open("rb") as file:
            digest.update(file.read(header))
            digest.update(file.read(_FINGERPRINT_BYTES))
            file.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def header_bytes(file: HeldFile) -> int:
    """Return how many bytes of a safetensors or GGUF file come before its data.

    Raises:
        InputError: the file is neither.
    """
    if is_gguf(file.path):
        return read_gguf_header(file).data
    length = bytearray(8)
    file.read(0, length)
    return min(file.bytes, 8 + int.from_bytes(length, "little"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint.

    Raises:
        ValueError: the file cannot be read, is not JSON, or is not an object.
    """
    return json_file(path, "", _MEND)


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split())
