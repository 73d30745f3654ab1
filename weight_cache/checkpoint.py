"""Diffusers-layout checkpoints, read one tensor at a time from memory-mapped safetensors.

A checkpoint is a directory with `model_index.json` and one folder per component. Nothing here loads a
whole component: a caller asks for a key, gets that tensor, and can let it go before the next.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

PIPELINE_CLASS = "MochiPipeline"
# Component -> the class its config must name.
CLASSES = {
    "transformer": "MochiTransformer3DModel",
    "vae": "AutoencoderKLMochi",
    "text_encoder": "T5EncoderModel",
}
# File stems of weights: Diffusers' own and that of transformers.
_STEMS = ("diffusion_pytorch_model", "model")
_FINGERPRINT_BYTES = 1 << 20


class Checkpoint:
    """A Diffusers-layout Mochi checkpoint directory; opening it reads only small JSON files."""

    def __init__(self, directory: str | Path, variant: str | None = None, source: str | None = None):
        """Open `directory`.

        Args:
            directory: holds `model_index.json` and the component folders.
            variant: e.g. `"bf16"` for files named `*.bf16*.safetensors`. As in Diffusers, a component
                without such files is read from its plain ones, but at least one must have them.
            source: how the user named the checkpoint, for messages; the directory by default.

        Raises:
            FileNotFoundError: the directory, its `model_index.json` or a component folder is missing.
            ValueError: it is a pipeline or model of another class, or no component has `variant`.
        """
        self.directory = Path(directory)
        self.variant = variant
        self.source = source or str(directory)
        if not self.directory.is_dir():
            raise FileNotFoundError(f"no checkpoint directory at {self.directory}")
        if not (self.directory / "model_index.json").is_file():
            hint = ""
            if (self.directory / "dit.safetensors").exists():
                hint = " (it looks like Genmo's own layout; the Diffusers layout is needed)"
            raise FileNotFoundError(
                f"{self.directory} has no model_index.json{hint}: expected a Diffusers-layout directory "
                f"with {', '.join([*CLASSES, 'tokenizer', 'scheduler'])}"
            )
        self.index = _read_json(self.directory / "model_index.json")
        named = self.index.get("_class_name")
        if named != PIPELINE_CLASS:
            raise ValueError(f"{self.directory} is a checkpoint of {named}, not of {PIPELINE_CLASS}")
        for name in (*CLASSES, "tokenizer", "scheduler"):
            if not (self.directory / name).is_dir():
                raise FileNotFoundError(f"checkpoint {self.directory} lacks its component folder {name}/")
        self.transformer = self._component("transformer")
        self.vae = self._component("vae")
        self.text_encoder = self._component("text_encoder")
        if variant is not None and not any(c.has_variant for c in self.components):
            raise ValueError(
                f"no component of {self.directory} has weights of variant {variant!r}: leave the "
                "variant out, or download the files named *." + variant + "*.safetensors"
            )

    @classmethod
    def open(cls, source: str | Path, variant: str | None = None) -> Checkpoint:
        """Open what a user names: a directory, a cached Hugging Face id, or `tiny`; see `resolve`."""
        return cls(resolve(source), variant, str(source))

    @property
    def components(self) -> tuple[Component, Component, Component]:
        """The components that have weights: transformer, vae, text_encoder."""
        return self.transformer, self.vae, self.text_encoder

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer's files, for `transformers`."""
        return self.directory / "tokenizer"

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        """The scheduler's configuration."""
        path = self.directory / "scheduler" / "scheduler_config.json"
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint component scheduler has no {path.name} in {path.parent}")
        return _read_json(path)

    def optional_json(self, name: str) -> dict[str, Any]:
        """A JSON file beside `model_index.json`, or `{}` where there is none."""
        path = self.directory / name
        return _read_json(path) if path.is_file() else {}

    def identity(self) -> dict[str, Any]:
        """What tells this checkpoint from another: its source and a fingerprint per component."""
        return {"source": self.source, "variant": self.variant} | {
            c.name: {"class": c.class_name, "fingerprint": c.fingerprint()} for c in self.components
        }

    def _component(self, name: str) -> Component:
        component = Component(self.directory / name, variant=self.variant)
        component.require_class(CLASSES[name])
        return component


class Component:
    """One model of a checkpoint: its configuration and its weights, read lazily by name.

    Opening reads the configuration; the first question about weights opens the safetensors files (their
    headers only) and checks them against the index.
    """

    def __init__(self, directory: str | Path, variant: str | None = None):
        """Open the component in `directory`, whose name is the component's name.

        Raises:
            FileNotFoundError: no `config.json`.
            ValueError: the configuration is not a JSON object.
        """
        self.directory = Path(directory)
        self.name = self.directory.name
        self.variant = variant
        path = self.directory / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint component {self.name} has no config.json in {self.directory}")
        self.config = _read_json(path)

    @property
    def class_name(self) -> str:
        """The model class that the configuration names (Diffusers' or transformers' way)."""
        architectures = self.config.get("architectures") or [None]
        return str(self.config.get("_class_name") or architectures[0])

    def require_class(self, expected: str) -> None:
        """Raise ValueError unless the configuration names the class `expected`."""
        if self.class_name != expected:
            raise ValueError(
                f"checkpoint component {self.name} in {self.directory} is a {self.class_name}, "
                f"not a {expected}: these are the weights of another model"
            )

    @cached_property
    def has_variant(self) -> bool:
        """Whether there are weight files of the asked variant (False when none was asked)."""
        return self.variant is not None and self._entry(self.variant) is not None

    @cached_property
    def files(self) -> list[Path]:
        """The safetensors files in use, sorted by name."""
        return sorted({self.directory / name for name in self._handles})

    def keys(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._locations)

    def __contains__(self, key: str) -> bool:
        return key in self._locations

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of tensor `key`, from the file's header alone."""
        return tuple(self._handle(key).get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """Stored type of tensor `key` in safetensors' spelling, such as `BF16` or `F32`."""
        return str(self._handle(key).get_slice(key).get_dtype())

    def tensor(self, key: str) -> torch.Tensor:
        """Tensor `key` on the host, in its stored dtype, backed by the mapped file until it is changed.

        Raises:
            KeyError: the component has no such tensor.
        """
        return self._handle(key).get_tensor(key)

    def check(self) -> None:
        """Open every weight file and check its header, without reading a tensor.

        Raises:
            FileNotFoundError: no weights, or a shard that the index names is missing.
            ValueError: a file is truncated or not safetensors, or the index names a tensor that its file
                lacks.
        """
        _ = self._locations

    def fingerprint(self) -> str:
        """16 hex digits from the configuration, every file's header, size, first and last mebibyte.

        Enough to tell checkpoints apart without reading tens of gigabytes; not proof against tampering.
        """
        digest = hashlib.sha256((self.directory / "config.json").read_bytes())
        for path in self.files:
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                header = file.read(8)
                digest.update(header + file.read(int.from_bytes(header, "little")))
                digest.update(file.read(_FINGERPRINT_BYTES))
                file.seek(max(0, size - _FINGERPRINT_BYTES))
                digest.update(file.read())
        return digest.hexdigest()[:16]

    def _handle(self, key: str) -> Any:
        if key not in self._locations:
            raise KeyError(f"checkpoint component {self.name} has no tensor {key}")
        return self._handles[self._locations[key]]

    def _entry(self, variant: str | None) -> Path | None:
        """The file to start from: an index of shards or a single safetensors file."""
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
            raise FileNotFoundError(
                f"checkpoint component {self.name} has no weights in {self.directory}: expected "
                f"{_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors, or its index{self._other_files()}"
            )
        if entry.suffix != ".json":
            return entry
        weight_map = _read_json(entry).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{entry} has no weight_map: it is not an index of safetensors shards")
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard:
                raise ValueError(f"{entry} names a shard outside its folder: {shard!r}")
            if not (self.directory / shard).is_file():
                raise FileNotFoundError(
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
        handles = {}
        for name in names:
            path = self.directory / name
            try:
                handles[name] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{path} ({path.stat().st_size} bytes) is truncated or not a safetensors file "
                    f"({_one_line(error)}): download it again"
                ) from error
        return handles

    @cached_property
    def _locations(self) -> dict[str, str]:
        """Tensor name -> file name, checked against the files' headers."""
        held = {name: set(handle.keys()) for name, handle in self._handles.items()}
        weights = self._weight_map
        if isinstance(weights, Path):
            return {key: weights.name for key in held[weights.name]}
        for key, shard in weights.items():
            if key not in held[shard]:
                raise ValueError(
                    f"the index of checkpoint component {self.name} places {key} in {shard}, which lacks it, "
                    f"in {self.directory}: index and shards are of different versions"
                )
        return weights


def resolve(source: str | Path) -> Path:
    """The directory of the checkpoint that a user names.

    Args:
        source: a directory; or the id of a Hugging Face repository such as `genmo/mochi-1-preview` that is
            already in the local hub cache (nothing is downloaded); or `tiny`, the built-in model, made on
            first use (`./tiny` is a directory of that name). A directory wins over an id of the same spelling.

    Raises:
        FileNotFoundError: none of these.
    """
    text = str(source)
    if source == "tiny":
        from models.mochi.tiny import tiny_checkpoint

        return tiny_checkpoint()
    if Path(source).is_dir():
        return Path(source)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(text, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise FileNotFoundError(
                f"{text} is neither a directory nor in the local Hugging Face cache: download it with "
                f"`hf download {text}`, or give a directory"
            ) from error
    raise FileNotFoundError(
        f"no checkpoint at {text}: give a Diffusers-layout directory, a Hugging Face id already in the local "
        "cache, or the built-in name tiny"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({_one_line(error)}): download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
