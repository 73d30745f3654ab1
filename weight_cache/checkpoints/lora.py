"""LoRA files, merged into the weights during conversion: `W + strength * alpha / rank * B A`, in float32.

Formula: arXiv:2106.09685. Two forms are read:

- Genmo's: `blocks.N.attn.qkv_x.lora_A` and `lora_B`, with rank and alpha in the metadata key `kwargs` (genmoai/mochi
  `demos/fine_tuner/train.py`, `dit/joint_model/lora.py`).
- Diffusers' and PEFT's: `transformer.<module>.lora_A.weight` and `lora_B.weight`. Alpha comes from a tensor
  `<module>.alpha`, or from the metadata key `lora_adapter_metadata`; otherwise it equals the rank
  (huggingface/diffusers `utils/peft_utils.py`, `get_peft_kwargs`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.machine.errors import InputError, MissingInputError
from weight_cache.checkpoints.names import Piece, genmo_lora_targets

if TYPE_CHECKING:
    import torch

    from models.layers import Module
    from models.layers.module import TensorSource
    from weight_cache.checkpoints.component import Component

_PEFT = re.compile(r"(?:(?:transformer|base_model\.model)\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_GENMO = re.compile(r"(.+)\.lora_([AB])")
# Part of a Genmo module's name -> prefix of its pair of rank and alpha in `kwargs`.
_GENMO_KINDS = (("attn.qkv_", "qkv_proj"), ("attn.proj_", "out_proj"))


@dataclass(frozen=True)
class LoraRequest:
    """A LoRA file and the strength with which it is added."""

    path: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraRequest:
        """Read `FILE` or `FILE:STRENGTH`.

        Raises:
            ValueError: the strength is not a finite number.
            FileNotFoundError: there is no such file.
        """
        path, strength = Path(text), 1.0
        if not path.is_file() and ":" in text:
            name, _, number = text.rpartition(":")
            try:
                strength = float(number)
            except ValueError as error:
                raise InputError(f"LoRA {text!r}: {number!r} is no strength; write FILE or FILE:0.8") from error
            path = Path(name)
        if not isfinite(strength):
            raise InputError(f"LoRA {text!r}: the strength must be a finite number")
        if not path.is_file():
            raise MissingInputError(f"no LoRA file at {path}: give a .safetensors file, or FILE:STRENGTH")
        return cls(path, strength)


@dataclass(frozen=True)
class _Delta:
    """One low-rank change: rows `piece` of `B A`, times `scale`."""

    down: torch.Tensor
    up: torch.Tensor
    piece: Piece
    scale: float

    def value(self) -> torch.Tensor:
        return self.piece.take(self.up.float()) @ self.down.float() * self.scale


class LoraSource:
    """A source of weights with LoRAs merged in. Tensors that no LoRA changes are returned as they are."""

    def __init__(self, source: TensorSource, loras: Sequence[LoraRequest], layers: int):
        """Read the LoRA files and check them against the model.

        Args:
            source: the weights, under canonical names.
            loras: LoRAs to merge, in this order.
            layers: number of blocks of the transformer.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is not a LoRA of this model, or its ranks do not fit.
        """
        self._source = source
        self._deltas: dict[str, list[_Delta]] = {}
        for lora in loras:
            for name, delta in _read(lora, source, layers):
                self._deltas.setdefault(name, []).append(delta)

    def keys(self):
        """Return the names of all tensors."""
        return self._source.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading it."""
        return self._source.shape(key)

    def tensor(self, key: str) -> torch.Tensor:
        """Return one tensor with LoRAs merged in; it is float32 if a LoRA changes it."""
        value = self._source.tensor(key)
        for index, delta in enumerate(self._deltas.get(key, ())):
            # The first sum makes a copy, because the stored tensor is a view of the file.
            value = value.float() + delta.value() if index == 0 else value.add_(delta.value())
        return value


def checked_source(module: Module, component: Component, loras: Sequence[LoraRequest] = ()) -> TensorSource:
    """Return the weights of a declared module with LoRAs merged in. Headers and LoRA files are read, but no weights.

    Raises:
        ValueError: weights or LoRAs do not fit the model.
    """
    from models.layers.module import check_sources

    source: TensorSource = module.part_of(component)
    check_sources(list(module.parameters()), source)
    return LoraSource(source, loras, int(component.config["num_layers"])) if loras else source


def _read(lora: LoraRequest, source: TensorSource, layers: int) -> list[tuple[str, _Delta]]:
    from weight_cache.checkpoints.component import open_safetensors

    handle = open_safetensors(lora.path)
    names, metadata = list(handle.keys()), handle.metadata() or {}
    pairs: dict[str, dict[str, str]] = {}
    alphas: dict[str, str] = {}
    genmo = "kwargs" in metadata
    for name in names:
        match = (_GENMO if genmo else _PEFT).fullmatch(name)
        if match:
            pairs.setdefault(match[1], {})[match[2]] = name
        elif not genmo and name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha").removeprefix("transformer.")] = name
        else:
            raise InputError(f"LoRA {lora.path} holds {name}, which is neither a lora_A nor a lora_B: not supported")
    if not pairs:
        raise InputError(f"LoRA {lora.path} holds no lora_A and lora_B: it is not a LoRA")
    if stray := sorted(set(alphas) - set(pairs)):
        raise InputError(f"LoRA {lora.path} has an alpha for {stray[0]}, which it does not change")
    settings = _settings(lora.path, metadata, genmo)
    targets: Mapping[str, list[tuple[str, Piece]]] = genmo_lora_targets(layers) if genmo else {}
    known = set(source.keys())
    found = []
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise InputError(f"LoRA {lora.path} has only one of lora_A and lora_B for {module}: download it again")
        down, up = handle.get_tensor(pair["A"]), handle.get_tensor(pair["B"])
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise InputError(
                f"LoRA {lora.path}: lora_A {list(down.shape)} and lora_B {list(up.shape)} of {module} differ in rank"
            )
        rank = down.shape[0]
        alpha = float(handle.get_tensor(alphas[module])) if module in alphas else settings.alpha(module, rank)
        scale = lora.strength * alpha / rank
        places = targets.get(module, []) if genmo else [(f"{module}.weight", Piece(f"{module}.weight"))]
        if not places or not all(name in known for name, _ in places):
            raise InputError(f"LoRA {lora.path} changes {module}, which this model lacks: it is for another model")
        rows = up.shape[0] // places[0][1].parts
        for name, piece in places:
            shape = tuple(source.shape(name))
            if shape != (rows, down.shape[1]) or up.shape[0] % piece.parts:
                raise InputError(
                    f"LoRA {lora.path} changes {module} by [{up.shape[0]}, {down.shape[1]}], the model's {name} is "
                    f"{list(shape)}: it is for another model"
                )
            found.append((name, _Delta(down, up, piece, scale)))
    return found


@dataclass(frozen=True)
class _Settings:
    """Ranks and alphas from a file's metadata."""

    path: Path
    genmo: Mapping[str, Any] | None
    peft: Mapping[str, Any]

    def alpha(self, module: str, rank: int) -> float:
        if self.genmo is None:
            return _number(
                self.path, _pattern(self.peft.get("alpha_pattern"), module, self.peft.get("lora_alpha", rank))
            )
        for part, kind in _GENMO_KINDS:
            if part in module:
                stated, alpha = (self.genmo.get(f"{kind}_lora_{name}") for name in ("rank", "alpha"))
                if stated != rank:
                    raise InputError(f"LoRA {self.path}: {module} has rank {rank}, its metadata says {stated}")
                return _number(self.path, alpha)
        raise InputError(f"LoRA {self.path} changes {module}: Genmo's metadata gives no alpha for that")


def _settings(path: Path, metadata: Mapping[str, str], genmo: bool) -> _Settings:
    try:
        if genmo:
            return _Settings(path, dict(json.loads(metadata["kwargs"])), {})
        peft = dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    except (TypeError, ValueError) as error:
        raise InputError(f"LoRA {path}: its metadata is not the JSON of a LoRA's settings") from error
    if peft.get("transformer.use_dora") or peft.get("use_dora"):
        raise InputError(f"LoRA {path} is a DoRA, which is not supported: use a plain LoRA")
    if peft.get("transformer.use_rslora") or peft.get("use_rslora"):
        raise InputError(f"LoRA {path} is a rank-stabilised LoRA, which is not supported: use a plain LoRA")
    return _Settings(path, None, {key.removeprefix("transformer."): value for key, value in peft.items()})


def _pattern(pattern: Any, module: str, default: Any) -> Any:
    """Return the value for the module that PEFT's pattern names, by its whole name or the end of it."""
    for name, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({name})", module):
            return value
    return default


def _number(path: Path, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise InputError(f"LoRA {path}: alpha {value!r} is not a number")
    return float(value)
