"""What a script reads of a pipeline: its configuration, the state of the last call, the bar of progress.

`component` makes the attributes of the models, which can be read and not replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from models.diffusers_api.components import CLASSES, Config
from models.diffusers_api.loading import check_given_scheduler
from models.machine.checks import short
from models.machine.errors import InputError
from models.machine.extras import require
from models.mochi.text.encoder import MAX_SEQUENCE_LENGTH

if TYPE_CHECKING:
    from models.mochi.defaults import Defaults
    from models.mochi.setup import Setup
    from weight_cache.store import Progress


def bars() -> Progress:
    """Return a `progress` that shows a bar of tqdm for each stage of loading; on a terminal only."""
    from tqdm.auto import tqdm

    bar: Any = None

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None or bar.desc != f"{stage}: ":
            if bar is not None:
                bar.close()
            bar = tqdm(total=total, desc=stage, disable=None, leave=False)
            bar.desc = f"{stage}: "
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return progress


class Interrupt:
    """`pipe.interrupt`: true after an interrupt was asked for, as in Diffusers; called, it asks for one, as in ours."""

    def __init__(self, pipe: Any) -> None:
        """Belong to a pipeline."""
        self._pipe = pipe

    def __call__(self) -> None:
        """End the running denoising after its present step; see `models.mochi.pipeline.MochiPipeline.interrupt`."""
        self._pipe._interrupt = True

    def __bool__(self) -> bool:
        return self._pipe._interrupt

    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return str(bool(self))


class Described:
    """Attributes of Diffusers' `MochiPipeline`, for one that has been loaded."""

    vae_temporal_scale_factor = 6
    vae_spatial_scale_factor = 8
    patch_size = 2
    defaults: Defaults
    _components: Mapping[str, Any]
    _setup: Setup | None
    _text_encoder: Any
    _guidance_scale: Any
    _num_timesteps: int | None
    _attention_kwargs: dict[str, Any] | None
    _current_timestep: torch.Tensor | None
    _progress_bar_config: dict[str, Any]

    @property
    def components(self) -> dict[str, Any]:
        """The models by name, as Diffusers has them; None for one that was left out."""
        return dict(self._components)

    @property
    def config(self) -> Config:
        """What Diffusers' `model_index.json` says."""
        forces = getattr(self._text_encoder, "empty_prompt", None) == "zeros"
        setup = self._setup
        name = setup.checkpoint.source if setup is not None and setup.checkpoint is not None else None
        return Config(
            {
                **CLASSES,
                "_class_name": "MochiPipeline",
                "force_zeros_for_empty_prompt": forces,
                "_name_or_path": name,
            }
        )

    @property
    def name_or_path(self) -> str | None:
        """The checkpoint, as the user named it."""
        return self.config["_name_or_path"]

    @property
    def device(self) -> torch.device:
        """Where the tensors are that the pipeline takes and gives: the host."""
        return torch.device("cpu")

    _execution_device = device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the tensors that the pipeline gives."""
        return torch.float32

    @property
    def parameters(self) -> NoReturn:
        """Refuse: weights are on the mesh.

        Raises:
            InputError: always.
        """
        raise InputError("the pipeline has no parameters on the host: weights are on the mesh")

    @property
    def default_height(self) -> int:
        """Rows of a video where a call names none."""
        return self.defaults.height

    @property
    def default_width(self) -> int:
        """Columns of a video where a call names none."""
        return self.defaults.width

    @property
    def tokenizer_max_length(self) -> int:
        """Most tokens of a prompt."""
        return MAX_SEQUENCE_LENGTH

    @property
    def video_processor(self) -> Any:
        """Diffusers' own, which the optional package brings.

        Raises:
            MissingInputError: Diffusers is not installed.
        """
        processor = require("diffusers.video_processor", "diffusers", "pipe.video_processor")
        return processor.VideoProcessor(vae_scale_factor=self.vae_spatial_scale_factor)

    @property
    def guidance_scale(self) -> Any:
        """That of the last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call was guided."""
        scale = self._guidance_scale
        return scale is not None and bool(np.max(scale) > 1)

    @property
    def num_timesteps(self) -> int | None:
        """Steps of the last call; None before the first."""
        return self._num_timesteps

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """That of the last call."""
        return self._attention_kwargs

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """`1000 - t` of the step that has just been made; None outside of a call."""
        return self._current_timestep

    @property
    def interrupt(self) -> Any:
        """True after an interrupt was asked for; called, it asks for one."""
        return Interrupt(self)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Set what tqdm takes, such as `disable=True`."""
        self._progress_bar_config = kwargs

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """Return a bar of tqdm over `iterable`, or of `total` steps.

        Raises:
            InputError: neither is given.
        """
        from tqdm.auto import tqdm

        if iterable is None and total is None:
            raise InputError("progress_bar takes an iterable or a total")
        return tqdm(iterable, total=total, **self._progress_bar_config)

    @contextmanager
    def _bar(self, given: Progress | None) -> Iterator[Progress]:
        """Give a `progress` that moves a bar by the steps of denoising, and calls the one that is given."""
        bar: Any = None

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal bar
            if stage == "denoise":
                bar = self.progress_bar(total=total) if bar is None else bar
                bar.update(done - bar.n)
                if done == total:
                    bar.close()
            if given is not None:
                given(stage, done, total)

        try:
            yield progress
        finally:
            if bar is not None:
                bar.close()


def component(name: str, mend: str) -> property:
    """Return the property of a component, which cannot be set."""

    def get(self: Any) -> Any:
        made = self._components.get(name, _MISSING)
        return getattr(self, f"_{name}", None) if made is _MISSING else made

    def refuse(self: Any, value: Any) -> None:
        if name == "scheduler" and hasattr(value, "config"):
            try:
                check_given_scheduler(value)
            except InputError as error:
                raise InputError(f"pipe.{name} cannot be replaced by {short(type(value).__name__)}: {mend}") from error
            return  # One of the same settings changes nothing.
        if _is_compiled(value, get(self)):
            self.say(f"compile {name}", f"torch.compile of pipe.{name} is not needed: it is compiled for the mesh")
            return
        raise InputError(f"pipe.{name} cannot be replaced by {short(type(value).__name__)}: {mend}")

    return property(get, refuse, doc=f"The {name.replace('_', ' ')}; see `models.diffusers_api.components`.")


def _is_compiled(value: Any, model: Any) -> bool:
    """Return whether a value is what torch.compile makes of a component as it stands."""
    if type(value).__name__ == "OptimizedModule":
        return getattr(value, "_orig_mod", None) is model
    inside = getattr(value, "_model", None)
    return hasattr(value, "_torchdynamo_orig_callable") and inside is not None and inside is model._model


_MISSING: Any = object()
