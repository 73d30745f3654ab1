"""The text-to-video pipeline: three stages, and one call that composes them.

`encode` makes caption features of prompts, `denoise` makes latents of noise, `decode` makes frames of latents. The
arguments have the names and meanings of Diffusers' `MochiPipeline`, so that code written for one reads for the other.
The docstrings say what differs. Nothing that is given is silently ignored.

`progress(stage, done, total)` is called with the stages "load" (the mesh); those of the store, for each component
(`weight_cache.store`); "encode", "denoise" and "decode".

Shapes: B videos, C latent channels, T latent frames, F frames, H and W rows and columns, L text tokens, D text width.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.device import OpenMesh, open_mesh
from models.machine.checks import function, short
from models.machine.errors import InputError
from models.machine.watchdog import LARGEST_TOKENS, Watchdog, operation_seconds
from models.mochi import inputs
from models.mochi.components import Models
from models.mochi.defaults import Defaults
from models.mochi.editing import Edit, Pull, check_solver
from models.mochi.geometry import Geometry, Scales
from models.mochi.outputs import OUTPUT_TYPES, Denoised, Encoded, MochiOutput, as_output
from models.mochi.sampling.denoise import denoise
from models.mochi.sampling.reuse import Forwards
from models.mochi.sampling.schedule import model_times
from models.mochi.setup import Request, Setup, resolve
from models.mochi.size import Subject
from models.mochi.sources import NO_STEP, STRENGTH, Source, plain_frames
from models.mochi.text.encoder import (
    MAX_SEQUENCE_LENGTH,
    MeshTextEncoder,
    TextEncoder,
    check_sequence_length,
)
from models.mochi.text.tokenizer import load_tokenizer
from models.mochi.text.words import Words
from models.mochi.vae.config import EncoderConfig
from models.mochi.vae.encoder import MochiVaeEncoder
from models.mochi.vae.frames import VaeDecoder, check_frames, check_latent_values
from models.parallel import place
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.lora import LoraRequest
from weight_cache.store import Message, Progress, Store

if TYPE_CHECKING:
    from models.device import Mode
    from models.mochi.reuse import Weights
    from models.mochi.sampling.branches import GuidanceParallel
    from models.mochi.transformer import MochiTransformer
    from models.parallel import Layout, Mesh


class MochiPipeline:
    """The three models of Mochi 1 on a Tenstorrent mesh. Close it, or use it in a `with` block.

    One pipeline serves any number of calls of any geometry. `interrupt` may be called from another thread.
    """

    def __init__(
        self,
        *,
        transformer: MochiTransformer,
        text_encoder: TextEncoder,
        vae: VaeDecoder | None,
        scales: Scales,
        mesh: OpenMesh,
        layout: Layout,
        owns_mesh: bool = True,
        parallel: GuidanceParallel | None = None,
        capture: bool = True,
        sampler: Callable[..., torch.Tensor] = denoise,
        defaults: Defaults | None = None,
        subject: Subject | None = None,
        on_message: Message | None = None,
        weights: Weights | None = None,
        open_encoder: Callable[[], MochiVaeEncoder] | None = None,
    ):
        """Compose a pipeline from its parts; most callers want `from_pretrained`.

        `defaults` are what a call takes where it names nothing: the checkpoint's, or Genmo's if None. `subject` is what
        the size of a call is judged for, before anything is allocated; not at all if None. `weights` are those of the
        transformer, which a file of reused steps names. Without a `vae` there are only latents. `open_encoder` makes
        the VAE's encoder and loads it, when the first video or image is encoded.
        """
        self.defaults = Defaults() if defaults is None else defaults
        self._subject = subject
        self._transformer = transformer
        self._text_encoder = text_encoder
        self._vae = vae
        self.scales = scales
        self.mesh = mesh
        self.layout = layout
        self.parallel = parallel
        self.capture = capture
        self._owns_mesh = owns_mesh
        self._sampler = sampler
        self._on_message = on_message
        self._weights = weights
        self._open_encoder = open_encoder
        self._encoder: MochiVaeEncoder | None = None
        self._interrupt = False
        self._closed = False
        self._watchdog = Watchdog(active=mesh.mode == "hardware", replays=capture)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Checkpoint,
        mesh: str | tuple[int, int] | OpenMesh = "2x4",
        layout: str | None = None,
        mode: Mode = "auto",
        variant: str | None = None,
        progress: Progress | None = None,
        *,
        base: str | None = None,
        precision: str = "default",
        loras: Sequence[str | Path | tuple[str | Path, float] | LoraRequest] = (),
        cache_dir: str | Path | None = None,
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
    ) -> MochiPipeline:
        """Load a checkpoint onto a mesh. Whatever can be checked is checked before weights are read.

        The arguments are those of `models.mochi.setup.Request`, and

        Args:
            model: what `Request.model` names.
            mesh: a shape, opened here and closed with the pipeline; or an open mesh, which stays open.
            layout: see `Request`.
            mode: see `Request`.
            variant: see `Request`.
            progress: called as `progress(stage, done, total)`, stages up to the last "weights".
            base: see `Request`.
            precision: see `Request`.
            loras: see `Request`.
            cache_dir: see `Request`.
            on_message: called with a line for what the user should know, such as a damaged entry of the store, or a
                word that the model does not know; the latter is a Python warning without it.
            vae_split: see `Request`.
            attention_chunks: see `Request`.
            first_frames: see `Request`.
            empty_prompt: see `Request`.
            capture: see `Request`.
            plain: see `Request`.
            links: see `Request`.
            topology: see `Request`.
            profile: see `Request`.

        Raises:
            InputError: a value breaks its rule, or the checkpoint or a LoRA does not fit.
            MissingInputError: checkpoint files are missing.
            MachineError: the store has no space or cannot be written, or there is no card.
            RuntimeError: the mesh cannot be opened.
        """
        function("progress", progress)
        function("on_message", on_message)
        if model is None:
            raise InputError("model None is none: name a checkpoint, such as tiny")
        request = Request(
            model=model,
            variant=variant,
            base=base,
            mesh=mesh,
            layout=layout,
            mode=mode,
            precision=precision,
            loras=LoraRequest.all_of(loras),
            cache_dir=cache_dir,
            vae_split=vae_split,
            attention_chunks=attention_chunks,
            first_frames=first_frames,
            empty_prompt=empty_prompt,
            capture=capture,
            plain=plain,
            links=links,
            topology=topology,
            profile=profile,
        )
        return cls.load(resolve(request), progress, on_message)

    @classmethod
    def load(cls, setup: Setup, progress: Progress | None = None, on_message: Message | None = None) -> MochiPipeline:
        """Open the mesh of a set-up and fill the models from the store, which is filled first where it lacks them.

        Raises:
            InputError: the weights or a LoRA do not fit the models, or the set-up has no checkpoint.
            MachineError: the store has no space or cannot be written.
            RuntimeError: the mesh cannot be opened.
        """
        request, checkpoint = setup.request, setup.checkpoint
        if checkpoint is None:
            raise InputError("a pipeline needs weights: name a model, not sizes alone")
        report = progress or _silent
        report("load", 0, 2)
        given = request.mesh if isinstance(request.mesh, OpenMesh) else None
        opened = given or open_mesh(
            setup.mesh_shape,
            request.mode,  # type: ignore[arg-type]
            system=request.system,
            ring=setup.ring,
            operation_seconds=operation_seconds(
                setup.layout.sp * setup.layout.tp,
                setup.configs.transformer.inner_dim,
                setup.video.geometry.num_tokens if setup.video is not None else LARGEST_TOKENS,
            ),
        )
        try:
            report("load", 1, 2)
            placed = place(opened.device, setup.layout, setup.ways)
            models = Models.declare(
                setup.configs,
                placed,
                setup.precision,
                vae_split=request.vae_split,
                first_frames=setup.conventions.first_frames,
                chunks=setup.chunks,
            )
            tokenizer = load_tokenizer(checkpoint)
            words = Words.of(checkpoint.tokenizer)
            text_encoder = MeshTextEncoder(tokenizer, models.text_encoder, setup.conventions.empty_prompt, words)
            report("load", 2, 2)
            models.load(
                checkpoint,
                Store(request.cache_dir),
                precision=setup.precision,
                loras=setup.loras,
                components=request.components,
                progress=progress,
                on_message=on_message,
            )
        except BaseException:
            if given is None:
                opened.close()
            raise
        return cls(
            transformer=models.transformer,
            text_encoder=text_encoder,
            vae=models.vae if "vae" in request.components else None,
            scales=setup.scales,
            mesh=opened,
            layout=setup.layout,
            owns_mesh=given is None,
            parallel=models.parallel,
            capture=setup.capture,
            defaults=setup.defaults,
            subject=setup.subject,
            on_message=on_message,
            weights=setup.weights,
            open_encoder=functools.partial(_encoder_of, setup, models.vae.mesh, progress, on_message),
        )

    @property
    def transformer(self) -> Any:
        """The transformer, on the conditional half where the mesh is halved."""
        return self._transformer

    @property
    def text_encoder(self) -> Any:
        """What makes features of a prompt."""
        return self._text_encoder

    @property
    def vae(self) -> Any:
        """What makes frames of latents; None where the pipeline was loaded without it."""
        return self._vae

    @property
    def mode(self) -> str:
        """`"hardware"`, `"golden"` or `"dry-run"`."""
        return self.mesh.mode

    def interrupt(self) -> None:
        """End the running `denoise` after its present step. Another thread may call this.

        A request counts once: for the run at work, or, between two stages, for the `denoise` that comes next, which
        then computes no step. A call of the pipeline begins without one. Setting `_interrupt` to True does the same,
        as in Diffusers' examples.
        """
        self._interrupt = True

    def close(self) -> None:
        """Close the mesh if the pipeline opened it; a second call does nothing. What is called later is refused."""
        if self._owns_mesh:
            self._closed = True
            self.mesh.close()

    def __enter__(self) -> MochiPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[MochiPipeline, int, float, dict], Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (),
        max_sequence_length: int = MAX_SEQUENCE_LENGTH,
        video: Any = None,
        image: Any = None,
        strength: float | None = None,
        edit: bool = False,
        eta: float | None = None,
        eta_end: float | None = None,
        **options: Any,
    ) -> MochiOutput | tuple[Any]:
        """Make a video per prompt: compose `encode`, `denoise` and `decode`, whose arguments these are.

        Several prompts run one after the other. All arguments are checked before any work begins. `options` are those
        of `denoise`. Size, frames, steps and guidance that are not given are the checkpoint's (`defaults`), as in
        `mochi-tt generate`; noise without a `seed`, `generator` or `latents` is drawn anew in each call.

        With a `video` (pictures: a list of PIL images, an array [F, H, W, 3], a tensor [F, 3, H, W]) or an `image`,
        which then stands still, the run starts from its latents with noise in them. `strength` is the share of the
        steps that are done, the last ones: 0.8 by default; 1 is a run from noise alone, 0 the VAE's reconstruction.
        Mochi has no weights that are conditioned on images. `num_frames` is by default what the video has. With `edit`
        the run starts from the noise that the video would be made of, and is held to the video in its first steps
        (`models.mochi.editing`): `eta` says how strongly, `eta_end` up to which share of the steps. A seed or other
        noise then has no effect.

        `output_type` is "pil", "np", "pt" or "latent". `callback_on_step_end_tensor_inputs` must stay
        empty: tensors are on the mesh during the loop. Without `return_dict` the result is only `(frames,)`.

        Raises:
            InputError: an argument breaks its rule, or two exclude each other.
        """
        self._interrupt = False
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        check_sequence_length(max_sequence_length)
        positive = (prompt, prompt_embeds, prompt_attention_mask)
        negative = (negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask)
        texts = inputs.Texts.of(positive, negative, self._text_encoder.width)
        source = Source.of(video, image, strength)
        editing = Edit.of(edit, eta, eta_end, strength=strength, solver=options.get("solver"))
        if editing is not None and source is None:
            raise InputError("edit needs what is edited: give video= or image=")
        if source is not None:
            num_frames = source.num_frames(self.scales) if num_frames is None else num_frames
        if source is not None and editing is None:
            options = {**options, "strength": STRENGTH if strength is None else strength}
        size, noise = (height, width, num_frames), (latents, generator)
        asked = num_inference_steps, guidance_scale, noise, callback_on_step_end
        run = self._run(len(texts.prompts), size, *asked, **options)
        if editing is not None:
            check_solver(run.solver)  # also that of a preset
        if source is not None and not run.guidance and strength != 0:
            self._tell(NO_STEP, level=3)
        pictures = None if source is None else source.frames(self._geometry_of(run.noise_BCTHW))
        seconds: dict[str, float] = {}
        if pictures is not None and (editing is not None or run.sigmas[0] < 1):
            with _timed(seconds, "encode_video"):
                started = self.encode_video(pictures, progress=run.progress)
            if editing is None:
                run = run.starting_from(started)
            else:
                with _timed(seconds, "invert"):
                    run = self._inverted(run, editing, started)
        with _timed(seconds, "encode"):
            encoded = self._encode(texts, max_sequence_length, run.progress, is_guided=run.is_guided)
        with _timed(seconds, "denoise"):
            denoised = self._denoise(encoded, run)
        with _timed(seconds, "decode"):
            frames = self.decode(denoised.latents, output_type, run.progress)
        if not return_dict:
            return (frames,)
        return MochiOutput(
            frames,
            run.sigmas,
            run.guidance,
            encoded.prompts,
            encoded.negatives,
            seconds,
            denoised.is_complete,
            denoised.forwards,
        )

    def encode(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        do_classifier_free_guidance: bool = True,
        max_sequence_length: int = MAX_SEQUENCE_LENGTH,
        progress: Progress | None = None,
    ) -> Encoded:
        """Encode prompts with T5 on the mesh.

        Args:
            prompt: text, or a list of texts. What `""` means is the checkpoint's convention.
            negative_prompt: what to steer away from; `""` by default. One text serves all prompts.
            prompt_embeds: [B, L, D], L up to 256, instead of `prompt`.
            prompt_attention_mask: [B, L], True for tokens that take part.
            negative_prompt_embeds: [B or 1, L, D], instead of `negative_prompt`; L may be another one.
            negative_prompt_attention_mask: [B or 1, L].
            do_classifier_free_guidance: whether the unconditional branch is needed.
            max_sequence_length: tokens kept of a prompt, 1 to 256.
            progress: called as `progress("encode", done, total)`.

        Raises:
            InputError: an argument breaks its rule, or two exclude each other.
        """
        self._check_open()
        texts = inputs.Texts.of(
            (prompt, prompt_embeds, prompt_attention_mask),
            (negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask),
            self._text_encoder.width,
        )
        check_sequence_length(max_sequence_length)
        report = function("progress", progress) or _silent
        return self._encode(texts, max_sequence_length, report, is_guided=do_classifier_free_guidance)

    def denoise(
        self,
        encoded: Encoded,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        callback_on_step_end: Callable[[MochiPipeline, int, float, dict], Any] | None = None,
        **options: Any,
    ) -> Denoised:
        """Integrate the flow from noise to latents, on the mesh.

        `interrupt` ends the run after the present step. What it returns then are the latents so far; videos whose turn
        had not come are still noise.

        Args:
            encoded: what `encode` returned.
            height: pixels, a multiple of 16; the checkpoint's default if None, as all that follows.
            width: pixels, a multiple of 16.
            num_frames: 6k + 1.
            num_inference_steps: n; as many as `sigmas` has, where they are given.
            guidance_scale: one scale, or one per step; a step at 1 makes no unconditional pass.
            generator: source of the noise, on the CPU; a list has one per video.
            latents: the noise itself, [B, 12, T, H / 8, W / 8].
            callback_on_step_end: called as `(pipe, step, model time, {})` after each step of each video.
            options: `seed` (noise from a fresh CPU generator of this seed, instead of `generator`); `sigmas` (n + 1
                falling values that end with 0, Genmo's `sigma_schedule`, instead of the schedule); `threshold_noise`
                and `linear_steps` of the linear-quadratic schedule, the checkpoint's and n // 2 by default; `policy`,
                which decides the kind of each step (`models.mochi.sampling.denoise.StepPolicy`); `solver`, one of
                "euler", "ab2" and "unipc" (`models.mochi.sampling.solver`); `guidance_interval`, "A:B" or (A, B): the
                scale holds from the share A of the steps to the share B, and is 1 elsewhere; `guidance_reuse`, K: in
                the middle of the run the unconditional branch is computed in every K-th guided step only; `reuse`,
                which steps reuse blocks of an earlier one: a threshold, a list of steps, or a text as `mochi-tt
                generate --reuse` takes (`models.mochi.reuse`); `preset`, a name of `models.mochi.presets`, for what is
                not given (its precision is `from_pretrained`'s business); `progress`, called as `progress("denoise",
                done, total)`; `start_latents` (those of a video, from `encode_video`) and `strength`, the share of the
                steps that are done; `on_state`, called as `on_state(video, state)` after each step of each video
                (numbers from 0), before `callback_on_step_end`, with what can be read of the mesh then, and replaced:
                `state.latents()`, `state.estimate()`, `state.replace(latents)` (`models.mochi.sampling.state`).

        Raises:
            InputError: an argument breaks its rule, or two exclude each other.
        """
        self._check_open()
        size, noise = (height, width, num_frames), (latents, generator)
        asked = num_inference_steps, guidance_scale, noise, callback_on_step_end
        if ("strength" in options) != ("start_latents" in options):
            raise InputError("strength and start_latents go together: the latents of a video, from encode_video")
        run = self._run(len(encoded.prompts), size, *asked, **options)
        if run.is_guided and not encoded.negatives:
            raise InputError("guidance other than 1 needs the unconditional branch: encode with guidance")
        return self._denoise(encoded, run)

    def encode_video(
        self, frames: torch.Tensor | np.ndarray, seed: int | None = None, progress: Progress | None = None
    ) -> torch.Tensor:
        """Encode a video, or an image as a video of one frame, with the VAE's encoder, which the first call loads.

        Args:
            frames: uint8 [F, H, W, 3], or floats from -1 to 1, or PIL images; F is 6k + 1, H and W are multiples of 8.
            seed: of a sample of the latents; their mean if None.
            progress: called as `progress("encode_video", done, total)`.

        Returns:
            Normalised latents, float32 [1, C, T, H / 8, W / 8].

        Raises:
            InputError: frames of another shape, type or size, or a checkpoint without an encoder.
        """
        self._check_open()
        report = function("progress", progress) or _silent
        encoder = self._vae_encoder()
        report("encode_video", 0, 1)
        with self._watchdog.watching("encode"):
            latents = encoder.encode(plain_frames(frames), seed=seed)
        report("encode_video", 1, 1)
        return latents

    def _vae_encoder(self) -> MochiVaeEncoder:
        """Return the VAE's encoder, which is loaded when it is wanted first."""
        if self._encoder is None:
            if self._open_encoder is None:
                raise InputError("the pipeline was composed without the vae's encoder: use from_pretrained")
            self._encoder = self._open_encoder()
        return self._encoder

    def _inverted(self, run: inputs.Run, edit: Edit, latents: torch.Tensor) -> inputs.Run:
        """Return a run that starts from the noise that a video would be made of, and is held to the video."""
        blank = self._encode(inputs.Texts([""], [], False), MAX_SEQUENCE_LENGTH, _silent, is_guided=False).prompts[0]
        steps = len(run.guidance)
        run.progress("invert", 0, steps)

        def on_step(step: int) -> bool:
            run.progress("invert", step, steps)
            return self._interrupt

        with self._watchdog.watching("denoise"):
            noise = self._sampler(
                self._transformer,
                latents,
                sigmas=run.sigmas[::-1],
                guidance=[1.0] * steps,
                prompt=(blank.embeds, blank.mask),
                negative=None,
                parallel=self.parallel,
                capture=self.capture and self.mesh.can_capture,
                on_step=on_step,
            )
        self._check_numbers(noise, "the noise of the video")
        noise = noise.expand_as(run.noise_BCTHW)
        pull = Pull(edit, run.sigmas, noise, latents, run.on_state)
        return replace(run, noise_BCTHW=noise, on_state=pull)

    def _geometry_of(self, latents_BCTHW: torch.Tensor) -> Geometry:
        """Return the size of the video whose latents have this shape."""
        _, _, frames, rows, columns = latents_BCTHW.shape
        scales = self.scales
        size = (rows * scales.spatial, columns * scales.spatial, (frames - 1) * scales.temporal + 1)
        return Geometry(*size, scales)

    def decode(
        self, latents: torch.Tensor | Sequence[torch.Tensor], output_type: str = "np", progress: Progress | None = None
    ) -> Any:
        """Decode latents to frames, one video after the other.

        Args:
            latents: float32 [B, 12, T, H / 8, W / 8], or a list of such with B = 1.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`; see `MochiOutput`.
            progress: called as `progress("decode", done, total)`.

        Raises:
            InputError: latents of another shape or type, or with values that are not finite.
        """
        self._check_output(output_type)
        report = function("progress", progress) or _silent
        each = inputs.latents_list(latents)
        if output_type == "latent":
            return torch.cat(each)
        if self._vae is None:
            raise InputError("the pipeline was loaded without the vae, so it has no frames: ask for latents")
        report("decode", 0, len(each))
        videos = []
        for index, latents_BCTHW in enumerate(each):
            with self._watchdog.watching("decode"):
                videos.append(self._vae.decode(latents_BCTHW))
            report("decode", index + 1, len(each))
        frames_BFHWC = np.concatenate(videos)
        check_frames(frames_BFHWC)
        return as_output(frames_BFHWC, output_type)

    def _run(
        self,
        videos: int,
        size: tuple[int | None, int | None, int | None],
        steps: int | None,
        guidance: float | Sequence[float] | None,
        noise: tuple[Any, Any],
        callback: Callable[[Any, int, float, dict], Any] | None,
        /,
        **options: Any,
    ) -> inputs.Run:
        """Check the arguments of a denoising run, and say what its user should know of it."""
        run = inputs.Run.of(
            videos,
            self.defaults,
            self.scales,
            self._subject,
            size,
            steps,
            guidance,
            noise,
            callback,
            self._weights,
            self.parallel is not None,
            **options,
        )
        for line in run.notes:
            self._tell(line, level=4)
        return run

    def _encode(self, given: inputs.Texts, max_sequence_length: int, report: Progress, *, is_guided: bool) -> Encoded:
        if given.has_negative and not is_guided:
            warnings.warn("guidance is 1 in every step: the negative prompt has no effect", stacklevel=3)
        texts = [*given.prompts, *(given.negatives if is_guided else [])]
        self._tell_unknown_words(texts)
        report("encode", 0, len(texts))
        encoded, known = [], {}
        for index, text in enumerate(texts):
            if isinstance(text, str) and text not in known:
                with self._watchdog.watching("encode"):
                    known[text] = self._text_encoder.encode(text, max_sequence_length)
                self._check_numbers(known[text].embeds, "the text encoder's output")
            encoded.append(known[text] if isinstance(text, str) else text)
            report("encode", index + 1, len(texts))
        return Encoded(encoded[: len(given.prompts)], encoded[len(given.prompts) :])

    def _tell_unknown_words(self, texts: Sequence[Any]) -> None:
        words = getattr(self._text_encoder, "words", None)
        if words is None:
            return
        said = words.warning(" ".join(text for text in texts if isinstance(text, str)))
        if said is not None:
            self._tell(said)

    def _tell(self, line: str, level: int = 5) -> None:
        """Tell a line: to `on_message`, else as a warning of the caller `level` calls away."""
        if self._on_message is not None:
            self._on_message(line)
        else:
            warnings.warn(line, stacklevel=level)

    def _denoise(self, encoded: Encoded, run: inputs.Run) -> Denoised:
        steps, times, done = len(run.guidance), model_times(run.sigmas), 0
        run.progress("denoise", 0, steps * len(encoded.prompts))

        def on_step(step: int) -> bool:
            nonlocal done
            done += 1
            self._watchdog.step = step
            run.progress("denoise", done, steps * len(encoded.prompts))
            if run.callback is not None and run.callback(self, step - 1, times[step - 1], {}):
                raise InputError("callback_on_step_end must return nothing: tensors stay on the mesh")
            return self._interrupt

        results, forwards = list(run.begins.split(1)), []
        for index, text in enumerate(encoded.prompts):
            if self._interrupt:
                break
            forwards.append(Forwards())
            if not steps:
                continue
            negative = encoded.negatives[index % len(encoded.negatives)] if encoded.negatives else None
            more = {} if run.on_state is None else {"on_state": functools.partial(run.on_state, index)}
            with self._watchdog.watching("denoise"):
                results[index] = self._sampler(
                    self._transformer,
                    results[index],
                    sigmas=run.sigmas,
                    guidance=run.guidance,
                    prompt=(text.embeds, text.mask),
                    negative=None if negative is None else (negative.embeds, negative.mask),
                    parallel=self.parallel,
                    policy=run.policy,
                    solver=run.solver,
                    reuse=run.reuse,
                    forwards=forwards[-1],
                    capture=self.capture and self.mesh.can_capture,
                    on_step=on_step,
                    **more,
                )
            if self.mode != "dry-run":
                check_latent_values(results[index], "the latents that denoising left", _OVERFLOW)
        self._interrupt = False
        return Denoised(torch.cat(results), run.sigmas, run.guidance, done, forwards)

    def _check_open(self) -> None:
        if self._closed or not getattr(self.mesh, "is_open", True):
            raise InputError("the pipeline is closed: call it before close(), or within its with block")

    def _check_numbers(self, tensor: torch.Tensor, what: str) -> None:
        """Refuse numbers that no later stage could mend; a dry run has none."""
        if self.mode != "dry-run" and not tensor.isfinite().all():
            raise InputError(f"{what} holds values that are not finite: {_OVERFLOW}")

    def _check_output(self, output_type: str, callback_tensors: Sequence[str] = ()) -> None:
        self._check_open()
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type {output_type!r} must be one of {', '.join(OUTPUT_TYPES)}")
        if self.mode == "dry-run" and output_type != "latent":
            raise InputError("a dry run computes no numbers, so it has no frames: use output_type='latent'")
        if callback_tensors is not None and not (isinstance(callback_tensors, list | tuple) and not callback_tensors):
            raise InputError(
                f"callback_on_step_end_tensor_inputs {short(callback_tensors)} must be empty: "
                "tensors stay on the mesh during the loop"
            )


_OVERFLOW = (
    "the numbers overflowed, so the weights do not fit the model, or guidance or a LoRA is too strong; check the "
    "checkpoint, and on cards run mochi-tt selftest"
)


def _encoder_of(setup: Setup, mesh: Mesh, progress: Progress | None, on_message: Message | None) -> MochiVaeEncoder:
    """Declare the encoder of a set-up's VAE on its mesh, and load it from the store."""
    assert setup.checkpoint is not None
    component = setup.checkpoint.vae_encoder
    encoder = MochiVaeEncoder(EncoderConfig.from_dict(component.config), mesh)
    Store(setup.request.cache_dir).load(encoder, component, progress=progress, on_message=on_message)
    return encoder


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[stage] = round(perf_counter() - start, 3)


def _silent(stage: str, done: int, total: int) -> None:
    pass
