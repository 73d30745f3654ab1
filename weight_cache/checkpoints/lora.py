"""LoRAs, merged into the weights on the host: `W + strength * scale * B A`, in float32.

Formula: arXiv:2106.09685, and arXiv:2312.03732 where it is rank-stabilised. `lora_names` says which names are read,
`lora_scale` where the scale comes from. A LoRA of a convolution is a product of its kernels seen as matrices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.machine import paths
from models.machine.checks import number, sequence, stated_number
from models.machine.errors import InputError, MissingInputError
from weight_cache.checkpoints.lora_names import PEFT_PREFIX, LoraName, Modules, other_kind, role_of
from weight_cache.checkpoints.lora_scale import final_scale, settings_beside, settings_of
from weight_cache.checkpoints.names import Piece

if TYPE_CHECKING:
    import torch

    from models.layers import Module
    from models.layers.module import TensorSource
    from weight_cache.checkpoints.component import Component

# What PEFT and Diffusers call the file in a folder.
FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# Two statements of a scale are the same up to this part of it: alpha may be stored in bfloat16.
_SAME = 4e-3
_WANTED = "give a .safetensors file, a folder with adapter_model.safetensors, or FILE:STRENGTH"


@dataclass(frozen=True)
class LoraRequest:
    """A LoRA file and the strength with which it is added."""

    path: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraRequest:
        """Read `FILE` or `FILE:STRENGTH`; a folder of PEFT or Diffusers stands for the file in it.

        Raises:
            ValueError: the strength is not a finite number, or a folder has no LoRA.
            FileNotFoundError: there is no such file.
        """
        path, strength = Path(text), 1.0
        if not paths.exists(path) and ":" in text:
            name, _, stated = text.rpartition(":")
            try:
                strength = stated_number("the strength", stated)
            except InputError as error:
                raise InputError(f"LoRA {text!r}: {error}; write FILE or FILE:0.8") from error
            path = Path(name)
        return cls.of((path, strength))

    @classmethod
    def of(cls, value: Any) -> LoraRequest:
        """Read a request, a path, `FILE:STRENGTH` as text, or a tuple of path and strength.

        Raises:
            ValueError: it is none of these, the strength is not a finite number, or a folder has no LoRA.
            FileNotFoundError: there is no such file.
        """
        if isinstance(value, LoraRequest):
            value = (value.path, value.strength)
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, Path):
            value = (value, 1.0)
        if not _is_pair(value):
            raise InputError(f"LoRA {value!r} must be a path, or a tuple of a path and a strength")
        path = Path(value[0]).expanduser()
        strength = number(f"LoRA {path}: the strength", value[1])
        return cls(_file_of(path), strength)

    @classmethod
    def all_of(cls, values: Any) -> tuple[LoraRequest, ...]:
        """Read several requests, or one, each in a form that `of` takes.

        Raises:
            ValueError: see `of`.
            FileNotFoundError: there is no such file.
        """
        if isinstance(values, str | Path | LoraRequest) or _is_pair(values):
            values = (values,)
        rule = "a list of paths, or of tuples of path and strength"
        return tuple(cls.of(value) for value in sequence("loras", values, rule))

    @property
    def name(self) -> str:
        """The file's name and the strength, for messages."""
        return f"{self.path.name}:{self.strength:g}"

    def identity(self) -> str:
        """Return what distinguishes this LoRA from others, wherever it lies: digits of its content, and the strength.

        The content is the file, and PEFT's settings beside it if they belong to it.

        Raises:
            InputError: a file cannot be read.
        """
        digest = hashlib.sha256()
        beside, belongs = settings_beside(self.path) or (self.path, False)
        for file in (self.path, beside) if belongs else (self.path,):
            try:
                with open(file, "rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
            except OSError as error:
                raise paths.refused(f"LoRA {self.path}", error) from error
        return f"{digest.hexdigest()[:16]}:{self.strength!r}"

    def __str__(self) -> str:
        """Return the request as `parse` reads it."""
        return f"{self.path}:{self.strength:g}"


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and isinstance(value[0], str | Path)
        and not isinstance(value[1], str | Path | LoraRequest | tuple | list)
    )


def _file_of(path: Path) -> Path:
    """Return the file that a user means: the path itself, or the LoRA in a folder."""
    if paths.is_dir(path):
        found = [path / name for name in FOLDER_FILES if paths.is_file(path / name)]
        if not found:
            raise MissingInputError(f"no LoRA file at {path}: the folder has no {' and no '.join(FOLDER_FILES)}")
        if len(found) > 1:
            raise InputError(f"LoRA {path} has {' and '.join(FOLDER_FILES)}: name one of them")
        return found[0]
    if not paths.is_file(path):
        raise MissingInputError(f"no LoRA file at {path}: {_WANTED}")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise InputError(f"LoRA {path} is a pickle, which may run programs and is not read: convert it to safetensors")
    return path


@dataclass(frozen=True)
class _Delta:
    """One low-rank change: rows `piece` of `B A`, times `scale`."""

    where: str
    down: torch.Tensor
    up: torch.Tensor
    piece: Piece
    scale: float

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the sum of a weight and its change, float32. The weight stays as it is.

        Raises:
            InputError: a number is too large for float32.
        """
        import torch

        up, down = self.piece.take(self.up.float().flatten(1)), self.down.float().flatten(1)
        made = torch.addmm(weight.float().flatten(1), up, down, alpha=self.scale).view(weight.shape)
        # A sum is read once and written nowhere, so it is the cheaper test; it can only be too strict.
        if not made.sum().isfinite() and not made.isfinite().all():
            raise InputError(f"{self.where}: the merged weight has numbers that are not finite: the file is damaged")
        return made


class LoraSource:
    """A source of weights with LoRAs merged in. Tensors that no LoRA changes are returned as they are.

    `notes` are lines for the user on what the files leave open and is assumed.
    """

    def __init__(self, source: TensorSource, loras: Sequence[LoraRequest]):
        """Read the LoRA files and check them against the model. A LoRA of strength 0 is checked and changes nothing.

        Args:
            source: the weights, under canonical names.
            loras: LoRAs to merge, in this order.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is not a LoRA of this model, is of a kind that is not supported, or holds numbers that
                are not finite.
        """
        self._source = source
        self._deltas: dict[str, list[_Delta]] = {}
        self.notes: list[str] = []
        modules = Modules.of(source.keys())
        for lora in loras:
            file = _File(lora, modules, self.notes)
            for name, delta in file.deltas(source):
                if lora.strength != 0:
                    self._deltas.setdefault(name, []).append(delta)
            file.check()

    def keys(self):
        """Return the names of all tensors."""
        return self._source.keys()

    def changed(self) -> set[str]:
        """Return the names of the tensors that a LoRA changes."""
        return set(self._deltas)

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading it."""
        return self._source.shape(key)

    def tensor(self, key: str) -> torch.Tensor:
        """Return one tensor with LoRAs merged in; it is float32 if a LoRA changes it.

        Raises:
            InputError: a merged value is too large for float32.
        """
        value = self._source.tensor(key)
        for delta in self._deltas.get(key, ()):
            value = delta.added_to(value)
        return value


def checked_source(module: Module, component: Component, loras: Sequence[LoraRequest] = ()) -> TensorSource:
    """Return the weights of a declared module with LoRAs merged in. Headers and LoRA files are read, but no weights.

    Raises:
        ValueError: weights or LoRAs do not fit the model.
    """
    from models.layers.module import check_sources

    source: TensorSource = module.part_of(component)
    check_sources(list(module.parameters()), source)
    return LoraSource(source, loras) if loras else source


class _File:
    """One LoRA file, read and checked."""

    def __init__(self, lora: LoraRequest, modules: Modules, notes: list[str]) -> None:
        from weight_cache.checkpoints.component import open_safetensors

        self._lora, self._modules = lora, modules
        self._where = f"LoRA {lora.path}"
        self._handle = open_safetensors(lora.path)
        names = list(self._handle.keys())
        self._tensors: dict[str, dict[str, str]] = {}  # module -> role -> tensor
        self._stated: dict[str, str] = {}  # module -> the file's name of it
        self._forms: dict[str, LoraName] = {}  # module -> form of the first of its two matrices
        self._adapter: str | None = None  # PEFT's name of the LoRA, which all names in a file share
        for name in sorted(names):
            self._place(name)
        if not any(set(found) - {"alpha"} for found in self._tensors.values()):
            raise InputError(f"{self._where} holds no lora_A and lora_B, nor lora_down and lora_up: it is not a LoRA")
        complete = all("alpha" in found for found in self._tensors.values())
        self._settings = settings_of(lora.path, self._handle.metadata() or {}, complete)
        self._note(notes)

    def check(self) -> None:
        """Check that the file is still the one that was opened.

        Raises:
            InputError: it was written or replaced.
        """
        self._handle.file.check()

    def _place(self, name: str) -> None:
        """Put a tensor into the table of modules and roles."""
        found = role_of(name)
        kind = other_kind(name) if found is None else None
        if found is None or (kind := other_kind(name)):
            if kind:
                raise InputError(f"{self._where} is a {kind} ({name[:80]}), which is not supported: use a plain LoRA")
            raise InputError(f"{self._where} holds {name[:200]}, which is neither a lora_A nor a lora_B: not supported")
        stated, role = found.module, found.role
        module = self._modules.find(stated)
        if module is None:
            raise InputError(f"{self._where} changes {stated}, which this model lacks: it is for another model")
        if self._stated.setdefault(module, stated) != stated or role in self._tensors.get(module, {}):
            raise InputError(f"{self._where} changes {module} twice ({name}): several LoRAs in one file are not read")
        if role != "alpha":
            self._check_halves(module, name, found)
        self._tensors.setdefault(module, {})[role] = name

    def _check_halves(self, module: str, name: str, found: LoraName) -> None:
        """Check that a matrix is of the same LoRA, and in the same spelling, as those before it."""
        if self._adapter is None:
            self._adapter = found.adapter
        if found.adapter != self._adapter:
            raise InputError(
                f"{self._where} holds matrices of {found.adapter!r} and of {self._adapter!r} ({name[:80]}): several "
                "LoRAs in one file are not read"
            )
        if self._forms.setdefault(module, found).form != found.form:
            raise InputError(
                f"{self._where} has the two matrices of {found.module} in different spellings ({name[:80]}): they are "
                "not of one LoRA"
            )

    def _note(self, notes: list[str]) -> None:
        """Say what is assumed where a form leaves the scale to other files."""
        silent = [m for m, found in self._tensors.items() if "alpha" not in found]
        if self._settings or not silent:
            return
        if any(self._stated[module].startswith(PEFT_PREFIX) for module in silent):
            lacking = "adapter_config.json is not beside it"
        elif any(self._tensors[module].get("down", "").endswith(".lora_A") for module in silent):
            lacking = "Genmo's metadata is missing"
        else:
            return
        notes.append(f"{self._where} states no alpha ({lacking}): it is taken to equal the rank, as ComfyUI does")

    def deltas(self, source: TensorSource) -> list[tuple[str, _Delta]]:
        """Return (canonical tensor, change of it) of all modules."""
        made = []
        for module, names in self._tensors.items():
            if names.keys() == {"alpha"}:
                raise InputError(f"{self._where} has an alpha for {self._stated[module]}, which it does not change")
            if not {"down", "up"} <= names.keys():
                raise InputError(
                    f"{self._where} has only one of lora_A and lora_B (down and up) for {self._stated[module]}: "
                    "download it again"
                )
            made += self._of_module(module, names, source)
        return made

    def _of_module(self, module: str, names: Mapping[str, str], source: TensorSource) -> list[tuple[str, _Delta]]:
        stated = self._stated[module]
        down, up = self._matrix(names["down"]), self._matrix(names["up"])
        rank = down.shape[0]
        if up[0].numel() != rank:
            raise InputError(
                f"{self._where}: lora_A {list(down.shape)} and lora_B {list(up.shape)} of {stated} differ in rank"
            )
        scale = final_scale(f"{self._where}: {stated}", self._lora.strength, self._scale(stated, rank, names))
        made = []
        places = self._modules.targets[module]
        for name, piece in places:
            shape = tuple(source.shape(name))
            # A Genmo module's rows are those of its pieces together.
            rows = shape[0] * piece.parts
            if (rows, *shape[1:]) != (up.shape[0], *down.shape[1:]):
                raise InputError(
                    f"{self._where} changes {stated} by {[up.shape[0], *down.shape[1:]]}, the model's {name} is "
                    f"{list(shape)}: it is for another model"
                )
            made.append((name, _Delta(f"{self._where}: {stated}", down, up, piece, scale)))
        return made

    def _scale(self, stated: str, rank: int, names: Mapping[str, str]) -> float:
        """Return alpha / rank: 1 where nothing states it. All that state it must say the same.

        Raises:
            InputError: they do not, or a statement is not valid.
        """
        said = {settings.where: settings.scale(stated, rank) for settings in self._settings}
        known = {where: value for where, value in said.items() if value is not None}
        if "alpha" in names:
            known = {names["alpha"]: self._alpha(names["alpha"]) / rank, **known}
        if not known:
            if said:
                raise InputError(f"{self._where} changes {stated}: its metadata gives no alpha for that")
            return 1.0
        (first, scale), *others = known.items()
        for where, value in others:
            if abs(value - scale) > _SAME * max(abs(value), abs(scale)):
                raise InputError(
                    f"{self._where}: {first} says alpha/rank {scale:g} for {stated}, {where} says {value:g}: remove "
                    "the one that is wrong"
                )
        return scale

    def _alpha(self, name: str) -> float:
        """Return the number in a tensor of alpha."""
        value = self._read(name, (*_FLOATS, "I64", "I32", "I16", "I8", "U8"))
        if value.numel() != 1:
            raise InputError(f"{self._where}: {name} has shape {list(value.shape)}, but must be one number")
        alpha = float(value)
        if alpha == 0:
            raise InputError(
                f"{self._where}: {name} is 0, which some programs take for the rank and others for 0: "
                "write the alpha that is meant"
            )
        return alpha

    def _matrix(self, name: str) -> torch.Tensor:
        value = self._read(name, _FLOATS)
        if value.ndim < 2 or value.numel() == 0:
            raise InputError(
                f"{self._where}: {name} has shape {list(value.shape)}, but must be a matrix of rank 1 or more"
            )
        return value

    def _read(self, name: str, dtypes: Sequence[str]) -> torch.Tensor:
        """Return a copy of a tensor, so that a later change of the file is not seen."""
        dtype = str(self._handle.get_slice(name).get_dtype())
        if dtype not in dtypes:
            raise InputError(f"{self._where}: {name} is of type {dtype}, but must be one of {', '.join(dtypes)}")
        value = self._handle.get_tensor(name).clone()
        if not value.float().isfinite().all():
            raise InputError(f"{self._where}: {name} holds numbers that are not finite (NaN or infinity)")
        return value
