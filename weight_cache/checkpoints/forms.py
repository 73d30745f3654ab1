"""Components in other forms than Diffusers': Genmo's files, and ComfyUI's in bfloat16, float16, fp8 and GGUF.

They have the interface of a `Component`, with canonical names. The mapping of names is strict in both directions: a
tensor that no canonical name uses is an error, and so is a canonical name without a tensor.

Source of the fp8 arrangement: comfyanonymous/ComfyUI `QUANTIZATION.md` (`X.weight_scale`, and the format of each layer
in `X.comfy_quant` or in the file's metadata), and the older one of the repackaged Mochi files (`X.scale_weight` and a
`scaled_fp8` marker). A weight is its stored value times its scale. A file with any of these marks has scales, so one
that lost them is refused; fp8 without any mark is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.machine.checks import json_object, short
from models.machine.errors import InputError
from weight_cache.checkpoints.component import (
    Component,
    check_weight_type,
    fingerprint,
    open_tensors,
    refuse_bitsandbytes,
)
from weight_cache.checkpoints.gguf_file import HeldGguf, is_gguf
from weight_cache.checkpoints.held import HeldFile, HeldTensors
from weight_cache.checkpoints.names import (
    DECODER_PREFIX,
    Piece,
    decoder_config,
    decoder_names,
    strip_prefix,
    text_encoder_config,
    text_encoder_names,
    transformer_config,
    transformer_names,
)

if TYPE_CHECKING:
    import torch

_SCALES = ("scale_weight", "weight_scale")
# Scales of activations, for fp8 arithmetic, which this project does not do.
_INPUT_SCALES = ("scale_input", "input_scale")
# Marks of scaled fp8: a tensor of the file, a JSON text of a layer in a tensor, and that of all layers in the metadata.
_MARKER, _LAYER_MARK, _FILE_MARK = "scaled_fp8", "comfy_quant", "_quantization_metadata"
_LONGEST_MARK = 1 << 16
# ComfyUI's name of a format that is read -> its stored type.
_FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_FP8 = tuple(_FORMATS.values())
# Settings of a layer's format that change nothing of its values.
_HARMLESS = ("format", "full_precision_matrix_mult", "orig_dtype", "orig_shape")
# What ComfyUI stores beside a text encoder's weights and this project does not need.
_BESIDE_TEXT = ("logit_scale", "spiece_model")
_TEXT_PREFIX, _TEXT_PARENT = "text_encoders.t5xxl.transformer.", "text_encoders."
# Prefixes of other models that may share a ComfyUI file with the transformer.
_NEIGHBOURS = ("vae.", "text_encoders.")


class GenmoFile:
    """A safetensors or GGUF file of weights under Genmo's names, with or without a prefix, or in scaled fp8."""

    def __init__(self, path: Path, prefix: str = "", neighbours: tuple[str, ...] = ()):
        """Read the header of `path`.

        Args:
            path: the file.
            prefix: prefix of the names to read.
            neighbours: prefixes of names that belong to other models.

        Raises:
            ValueError: it is not a safetensors file, has fp8 weights without scales although it has other scales or a
                mark of scales, has scales that are no positive numbers or are of blocks, is in a format that is not
                read, or has weights of a type that weights do not have.
        """
        self.path = path
        self._stored = {
            name.removeprefix(prefix): name
            for name in self._names()
            if name.startswith(prefix) or not name.startswith(neighbours)
        }
        names = set(self._stored)
        refuse_bitsandbytes(path, sorted(names))
        self.scales: dict[str, str] = {}
        for name in sorted(names):
            module, _, last = name.rpartition(".")
            if last in _SCALES and self.scales.setdefault(f"{module}.weight", name) != name:
                raise InputError(f"{path} has two scales for {module}.weight: download it again")
        marks = {n for n in names if n == _MARKER or n.rpartition(".")[2] in (*_INPUT_SCALES, _LAYER_MARK)}
        beside = {n for n in names if n.rpartition(".")[2] in _BESIDE_TEXT}
        self.keys = names - set(self.scales.values()) - marks - beside
        orphans = sorted(set(self.scales) - self.keys)
        if orphans:
            raise InputError(f"{path} has a scale for {orphans[0]}, which it lacks: download it again")
        bare = sorted(k for k in self.keys if self.dtype(k) in _FP8 and k not in self.scales)
        if bare and (self.scales or marks):
            raise InputError(
                f"{path} has no scale for the fp8 tensor {bare[0]}, although it has "
                f"{min([*marks, *self.scales.values()])}: download it again"
            )
        if _MARKER in marks and not self.scales:
            raise InputError(f"{path} says that it is scaled ({_MARKER}), and has no scales: download it again")
        for key in sorted(self.keys):
            check_weight_type(path, key, self.dtype(key))
        self._check_scales()
        self._check_formats(prefix, [name for name in marks if name.rpartition(".")[2] == _LAYER_MARK])

    def _check_scales(self) -> None:
        """Check that every scale is one positive number, or one for each row."""
        for key, name in sorted(self.scales.items()):
            check_weight_type(self.path, name, str(self._slice(name).get_dtype()))
            shape, rows = tuple(self._slice(name).get_shape()), self.shape(key)[:1]
            if prod(shape) != 1 and (shape[:1] != rows or prod(shape) != shape[0]):
                raise InputError(
                    f"{self.path}: {name} has shape {list(shape)} for a weight of {list(self.shape(key))}: scales of "
                    "blocks are not read, only one scale for a tensor or for each row"
                )
            values = self._get(name).float().flatten()
            wrong = values[~((values > 0) & values.isfinite())]
            if wrong.numel():
                raise InputError(
                    f"{self.path}: {name} has the scale {float(wrong[0]):g}, but scales are above 0 and finite: "
                    "download it again"
                )

    def _check_formats(self, prefix: str, marks: list[str]) -> None:
        """Check that every layer with a mark of its own is in a format that is read, and has the scale it needs."""
        for name in sorted(marks):
            entry = self._slice(name)
            if entry.get_dtype() != "U8" or not 0 < prod(entry.get_shape()) <= _LONGEST_MARK:
                raise InputError(f"{self.path}: {name} is no JSON text in bytes: download it again")
            text = bytes(self._get(name).flatten().tolist())
            self._check_format(name.removesuffix(f".{_LAYER_MARK}"), json_object(text, f"{self.path}: {name}"))
        stated = (self._handle.metadata() or {}).get(_FILE_MARK)
        if stated is None:
            return
        where = f"the metadata {_FILE_MARK} of {self.path}"
        layers = json_object(stated, where).get("layers")
        if not isinstance(layers, dict):
            raise InputError(f"{where} has no table of layers: download it again")
        for layer, settings in layers.items():
            module = layer.removeprefix(prefix)
            if f"{module}.weight" in self.keys:
                if not isinstance(settings, dict):
                    raise InputError(f"{where} says {short(settings)} of {layer[:80]}, but must say its format")
                self._check_format(module, settings)

    def _check_format(self, module: str, settings: Mapping[str, Any]) -> None:
        kind, key = settings.get("format"), f"{module}.weight"
        if not isinstance(kind, str) or kind not in _FORMATS:
            raise InputError(
                f"{self.path}: {module} is in the format {short(kind)}, which is not read: only {', '.join(_FORMATS)}"
            )
        others = sorted(n for n, value in settings.items() if n not in _HARMLESS and value not in (None, False))
        if others:
            raise InputError(f"{self.path}: {module} has the setting {short(others[0])} of its format: it is not read")
        if key not in self.keys or self.dtype(key) != _FORMATS[kind]:
            found = self.dtype(key) if key in self.keys else "not there"
            raise InputError(f"{self.path}: {key} is {found}, and its mark says {kind}: download it again")
        if key not in self.scales:
            raise InputError(f"{self.path} has no scale for {key}, and its mark says {kind}: download it again")

    @cached_property
    def _handle(self) -> HeldTensors | HeldGguf:
        return open_tensors(self.path)

    def _names(self) -> list[str]:
        return self._handle.keys()

    @property
    def held(self) -> HeldFile:
        """The open file."""
        return self._handle.file

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header."""
        return tuple(self._slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """Return the stored type of a tensor, in safetensors' notation."""
        return str(self._slice(key).get_dtype())

    def tensor(self, key: str, piece: Piece) -> torch.Tensor:
        """Return a piece of a tensor; it is float32 if it is fp8 or has a scale."""
        value = piece.take(self._get(key))
        if key not in self.scales:
            return value.float() if self.dtype(key) in _FP8 else value
        scale = self._get(self.scales[key]).float()
        if scale.numel() > 1:
            # One scale per row.
            scale = piece.take(scale.reshape(-1, *[1] * (value.ndim - 1)))
        return value.float() * scale

    def _slice(self, key: str) -> Any:
        return self._handle.get_slice(self._stored[key])

    def _get(self, key: str) -> torch.Tensor:
        return self._handle.get_tensor(self._stored[key])


class RepackagedComponent(Component):
    """A component in another form, with canonical names and the interface of a `Component`."""

    def __init__(self, name: str, form: str, file: GenmoFile, table: Mapping[str, Piece], config: dict[str, Any]):
        """Bind the tensors of `file` to the canonical names of `table`.

        Raises:
            ValueError: a tensor of the file is not in the table, or one of the table not in the file.
        """
        self.name = name
        self.form = form
        self.config = config
        self.directory = file.path.parent
        self.variant = None
        self.left_out = ()
        self._file = file
        self._table = table
        claimed = {piece.key for piece in table.values()}
        unclaimed = sorted(file.keys - claimed)
        missing = sorted(canonical for canonical, piece in table.items() if piece.key not in file.keys)
        problems = []
        if missing:
            problems.append(f"nothing fills {_some(missing)} (expected {table[missing[0]].key})")
        if unclaimed:
            problems.append(f"nobody claims {_some(unclaimed)}")
        if problems:
            raise InputError(
                f"{file.path} is not a whole {name} of Mochi in {_HOUSES[name]} form: {'; '.join(problems)}"
            )

    @property
    def files(self) -> list[Path]:  # type: ignore[override]
        """The file, as a list of one."""
        return [self._file.path]

    @property
    def held_files(self) -> list[HeldFile]:
        """The open file, as a list of one."""
        return [self._file.held]

    def keys(self) -> list[str]:
        """Return the canonical names of all tensors, sorted."""
        return sorted(self._table)

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of tensor `key`, read from the file's header alone."""
        piece = self._piece(key)
        return piece.shape(self._file.shape(piece.key))

    def dtype(self, key: str) -> str:
        """Return the stored type of tensor `key` in safetensors' notation."""
        return self._file.dtype(self._piece(key).key)

    def tensor(self, key: str) -> torch.Tensor:
        """Return tensor `key` on the host, arranged as in Diffusers; fp8 becomes float32.

        Raises:
            KeyError: the component has no such tensor.
        """
        piece = self._piece(key)
        return self._file.tensor(piece.key, piece)

    def where(self, key: str) -> str:
        """Return the file, for messages."""
        return str(self._file.path)

    def check(self) -> None:
        """Check the shapes that can be checked without a model.

        Raises:
            ValueError: a fused tensor cannot be cut.
        """
        for key in self._table:
            self.shape(key)

    def fingerprint(self) -> str:
        """Return 16 hex digits of the configuration and of the file's beginning and end."""
        return fingerprint(self.files, hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).digest())

    def _piece(self, key: str) -> Piece:
        if key not in self._table:
            raise KeyError(f"checkpoint component {self.name} has no tensor {key}")
        return self._table[key]


def open_transformer(path: Path) -> RepackagedComponent:
    """Open the transformer of `dit.safetensors`, or of a ComfyUI file, GGUF too.

    Raises:
        ValueError: the file is something else, or incomplete; the message names tensors.
    """
    names = _names(path)
    prefix = strip_prefix(names)
    file = GenmoFile(path, prefix, _NEIGHBOURS if prefix else ())
    try:
        config = transformer_config(file.keys, file.shape)
    except ValueError as error:
        raise InputError(f"{path}: {error}{_what_else(names)}") from error
    form = "gguf" if is_gguf(path) else "comfyui" if prefix or file.scales else "genmo"
    return RepackagedComponent("transformer", form, file, transformer_names(config["num_layers"]), config)


def open_decoder(path: Path, prefix: str = "") -> RepackagedComponent:
    """Open the VAE's decoder of `decoder.safetensors`, `mochi_vae.safetensors`, or of a ComfyUI file with all models.

    Args:
        path: the file.
        prefix: of the decoder's names in a file with all models. A file of the VAE alone may have `decoder.`.

    Raises:
        ValueError: the file is something else, or incomplete; the message names tensors.
    """
    names = _names(path)
    others: tuple[str, ...] = ()
    if not prefix and any(name.startswith(f"{DECODER_PREFIX}blocks.") for name in names):
        prefix, others = DECODER_PREFIX, ("encoder.",)
    elif prefix:
        # The names of the other models in the file are checked where these are opened.
        others = (*{f"{n.split('.')[0]}." for n in names if not n.startswith("vae.")}, "vae.encoder.")
    file = GenmoFile(path, prefix, others)
    try:
        config = decoder_config(file.keys, file.shape)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    table = decoder_names(tuple(config["layers_per_block"]))
    return RepackagedComponent("vae", "genmo", file, table, config)


def open_text_encoder(path: Path, prefix: str = "") -> RepackagedComponent:
    """Open the T5 encoder of ComfyUI's `t5xxl_*.safetensors`, or of a file in which its names begin with `prefix`.

    Raises:
        ValueError: the file is something else, or incomplete; the message names tensors.
    """
    names = _names(path)
    left_out = {"decoder.", "lm_head."} if not prefix else {f"{n.split('.')[0]}." for n in names} - {_TEXT_PARENT}
    file = GenmoFile(path, prefix, tuple(left_out))
    try:
        config = text_encoder_config(file.keys, file.shape)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    table = text_encoder_names(file.keys, config["num_layers"])
    return RepackagedComponent("text_encoder", "comfyui", file, table, config)


def has_text_encoder(path: Path) -> str | None:
    """Return the prefix of a text encoder's names in a ComfyUI file, or None if it has no text encoder."""
    return _TEXT_PREFIX if any(name.startswith(_TEXT_PARENT) for name in _names(path)) else None


def has_decoder(path: Path) -> str | None:
    """Return the prefix of a VAE decoder's names in a ComfyUI file, or None if it has no decoder."""
    prefix = f"vae.{DECODER_PREFIX}"
    return prefix if any(name.startswith(prefix) for name in _names(path)) else None


_HOUSES = {"transformer": "Genmo's", "vae": "Genmo's", "text_encoder": "transformers'"}


def _what_else(names: set[str]) -> str:
    """Return what a file without a transformer is, for its refusal."""
    if any(name.startswith(("encoder.block.", "text_encoders.")) for name in names):
        return "; it is a text encoder: name the transformer's file, beside which it is found"
    if any(name.startswith((f"{DECODER_PREFIX}blocks.", "blocks.0.0.")) for name in names):
        return "; it is a VAE: name the transformer's file, beside which it is found"
    if any(name.startswith("transformer_blocks.") for name in names):
        return "; its names are Diffusers': give the directory with model_index.json"
    if any(".lora_" in name for name in names):
        return "; it is a LoRA: give it with --lora"
    return ""


def _names(path: Path) -> set[str]:
    return set(open_tensors(path).keys())


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
