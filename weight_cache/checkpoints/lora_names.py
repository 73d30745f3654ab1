"""Names of tensors in LoRA files: which module of the transformer each one changes, and in which role.

A name is a module's name, in one of the spellings below, and a suffix that tells the role.

| made by | module | suffixes |
|---|---|---|
| PEFT | `base_model.model.` + the model's own name | `.lora_A.weight`, or `.lora_A.NAME.weight` |
| Diffusers | `transformer.` + Diffusers' name | `.lora_A.weight`, `.lora.down.weight`, `_lora.down.weight` |
| Genmo's trainer | Genmo's name | `.lora_A` |
| for ComfyUI | `diffusion_model.` + Genmo's name | `.lora_A.weight`, `.lora_down.weight`, `.alpha` |
| sd-scripts, musubi-tuner | `lora_unet_` + a name with `_` for `.` | `.lora_down.weight`, `.alpha` |
| OneTrainer | `lora_transformer_` + a name with `_` for `.` | `.lora_down.weight`, `.alpha` |
| ai-toolkit | `transformer.`, `diffusion_model.` or `transformer$$` + a name | those of Diffusers and sd-scripts |

Sources: comfyanonymous/ComfyUI `comfy/lora.py` and `comfy/weight_adapter/lora.py`; huggingface/diffusers
`utils/state_dict_utils.py`; huggingface/peft `utils/save_and_load.py`; kohya-ss/sd-scripts `networks/lora.py`;
ostris/ai-toolkit `toolkit/network_mixins.py`; genmoai/mochi `dit/joint_model/lora.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weight_cache.checkpoints.names import Piece, genmo_lora_targets

# Longest name that is looked at; names of Mochi's tensors have less than 100 characters.
MOST_CHARACTERS = 400
_ROLES = (
    re.compile(r"(?P<module>.+)\.lora_(?P<role>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"),
    re.compile(r"(?P<module>.+)\.lora_(?P<role>[AB])"),
    re.compile(r"(?P<module>.+)\.lora_(?P<role>down|up)\.weight"),
    re.compile(r"(?P<module>.+)\.lora\.(?P<role>down|up)\.weight"),
    re.compile(r"(?P<module>.+)\.lora_linear_layer\.(?P<role>down|up)\.weight"),
    re.compile(r"(?P<module>.+)_lora\.(?P<role>down|up)\.weight"),
    re.compile(r"(?P<module>.+)\.(?P<role>alpha)"),
)
_DOWN = {"A": "down", "B": "up"}
# Prefixes of whole names. None of them begins a module's name of Mochi.
PEFT_PREFIX, DIFFUSERS_PREFIX = "base_model.model.", "transformer."
_PREFIXES = (PEFT_PREFIX, DIFFUSERS_PREFIX, "model.diffusion_model.", "diffusion_model.", "model.", "unet.", "dit.")
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lora_dit_", "lycoris_")
# Parts of names that other ways of changing a model have, and what these are called; `$` is the end of a name.
_OTHER_KINDS = {
    "DoRA": (".lora_magnitude_vector", ".dora_scale"),
    "LoHa": (".hada_",),
    "LoKr": (".lokr_",),
    "GLoRA": (".a1.weight$", ".a2.weight$", ".b1.weight$", ".b2.weight$"),
    "OFT": (".oft_", "oft_blocks", "oft_diag", "boft_"),
    "IA3": (".ia3_", ".on_input"),
    "AdaLoRA": (".lora_E", ".ranknum"),
    "VeRA": ("vera_lambda_", "vera_A", "vera_B"),
    "LoCon with a tensor between (lora_mid)": (".lora_mid.", ".lora.mid."),
    "LoRA of an embedding": (".lora_embedding_",),
    "LoRA with biases": (".lora_B.bias", ".lora_up.bias", ".lora.up.bias", ".lora_A.bias", ".lora_down.bias"),
    "file of whole differences (diff)": tuple(f".{n}$" for n in ("diff", "diff_b", "set_weight", "w_norm", "b_norm")),
    "SHiRA, FourierFT, HRA, Bone, MiSS or RandLoRA": (
        "shira_",
        "fourierft_",
        "hra_u",
        ".bone_",
        ".miss_",
        "randlora_",
        "waveft_",
        "c3a_",
    ),
}
_TEXT_ENCODERS = (
    "text_encoder",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
    "t5xxl.",
    "lora_t5",
    "te1.",
    "te2.",
)

Targets = list[tuple[str, Piece]]


@dataclass(frozen=True)
class LoraName:
    """A tensor's name in its parts.

    Attributes:
        module: as the file calls it.
        role: `down`, `up` or `alpha`.
        adapter: PEFT's name of the LoRA, `""` where the tensor's name has none.
        form: which spelling of suffixes it has; the two matrices of a module have the same.
    """

    module: str
    role: str
    adapter: str
    form: int


def role_of(name: str) -> LoraName | None:
    """Return the parts of a tensor's name; None for a name in no known form."""
    if len(name) > MOST_CHARACTERS:
        return None
    for form, pattern in enumerate(_ROLES):
        match = pattern.fullmatch(name)
        if match:
            role = _DOWN.get(match["role"], match["role"])
            return LoraName(match["module"], role, match.groupdict().get("adapter") or "", form)
    return None


def other_kind(name: str) -> str | None:
    """Return what a file is that holds a tensor of this name and is not supported, in words; None if it is unknown."""
    name = name[:MOST_CHARACTERS]
    if name.startswith(_TEXT_ENCODERS) or ".text_encoder." in name:
        return "LoRA of a text encoder"
    for kind, parts in _OTHER_KINDS.items():
        if any(part in f"{name}$" for part in parts):
            return kind
    if ".lora_B." in name and name.endswith(".bias"):
        return "LoRA with biases"
    if name.endswith((".weight", ".bias")) and "lora" not in name.lower():
        return "file with whole weights beside its LoRA (modules_to_save, bias)"
    return None


@dataclass(frozen=True)
class Modules:
    """The modules of a transformer that a LoRA may change, in Diffusers' and in Genmo's names.

    Attributes:
        targets: module -> canonical weights and their place in the module's.
        underscored: name with `_` for `.` -> module.
    """

    targets: Mapping[str, Targets]
    underscored: Mapping[str, str]

    @classmethod
    def of(cls, keys: Iterable[str]) -> Modules:
        """Return those of a transformer with the canonical tensors `keys`."""
        weights = {key.removesuffix(".weight") for key in keys if key.endswith(".weight")}
        layers = len({key.split(".")[1] for key in weights if key.startswith("transformer_blocks.")})
        targets: dict[str, Targets] = {
            module: places
            for module, places in genmo_lora_targets(layers).items()
            if all(name.removesuffix(".weight") in weights for name, _ in places)
        }
        targets |= {module: [(f"{module}.weight", Piece(f"{module}.weight"))] for module in weights}
        return cls(targets, {module.replace(".", "_"): module for module in targets})

    def find(self, stated: str) -> str | None:
        """Return the module that a file calls `stated`, or None if this model has none of that name."""
        name = stated.replace("$$", ".").replace(".processor.", ".")
        while True:
            for candidate in (name, f"{name}.0"):
                # Diffusers' older names say `to_out` for `to_out.0`.
                if candidate in self.targets:
                    return candidate
            for prefix in _UNDERSCORED:
                if name.startswith(prefix) and name.removeprefix(prefix) in self.underscored:
                    return self.underscored[name.removeprefix(prefix)]
            prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
            if not prefix:
                return None
            name = name.removeprefix(prefix)
