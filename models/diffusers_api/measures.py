"""Measures that save memory or time on a GPU: accepted with a line where they change nothing, else refused by name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from models.machine.checks import short
from models.machine.errors import InputError

_OFFLOAD = "all three models stay on the mesh"
_ATTENTION = "attention runs in chunks on the chips' own kernel"


# Files of ours, so that a warning names the line of the caller.
_OURS = (f"{Path(__file__).resolve().parents[1]}{os.sep}",)


def tell(on_message: Callable[[str], None] | None, line: str) -> None:
    """Tell the user a line: to `on_message`, else as a warning of the first caller outside of this package."""
    if on_message is not None:
        on_message(line)
    else:
        warnings.warn(line, skip_file_prefixes=_OURS, stacklevel=2)


class Said:
    """Says lines before there is a pipeline, each subject once."""

    def __init__(self, on_message: Callable[[str], None] | None) -> None:
        """Say lines to `on_message`, or as warnings."""
        self._on_message, self.told = on_message, set[str]()

    def __call__(self, subject: str, line: str) -> None:
        """Say a line about a subject."""
        if subject not in self.told:
            self.told.add(subject)
            tell(self._on_message, line)


class Measures:
    """Methods of Diffusers' `DiffusionPipeline` that are about a GPU, or about files that are not of the mesh."""

    _told: set[str]
    _on_message: Callable[[str], None] | None

    def say(self, subject: str, line: str) -> None:
        """Tell the user a line, once for each subject: to `on_message`, else as a warning."""
        if subject not in self._told:
            self._told.add(subject)
            tell(self._on_message, line)

    def _not_needed(self, method: str, why: str) -> None:
        self.say(method, f"{method} is not needed: {why}")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pipeline, which stays on the mesh that it was opened on.

        Raises:
            InputError: another type of numbers is asked for than the pipeline's, which was chosen when it was opened.
        """
        import torch

        asked = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
        self._not_needed("to", "the models are on the mesh already, and stay there")
        if asked:
            self.say(f"to {asked}", f"to({short(str(asked[0]))}) changes nothing: precision= of from_pretrained does")
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Do nothing: all models are on the mesh."""
        self._not_needed("enable_model_cpu_offload", _OFFLOAD)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Do nothing: all models are on the mesh."""
        self._not_needed("enable_sequential_cpu_offload", _OFFLOAD)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: all models are on the mesh."""
        self._not_needed("enable_group_offload", _OFFLOAD)

    def maybe_free_model_hooks(self) -> None:
        """Do nothing: there are no hooks."""

    def remove_all_hooks(self) -> None:
        """Do nothing: there are no hooks."""

    def reset_device_map(self) -> None:
        """Do nothing: the layout is the mesh's."""

    def enable_vae_tiling(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: frames lie cut over the chips."""
        self._not_needed("enable_vae_tiling", "whole frames lie cut over the chips, without seams")

    def disable_vae_tiling(self) -> None:
        """Do nothing."""

    def enable_vae_slicing(self) -> None:
        """Do nothing: videos are decoded one by one."""
        self._not_needed("enable_vae_slicing", "videos are decoded one by one")

    def disable_vae_slicing(self) -> None:
        """Do nothing."""

    def enable_attention_slicing(self, slice_size: str | int = "auto") -> None:
        """Do nothing: attention is chunked."""
        self._not_needed("enable_attention_slicing", _ATTENTION)

    def set_attention_slice(self, slice_size: int | None) -> None:
        """Do nothing: attention is chunked."""
        self._not_needed("set_attention_slice", _ATTENTION)

    def disable_attention_slicing(self) -> None:
        """Do nothing."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Do nothing: attention is the chips' own."""
        self._not_needed("enable_xformers_memory_efficient_attention", _ATTENTION)

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Any = None) -> None:
        """Do nothing: attention is the chips' own."""
        self._not_needed("set_use_memory_efficient_attention_xformers", _ATTENTION)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Do nothing."""

    def enable_lora_hotswap(self, **kwargs: Any) -> None:
        """Do nothing: LoRAs are merged into the weights, so that ranks do not matter."""
        self._not_needed("enable_lora_hotswap", "LoRAs are merged into the weights, so that ranks do not matter")

    def set_lora_device(self, adapter_names: Sequence[str], device: Any) -> None:
        """Do nothing: LoRAs are merged into the weights on the mesh."""
        self._not_needed("set_lora_device", "LoRAs are merged into the weights on the mesh")

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the mesh holds weights in its own form.

        Raises:
            InputError: always.
        """
        raise InputError(
            "save_pretrained is not taken: the mesh holds weights in a form of its own, rounded; copy the checkpoint's "
            "folder, or save with Diffusers"
        )

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: see `save_pretrained`.

        Raises:
            InputError: always.
        """
        raise InputError("push_to_hub is not taken: nothing is saved here (see save_pretrained); upload the checkpoint")

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: see `save_pretrained`.

        Raises:
            InputError: always.
        """
        raise InputError("save_config is not taken: copy model_index.json of the checkpoint's folder")

    @classmethod
    def save_lora_weights(cls, save_directory: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: nothing is trained here.

        Raises:
            InputError: always.
        """
        raise InputError("save_lora_weights is not taken: nothing is trained here; use diffusers.MochiPipeline's")

    def enable_freeu(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: FreeU weighs the skips of a U-Net, which Mochi's transformer does not have.

        Raises:
            InputError: always.
        """
        raise InputError("enable_freeu is not taken: FreeU weighs the skips of a U-Net, and Mochi has none")

    def disable_freeu(self) -> None:
        """Do nothing."""

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> NoReturn:
        """Refuse: one pipeline serves any number of calls.

        Raises:
            InputError: always.
        """
        raise InputError(
            "from_pipe is not taken: one pipeline serves any number of calls; open others on the same mesh with "
            "from_pretrained(..., mesh=open_mesh(...))"
        )

    @classmethod
    def from_config(cls, config: Any = None, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a pipeline has weights.

        Raises:
            InputError: always.
        """
        raise InputError("from_config is not taken: a pipeline needs weights; use from_pretrained")

    def register_modules(self, **kwargs: Any) -> NoReturn:
        """Refuse: models are loaded by `from_pretrained`.

        Raises:
            InputError: always.
        """
        raise InputError("register_modules is not taken: give transformer=, vae= or text_encoder= to from_pretrained")
