"""LoRAs by name, as Diffusers and PEFT keep them: loaded, weighted, fused, and taken off again.

`Adapters` only keeps books; `requests` says what is to be merged into the weights for the next call. What counts:

- A LoRA that is loaded becomes the only active one, with weight 1.
- `fuse` adds the active ones, or those named, to the base weights. As long as any is fused, a module that one of them
  changes takes no others. `unload` forgets all names; what is fused stays from then on.
- `disable` turns all off; what was fused and not unloaded is taken out again.

Files are copied to a temporary folder when they are loaded: PEFT has their weights in memory from then on.

Sources: huggingface/diffusers `loaders/lora_base.py`, `loaders/peft.py`; huggingface/peft `tuners/tuners_utils.py`,
`tuners/lora/layer.py`. One thing differs: `unfuse` takes out what `fuse` added, also if weights were changed between.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from models.machine.checks import number, short
from models.machine.errors import InputError, MachineError, MissingInputError
from models.machine.paths import is_dir, is_file
from weight_cache.checkpoints.lora import FOLDER_FILES, LoraRequest, LoraSource
from weight_cache.checkpoints.lora_scale import settings_beside

if TYPE_CHECKING:
    import torch

    from weight_cache.checkpoints.component import Component

TRANSFORMER = "transformer"


@dataclass(frozen=True)
class Adapter:
    """A loaded LoRA.

    Attributes:
        path: the pipeline's own copy of its file.
        tensors: names of the tensors that it changes.
        weight: its present weight.
    """

    path: Path
    tensors: frozenset[str]
    weight: float = 1.0


@dataclass
class Adapters:
    """The LoRAs of a pipeline.

    Attributes:
        component: the transformer's weights, which files are checked against.
        tell: called with a subject and a line for the user.
        loaded: by name, in the order of loading.
        active: names of those that take part.
        fused_names: what Diffusers lists as fused.
    """

    component: Component
    tell: Callable[[str, str], None]
    loaded: dict[str, Adapter] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    fused_names: set[str] = field(default_factory=set)
    _merged: dict[str, LoraRequest] = field(default_factory=dict)
    _permanent: list[LoraRequest] = field(default_factory=list)
    _disabled: bool = False
    _files: tempfile.TemporaryDirectory[str] | None = None

    def load(
        self,
        source: str | Path | Mapping[str, Any],
        name: str | None,
        *,
        hotswap: bool = False,
        **where: Any,
    ) -> None:
        """Load a LoRA from a file, a folder or a state dict; it becomes the only active one.

        Args:
            source: see `found`.
            name: of the LoRA; `default_0` and so on if None.
            hotswap: put it in the place of the one of that name, whose weight stays.
            where: see `found`.

        Raises:
            InputError: the name is taken, or the LoRA does not fit.
            MissingInputError: there is no such file.
        """
        if name is not None and (not isinstance(name, str) or not name):
            raise InputError(f"adapter_name {short(name)} must be a text that is not empty, or None")
        if hotswap and name not in self.loaded:
            raise InputError(
                f"hotswap puts a LoRA in the place of another, but there is none of the name {short(name)}"
            )
        if name in self.loaded and not hotswap:
            raise InputError(f"adapter_name {name!r} is in use: choose another one, or hotswap=True to replace it")
        given = self._written(source) if isinstance(source, Mapping) else found(source, **where)
        # The user's own file is checked first: messages then name it, and not our copy.
        tensors = LoraSource(self.component, [LoraRequest.of((given, 1.0))]).changed()
        path = given if isinstance(source, Mapping) else self._copied(given)
        if hotswap:
            assert name is not None
            self.loaded[name] = replace(self.loaded[name], path=path, tensors=frozenset(tensors))
            return
        chosen = name or f"default_{len(self.loaded)}"
        if chosen in self.loaded:
            raise InputError(f"adapter_name {chosen!r} is in use: name this one with adapter_name=")
        self.loaded[chosen] = Adapter(path, frozenset(tensors))
        self.active = [chosen]
        self._merged.clear()

    def activate(self, names: str | Sequence[str], weights: Any = None) -> None:
        """Make some LoRAs the active ones, and set their weights: 1 where nothing is given.

        Raises:
            InputError: a name is not loaded, or the weights are not as many, or no numbers.
        """
        chosen = names_of("adapter_names", names)
        missing = [name for name in chosen if name not in self.loaded]
        if missing:
            raise InputError(f"adapter {short(missing[0])} is not loaded: there are {short(list(self.loaded))}")
        if not chosen:
            raise InputError("adapter_names is empty: turn LoRAs off with disable_lora()")
        given = list(weights) if isinstance(weights, list | tuple) else [weights] * len(chosen)
        if len(given) != len(chosen):
            raise InputError(f"{len(given)} adapter_weights for {len(chosen)} adapters: give one each")
        numbers = [self._weight(weight) for weight in given]
        for name, weight in zip(chosen, numbers, strict=True):
            self.loaded[name] = replace(self.loaded[name], weight=weight)
        self.active = chosen

    def fuse(self, components: Sequence[str], scale: float = 1.0, names: Sequence[str] | None = None) -> None:
        """Fuse the active LoRAs, or those of `names` that are loaded; `scale` multiplies the active ones' weights.

        Raises:
            InputError: another component than the transformer, or the scale is no number.
        """
        check_components(components)
        scale = number("lora_scale", scale)
        for name in self.active:
            self.loaded[name] = replace(self.loaded[name], weight=self.loaded[name].weight * scale)
        for name in self.active if names is None else names_of("adapter_names", names):
            if name in self.loaded and name not in self._merged:
                self._merged[name] = self._request(name)
                self.fused_names.add(name)

    def unfuse(self, components: Sequence[str]) -> None:
        """Take out what is fused; what was unloaded since stays.

        Raises:
            InputError: another component than the transformer.
        """
        check_components(components)
        self._merged.clear()
        self.fused_names.clear()

    def unload(self) -> None:
        """Forget all LoRAs; what is fused stays in the weights."""
        self._permanent += self._merged.values()
        self._merged.clear()
        self.loaded.clear()
        self.active.clear()
        self._disabled = False

    def delete(self, names: str | Sequence[str]) -> None:
        """Forget some LoRAs; of names that are not loaded there is nothing to forget."""
        for name in names_of("adapter_names", names):
            if name not in self.loaded:
                continue
            del self.loaded[name]
            was_active = name in self.active
            self.active = [other for other in self.active if other != name]
            if was_active and not self.active and self.loaded:
                self.active = [next(iter(self.loaded))]
                self.tell(f"delete {name}", f"LoRA {name} was active and is deleted: now {self.active[0]} is active")
            if name in self._merged:
                self._permanent.append(self._merged.pop(name))

    def enable(self, *, enabled: bool) -> None:
        """Turn all LoRAs on or off; what is fused and not unloaded is taken out by turning off."""
        self._disabled = not enabled

    def requests(self, scale: float = 1.0) -> tuple[LoraRequest, ...]:
        """Return what is to be merged into the weights for a call.

        Args:
            scale: of `attention_kwargs`; multiplies the weights of active LoRAs that are not fused.

        Raises:
            InputError: some modules of an active LoRA take it, and others are closed to it by a fused one.
        """
        if self._disabled:
            self._merged.clear()
            return tuple(self._permanent)
        made = [*self._permanent, *self._merged.values()]
        closed = frozenset[str]().union(*(self.loaded[name].tensors for name in self._merged))
        for name in self.active:
            if name in self._merged:
                continue
            tensors = self.loaded[name].tensors
            if tensors & closed and not tensors <= closed:
                raise InputError(
                    f"LoRA {name} changes modules of which {short(sorted(self._merged))} is fused into some: fuse "
                    "both, or unfuse_lora() first"
                )
            if tensors <= closed:
                self.tell(
                    f"closed {name}",
                    f"LoRA {name} has no effect while {', '.join(sorted(self._merged))} is fused (as in Diffusers): "
                    "fuse it too, or call unfuse_lora()",
                )
                continue
            made.append(self._request(name, scale))
        return tuple(request for request in made if request.strength != 0)

    def close(self) -> None:
        """Delete the files that state dicts were written to."""
        if self._files is not None:
            self._files.cleanup()
            self._files = None

    def _request(self, name: str, scale: float = 1.0) -> LoraRequest:
        adapter = self.loaded[name]
        return LoraRequest(adapter.path, adapter.weight * scale)

    def _weight(self, value: Any) -> float:
        if isinstance(value, Mapping):
            others = sorted(set(value) - {TRANSFORMER})
            if others:
                self.tell("weights", f"adapter_weights of {short(others)} are of no component with LoRAs: left out")
            value = value.get(TRANSFORMER)
        if isinstance(value, Mapping):
            raise InputError("adapter_weights by block are not taken: give one number per LoRA")
        return 1.0 if value is None else number("adapter_weights", value)

    def _written(self, tensors: Mapping[str, torch.Tensor]) -> Path:
        """Write a state dict to a file of the pipeline's own.

        Raises:
            InputError: it holds something other than tensors.
        """
        import torch
        from safetensors.torch import save_file

        for name, value in tensors.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise InputError(f"a LoRA's state dict must map names to tensors, not {short(name)} to {short(value)}")
        if not tensors:
            raise InputError("the LoRA's state dict is empty")
        path = self._folder() / "state_dict.safetensors"
        with _keeping(path):
            save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)
        return path

    def _copied(self, file: Path) -> Path:
        """Copy a file, with the settings beside it that belong to it: whatever becomes of it, the LoRA stays.

        Raises:
            MachineError: there is no space.
        """
        folder = self._folder()
        beside, belongs = settings_beside(file) or (file, False)
        with _keeping(file):
            if belongs:
                shutil.copyfile(beside, folder / beside.name)
            return Path(shutil.copyfile(file, folder / file.name))

    def _folder(self) -> Path:
        """Return a new folder of the pipeline's own."""
        if self._files is None:
            self._files = tempfile.TemporaryDirectory(prefix="mochi-tt-lora-")
        return Path(tempfile.mkdtemp(dir=self._files.name))


@contextlib.contextmanager
def _keeping(path: Path) -> Iterator[None]:
    """Say of a LoRA that cannot be written where it is kept.

    Raises:
        MachineError: it cannot.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MachineError(
            f"the LoRA {path.name} cannot be copied to {tempfile.gettempdir()} ({reason}): make space there, or set "
            "TMPDIR to another directory"
        ) from error


def found(
    source: Any,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    local_files_only: bool = False,
    **hub: Any,
) -> Path:
    """Return the file of a LoRA that a user names: a file, a folder, or a Hugging Face id.

    Args:
        source: of these.
        weight_name: of the file in a folder.
        subfolder: of the folder.
        local_files_only: do not download.
        hub: `cache_dir`, `revision` and `token` of the hub.

    Raises:
        InputError: it is none of them, or a folder has several.
        MissingInputError: it is not there.
    """
    if not isinstance(source, str | Path) or not str(source):
        raise InputError(f"a LoRA is a path, a Hugging Face id or a state dict, not {short(source)}")
    for name, value in (("weight_name", weight_name), ("subfolder", subfolder)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{name} {short(value)} must be a text")
    path = Path(source).expanduser()
    if is_file(path):
        if weight_name not in (None, path.name):
            raise InputError(f"weight_name {short(weight_name)} is not the file {path}: leave it out")
        return LoraRequest.of((path, 1.0)).path
    if path.suffix == ".safetensors":
        raise MissingInputError(f"LoRA {path} does not exist: give a .safetensors file that is there")
    if not is_dir(path):
        path = _of_hub(str(source), weight_name, local_files_only=local_files_only, **hub)
    path = path / (subfolder or "")
    if weight_name is not None:
        path = path / weight_name
    elif not any(is_file(path / name) for name in FOLDER_FILES):
        inside = sorted(path.glob("*.safetensors"))
        if len(inside) > 1:
            raise InputError(f"the folder {path} has {len(inside)} .safetensors files: name one with weight_name=")
        path = inside[0] if inside else path
    return LoraRequest.of((path, 1.0)).path


def _of_hub(name: str, weight_name: str | None, *, local_files_only: bool, **hub: Any) -> Path:
    """Return the folder of a Hugging Face id, downloaded if it must be.

    Raises:
        MissingInputError: it is not there.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = [weight_name or "*.safetensors", "*adapter_config.json"]
    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=wanted, local_files_only=local_files_only, **hub)
        )
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise MissingInputError(
            f"no LoRA at {name}: give a .safetensors file, a folder with it, or a Hugging Face id that is in the local "
            f"cache or can be downloaded ({' '.join(str(error).split())[:120]})"
        ) from error


def names_of(what: str, names: Any) -> list[str]:
    """Return one name or several as a list.

    Raises:
        InputError: they are no names.
    """
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, list | tuple | set) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{what} {short(names)} must be a name or a list of names")
    return list(given)


def check_components(components: Any) -> None:
    """Check the components that LoRAs are fused into.

    Raises:
        InputError: there is another than the transformer, or none.
    """
    if names_of("components", components) != [TRANSFORMER]:
        raise InputError(f"components {short(components)} must be ['transformer'], the one that has LoRAs")
