"""The scale of each product of a LoRA: alpha / rank, or alpha / sqrt(rank) where it is rank-stabilised.

What a file states comes from these. Where several speak, they must say the same:

- a tensor `<module>.alpha`;
- PEFT's settings: `adapter_config.json` beside the file, or Diffusers' metadata key `lora_adapter_metadata`. A setting
  that is absent has PEFT's default (huggingface/peft `tuners/lora/config.py`). The JSON belongs to
  `adapter_model.safetensors`, or to the only safetensors file in its folder, whatever that is called;
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

from models.machine.checks import JSON_BYTES, json_object, number, read_bytes, whole
from models.machine.errors import InputError
from models.machine.paths import is_taken
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
# Name of PEFT's settings, beside the weights.
_BESIDE = "adapter_config.json"
_MEND_BESIDE = "correct it, or remove it if it is not of this LoRA"
# Part of a Genmo module's name -> prefix of its pair of rank and alpha in `kwargs`.
_GENMO_KINDS = (("attn.qkv_", "qkv_proj"), ("attn.proj_", "out_proj"))


@dataclass(frozen=True)
class PeftSettings:
    """What PEFT's settings say of the scale, checked.

    `where` names their place, for messages. `prefixes` may stand before the names that the patterns are matched with,
    which are those of the model that PEFT wrapped; the first that fits is taken away.
    """

    where: str
    prefixes: tuple[str, ...]
    rank: int
    alpha: float
    rslora: bool
    ranks: Patterns
    alphas: Patterns

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str, *prefixes: str) -> PeftSettings:
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
            prefixes,
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
        name = stated.removeprefix(next((prefix for prefix in self.prefixes if stated.startswith(prefix)), ""))
        wanted = self.ranks.first(name, self.rank)
        if wanted != rank:
            raise InputError(f"{self.where} says rank {wanted} for {stated}, whose tensors have rank {rank}")
        return self.alphas.first(name, self.alpha) / (sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class GenmoSettings:
    """Genmo's `kwargs`."""

    where: str
    values: Mapping[str, Any]

    def scale(self, stated: str, rank: int) -> float | None:
        """Return alpha / rank of the kind of module that `stated` is; None if nothing is said of such modules.

        Raises:
            InputError: another rank is stated, or alpha is no number.
        """
        for part, kind in _GENMO_KINDS:
            if part in stated:
                said, alpha = (self.values.get(f"{kind}_lora_{name}") for name in ("rank", "alpha"))
                if isinstance(said, bool) or said != rank:
                    raise InputError(f"{self.where}: {stated} has rank {rank}, its metadata says {_short(said)}")
                return number(f"{self.where}: {kind}_lora_alpha", alpha) / rank
        return None


def settings_of(path: Path, metadata: Mapping[str, str], complete: bool) -> list[PeftSettings | GenmoSettings]:
    """Return all that a file's metadata and the JSON beside it say.

    Args:
        path: the file.
        metadata: of its header.
        complete: whether it has a tensor of alpha for each module.

    Raises:
        InputError: it is no JSON of a LoRA's settings, or of something that is not supported; or nothing but a JSON
            that may belong to another file states a scale.
    """
    found: list[PeftSettings | GenmoSettings] = []
    if "lora_adapter_metadata" in metadata:
        where = f"the metadata lora_adapter_metadata of LoRA {path}"
        stated = _json(metadata["lora_adapter_metadata"], where)
        own = {k.removeprefix(DIFFUSERS_PREFIX): v for k, v in stated.items() if not k.startswith("text_encoder")}
        if own:
            found.append(PeftSettings.read(own, where, DIFFUSERS_PREFIX))
    if "kwargs" in metadata:
        where = f"the metadata kwargs of LoRA {path}"
        values = _json(metadata["kwargs"], where)
        if any("_lora_" in name for name in values) or not (found or complete):
            found.append(GenmoSettings(where, values))
    beside, belongs = settings_beside(path) or (None, False)
    if beside is None:
        return found
    if belongs:
        settings = _json(read_bytes(beside, "", _MEND_BESIDE, JSON_BYTES), str(beside))
        found.append(PeftSettings.read(settings, str(beside), PEFT_PREFIX, DIFFUSERS_PREFIX))
    elif not (found or complete):
        raise InputError(
            f"LoRA {path} states no alpha, and {beside} may be of another LoRA in that folder: put the two that "
            "belong together into a folder of their own"
        )
    return found


def settings_beside(path: Path) -> tuple[Path, bool] | None:
    """Return PEFT's settings beside a LoRA's file, and whether they belong to it; None if there are none."""
    for place in dict.fromkeys((path, _target(path))):
        beside = place.with_name(_BESIDE)
        if is_taken(beside):
            return beside, place.name == "adapter_model.safetensors" or _is_alone(place)
    return None


def _target(path: Path) -> Path:
    """Return the file that a link leads to, at whose place the JSON may be as well; another path as it is."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _is_alone(path: Path) -> bool:
    """Return whether a file is the only one of its kind in its folder; False if the folder cannot be listed."""
    try:
        return [found.name for found in path.parent.iterdir() if found.suffix == path.suffix] == [path.name]
    except OSError:
        return False


def final_scale(where: str, strength: float, scale: float) -> float:
    """Return strength * scale.

    Raises:
        InputError: float32 cannot hold it.
    """
    product = strength * scale
    if not isfinite(product) or abs(product) > 3e38:
        raise InputError(f"{where}: strength {strength:g} times alpha/rank {scale:g} is too large for float32")
    return product


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
