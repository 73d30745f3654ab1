"""The text-to-video pipeline: composes text encoder, sampler and VAE decoder.

Names and meanings of the arguments are those of Diffusers' `MochiPipeline`, so that code written for one
reads for the other. What differs is said in the docstrings; nothing that is given is silently ignored.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.mochi import inputs
from models.mochi.geometry import Geometry, Scales
from models.mochi.precision import Precision
from models.mochi.sampling.schedule import guidance_schedule, model_times, resolve_sigmas
from models.mochi.text.encoder import (
    MeshTextEncoder,
    TextEmbeddings,
    TextEncoder,
    check_sequence_length,
    load_tokenizer,
)
from models.mochi.vae.frames import VaeDecoder, to_uint8
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.lora import LoraRequest
from weight_cache.store import Store

if TYPE_CHECKING:
    from models.device import Mode, OpenMesh
    from models.mochi.sampling.denoise import GuidanceParallel
    from models.mochi.transformer import MochiTransformer
    from models.parallel import Layout

# progress(stage, done, total): the stages are "load" (the mesh); those of the store, for each component
# (`weight_cache.store`); "encode", "denoise" and "decode".
Progress = Callable[[str, int, int], None]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class MochiOutput:
    """What a call of the pipeline returns.

    Attributes:
        frames: for `"np"` float32 [B, T, H, W, 3] from 0 to 1; for `"pt"` the same as a tensor
            [B, T, 3, H, W]; for `"pil"` a list of pictures per video; for `"latent"` the denoised,
            still normalised latents, float32 [B, 12, T', H / 8, W / 8].
        sigmas: the n + 1 sigmas used.
        guidance: the n guidance scales used.
        prompts: tokens and truncation of each prompt.
        negatives: the same of each negative prompt; empty where no step needed one.
        seconds: wall time per stage.
    """

    frames: Any
    sigmas: list[float]
    guidance: list[float]
    prompts: list[TextEmbeddings]
    negatives: list[TextEmbeddings]
    seconds: dict[str, float] = field(default_factory=dict)


class MochiPipeline:
    """Mochi 1 with its transformer on a Tenstorrent mesh. Close it, or use it in a `with` block."""

    def __init__(
        self,
        *,
        transformer: MochiTransformer,
        text_encoder: TextEncoder,
        vae: VaeDecoder,
        scales: Scales,
        mesh: OpenMesh,
        layout: Layout,
        checkpoint: Checkpoint,
        owns_mesh: bool = True,
        parallel: GuidanceParallel | None = None,
        capture: bool = True,
    ):
        """Compose a pipeline from its parts; most callers want `from_pretrained`."""
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.vae = vae
        self.scales = scales
        self.mesh = mesh
        self.layout = layout
        self.checkpoint = checkpoint
        self.parallel = parallel
        self.capture = capture
        self._owns_mesh = owns_mesh

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Any,
        mesh: str | tuple[int, int] | OpenMesh = "2x4",
        layout: str | None = None,
        mode: Mode = "auto",
        variant: str | None = None,
        progress: Progress | None = None,
        *,
        base: str | None = None,
        precision: str = "default",
        loras: Sequence[LoraRequest] = (),
        cache_dir: str | Path | None = None,
        say: Callable[[str], None] | None = None,
        vae_split: str | None = None,
        attention_chunks: str | None = None,
        capture: bool = True,
    ) -> MochiPipeline:
        """Load a checkpoint onto a mesh. Whatever can be checked is checked before weights are read.

        Weights come from the store of converted weights (`weight_cache.store`), which is filled
        first where it lacks them.

        Args:
            directory: a directory in Diffusers' or Genmo's layout, a ComfyUI .safetensors file, the id of a checkpoint
                in the local Hugging Face cache, the name `"tiny"`, or an open `Checkpoint`.
            mesh: shape such as `"2x4"`, opened here and closed with the pipeline; or an open mesh of
                `models.device.open_mesh`, which stays open.
            layout: such as `"sp0tp1"`; chosen from the mesh and the number of heads by default.
            mode: `"hardware"`, `"golden"`, `"dry-run"`, or `"auto"` (hardware where there are cards).
            variant: of the weight files, such as `"bf16"`.
            progress: called as `progress(stage, done, total)`, stages up to the last "weights".
            base: for Genmo's and ComfyUI's forms, where the components come from that they lack.
            precision: `"accurate"`, `"bf16"`, `"default"`, `"bf8"` or `"fast"`, from the most exact to the fastest; see
                `models.mochi.precision`.
            loras: merged into the transformer's weights.
            cache_dir: for the store; see `weight_cache.location` for the default.
            say: called with a line for what the user should know, such as a damaged entry of the store.
            vae_split: how the decoder is split over the mesh, such as `"h0w1"`; chosen per video by default.
            attention_chunks: rows of a chunk of queries and of keys, such as `"256x384"`; by rule by default.
            capture: whether the mesh, where it can, records a denoising step once and replays it.

        Raises:
            FileNotFoundError: checkpoint files are missing.
            ValueError: the checkpoint is of another model or damaged, the mesh or layout does not parse or
                does not divide the heads, there is no such precision, or a LoRA does not fit.
            OSError: the store has no space or cannot be written.
            RuntimeError: the mesh cannot be opened.
        """
        from models.device import OpenMesh, open_mesh, parse_mesh, quiet_ttnn

        if isinstance(directory, Checkpoint):
            if variant is not None or base is not None:
                raise ValueError("variant and base belong to the checkpoint, which is already open: give them there")
            checkpoint = directory
        else:
            checkpoint = Checkpoint.open(directory, variant, base)
        policy = Precision.named(precision)
        if isinstance(mesh, OpenMesh):
            if mode not in ("auto", mesh.mode):
                raise ValueError(f"mode {mode!r} was asked, but the open mesh is in mode {mesh.mode!r}")
            shape = mesh.shape
        else:
            shape = parse_mesh(mesh if isinstance(mesh, str) else "x".join(map(str, mesh)))
        quiet_ttnn()
        from models.layers import Chunks
        from models.mochi.components import Configs, Models, choose_layout
        from models.parallel import place

        chunks = Chunks.parse(attention_chunks) if attention_chunks is not None else None
        configs = Configs.of(checkpoint)
        chosen = choose_layout(configs, shape, policy, layout)
        scales = inputs.check_configs(checkpoint)
        for component in checkpoint.components:
            component.check()

        report = progress or _silent
        report("load", 0, 2)
        opened = mesh if isinstance(mesh, OpenMesh) else open_mesh(mesh, mode)
        try:
            report("load", 1, 2)
            placed = place(opened.device, chosen)
            models = Models.declare(configs, placed, policy, vae_split=vae_split, chunks=chunks)
            text_encoder = MeshTextEncoder(load_tokenizer(checkpoint), models.text_encoder)
            report("load", 2, 2)
            store = Store(cache_dir)
            for module, component, merged in models.with_weights(checkpoint, loras):
                store.load(module, component, precision=policy.weights, loras=merged, progress=report, say=say)
        except BaseException:
            if opened is not mesh:
                opened.close()
            raise
        return cls(
            transformer=models.transformer,
            text_encoder=text_encoder,
            vae=models.vae,
            scales=scales,
            mesh=opened,
            layout=chosen,
            checkpoint=checkpoint,
            owns_mesh=opened is not mesh,
            parallel=models.parallel,
            capture=capture,
        )

    @property
    def mode(self) -> str:
        """`"hardware"`, `"golden"` or `"dry-run"`."""
        return self.mesh.mode

    def close(self) -> None:
        """Close the mesh if the pipeline opened it; a second call does nothing."""
        if self._owns_mesh:
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
        height: int = 480,
        width: int = 848,
        num_frames: int = 19,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] = 4.5,
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
        max_sequence_length: int = 256,
        *,
        seed: int | None = None,
        sigmas: Sequence[float] | None = None,
        threshold_noise: float | None = None,
        linear_steps: int | None = None,
        progress: Progress | None = None,
    ) -> MochiOutput | tuple[Any]:
        """Make a video per prompt. Several prompts run one after the other.

        Args:
            prompt: text, or a list of texts; `""` is encoded as zeros without T5, as Genmo does.
            negative_prompt: what to steer away from; `""` by default. One text serves all prompts.
            height: pixels, a multiple of 16.
            width: pixels, a multiple of 16.
            num_frames: 6k + 1.
            num_inference_steps: n, 64 by default or as many as `sigmas` has.
            guidance_scale: one scale, or one per step; a step at 1 makes no unconditional pass.
            generator: source of the noise, on the CPU; a list has one per video.
            latents: the noise itself, [B, 12, T', H / 8, W / 8].
            prompt_embeds: [B, L, D], L up to 256, instead of `prompt`.
            prompt_attention_mask: [B, L], True for tokens that take part.
            negative_prompt_embeds: [B or 1, L, D], instead of `negative_prompt`; L may be another one.
            negative_prompt_attention_mask: [B or 1, L].
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`; see `MochiOutput`.
            return_dict: whether to return a `MochiOutput` or only `(frames,)`.
            callback_on_step_end: called as `(pipe, step, model time, {})` after each step of each video.
            callback_on_step_end_tensor_inputs: must stay empty: tensors are on the mesh during the loop.
            max_sequence_length: tokens kept of a prompt, 1 to 256.
            seed: noise from a fresh CPU generator of this seed; instead of `generator`.
            sigmas: n + 1 falling values that end with 0 (Genmo's `sigma_schedule`), instead of the schedule.
            threshold_noise: of the linear-quadratic schedule, 0.025 by default.
            linear_steps: of the linear-quadratic schedule, n // 2 by default.
            progress: called as `progress(stage, done, total)`.

        Raises:
            ValueError: an argument breaks its rule, or two exclude each other.
        """
        from models.mochi.sampling.denoise import denoise

        geometry = Geometry(height, width, num_frames, self.scales)
        values = resolve_sigmas(num_inference_steps, sigmas, threshold_noise, linear_steps)
        steps = len(values) - 1
        guidance = guidance_schedule(guidance_scale, steps)
        check_sequence_length(max_sequence_length)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} must be one of {', '.join(OUTPUT_TYPES)}")
        if self.mode == "dry-run" and output_type != "latent":
            raise ValueError("a dry run computes no numbers, so it has no frames: use output_type='latent'")
        if callback_on_step_end_tensor_inputs:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs {list(callback_on_step_end_tensor_inputs)} must be empty: "
                "tensors stay on the mesh during the loop"
            )
        text_width = self.text_encoder.width
        prompts = inputs.texts("prompt", prompt, prompt_embeds, prompt_attention_mask, text_width)
        negatives: list[str | TextEmbeddings] = [""]
        given = (negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask)
        if any(value is not None for value in given):
            negatives = inputs.texts(
                "negative_prompt",
                negative_prompt,
                negative_prompt_embeds,
                negative_prompt_attention_mask,
                text_width,
            )
            if max(guidance) == 1:
                warnings.warn("guidance is 1 in every step: the negative prompt has no effect", stacklevel=2)
        if len(negatives) not in (1, len(prompts)):
            raise ValueError(
                f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one, or one per prompt"
            )
        if max(guidance) == 1:
            negatives = []
        noise_BCTHW = inputs.make_latents(geometry, len(prompts), latents, generator, seed)

        report = progress or _silent
        seconds: dict[str, float] = {}
        with _timed(seconds, "encode"):
            encoded = self._encode([*prompts, *negatives], max_sequence_length, report)
        prompts_done, negatives_done = encoded[: len(prompts)], encoded[len(prompts) :]

        total = steps * len(prompts)
        report("denoise", 0, total)
        times, done = model_times(values), 0

        def on_step(index: int, count: int) -> None:
            nonlocal done
            step, done = done % steps, done + 1
            report("denoise", done, total)
            if callback_on_step_end is not None and callback_on_step_end(self, step, times[step], {}):
                raise ValueError("callback_on_step_end must return nothing: tensors stay on the mesh")

        results = []
        with _timed(seconds, "denoise"):
            for index, text in enumerate(prompts_done):
                negative = negatives_done[index % len(negatives_done)] if negatives_done else None
                results.append(
                    denoise(
                        self.transformer,
                        noise_BCTHW[index : index + 1],
                        sigmas=values,
                        guidance=guidance,
                        prompt=(text.embeds, text.mask),
                        negative=None if negative is None else (negative.embeds, negative.mask),
                        parallel=self.parallel,
                        capture=self.capture and self.mesh.can_capture,
                        on_step=on_step,
                    )
                )
        with _timed(seconds, "decode"):
            frames = self._finish(results, output_type, report)
        if not return_dict:
            return (frames,)
        return MochiOutput(frames, values, guidance, prompts_done, negatives_done, seconds)

    def decode(
        self, latents: torch.Tensor | Sequence[torch.Tensor], output_type: str = "np", progress: Progress | None = None
    ) -> Any:
        """Frames of denoised latents, as `__call__` with `output_type="latent"` returns them.

        Args:
            latents: float32 [B, 12, T', H / 8, W / 8], or a list of such with B = 1.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`; see `MochiOutput`.
            progress: called as `progress("decode", done, total)`.

        Raises:
            ValueError: latents of another shape or type, or with values that are not finite.
        """
        if isinstance(latents, torch.Tensor):
            latents = list(latents.split(1))
        return self._finish(list(latents), output_type, progress or _silent)

    def _encode(
        self, texts: list[str | TextEmbeddings], max_sequence_length: int, report: Progress
    ) -> list[TextEmbeddings]:
        report("encode", 0, len(texts))
        encoded = []
        for index, text in enumerate(texts):
            if isinstance(text, str):
                text = self.text_encoder.encode(text, max_sequence_length)
            encoded.append(text)
            report("encode", index + 1, len(texts))
        return encoded

    def _finish(self, results: list[torch.Tensor], output_type: str, report: Progress) -> Any:
        if output_type == "latent":
            return torch.cat(results)
        report("decode", 0, len(results))
        videos = []
        for index, latents_BCTHW in enumerate(results):
            videos.append(self.vae.decode(latents_BCTHW))
            report("decode", index + 1, len(results))
        frames_BFHWC = np.concatenate(videos)
        if output_type == "np":
            return frames_BFHWC
        if output_type == "pt":
            return torch.from_numpy(frames_BFHWC).permute(0, 1, 4, 2, 3)
        from PIL import Image

        return [[Image.fromarray(frame) for frame in to_uint8(video)] for video in frames_BFHWC]


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[stage] = round(perf_counter() - start, 3)


def _silent(stage: str, done: int, total: int) -> None:
    pass
