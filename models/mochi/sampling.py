"""Sampling as small functions: pack latents into patches, prepare, step through the schedule on the mesh, unpack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ttnn

from models.mochi.schedule import model_times
from models.mochi.transformer import Grid, MochiTransformer, PreparedPrompt
from models.parallel import Halves

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


def euler(state: ttnn.Tensor, velocity: ttnn.Tensor, step: float) -> ttnn.Tensor:
    """``state + step velocity``, all [1, 1, N / SP, I] float32."""
    return ttnn.add(state, ttnn.multiply(velocity, step))


@dataclass(frozen=True)
class GuidanceParallel:
    """Where the unconditional branch runs beside the conditional one: the same model, loaded on the other half."""

    halves: Halves
    unconditional: MochiTransformer


class BranchesInTurn:
    """One mesh, one state; a guided step is two forwards, a scale of 1 needs one only."""

    def __init__(
        self,
        transformer: MochiTransformer,
        grid: Grid,
        patches: "torch.Tensor",
        prompts: Sequence[PreparedPrompt],
    ) -> None:
        self.transformer = transformer
        self.grid = grid
        self.prompts = prompts
        self.state_1BNI = transformer.upload_patches(patches)

    def step(self, index: int, scale: float, step: float) -> None:
        """Advance the state: ``scale`` of guidance, ``step`` in sigma."""
        velocity = self.transformer(self.state_1BNI, self.prompts[0], index, self.grid)
        if scale != 1.0:
            velocity = guided(velocity, self.transformer(self.state_1BNI, self.prompts[1], index, self.grid), scale)
        self.state_1BNI = euler(self.state_1BNI, velocity, step)


class BranchesOnHalves:
    """Two halves of a mesh, each with the whole state; each makes one forward, they swap, and both advance alike."""

    def __init__(
        self,
        transformer: MochiTransformer,
        parallel: GuidanceParallel,
        grids: Sequence[Grid],
        patches: "torch.Tensor",
        prompts: Sequence[PreparedPrompt],
    ) -> None:
        self.models = (transformer, parallel.unconditional)
        self.halves = parallel.halves
        self.grids = grids
        self.prompts = prompts
        self.states = [model.upload_patches(patches) for model in self.models]

    @property
    def state_1BNI(self) -> ttnn.Tensor:
        """The state on the conditional half."""
        return self.states[0]

    def step(self, index: int, scale: float, step: float) -> None:
        """Advance the state: ``scale`` of guidance, ``step`` in sigma."""
        self.advance(self.predict(0, index), self.predict(1, index), scale, step)

    def predict(self, half: int, index: int) -> ttnn.Tensor:
        """The forward of one half: 0 is the conditional branch."""
        return self.models[half](self.states[half], self.prompts[half], index, self.grids[half])

    def advance(self, conditional: ttnn.Tensor, unconditional: ttnn.Tensor, scale: float, step: float) -> None:
        """Swap the predictions and advance both states."""
        other_unconditional, other_conditional = self.halves.swap(conditional, unconditional)
        velocities = (
            guided(conditional, other_unconditional, scale),
            guided(other_conditional, unconditional, scale),
        )
        self.states = [euler(state, v, step) for state, v in zip(self.states, velocities, strict=True)]


def denoise(
    transformer: MochiTransformer,
    latents: "torch.Tensor",
    *,
    sigmas: Sequence[float],
    guidance: Sequence[float],
    prompt: Prompt,
    negative: Prompt | None,
    parallel: GuidanceParallel | None = None,
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
        parallel: the other half of the mesh, where the layout has one; idle if every scale is 1.
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
    size = (shape[2], shape[3] // patch, shape[4] // patch)
    grid, times = transformer.grid(*size), model_times(sigmas)
    patches = pack_latents(latents, patch)
    prompts = [transformer.prepare(real_tokens(prompt), times)]
    branches: BranchesInTurn | BranchesOnHalves
    if negative is None or all(scale == 1.0 for scale in guidance):
        branches = BranchesInTurn(transformer, grid, patches, prompts)
    elif parallel is None:
        prompts.append(transformer.prepare(real_tokens(negative), times))
        branches = BranchesInTurn(transformer, grid, patches, prompts)
    else:
        prompts.append(parallel.unconditional.prepare(real_tokens(negative), times))
        grids = [grid, parallel.unconditional.grid(*size)]
        branches = BranchesOnHalves(transformer, parallel, grids, patches, prompts)
    for index, scale in enumerate(guidance):
        branches.step(index, scale, sigmas[index] - sigmas[index + 1])
        if on_step is not None:
            on_step(index + 1, steps)
    patches = transformer.download_patches(branches.state_1BNI, grid.tokens)
    transformer.mesh.free_buffers()  # The decoder has better use for the memory.
    return unpack_latents(patches, shape, patch)
