"""Sampling as small functions: pack latents into patches, prepare, step through the schedule on the mesh, unpack."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ttnn

from models.mochi.schedule import model_times
from models.mochi.transformer import Grid, MochiTransformer, PreparedPrompt

if TYPE_CHECKING:
    import torch

Prompt = tuple["torch.Tensor", "torch.Tensor"]


def pack_latents(latents: "torch.Tensor", patch: int) -> "torch.Tensor":
    """Latents [1, C, T, H, W] -> patches [T H/p W/p, p p C], tokens in (time, row, column) order."""
    _, channels, frames, height, width = latents.shape
    grid = latents.reshape(channels, frames, height // patch, patch, width // patch, patch)
    return grid.permute(1, 2, 4, 3, 5, 0).reshape(-1, patch * patch * channels)


def unpack_latents(patches: "torch.Tensor", shape: Sequence[int], patch: int) -> "torch.Tensor":
    """The inverse of `pack_latents`, for latents of ``shape`` [1, C, T, H, W]."""
    _, channels, frames, height, width = shape
    grid = patches.reshape(frames, height // patch, width // patch, patch, patch, channels)
    return grid.permute(5, 0, 1, 3, 2, 4).reshape(tuple(shape))


def real_tokens(prompt: Prompt) -> "torch.Tensor":
    """Caption features [L, C] of the tokens whose mask is set, from features [1, L_max, C] and mask [1, L_max]."""
    features, mask = prompt
    return features[0][mask[0].bool()]


def guided(conditional: ttnn.Tensor, unconditional: ttnn.Tensor, scale: float) -> ttnn.Tensor:
    """Classifier-free guidance ``u + s (c - u)`` (arXiv:2207.12598) on predictions [1, 1, N / SP, I] float32."""
    return ttnn.add(unconditional, ttnn.multiply(ttnn.subtract(conditional, unconditional), scale))


def predict(
    transformer: MochiTransformer,
    patches_1BNI: ttnn.Tensor,
    step: int,
    grid: Grid,
    positive: PreparedPrompt,
    negative: PreparedPrompt | None,
    scale: float,
) -> ttnn.Tensor:
    """The guided prediction of one step; a scale of 1 needs no second pass."""
    conditional = transformer(patches_1BNI, positive, step, grid)
    if scale == 1.0:
        return conditional
    assert negative is not None
    return guided(conditional, transformer(patches_1BNI, negative, step, grid), scale)


def denoise(
    transformer: MochiTransformer,
    latents: "torch.Tensor",
    *,
    sigmas: Sequence[float],
    guidance: Sequence[float],
    prompt: Prompt,
    negative: Prompt | None,
    on_step: Callable[[int, int], None] | None = None,
) -> "torch.Tensor":
    """Integrate the flow from noise to latents with Euler steps; the state is float32 and stays on the mesh.

    Source: Genmo ``pipelines.py`` ``sample_model``; Diffusers ``FlowMatchEulerDiscreteScheduler.step``.

    Args:
        transformer: the loaded model.
        latents: noise [1, C, T, H, W] float32.
        sigmas: n + 1 noise levels from 1 down to 0.
        guidance: n guidance scales.
        prompt: caption features [1, L, C] and mask [1, L]; only tokens whose mask is set take part.
        negative: the same for the unconditional pass; may be None where every scale is 1.
        on_step: called with (steps done, n) after each step.

    Returns:
        Latents [1, C, T, H, W] float32.

    Raises:
        ValueError: schedules of unequal length, latents that are not whole patches, or guidance without ``negative``.
    """
    steps = len(guidance)
    if len(sigmas) != steps + 1:
        raise ValueError(f"{len(sigmas)} sigmas for {steps} guidance scales: a schedule of n steps has n + 1 sigmas")
    if negative is None and any(scale != 1.0 for scale in guidance):
        raise ValueError(
            "guidance other than 1 needs a negative prompt's embeddings (those of the empty prompt will do)"
        )
    patch, shape = transformer.config.patch_size, latents.shape
    if shape[0] != 1 or shape[1] != transformer.config.in_channels or shape[3] % patch or shape[4] % patch:
        raise ValueError(
            f"latents {tuple(shape)} do not fit: they must be [1, {transformer.config.in_channels}, T, H, W] "
            f"with H and W multiples of the patch size {patch}"
        )
    grid = transformer.grid(shape[2], shape[3] // patch, shape[4] // patch)
    times = model_times(sigmas)
    positive = transformer.prepare(real_tokens(prompt), times)
    without = None
    if negative is not None and any(scale != 1.0 for scale in guidance):
        without = transformer.prepare(real_tokens(negative), times)
    state_1BNI = transformer.upload_patches(pack_latents(latents, patch))
    for step, scale in enumerate(guidance):
        velocity = predict(transformer, state_1BNI, step, grid, positive, without, scale)
        state_1BNI = ttnn.add(state_1BNI, ttnn.multiply(velocity, sigmas[step] - sigmas[step + 1]))
        if on_step is not None:
            on_step(step + 1, steps)
    return unpack_latents(transformer.download_patches(state_1BNI, grid.tokens), shape, patch)
