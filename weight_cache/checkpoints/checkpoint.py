"""Checkpoints: the components that a pipeline is made of, in any form.

A Diffusers-layout checkpoint is a directory with `model_index.json` and one folder per component. `Repackaged` is a
checkpoint in one of the forms of Genmo or ComfyUI. Nothing here loads a whole component: a caller asks for a key, gets
that tensor, and can free it before the next.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from models.machine.checks import short
from models.machine.errors import InputError, MissingInputError
from models.machine.paths import exists, is_dir, is_file, is_taken
from weight_cache.checkpoints import TINY
from weight_cache.checkpoints.component import Component, read_json
from weight_cache.checkpoints.encoder_form import encoder_prefix, open_encoder
from weight_cache.checkpoints.forms import (
    RepackagedComponent,
    has_decoder,
    has_text_encoder,
    open_decoder,
    open_text_encoder,
    open_transformer,
)
from weight_cache.checkpoints.gguf_file import is_gguf
from weight_cache.checkpoints.split_files import beside, transformer_in

__all__ = ["CLASSES", "Checkpoint", "Component", "Repackaged", "resolve"]

PIPELINE_CLASS = "MochiPipeline"
# Component -> the class that its config must name.
CLASSES = {
    "transformer": "MochiTransformer3DModel",
    "vae": "AutoencoderKLMochi",
    "text_encoder": "T5EncoderModel",
}
# Part without weights -> classes that the pipeline's index may name.
_OTHER_CLASSES = {
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}
# Classes that contain one of these -> beginnings of the names of their other tensors.
_LARGER = {"text_encoder": {"T5ForConditionalGeneration": ("decoder.", "lm_head.")}}
_MEND = "download it again"
GENMO_TRANSFORMER, GENMO_DECODER, GENMO_ENCODER = "dit.safetensors", "decoder.safetensors", "encoder.safetensors"
# Scheduler settings that Mochi is sampled with (huggingface/diffusers `scripts/convert_mochi_to_diffusers.py`).
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}
# Default source of the components that a Genmo or ComfyUI checkpoint does not have.
DEFAULT_BASE = "genmo/mochi-1-preview"


class Checkpoint:
    """A Diffusers-layout Mochi checkpoint directory. Opening it reads only small JSON files.

    `home` names the implementation whose form it is: `diffusers`, `genmo` or `comfyui`. `index` is what
    `model_index.json` holds, `{}` in the other forms.
    """

    home = "diffusers"
    index: dict[str, Any]

    def __init__(self, directory: str | Path, variant: str | None = None, source: str | None = None):
        """Open `directory`.

        Args:
            directory: directory with `model_index.json` and the component folders.
            variant: e.g. `"bf16"` for files named `*.bf16*.safetensors`. As in Diffusers, a component without such
                files is read from its plain ones, but at least one component must have them. None for the plain files,
                or the only variant that there is.
            source: the user's name for the checkpoint, for messages; the directory by default.

        Raises:
            FileNotFoundError: the directory, its `model_index.json` or a component folder is missing.
            ValueError: it is a pipeline of another class, or one with parts of other classes, or no component has
                `variant`.
        """
        self.directory = Path(directory)
        self.variant = variant
        self.source = source or str(directory)
        if not is_dir(self.directory):
            raise MissingInputError(f"no checkpoint directory at {self.directory}")
        if not is_file(self.directory / "model_index.json"):
            hint = _what_it_is(self.directory)
            raise MissingInputError(
                f"{self.directory} has no model_index.json{hint}: expected a Diffusers-layout directory "
                f"with {', '.join([*CLASSES, 'tokenizer', 'scheduler'])}"
            )
        self.index = read_json(self.directory / "model_index.json")
        named = self.index.get("_class_name")
        if named != PIPELINE_CLASS:
            raise InputError(f"{self.directory} is a checkpoint of {named}, not of {PIPELINE_CLASS}")
        for name in (*CLASSES, "tokenizer", "scheduler"):
            if not is_dir(self.directory / name):
                raise MissingInputError(f"checkpoint {self.directory} lacks its component folder {name}/")
        self._check_index()
        self.transformer: Component = self._component("transformer")
        self.vae: Component = self._component("vae")
        self.text_encoder: Component = self._component("text_encoder")
        if variant is not None and not any(c.has_variant for c in self.components):
            raise InputError(
                f"no component of {self.directory} has weights of variant {variant!r}: leave the "
                "variant out, or download the files named *." + variant + "*.safetensors"
            )

    @classmethod
    def open(cls, source: str | Path, variant: str | None = None, base: str | Path | None = None) -> Checkpoint:
        """Open the checkpoint that a user names, in whatever form it is.

        Args:
            source: a directory in Diffusers' or Genmo's layout, a ComfyUI .safetensors file, a cached Hugging Face id,
                or `tiny`; see `resolve`.
            variant: variant of the weight files, for a Diffusers layout.
            base: for the other forms; see `Repackaged`.

        Raises:
            FileNotFoundError: the checkpoint or a part of it is missing.
            ValueError: it is a checkpoint of another model, or an argument does not go with its form.
        """
        path = resolve(source)
        if is_dir(path) and not is_file(path / "model_index.json"):
            path = transformer_in(path) or path
        genmo = is_file(path) or (is_file(path / GENMO_TRANSFORMER) and not is_file(path / "model_index.json"))
        if not genmo:
            if base is not None and is_file(path / "model_index.json"):
                raise InputError(f"base is for Genmo's and ComfyUI's forms, and {source} is in Diffusers layout")
            return cls(path, variant, str(source))
        if variant is not None:
            raise InputError(f"variant {variant!r} is for Diffusers layouts, and {source} is in another form")
        return Repackaged(path, base, str(source))

    @property
    def components(self) -> tuple[Component, Component, Component]:
        """The components that have weights: transformer, vae, text_encoder."""
        return self.transformer, self.vae, self.text_encoder

    @cached_property
    def vae_encoder(self) -> Component:
        """The component with the weights of the VAE's encoder, and the configuration that they need.

        Raises:
            MissingInputError: there are none.
        """
        if not any(key.startswith("encoder.") for key in self.vae.keys()):  # noqa: SIM118 (not a mapping)
            raise MissingInputError(
                f"the vae of {self.source} has no encoder, which reads videos and images: {_MEND} whole"
            )
        return self.vae

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer's files, for `transformers`."""
        return self._folder("tokenizer")

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        """The scheduler's configuration."""
        path = self._folder("scheduler") / "scheduler_config.json"
        if not is_file(path):
            raise MissingInputError(f"checkpoint component scheduler has no {path.name} in {path.parent}")
        return read_json(path)

    def optional_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file beside `model_index.json`; return `{}` if there is none."""
        path = self.directory / name
        return read_json(path) if is_taken(path) else {}

    def identity(self) -> dict[str, Any]:
        """Return the facts that distinguish this checkpoint from others: its source and a fingerprint per component."""
        return {"source": self.source, "variant": self.variant} | {
            c.name: {"class": c.class_name, "fingerprint": c.fingerprint()} for c in self.components
        }

    def _folder(self, name: str) -> Path:
        return self.directory / name

    def _check_index(self) -> None:
        """Check that the index names Mochi's class of each part that it names, as `[library, class]`."""
        allowed = {name: (kind, *_LARGER.get(name, ())) for name, kind in CLASSES.items()} | _OTHER_CLASSES
        for name, kinds in allowed.items():
            stated = self.index.get(name, (None, kinds[0]))
            if not isinstance(stated, list | tuple) or len(stated) != 2 or stated[1] not in kinds:
                raise InputError(
                    f"{self.directory / 'model_index.json'} says {short(stated)} of {name}, but Mochi's is a "
                    f"{' or a '.join(kinds)}: it is another model, or download it again"
                )

    def _component(self, name: str) -> Component:
        component = Component(self._folder(name), variant=self.variant)
        component.require_class(CLASSES[name], _LARGER.get(name))
        return component


class Repackaged(Checkpoint):
    """A checkpoint in Genmo's layout, a single ComfyUI file, or ComfyUI's split files, named by the transformer's.

    It holds the transformer and perhaps the VAE's decoder and the text encoder. Other components come from
    Diffusers-layout folders beside it, from ComfyUI's files beside it (see `split_files`), or from `base`; the
    tokenizer is in none of ComfyUI's files.
    """

    def __init__(self, path: str | Path, base: str | Path | None = None, source: str | None = None):
        """Open `path`, reading only headers and small JSON files.

        Args:
            path: a directory with `dit.safetensors` (and `decoder.safetensors`), or a .safetensors file.
            base: a Diffusers-layout directory or cached Hugging Face id for the components that `path` lacks;
                `genmo/mochi-1-preview` in the local cache by default.
            source: the user's name for the checkpoint.

        Raises:
            FileNotFoundError: a component is neither here nor in `base`; the message names it.
            ValueError: a file is of another model, or incomplete.
        """
        path = Path(path)
        self.directory = path if is_dir(path) else path.parent
        self.variant = None
        self.source = source or str(path)
        self.index = {}
        self._base = base
        # A single file is ComfyUI's, unless it is the one that Genmo's layout has.
        self.home = "genmo" if is_dir(path) or path.name == GENMO_TRANSFORMER else "comfyui"
        file = path / GENMO_TRANSFORMER if is_dir(path) else path
        if not is_file(file):
            raise MissingInputError(f"{path} has no {GENMO_TRANSFORMER}")
        self.transformer = open_transformer(file)
        inside = has_decoder(file)
        if inside is not None:
            self.vae = open_decoder(file, inside)
        elif is_taken(self.directory / GENMO_DECODER):
            self.vae = open_decoder(self.directory / GENMO_DECODER)
        elif not is_taken(self.directory / "vae" / "config.json") and (found := beside(file, "vae")):
            self.vae = open_decoder(found)
        else:
            self.vae = self._component("vae")
        text = has_text_encoder(file)
        if text is not None:
            self.text_encoder = open_text_encoder(file, text)
        elif not is_taken(self.directory / "text_encoder") and (found := beside(file, "text_encoder")):
            self.text_encoder = open_text_encoder(found)
        else:
            self.text_encoder = self._component("text_encoder")
        self._folder("tokenizer")

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        """The scheduler's configuration, or Mochi's own if there is none beside the files."""
        path = self.directory / "scheduler" / "scheduler_config.json"
        return read_json(path) if is_taken(path) else dict(_SCHEDULER)

    @cached_property
    def vae_encoder(self) -> Component:
        """The VAE's encoder: beside the decoder, in its file, or in the component that has both."""
        if not isinstance(self.vae, RepackagedComponent):
            return super().vae_encoder
        beside_it = self.directory / GENMO_ENCODER
        for path in (*self.vae.files, *([beside_it] if is_taken(beside_it) else [])):
            prefix = encoder_prefix(path)
            if prefix is not None:
                return open_encoder(path, prefix)
        raise MissingInputError(
            f"{self.source} lacks {GENMO_ENCODER}, the VAE's encoder, which reads videos and images: download it "
            f"beside {self.vae.files[0].name}"
        )

    def _folder(self, name: str) -> Path:
        if is_taken(self.directory / name):
            if not is_dir(self.directory / name):
                raise MissingInputError(f"{self.directory / name} is no folder, or a link to none: {_MEND}")
            return self.directory / name
        try:
            folder = resolve(self._base if self._base is not None else DEFAULT_BASE) / name
        except FileNotFoundError as error:
            raise MissingInputError(
                f"{self.source} lacks {name}/, and so does its base: {error}; copy the folder beside it, or name a "
                "Diffusers-layout checkpoint as base"
            ) from error
        if not is_dir(folder):
            raise MissingInputError(f"{self.source} lacks {name}/, and its base {folder.parent} has none either")
        return folder


def _what_it_is(directory: Path) -> str:
    """Return what a directory without `model_index.json` seems to be, in brackets; "" if it is unknown."""
    if exists(directory / GENMO_TRANSFORMER):
        return " (it looks like Genmo's own layout: use Checkpoint.open)"
    if exists(directory / "dit.pt"):
        return (
            " (it has dit.pt, Genmo's weights as a pickle, which may run programs and is not read: download "
            f"{GENMO_TRANSFORMER} in its place, `mochi-tt download --genmo`)"
        )
    if exists(directory / "adapter_config.json") or exists(directory / "pytorch_lora_weights.safetensors"):
        return " (it is a LoRA: give it with --lora, beside a model)"
    if exists(directory / "config.json"):
        return " (it is one component: give the directory above it)"
    return ""


def resolve(source: str | Path) -> Path:
    """Return the directory or file of the checkpoint that a user names.

    Args:
        source: a directory, a .safetensors or a .gguf file; or the id of a Hugging Face repository such as
            `genmo/mochi-1-preview` that is already in the local hub cache (nothing is downloaded); or `tiny`, the
            trained model that ships with the package (`./tiny` is a directory of that name). A directory takes
            precedence over an id with the same name.

    Raises:
        FileNotFoundError: the source is none of these.
    """
    text = str(source)
    if source == "tiny":
        return TINY
    if not text.strip():
        raise MissingInputError("the name of the checkpoint is empty: give a directory, a file, an id, or tiny")
    if is_dir(source) or (is_file(source) and (Path(source).suffix == ".safetensors" or is_gguf(source))):
        return Path(source)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(text, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise MissingInputError(
                f"{text} is neither a directory nor in the local Hugging Face cache: download it with "
                f"`mochi-tt download {text}`, or give a directory"
            ) from error
    raise MissingInputError(
        f"no checkpoint at {text}: give a directory in Diffusers' or Genmo's layout, a ComfyUI .safetensors or .gguf "
        "file, a Hugging Face id already in the local cache, or the built-in name tiny"
    )
