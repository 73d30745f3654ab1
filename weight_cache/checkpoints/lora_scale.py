"""The scale of each product of a LoRA: alpha / rank, or alpha / sqrt(rank) where it is rank-stabilised.

What a file states comes from one of these, in this order:

- a tensor `<module>.alpha`;
- PEFT's settings: `adapter_config.json` beside `adapter_model.safetensors`, or Diffusers' metadata key
  `lora_adapter_metadata`. A setting that is absent has PEFT's default (huggingface/peft `tuners/lora/config.py`);
- Genmo's metadata key `kwargs`: a rank and an alpha for q, k and v, and for the output (genmoai/mochi
  `demos/fine_tuner/train.py`).

Where nothing is stated, alpha equals the rank, as in Diffusers (`utils/peft_utils.py`, `get_peft_kwargs`) and ComfyUI.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

from models.machine.checks import json_object, number, whole
from models.machine.errors import InputError
from weight_cache.checkpoints.lora_names import DIFFUSERS_PREFIX, PEFT_PREFIX
from weight_cache.checkpoints.patterns import Patterns

# PEFT's defaults of the settings that decide the scale.
DEFAULT_RANK, DEFAULT_ALPHA = 8, 8
# Settings of PEFT that change nothing of what a finished adapter does to a linear layer.
_HARMLESS = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "lora_dropout",
        "fan_in_fan_out",
        "layers_to_transform",
        "layers_pattern",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "loftq_config",
        "ensure_weight_tying",
    }
)
_READ = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"})
# Ways to begin the training that leave the base model as it is; the others (pissa, olora, ...) change it.
_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")
# Part of a Genmo module's name -> prefix of its pair of rank and alpha in `kwargs`.
_GENMO_KINDS = (("attn.qkv_", "qkv_proj"), ("attn.proj_", "out_proj"))


@dataclass(frozen=True)
class PeftSettings:
    """What PEFT's settings say of the scale, checked.

    `where` names their place, for messages. `prefix` is what stands before the names that the patterns are matched
    with, which are those of the model that PEFT wrapped.
    """

    where: str
    prefix: str
    rank: int
    alpha: float
    rslora: bool
    ranks: Patterns
    alphas: Patterns

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str, prefix: str) -> PeftSettings:
        """Check a dictionary of `LoraConfig`.

        Raises:
            InputError: a value has the wrong type, or is for something that is not supported.
        """
        kind = config.get("peft_type")
        if kind not in (None, "LORA"):
            raise InputError(f"{where} is of an adapter of type {kind!r}, which is not supported: use a plain LoRA")
        for name, value in config.items():
            if name not in _READ | _HARMLESS and value not in (None, False, "none") and value != {} and value != []:
                raise InputError(f"{where}: {_words(name)} ({_short(value)}) is not supported: use a plain LoRA")
        beginning = config.get("init_lora_weights", True)
        if not isinstance(beginning, bool | str | None) or beginning not in _BEGINNINGS:
            raise InputError(
                f"{where}: init_lora_weights {_short(beginning)} changes the base model, which is not supported: "
                "convert it to a plain LoRA with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
            )
        rslora = config.get("use_rslora", False)
        if not isinstance(rslora, bool):
            raise InputError(f"{where}: use_rslora {_short(rslora)} must be true or false")
        most = 1 << 24
        return cls(
            where,
            prefix,
            whole(f"{where}: r", config.get("r", DEFAULT_RANK), 1, most),
            number(f"{where}: lora_alpha", config.get("lora_alpha", DEFAULT_ALPHA)),
            rslora,
            Patterns.read(config.get("rank_pattern"), f"{where}: rank_pattern", lambda n, v: whole(n, v, 1, most)),
            Patterns.read(config.get("alpha_pattern"), f"{where}: alpha_pattern", number),
        )

    def scale(self, stated: str, rank: int) -> float:
        """Return the scale of the module that the file calls `stated`, whose tensors have `rank`.

        Raises:
            InputError: the settings say another rank.
        """
        name = stated.removeprefix(self.prefix)
        wanted = self.ranks.first(name, self.rank)
        if wanted != rank:
            raise InputError(f"{self.where} says rank {wanted} for {stated}, whose tensors have rank {rank}")
        return self.alphas.first(name, self.alpha) / (sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class GenmoSettings:
    """Genmo's `kwargs`."""

    where: str
    values: Mapping[str, Any]

    def scale(self, stated: str, rank: int) -> float:
        """Return alpha / rank of the kind of module that `stated` is.

        Raises:
            InputError: another rank is stated, alpha is no number, or nothing is said of such modules.
        """
        for part, kind in _GENMO_KINDS:
            if part in stated:
                said, alpha = (self.values.get(f"{kind}_lora_{name}") for name in ("rank", "alpha"))
                if isinstance(said, bool) or said != rank:
                    raise InputError(f"{self.where}: {stated} has rank {rank}, its metadata says {_short(said)}")
                return number(f"{self.where}: {kind}_lora_alpha", alpha) / rank
        raise InputError(f"{self.where} changes {stated}: Genmo's metadata gives no alpha for that")


def settings_of(path: Path, metadata: Mapping[str, str]) -> PeftSettings | GenmoSettings | None:
    """Return what a file's metadata and the JSON beside it say; None if they say nothing.

    Raises:
        InputError: it is no JSON of a LoRA's settings, or of something that is not supported.
    """
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        return PeftSettings.read(_json(_text(beside), str(beside)), str(beside), PEFT_PREFIX)
    where = f"LoRA {path}"
    if "lora_adapter_metadata" in metadata:
        stated = _json(metadata["lora_adapter_metadata"], f"the metadata of {where}")
        own = {k.removeprefix(DIFFUSERS_PREFIX): v for k, v in stated.items() if not k.startswith("text_encoder")}
        return PeftSettings.read(own, where, DIFFUSERS_PREFIX) if own else None
    if "kwargs" in metadata:
        return GenmoSettings(where, _json(metadata["kwargs"], f"the metadata of {where}"))
    return None


def final_scale(where: str, strength: float, scale: float) -> float:
    """Return strength * scale.

    Raises:
        InputError: float32 cannot hold it.
    """
    product = strength * scale
    if not isfinite(product) or abs(product) > 3e38:
        raise InputError(f"{where}: strength {strength:g} times alpha/rank {scale:g} is too large for float32")
    return product


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): correct its permissions") from error


def _json(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        return json_object(text, where)
    except InputError as error:
        raise InputError(f"{error} (the JSON of a LoRA's settings is wanted)") from error


def _words(name: str) -> str:
    return {"use_dora": "DoRA (use_dora)", "bias": "training of biases (bias)"}.get(name, name)


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
    return text if len(text) < 60 else f"{text[:57]}..."
