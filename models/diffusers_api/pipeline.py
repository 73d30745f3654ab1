"""`MochiPipeline` as `from mochi_tt import MochiPipeline` gives it: ours, with Diffusers' names, arguments and results.

A script written for Diffusers' `MochiPipeline` runs with its import line changed. docs/diffusers.md has each argument
and method beside Diffusers' own. The stages `encode`, `denoise` and `decode` are those of `models.mochi.pipeline`.

Shapes: B prompts, n videos of each, C latent channels, T latent frames, F frames, H and W rows and columns, L text
tokens, D text width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import torch

from models.diffusers_api.adapters import TRANSFORMER, Adapters, found
from models.diffusers_api.components import CLASSES, Config, OnMesh, Scheduler, Vae
from models.diffusers_api.loading import (
    COMPONENTS,
    check_given_scheduler,
    check_keywords,
    linked,
    open_checkpoint,
    precision_of,
    with_components,
)
from models.diffusers_api.measures import Measures, tell
from models.diffusers_api.outputs import MochiPipelineOutput
from models.machine.checks import function, integer, number, short, whole
from models.machine.errors import InputError, MissingInputError
from models.machine.extras import require
from models.machine.paths import is_file
from models.mochi.defaults import DEFAULTS_FILE
from models.mochi.outputs import Denoised, Encoded
from models.mochi.pipeline import MochiPipeline as Stages
from models.mochi.reuse import Weights
from models.mochi.setup import Request, Setup, resolve
from models.mochi.text.encoder import MAX_SEQUENCE_LENGTH, check_sequence_length
from weight_cache.checkpoints.lora import LoraRequest
from weight_cache.store import Message, Progress, Store

if TYPE_CHECKING:
    from models.device import Mode, OpenMesh
    from models.mochi.inputs import Run
    from weight_cache.checkpoints.checkpoint import Checkpoint

# What Diffusers takes where a call names nothing, and a checkpoint has no settings of its own.
DIFFUSERS_DEFAULTS = {"num_frames": 19, "guidance_scale": 4.5}
TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
_MOST_VIDEOS = 1000
_UNSET: Any = object()
_SWAP = "models are loaded by from_pretrained, which takes transformer=, vae= and text_encoder="


class Interrupt:
    """`pipe.interrupt`: true after an interrupt was asked for, as in Diffusers; called, it asks for one, as in ours."""

    def __init__(self, pipe: MochiPipeline) -> None:
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


class MochiPipeline(Measures, Stages):
    """The three models of Mochi 1 on a Tenstorrent mesh, used as Diffusers' `MochiPipeline`.

    Close it, or use it in a `with` block. One pipeline serves any number of calls of any geometry.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    hf_device_map = None
    _callback_tensor_inputs = TENSORS
    vae_temporal_scale_factor = 6
    vae_spatial_scale_factor = 8
    patch_size = 2

    def __init__(self, **parts: Any) -> None:
        """Compose a pipeline from the parts of `models.mochi.pipeline.MochiPipeline`; see `from_pretrained`."""
        if "scheduler" in parts or "tokenizer" in parts:
            raise InputError(f"MochiPipeline is made by from_pretrained or from_single_file: {_SWAP}")
        super().__init__(**parts)
        self._told = set()
        self._progress_bar_config: dict[str, Any] = {}
        self._guidance_scale: Any = None
        self._attention_kwargs: dict[str, Any] | None = None
        self._current_timestep: torch.Tensor | None = None
        self._num_timesteps: int | None = None
        self._lora_scale = 1.0
        self._setup: Setup | None = None
        self._load_progress: Progress | None = None
        self._merged: tuple[LoraRequest, ...] | None = ()
        self._files: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path | Checkpoint,
        mesh: str | tuple[int, int] | OpenMesh = "2x4",
        layout: str | None = None,
        mode: Mode = "auto",
        variant: str | None = None,
        progress: Progress | None = None,
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        use_safetensors: bool | None = None,
        force_zeros_for_empty_prompt: bool | None = None,
        transformer: Any = _UNSET,
        vae: Any = _UNSET,
        text_encoder: Any = _UNSET,
        scheduler: Any = _UNSET,
        weights_cache_dir: str | Path | None = None,
        base: str | None = None,
        precision: str | None = None,
        loras: Sequence[str | Path | tuple[str | Path, float] | LoraRequest] = (),
        on_message: Message | None = None,
        vae_split: str | None = None,
        attention_chunks: str | None = None,
        first_frames: str | None = None,
        empty_prompt: str | None = None,
        capture: bool | None = None,
        plain: str | None = None,
        links: int | None = None,
        topology: str | None = None,
        profile: str | Path | None = None,
        **keywords: Any,
    ) -> MochiPipeline:
        """Load a checkpoint onto a mesh. Whatever can be checked is checked before weights are read.

        Args:
            pretrained_model_name_or_path: what `models.mochi.setup.Request.model` names. A Hugging Face id that is not
                in the hub's cache is downloaded, as Diffusers does.
            mesh: a shape, opened here and closed with the pipeline; or an open mesh, which stays open.
            layout: see `Request`.
            mode: see `Request`.
            variant: of the weight files, such as `bf16`.
            progress: called as `progress(stage, done, total)`, stages up to the last "weights".
            torch_dtype: stands for a `precision`: float32 for `accurate`, bfloat16 and float16 for `default`.
            dtype: the same.
            cache_dir: of the Hugging Face hub, as in Diffusers; `weights_cache_dir` is ours.
            local_files_only: never download.
            revision: of the Hugging Face repository.
            token: of the hub.
            use_safetensors: None or true: pickles are never read.
            force_zeros_for_empty_prompt: true for `empty_prompt="zeros"`, false for `"encoded"`.
            transformer: None to leave it out; or a component of another checkpoint, as `models.diffusers_api.loading`
                names it; or a module of Diffusers, whose weights are written to a temporary folder and read from there.
            vae: the same.
            text_encoder: the same.
            scheduler: a FlowMatchEulerDiscreteScheduler with Mochi's settings, which changes nothing.
            weights_cache_dir: of the store of converted weights; see `weight_cache.location`.
            base: see `Request`.
            precision: see `Request`; it wins over `torch_dtype`.
            loras: merged into the weights for good; `load_lora_weights` is for those that change.
            on_message: called with each line for the user, in the place of Python warnings.
            vae_split: see `Request`.
            attention_chunks: see `Request`.
            first_frames: see `Request`.
            empty_prompt: see `Request`.
            capture: see `Request`.
            plain: see `Request`.
            links: see `Request`.
            topology: see `Request`.
            profile: see `Request`.
            keywords: those of Diffusers that change nothing here, each with a line that says why
                (`models.diffusers_api.loading.NOT_NEEDED`).

        Raises:
            InputError: a value breaks its rule, or the checkpoint or a LoRA does not fit.
            MissingInputError: checkpoint files are missing.
            MachineError: the store has no space or cannot be written, or there is no card.
            RuntimeError: the mesh cannot be opened.
        """
        function("progress", progress)
        function("on_message", on_message)
        say = _Said(on_message)
        check_keywords(keywords, say)
        if use_safetensors not in (None, True):
            raise InputError(f"use_safetensors {short(use_safetensors)} must be true or None: pickles are not read")
        stands_for = precision_of(dtype if torch_dtype is None else torch_dtype, _silent if precision else say)
        zeros = _empty_prompt(force_zeros_for_empty_prompt, empty_prompt)
        given = {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}
        left_out = {name for name, value in given.items() if value is None}
        if scheduler is not _UNSET:
            check_given_scheduler(scheduler)
        checkpoint = open_checkpoint(
            pretrained_model_name_or_path,
            variant=variant,
            base=base,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            say=say,
        )
        others = {name: value for name, value in given.items() if value is not _UNSET and value is not None}
        checkpoint, files = with_components(checkpoint, others, say)
        request = Request(
            model=checkpoint,
            mesh=mesh,
            layout=layout,
            mode=mode,
            precision=precision or stands_for,
            loras=LoraRequest.all_of(loras),
            cache_dir=weights_cache_dir,
            vae_split=vae_split,
            attention_chunks=attention_chunks,
            first_frames=first_frames,
            empty_prompt=zeros,
            capture=capture,
            plain=plain,
            links=links,
            topology=topology,
            profile=profile,
            components=tuple(name for name in COMPONENTS if name not in left_out),
        )
        pipe = cls.load(resolve(request), progress, on_message)
        pipe._files = files
        pipe._told |= say.told
        return pipe

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **keywords: Any) -> MochiPipeline:
        """Load a .safetensors file of ComfyUI or Genmo; what it lacks comes from `config`, or from `base`.

        The other arguments are those of `from_pretrained`.

        Raises:
            InputError: see `from_pretrained`.
            MissingInputError: there is no such file.
        """
        base = keywords.pop("config", None) or keywords.pop("base", None)
        if "original_config" in keywords:
            raise InputError("original_config is not taken: sizes are read from the file's tensors")
        local = keywords.get("local_files_only", False)
        file = linked(pretrained_model_link_or_path, local_files_only=local)
        if not is_file(Path(str(file))):
            raise MissingInputError(f"no file at {short(file)}: give a .safetensors file, or a link to the hub")
        return cls.from_pretrained(file, base=base, **keywords)

    @classmethod
    def load(cls, setup: Setup, progress: Progress | None = None, on_message: Message | None = None) -> MochiPipeline:
        """Open the mesh of a set-up and fill the models; see `models.mochi.pipeline.MochiPipeline.load`."""
        pipe = cast(MochiPipeline, super().load(setup, progress, on_message))
        pipe._adopt(setup, progress)
        return pipe

    def _adopt(self, setup: Setup, progress: Progress | None = None) -> None:
        """Take over the set-up that the models were loaded by."""
        assert setup.checkpoint is not None
        own = setup.checkpoint.optional_json(DEFAULTS_FILE)
        missing = {name: value for name, value in DIFFUSERS_DEFAULTS.items() if name not in own}
        self.defaults = setup.defaults.overridden(missing)
        self._setup, self._load_progress = setup, progress
        self._merged = setup.loras
        self._adapters = Adapters(setup.checkpoint.transformer, self.say)
        vae = setup.configs.vae
        statistics = {"latents_mean": list(vae.latents_mean) or None, "latents_std": list(vae.latents_std) or None}
        index = setup.checkpoint
        parts = {
            "vae": Vae(self._vae, {**index.vae.config, **statistics}, self.say, self._decoded),
            "text_encoder": OnMesh("text_encoder", self._text_encoder, index.text_encoder.config, self.say),
            "transformer": OnMesh("transformer", self._transformer, index.transformer.config, self.say),
        }
        loaded = {name: part for name, part in parts.items() if name in setup.request.components}
        tokenizer = self._text_encoder.tokenizer  # type: ignore[attr-defined]
        self._components = {
            **dict.fromkeys(CLASSES),
            **loaded,
            "tokenizer": tokenizer,
            "scheduler": Scheduler(index.scheduler),
        }

    _adapters: Adapters | None = None
    _components: Mapping[str, Any] = {}

    # What a script reads.

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
    def interrupt(self) -> Any:  # type: ignore[override]
        """True after an interrupt was asked for; called, it asks for one."""
        return Interrupt(self)

    # Progress.

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
    def _bar(self, given: Progress | None) -> Any:
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

    # The call.

    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        num_videos_per_prompt: int | None = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict], Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = MAX_SEQUENCE_LENGTH,
        **options: Any,
    ) -> MochiPipelineOutput | tuple[Any]:
        """Make a video per prompt, or `num_videos_per_prompt` of each, one after the other.

        Args:
            prompt: text, or a list of texts.
            negative_prompt: what to steer away from; `""` by default. One text serves all prompts.
            height: pixels, a multiple of 16; 480, or the checkpoint's own default.
            width: pixels, a multiple of 16; 848, or the checkpoint's own default.
            num_frames: 19, or the checkpoint's own default. Others than 6k + 1 are rounded down, with a warning.
            num_inference_steps: 64, or the checkpoint's own default.
            timesteps: None: Diffusers' Mochi refuses them too. `sigmas` are the noise levels.
            guidance_scale: 4.5, or the checkpoint's own default; at most 1 for no guidance. One per step is ours.
            num_videos_per_prompt: n; the videos of a prompt follow each other.
            generator: one, or one per video. The noise is drawn on the CPU; of a generator elsewhere the seed is taken.
            latents: the noise itself, [B n, 12, T, H / 8, W / 8].
            prompt_embeds: [B, L, D] in the place of `prompt`.
            prompt_attention_mask: [B, L].
            negative_prompt_embeds: [B or 1, L, D].
            negative_prompt_attention_mask: [B or 1, L].
            output_type: "pil", "np", "pt" or "latent".
            return_dict: whether the result is more than `(frames,)`.
            attention_kwargs: `{"scale": s}`, which multiplies the weights of active LoRAs that are not fused.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step of each video.
            callback_on_step_end_tensor_inputs: of `TENSORS`. Latents, [1, 12, T, H / 8, W / 8], are downloaded after
                each step; what the callback makes of them takes their place. The others cannot be changed.
            max_sequence_length: tokens kept of a prompt, 1 to 256.
            options: those of `models.mochi.pipeline.MochiPipeline.denoise`, such as `seed`, `preset` and `progress`.

        Raises:
            InputError: an argument breaks its rule, or two exclude each other.
        """
        if timesteps is not None:
            raise InputError("timesteps are not taken, nor by Diffusers' Mochi: give sigmas=, n + 1 levels from 1 to 0")
        if output_type is None:
            raise InputError("output_type None is none: it must be one of pil, np, pt, latent")
        self._require("transformer", *(() if output_type == "latent" else ("vae",)))
        if prompt is not None or (negative_prompt_embeds is None and _guides(guidance_scale)):
            self._require("text_encoder")
        scale = _lora_scale(attention_kwargs)
        tensors = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        videos = whole(
            "num_videos_per_prompt", 1 if num_videos_per_prompt is None else num_videos_per_prompt, 1, _MOST_VIDEOS
        )
        callbacks = _Callbacks.of(self, callback_on_step_end, tensors)
        guidance = _guidance(guidance_scale)
        negative_prompt = _repeated("negative_prompt", negative_prompt, videos)
        embeds = {
            name: _repeated(name, value, videos)
            for name, value in (
                ("prompt_embeds", prompt_embeds),
                ("prompt_attention_mask", prompt_attention_mask),
                ("negative_prompt_embeds", negative_prompt_embeds),
                ("negative_prompt_attention_mask", negative_prompt_attention_mask),
            )
        }
        if videos > 1 and isinstance(prompt, str):
            prompt = [prompt]
        self._attention_kwargs, self._lora_scale, self._callbacks = attention_kwargs, scale, callbacks
        self._guidance_scale = self.defaults.guidance_scale if guidance is None else guidance
        if callbacks is not None:
            options["on_latents" if callbacks.wants_latents else "callback_on_step_end"] = (
                callbacks.on_latents if callbacks.wants_latents else callbacks.on_step
            )
        given = options.pop("progress", None)
        function("progress", given)
        try:
            with (
                torch.no_grad(),
                # Scripts call the pipeline under autocast; the host's own arithmetic is float32 all the same.
                torch.autocast("cpu", enabled=False),
                self._bar(given) as progress,
            ):
                output = super().__call__(
                    _repeated("prompt", prompt, videos),
                    negative_prompt,
                    height,
                    width,
                    self._whole_frames(num_frames),
                    num_inference_steps,
                    guidance,
                    generator=self._on_cpu(generator),
                    latents=latents,
                    **embeds,
                    output_type=output_type,
                    max_sequence_length=max_sequence_length,
                    progress=progress,
                    **options,
                )
        finally:
            self._current_timestep, self._callbacks, self._lora_scale = None, None, 1.0
        assert not isinstance(output, tuple)
        return MochiPipelineOutput.of(output) if return_dict else (output.frames,)

    _callbacks: _Callbacks | None = None

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int = MAX_SEQUENCE_LENGTH,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """Encode prompts with T5 on the mesh.

        Returns:
            Features [B n, L, D] and mask [B n, L] of the prompts, then of the negative ones, as Diffusers returns them.
            What is given is returned as it is. Features of padding are zeros.

        Raises:
            InputError: an argument breaks its rule.
        """
        check_sequence_length(max_sequence_length)
        videos = whole("num_videos_per_prompt", num_videos_per_prompt, 1, _MOST_VIDEOS)
        if (prompt is None) == (prompt_embeds is None):
            raise InputError("give either prompt or prompt_embeds (one of the two)")
        count = 1 if isinstance(prompt, str) else len(prompt if prompt is not None else cast(Any, prompt_embeds))
        results: list[torch.Tensor | None] = []
        negative = ("" if negative_prompt is None else negative_prompt) if do_classifier_free_guidance else None
        if isinstance(negative, str):
            negative = [negative] * count
        if negative is not None and negative_prompt_embeds is None and len(negative) != count:
            raise InputError(f"{len(negative)} negative prompts for {count} prompts: give one, or one per prompt")
        for texts, embeds, mask in (
            (prompt, prompt_embeds, prompt_attention_mask),
            (negative, negative_prompt_embeds, negative_prompt_attention_mask),
        ):
            if embeds is None and texts is not None:
                self._require("text_encoder")
                made = self.encode(texts, do_classifier_free_guidance=False, max_sequence_length=max_sequence_length)
                self._tell_truncation(made)
                embeds = torch.cat([text.embeds for text in made.prompts]).repeat_interleave(videos, 0)
                embeds = embeds.to(device=device, dtype=dtype)
                mask = torch.cat([text.mask for text in made.prompts]).repeat_interleave(videos, 0).to(device)
            results += [embeds, mask]
        return tuple(results)

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        num_frames: int,
        dtype: torch.dtype | None = None,
        device: Any = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the noise of a call: [B, C, T, H / 8, W / 8], as Diffusers draws it on the CPU.

        Raises:
            InputError: a size breaks its rule, or there are not as many generators as videos.
        """
        if latents is not None:
            return latents.to(device=device, dtype=dtype)
        space = self.vae_spatial_scale_factor
        frames = (integer("num_frames", num_frames) - 1) // self.vae_temporal_scale_factor + 1
        shape = (batch_size, num_channels_latents, frames, height // space, width // space)
        generator = self._on_cpu(generator)
        if isinstance(generator, list):
            if len(generator) != batch_size:
                raise InputError(f"{len(generator)} generators for {batch_size} videos: give one, or one per video")
            drawn = torch.cat([torch.randn((1, *shape[1:]), generator=each) for each in generator])
        else:
            drawn = torch.randn(shape, generator=generator)
        return drawn.to(device=device, dtype=dtype)

    def check_inputs(
        self,
        prompt: Any,
        height: int,
        width: int,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        prompt_attention_mask: Any = None,
        negative_prompt_attention_mask: Any = None,
    ) -> None:
        """Check what Diffusers' method of this name checks; a call checks more.

        Raises:
            InputError: an argument breaks its rule.
        """
        from models.mochi.geometry import Geometry
        from models.mochi.inputs import Texts

        Geometry(height, width, 1, self.scales)
        _Callbacks.check(callback_on_step_end_tensor_inputs or ())
        negative = (None, negative_prompt_embeds, negative_prompt_attention_mask)
        Texts.of((prompt, prompt_embeds, prompt_attention_mask), negative, self._text_encoder.width)

    # LoRAs.

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
            pretrained_model_name_or_path_or_dict: a .safetensors file, a folder with one, a Hugging Face id in the
                local cache, or a state dict.
            adapter_name: its name; `default_0` and so on if None.
            hotswap: put it in the place of the one of that name.
            kwargs: `weight_name`, the file in a folder, and `subfolder`; others of Diffusers' change nothing.

        Raises:
            InputError: the name is in use, the LoRA does not fit, or an argument is unknown.
            MissingInputError: there is no such file.
        """
        source = pretrained_model_name_or_path_or_dict
        weight_name, subfolder = kwargs.pop("weight_name", None), kwargs.pop("subfolder", None)
        for name in ("low_cpu_mem_usage", "local_files_only", "use_safetensors", "token", "revision", "cache_dir"):
            kwargs.pop(name, None)
        if kwargs:
            raise InputError(f"load_lora_weights has no argument {sorted(kwargs)[0]!r}")
        if subfolder is not None and not isinstance(source, Mapping):
            source = Path(source) / subfolder
        self._books.load(source, adapter_name, hotswap=hotswap, weight_name=weight_name)

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

        handle = open_safetensors(found(source, kwargs.get("weight_name")))
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

    # The stages, where they differ from ours.

    def decode(
        self, latents: torch.Tensor | Sequence[torch.Tensor], output_type: str = "np", progress: Progress | None = None
    ) -> Any:
        """Decode latents to frames; see `models.mochi.pipeline.MochiPipeline.decode`."""
        if output_type != "latent":
            self._require("vae")
        return super().decode(latents, output_type, progress)

    def close(self) -> None:
        """Close the mesh if the pipeline opened it, and delete its temporary files."""
        super().close()
        for owner in (self._adapters, self._files):
            if isinstance(owner, Adapters):
                owner.close()
            elif owner is not None:
                owner.cleanup()
        self._files = None

    def _decoded(self, latents_BCTHW: torch.Tensor) -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self.decode(latents_BCTHW, "np")

    def _encode(self, *arguments: Any, **options: Any) -> Encoded:
        encoded = super()._encode(*arguments, **options)
        self._tell_truncation(encoded)
        return encoded

    def _tell_truncation(self, encoded: Encoded) -> None:
        cut = [text.num_truncated for text in (*encoded.prompts, *encoded.negatives) if text.num_truncated]
        if cut:
            self._tell(
                f"a prompt was cut by {max(cut)} tokens: max_sequence_length is {encoded.prompts[0].mask.shape[1]}"
            )

    def _run(self, *arguments: Any, **options: Any) -> Run:
        if self._setup is not None:
            self._weights = self._weights_with(self._wanted())
        run = super()._run(*arguments, **options)
        self._num_timesteps = len(run.guidance)
        if "scheduler" in self._components:
            self._components["scheduler"].show(run.sigmas)
        return run

    def _denoise(self, encoded: Encoded, run: Run) -> Denoised:
        self._require("transformer")
        self._merge(self._wanted())
        if self._callbacks is not None:
            self._callbacks.begin(encoded, run)
        return super()._denoise(encoded, run)

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

    def _tell(self, line: str, level: int = 2) -> None:
        """Tell a line: to `on_message`, else as a warning of the caller, whatever `level`."""
        tell(self._on_message, line)

    def _require(self, *names: str) -> None:
        """Check that models are loaded.

        Raises:
            InputError: one was left out.
        """
        for name in names:
            if self._setup is not None and name not in self._setup.request.components:
                raise InputError(
                    f"the pipeline was loaded without the {name}: leave {name}=None out of from_pretrained"
                )

    def _whole_frames(self, num_frames: int | None) -> int | None:
        """Return a number of frames of the form 6k + 1, rounded down."""
        if num_frames is None:
            return None
        frames, step = integer("num_frames", num_frames), self.vae_temporal_scale_factor
        kept = (frames - 1) // step * step + 1
        if kept != frames and frames >= 1:
            self._tell(f"num_frames {frames} is not {step}k + 1: the video has {kept} frames")
            return kept
        return frames

    def _on_cpu(self, generator: Any) -> Any:
        """Return generators on the CPU: in the place of one that is elsewhere, a fresh one of its seed."""
        if isinstance(generator, list | tuple):
            return [self._on_cpu(each) for each in generator]
        if isinstance(generator, torch.Generator) and generator.device.type != "cpu":
            seed = generator.initial_seed()
            self._tell(
                f"the generator is on {generator.device}: noise is drawn on the CPU with its seed {seed}, so the video "
                "is not the one that a GPU makes of it",
            )
            return torch.Generator().manual_seed(seed)
        return generator


def _component(name: str, mend: str) -> property:
    """Return the property of a component, which cannot be set."""

    def get(self: MochiPipeline) -> Any:
        made = self._components.get(name, _UNSET)
        return getattr(self, f"_{name}", None) if made is _UNSET else made

    def refuse(self: MochiPipeline, value: Any) -> NoReturn:
        raise InputError(f"pipe.{name} cannot be replaced by {short(type(value).__name__)}: {mend}")

    return property(get, refuse, doc=f"The {name.replace('_', ' ')}; see `models.diffusers_api.components`.")


for _name in COMPONENTS:
    setattr(MochiPipeline, _name, _component(_name, _SWAP))
_SOLVER = "Mochi has one schedule; give the call solver='unipc' or 'ab2', sigmas=, or a preset"
MochiPipeline.scheduler = _component("scheduler", _SOLVER)  # type: ignore[attr-defined]
MochiPipeline.tokenizer = _component("tokenizer", "the text encoder was trained with it")  # type: ignore[attr-defined]


class _Callbacks:
    """A caller's callback, with the tensors that it asks for."""

    def __init__(self, pipe: MochiPipeline, callback: Callable[..., Any], tensors: Sequence[str]) -> None:
        self._pipe, self._callback, self._tensors = pipe, callback, tuple(tensors)
        self.wants_latents = "latents" in self._tensors
        self._encoded: Encoded | None = None
        self._times: list[float] = []
        self._done = 0

    @classmethod
    def of(cls, pipe: MochiPipeline, callback: Any, tensors: Any) -> _Callbacks | None:
        """Return what a call is to do; None without a callback.

        Raises:
            InputError: it is no function, or there is no such tensor.
        """
        cls.check(tensors)
        if callback is None:
            return None
        function("callback_on_step_end", callback)
        return cls(pipe, callback, tensors)

    @staticmethod
    def check(tensors: Any) -> None:
        """Check the names of tensors.

        Raises:
            InputError: there is another than those of `TENSORS`.
        """
        if isinstance(tensors, str) or not all(name in TENSORS for name in tensors):
            raise InputError(
                f"callback_on_step_end_tensor_inputs {short(tensors)} must be a list of {', '.join(TENSORS)}"
            )

    def begin(self, encoded: Encoded, run: Run) -> None:
        """Take what a run works with, before its first step."""
        self._encoded, self._times = encoded, [1000 * (1 - sigma) for sigma in run.sigmas]
        if self.wants_latents:
            size = run.noise_BCTHW[0].numel() * 4 / 1e6
            self._pipe.say(
                "callback latents",
                f"latents ({size:.3g} MB) are downloaded after each step for callback_on_step_end; "
                "callback_on_step_end_tensor_inputs=[] leaves them on the mesh",
            )
        if len(encoded.prompts) > 1:
            self._pipe.say(
                "callback videos",
                "videos are made one after the other: callback_on_step_end is called for each step of each",
            )

    def on_step(self, pipe: Any, step: int, time: float, _: dict) -> None:
        """Call the caller's callback without latents."""
        self._call(self._done // (len(self._times) - 1), step, {})
        self._done += 1

    def on_latents(self, video: int, step: int, latents: torch.Tensor) -> torch.Tensor | None:
        """Call the caller's callback with latents; return others if it made others of them."""
        kept = latents.clone()
        returned = self._call(video, step, {"latents": latents}).get("latents", latents)
        if not isinstance(returned, torch.Tensor) or returned.shape != kept.shape:
            shape = list(getattr(returned, "shape", []))
            raise InputError(
                f"callback_on_step_end returned latents {shape or type(returned).__name__}, but must return a tensor "
                f"{list(kept.shape)}"
            )
        changed = returned.detach().to("cpu", torch.float32)
        if torch.equal(changed, kept):
            return None
        if not changed.isfinite().all():
            raise InputError(f"callback_on_step_end returned latents that are not finite after step {step}")
        return changed

    def _call(self, video: int, step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        """Call the callback, and return what it returns; only latents may change."""
        pipe, scale = self._pipe, self._pipe._guidance_scale
        fixed = self._texts(video)
        copies = {name: value.clone() for name, value in fixed.items()}
        time = torch.tensor(self._times[step], dtype=torch.float32)
        pipe._current_timestep = 1000 - time
        given = {name: {**tensors, **fixed}[name] for name in self._tensors}
        returned = self._callback(pipe, step, time, given)
        if returned is None:
            returned = {}
        if not isinstance(returned, Mapping):
            raise InputError(f"callback_on_step_end must return a dict of tensors or nothing, not {short(returned)}")
        unknown = sorted(set(returned) - set(self._tensors), key=str)
        if unknown:
            raise InputError(
                f"callback_on_step_end returned {short(unknown[0])}, which it did not ask for by "
                f"callback_on_step_end_tensor_inputs; they may be {', '.join(TENSORS)}"
            )
        for name, copy in copies.items():
            for value in (fixed[name], returned.get(name, copy)):
                if value.shape != copy.shape or not torch.equal(value, copy):
                    raise InputError(
                        f"callback_on_step_end changed {name}, which is on the mesh for all steps already: only "
                        "latents can be changed; guidance_interval= ends guidance early"
                    )
        if pipe._guidance_scale is not scale and pipe._guidance_scale != scale:
            raise InputError(
                "callback_on_step_end changed the guidance scale, which is on the mesh for all steps already: give "
                "guidance_scale= one per step, or guidance_interval="
            )
        return dict(returned)

    def _texts(self, video: int) -> dict[str, torch.Tensor]:
        """Return the features that a caller asks for, as Diffusers' loop has them: unconditional ones first."""
        if self._encoded is None or not set(self._tensors) - {"latents"}:
            return {}
        prompt = self._encoded.prompts[video].embeds
        negatives = self._encoded.negatives
        negative = negatives[video % len(negatives)].embeds if negatives else None
        made = {"prompt_embeds": prompt if negative is None else torch.cat([negative, prompt])}
        if negative is not None:
            made["negative_prompt_embeds"] = negative
        elif "negative_prompt_embeds" in self._tensors:
            raise InputError("there are no negative_prompt_embeds without guidance: leave them out")
        return {name: value for name, value in made.items() if name in self._tensors}


class _Said:
    """Says lines before there is a pipeline, each subject once."""

    def __init__(self, on_message: Message | None) -> None:
        self._on_message, self.told = on_message, set[str]()

    def __call__(self, subject: str, line: str) -> None:
        if subject not in self.told:
            self.told.add(subject)
            tell(self._on_message, line)


def _silent(subject: str, line: str) -> None:
    pass


def _empty_prompt(forced: Any, given: str | None) -> str | None:
    """Return the convention of an empty prompt that a caller asks for.

    Raises:
        InputError: it is asked for in two ways.
    """
    if forced is None:
        return given
    if not isinstance(forced, bool):
        raise InputError(f"force_zeros_for_empty_prompt {short(forced)} must be true or false")
    if given is not None:
        raise InputError("force_zeros_for_empty_prompt and empty_prompt say the same: give one of them")
    return "zeros" if forced else "encoded"


def _guides(scale: Any) -> bool:
    """Whether a call with this scale needs the unconditional branch; a list is judged later."""
    return scale is None or not isinstance(scale, int | float) or scale > 1


def _guidance(scale: Any) -> Any:
    """Return the scale that our sampler takes: 1 in the place of one below, where Diffusers does not guide."""
    if scale is None or np.ndim(scale) > 0:
        return scale
    return max(number("guidance_scale", scale), 1.0)


def _lora_scale(attention_kwargs: Any) -> float:
    """Return the scale of LoRAs for a call.

    Raises:
        InputError: there is another argument of attention.
    """
    if attention_kwargs is None:
        return 1.0
    if not isinstance(attention_kwargs, Mapping):
        raise InputError(f"attention_kwargs {short(attention_kwargs)} must be a dict or None")
    unknown = sorted(set(attention_kwargs) - {"scale"}, key=str)
    if unknown:
        raise InputError(f"attention_kwargs has {short(unknown[0])}: only scale, the weight of LoRAs, is taken")
    return number("attention_kwargs: scale", attention_kwargs.get("scale", 1.0))


def _repeated(name: str, value: Any, videos: int) -> Any:
    """Return prompts or their tensors, each `videos` times in a row. One negative serves all."""
    if videos == 1 or value is None or isinstance(value, str):
        return value
    if name.startswith("negative") and hasattr(value, "__len__") and len(value) == 1:
        return value
    if isinstance(value, list | tuple):
        return [each for each in value for _ in range(videos)]
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim:
        tensor = torch.as_tensor(value)
        return tensor.repeat_interleave(videos, 0)
    raise InputError(f"{name} {short(value)} must be a text, a list or a tensor")
