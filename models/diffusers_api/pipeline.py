"""`MochiPipeline` as `from mochi_tt import MochiPipeline` gives it: ours, with Diffusers' names, arguments and results.

A script written for Diffusers' `MochiPipeline` runs with its import line changed. docs/diffusers.md has each argument
and method beside Diffusers' own. The stages `encode`, `denoise` and `decode` are those of `models.mochi.pipeline`.

Shapes: B prompts, n videos of each, C latent channels, T latent frames, F frames, H and W rows and columns, L text
tokens, D text width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from models.diffusers_api.adapters import Adapters
from models.diffusers_api.arguments import (
    convention,
    guides,
    lora_scale,
    on_cpu,
    repeated,
    scale_of_guidance,
    whole_frames,
)
from models.diffusers_api.callbacks import TENSORS, Callbacks
from models.diffusers_api.components import CLASSES, OnMesh, Scheduler, Vae
from models.diffusers_api.described import Described, bars, component
from models.diffusers_api.loading import (
    COMPONENTS,
    check_given_scheduler,
    check_keywords,
    linked,
    open_checkpoint,
    precision_of,
    with_components,
)
from models.diffusers_api.loras import Loras
from models.diffusers_api.measures import Measures, Said, tell
from models.diffusers_api.outputs import MochiPipelineOutput
from models.machine.checks import function, short, whole
from models.machine.errors import InputError, MissingInputError
from models.machine.paths import is_file
from models.mochi.defaults import DEFAULTS_FILE
from models.mochi.inputs import given_embeddings, prompt_list
from models.mochi.outputs import Denoised, Encoded
from models.mochi.pipeline import MochiPipeline as Stages
from models.mochi.setup import Request, Setup, resolve
from models.mochi.text.encoder import MAX_SEQUENCE_LENGTH, check_sequence_length
from weight_cache.checkpoints.lora import LoraRequest
from weight_cache.store import Message, Progress

if TYPE_CHECKING:
    from models.device import Mode, OpenMesh
    from models.mochi.inputs import Run
    from weight_cache.checkpoints.checkpoint import Checkpoint

# What Diffusers takes where a call names nothing, and a checkpoint has no settings of its own.
DIFFUSERS_DEFAULTS = {"num_frames": 19, "guidance_scale": 4.5}
_MOST_VIDEOS = 1000
_UNSET: Any = object()
_SWAP = "models are loaded by from_pretrained, which takes transformer=, vae= and text_encoder="


class MochiPipeline(Described, Loras, Measures, Stages):  # type: ignore[misc]
    """The three models of Mochi 1 on a Tenstorrent mesh, used as Diffusers' `MochiPipeline`.

    Close it, or use it in a `with` block. One pipeline serves any number of calls of any geometry.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    hf_device_map = None
    _callback_tensor_inputs = TENSORS

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
        self._setup: Setup | None = None
        self._load_progress: Progress | None = None
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
            progress: called as `progress(stage, done, total)`, stages up to the last "weights"; by default a bar of
                tqdm, on a terminal only.
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
        say = Said(on_message)
        check_keywords(keywords, say)
        if use_safetensors not in (None, True):
            raise InputError(f"use_safetensors {short(use_safetensors)} must be true or None: pickles are not read")
        stands_for = precision_of(
            dtype if torch_dtype is None else torch_dtype, (lambda *_: None) if precision else say
        )
        zeros = convention(force_zeros_for_empty_prompt, empty_prompt)
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
        pipe = cls.load(resolve(request), progress or bars(), on_message)
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
    def download(cls, pretrained_model_name: str, **keywords: Any) -> str:
        """Download a checkpoint from the Hugging Face hub, unless it is there, and return its folder.

        Raises:
            InputError: an argument is refused.
            MissingInputError: it cannot be downloaded.
        """
        say = Said(None)
        known = ("variant", "cache_dir", "revision", "token", "local_files_only")
        hub = {name: keywords.pop(name) for name in known if name in keywords}
        check_keywords(keywords, say)
        return str(open_checkpoint(pretrained_model_name, say=say, **hub).directory)

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
            "vae": Vae(self._vae, {**index.vae.config, **statistics}, self.say, self._decoded, self._moments),
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
        if prompt is not None or (negative_prompt_embeds is None and guides(guidance_scale)):
            self._require("text_encoder")
        scale = lora_scale(attention_kwargs)
        tensors = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        videos = whole(
            "num_videos_per_prompt", 1 if num_videos_per_prompt is None else num_videos_per_prompt, 1, _MOST_VIDEOS
        )
        callbacks = Callbacks.of(self, callback_on_step_end, tensors)
        guidance = scale_of_guidance(guidance_scale)
        negative_prompt = repeated("negative_prompt", negative_prompt, videos)
        embeds = {
            name: repeated(name, value, videos)
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
            options["on_state" if callbacks.wants_latents else "callback_on_step_end"] = (
                callbacks.on_state if callbacks.wants_latents else callbacks.on_step
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
                    repeated("prompt", prompt, videos),
                    negative_prompt,
                    height,
                    width,
                    whole_frames(num_frames, self.vae_temporal_scale_factor, self._tell),
                    num_inference_steps,
                    guidance,
                    # As in Diffusers, latents make a generator needless.
                    generator=None if latents is not None else on_cpu(generator, self._tell),
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

    _callbacks: Callbacks | None = None

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
        width = self._text_encoder.width
        if prompt_embeds is not None:
            count = len(given_embeddings("prompt_embeds", prompt_embeds, prompt_attention_mask, width))
        else:
            count = len(prompt_list("prompt", prompt))
        results: list[torch.Tensor | None] = []
        negative = ("" if negative_prompt is None else negative_prompt) if do_classifier_free_guidance else None
        if negative_prompt_embeds is not None:
            given_embeddings("negative_prompt_embeds", negative_prompt_embeds, negative_prompt_attention_mask, width)
        elif negative is not None:
            negative = prompt_list("negative_prompt", negative)
            negative = negative * count if isinstance(negative_prompt, str | None) else negative
            if len(negative) != count:
                raise InputError(
                    f"{len(negative)} negative prompts for {count} prompts: give one text, or one per prompt"
                )
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
        sizes = {"batch_size": batch_size, "num_channels_latents": num_channels_latents, "num_frames": num_frames}
        batch_size, channels, num_frames, height, width = (
            whole(name, value, 1, 1 << 16) for name, value in {**sizes, "height": height, "width": width}.items()
        )
        frames = (num_frames - 1) // self.vae_temporal_scale_factor + 1
        shape = (batch_size, channels, frames, height // space, width // space)
        generator = on_cpu(generator, self._tell)
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
        Callbacks.check(callback_on_step_end_tensor_inputs or ())
        negative = (None, negative_prompt_embeds, negative_prompt_attention_mask)
        Texts.of((prompt, prompt_embeds, prompt_attention_mask), negative, self._text_encoder.width)

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

    def _moments(self, frames_FHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            made = self._vae_encoder().posterior(frames_FHWC)
        return made.mean, made.log_variance

    def _inverted(self, *arguments: Any) -> Run:
        self._merge(self._wanted())
        return super()._inverted(*arguments)

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


for _name in COMPONENTS:
    setattr(MochiPipeline, _name, component(_name, _SWAP))
_SOLVER = "Mochi has one schedule; give the call solver='unipc' or 'ab2', sigmas=, or a preset"
MochiPipeline.scheduler = component("scheduler", _SOLVER)  # type: ignore[attr-defined]
MochiPipeline.tokenizer = component("tokenizer", "the text encoder was trained with it")  # type: ignore[attr-defined]
