"""LoRAs of a pipeline: Diffusers' methods, and the weights on the mesh that follow them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.diffusers_api.adapters import TRANSFORMER, Adapters, found
from models.machine.errors import InputError
from models.mochi.reuse import Weights
from weight_cache.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.mochi.setup import Setup
    from weight_cache.checkpoints.lora import LoraRequest
    from weight_cache.store import Message, Progress


class Loras:
    """Methods of Diffusers' `Mochi1LoraLoaderMixin`. `models.diffusers_api.adapters` says what they mean."""

    _adapters: Adapters | None = None
    _lora_scale = 1.0
    _merged: tuple[LoraRequest, ...] | None = ()
    _setup: Setup | None
    _load_progress: Progress | None
    _on_message: Message | None
    _transformer: Any
    parallel: Any
    _tell: Callable[..., None]

    @property
    def _books(self) -> Adapters:
        if self._adapters is None:
            raise InputError("a pipeline of single parts has no checkpoint to merge LoRAs into: use from_pretrained")
        return self._adapters

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA; it becomes the only active one, with weight 1.

        Weights are merged on the host, so the transformer is loaded again, before the next call that denoises.

        Args:
            pretrained_model_name_or_path_or_dict: a .safetensors file, a folder with one, a Hugging Face id, or a
                state dict.
            adapter_name: its name; `default_0` and so on if None.
            hotswap: put it in the place of the one of that name.
            kwargs: `weight_name`, the file in a folder, `subfolder`, and those of the hub: `local_files_only`,
                `cache_dir`, `revision`, `token`.

        Raises:
            InputError: the name is in use, the LoRA does not fit, or an argument is unknown.
            MissingInputError: there is no such file.
        """
        known = ("weight_name", "subfolder", "local_files_only", "cache_dir", "revision", "token")
        where = {name: kwargs.pop(name) for name in known if name in kwargs}
        if kwargs.pop("use_safetensors", True) is False:
            raise InputError("use_safetensors must be true: pickles are not read")
        kwargs.pop("low_cpu_mem_usage", None)  # Of Diffusers' own layers; there are none here.
        if kwargs:
            raise InputError(f"load_lora_weights has no argument {sorted(kwargs)[0]!r}")
        self._books.load(pretrained_model_name_or_path_or_dict, adapter_name, hotswap=hotswap, **where)

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> Any:
        """Return the tensors of a LoRA file, or a state dict as it is.

        Raises:
            InputError: the file cannot be read.
        """
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, Mapping):
            return dict(source)
        from weight_cache.checkpoints.component import open_safetensors

        handle = open_safetensors(found(source, **kwargs))
        return {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118 (not a mapping)

    def set_adapters(self, adapter_names: str | list[str], adapter_weights: Any = None) -> None:
        """Make some LoRAs the active ones and set their weights; see `models.diffusers_api.adapters`."""
        self._books.activate(adapter_names, adapter_weights)

    def get_active_adapters(self) -> list[str]:
        """Return the names of the active LoRAs."""
        return list(self._books.active)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the loaded LoRAs by component; `{}` if there are none."""
        return {TRANSFORMER: list(self._books.loaded)} if self._books.loaded else {}

    def fuse_lora(
        self,
        components: Sequence[str] = (TRANSFORMER,),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fuse active LoRAs, or those of `adapter_names`; merged weights are always checked to be finite."""
        if kwargs:
            raise InputError(f"fuse_lora has no argument {sorted(kwargs)[0]!r}")
        self._books.fuse(components, lora_scale, adapter_names)

    def unfuse_lora(self, components: Sequence[str] = (TRANSFORMER,), **kwargs: Any) -> None:
        """Take out what is fused; what was unloaded since stays."""
        if kwargs:
            raise InputError(f"unfuse_lora has no argument {sorted(kwargs)[0]!r}")
        self._books.unfuse(components)

    def unload_lora_weights(self) -> None:
        """Forget all LoRAs; what is fused stays in the weights."""
        self._books.unload()

    def delete_adapters(self, adapter_names: str | list[str]) -> None:
        """Forget some LoRAs."""
        self._books.delete(adapter_names)

    def disable_lora(self) -> None:
        """Turn all LoRAs off; what is fused and not unloaded is taken out."""
        self._books.enable(enabled=False)

    def enable_lora(self) -> None:
        """Turn the active LoRAs on again."""
        self._books.enable(enabled=True)

    @property
    def num_fused_loras(self) -> int:
        """How many LoRAs are fused."""
        return len(self._books.fused_names)

    @property
    def fused_loras(self) -> set[str]:
        """Names of fused LoRAs."""
        return set(self._books.fused_names)

    @property
    def lora_scale(self) -> float:
        """The scale of `attention_kwargs` of the running call; 1 without one."""
        return self._lora_scale

    def _wanted(self) -> tuple[LoraRequest, ...]:
        """Return the LoRAs that the transformer's weights must hold for a call."""
        if self._adapters is None or self._setup is None:
            return ()
        return (*self._setup.loras, *self._adapters.requests(self._lora_scale))

    def _weights_with(self, loras: Sequence[LoraRequest]) -> Weights:
        setup = self._setup
        assert setup is not None
        assert setup.checkpoint is not None
        return Weights(setup.checkpoint.transformer.fingerprint, setup.precision.name, loras)

    def _merge(self, loras: tuple[LoraRequest, ...]) -> None:
        """Load the transformer again if its weights hold other LoRAs."""
        setup = self._setup
        if setup is None or loras == self._merged:
            return
        assert setup.checkpoint is not None
        said = ", ".join(lora.name for lora in loras) or "none"
        self._tell(f"the transformer is loaded again, because its LoRAs changed: {said} (merged on the host)")
        self._merged = None  # Whatever interrupts the loading, the next call begins it anew.
        modules = [self._transformer, *([] if self.parallel is None else [self.parallel.unconditional])]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for module in modules:
                Store(setup.request.cache_dir).load(
                    module,
                    setup.checkpoint.transformer,
                    precision=setup.precision.weights,
                    loras=loras,
                    progress=self._load_progress,
                    on_message=self._on_message,
                )
        self._merged = loras
