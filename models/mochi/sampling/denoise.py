"""Sampling as small functions: pack latents into patches, prepare, step through the schedule on the mesh, unpack."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ttnn

from models.mochi.sampling.schedule import model_times
from models.mochi.transformer import Grid, MochiTransformer, PreparedPrompt, StepTable
from models.parallel import TILE, Halves, Mesh, Replay

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


def guided(conditional: ttnn.Tensor, unconditional: ttnn.Tensor, scale: ttnn.Tensor) -> ttnn.Tensor:
    """Classifier-free guidance ``u + s (c - u)`` (arXiv:2207.12598) on predictions [1, 1, N / SP, I] float32.

    ``scale`` is [1, 1, 1, 1] float32.
    """
    return ttnn.add(unconditional, ttnn.multiply(ttnn.subtract(conditional, unconditional), scale))


def euler(state: ttnn.Tensor, velocity: ttnn.Tensor, step: ttnn.Tensor) -> ttnn.Tensor:
    """``state += step velocity``, both [1, 1, N / SP, I] float32, in place; ``step`` is [1, 1, 1, 1] float32."""
    return ttnn.add(state, ttnn.multiply(velocity, step), output_tensor=state)


@dataclass(frozen=True)
class GuidanceParallel:
    """Where the unconditional branch runs beside the conditional one: the same model, loaded on the other half."""

    halves: Halves
    unconditional: MochiTransformer


@dataclass(frozen=True)
class Schedule:
    """Numbers of all steps on one mesh: the scale of guidance, and the step in sigma."""

    table: StepTable

    @classmethod
    def upload(cls, mesh: Mesh, scales: Sequence[float], steps: Sequence[float]) -> "Schedule":
        """Put n scales and n steps on a mesh."""
        columns = [np.asarray(values, dtype=np.float32)[None, None, :, None] for values in (scales, steps)]
        # Whole tiles, because a piece of a row begins at a tile.
        tiles = [np.repeat(column, TILE, axis=3) for column in columns]
        return cls(StepTable([[mesh.upload(tile, dtype=ttnn.float32) for tile in tiles]]))

    def now(self) -> tuple[ttnn.Tensor, ttnn.Tensor]:
        """The current step's scale and step, each [1, 1, 1, 1] float32."""
        scale, step = (ttnn.slice(row, [0, 0, 0, 0], [1, 1, 1, 1]) for row in self.table.group(0))
        return scale, step


class BranchesInTurn:
    """One mesh, one state; a guided step is two forwards, a scale of 1 needs one only."""

    def __init__(
        self,
        transformer: MochiTransformer,
        grid: Grid,
        patches: "torch.Tensor",
        prompts: Sequence[PreparedPrompt],
        schedule: Schedule,
        *,
        capture: bool = False,
    ) -> None:
        self.transformer = transformer
        self.grid = grid
        self.prompts = prompts
        self.schedule = schedule
        self.state_1BNI = transformer.upload_patches(patches)
        device = transformer.mesh.device
        self._guided: Replay[ttnn.Tensor] = Replay(device, capture=capture)
        self._alone: Replay[ttnn.Tensor] = Replay(device, capture=capture)

    def step(self, index: int, *, guided: bool) -> None:
        """Advance the state by a step; ``guided`` says whether its scale is other than 1."""
        self.schedule.table.select(index)
        for prompt in self.prompts if guided else self.prompts[:1]:
            prompt.select(index)
        replay, program = (self._guided, self._guided_step) if guided else (self._alone, self._conditional_step)
        replay(program)
        replay.finish()

    def predict(self, branch: int) -> ttnn.Tensor:
        """A forward: 0 is the conditional branch."""
        return self.transformer(self.state_1BNI, self.prompts[branch], self.grid)

    def _guided_step(self) -> ttnn.Tensor:
        return self.advance(self.predict(0), self.predict(1))

    def _conditional_step(self) -> ttnn.Tensor:
        return euler(self.state_1BNI, self.predict(0), self.schedule.now()[1])

    def advance(self, conditional: ttnn.Tensor, unconditional: ttnn.Tensor) -> ttnn.Tensor:
        """Guide the predictions and advance the state, in place."""
        scale, step = self.schedule.now()
        return euler(self.state_1BNI, guided(conditional, unconditional, scale), step)

    def release(self) -> None:
        """Free what was captured."""
        self._guided.release()
        self._alone.release()


class BranchesOnHalves:
    """Two halves of a mesh, each with the whole state; each makes one forward, they swap, and both advance alike."""

    def __init__(
        self,
        transformer: MochiTransformer,
        parallel: GuidanceParallel,
        grids: Sequence[Grid],
        patches: "torch.Tensor",
        prompts: Sequence[PreparedPrompt],
        schedules: Sequence[Schedule],
        *,
        capture: bool = False,
    ) -> None:
        self.models = (transformer, parallel.unconditional)
        self.halves = parallel.halves
        self.halves.connect()
        self.grids = grids
        self.prompts = prompts
        self.schedules = schedules
        self.states = [model.upload_patches(patches) for model in self.models]
        self._forwards: list[Replay[ttnn.Tensor]] = [
            Replay(model.mesh.device, capture=capture) for model in self.models
        ]

    @property
    def state_1BNI(self) -> ttnn.Tensor:
        """The state on the conditional half."""
        return self.states[0]

    def step(self, index: int, *, guided: bool) -> None:
        """Advance both states by a step. A scale of 1 takes the unconditional branch too, and nothing from it."""
        for schedule, prompt in zip(self.schedules, self.prompts, strict=True):
            schedule.table.select(index)
            prompt.select(index)
        conditional, unconditional = (
            forward(functools.partial(self.predict, half)) for half, forward in enumerate(self._forwards)
        )
        self.advance(conditional, unconditional)
        for forward in self._forwards:
            forward.finish()

    def predict(self, half: int) -> ttnn.Tensor:
        """The forward of one half: 0 is the conditional branch."""
        return self.models[half](self.states[half], self.prompts[half], self.grids[half])

    def advance(self, conditional: ttnn.Tensor, unconditional: ttnn.Tensor) -> None:
        """Swap the predictions and advance both states, in place."""
        other_unconditional, other_conditional = self.halves.swap(conditional, unconditional)
        pairs = ((conditional, other_unconditional), (other_conditional, unconditional))
        for state, pair, schedule in zip(self.states, pairs, self.schedules, strict=True):
            scale, step = schedule.now()
            euler(state, guided(*pair, scale), step)

    def release(self) -> None:
        """Free what was captured."""
        for forward in self._forwards:
            forward.release()


def denoise(
    transformer: MochiTransformer,
    latents: "torch.Tensor",
    *,
    sigmas: Sequence[float],
    guidance: Sequence[float],
    prompt: Prompt,
    negative: Prompt | None,
    parallel: GuidanceParallel | None = None,
    capture: bool = False,
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
        capture: record a step's ops on the chips and replay them; the mesh must have been opened for it.
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
    deltas = [before - after for before, after in itertools.pairwise(sigmas)]
    schedules = [Schedule.upload(transformer.mesh, guidance, deltas)]
    if all(scale == 1.0 for scale in guidance):
        negative = None
    branches: BranchesInTurn | BranchesOnHalves
    if negative is None or parallel is None:
        if negative is not None:
            prompts.append(transformer.prepare(real_tokens(negative), times))
        branches = BranchesInTurn(transformer, grid, patches, prompts, schedules[0], capture=capture)
    else:
        other = parallel.unconditional
        prompts.append(other.prepare(real_tokens(negative), times))
        schedules.append(Schedule.upload(other.mesh, guidance, deltas))
        grids = [grid, other.grid(*size)]
        branches = BranchesOnHalves(transformer, parallel, grids, patches, prompts, schedules, capture=capture)
    try:
        for index, scale in enumerate(guidance):
            branches.step(index, guided=scale != 1.0)
            if on_step is not None:
                on_step(index + 1, steps)
        patches = transformer.download_patches(branches.state_1BNI, grid.tokens)
    finally:
        branches.release()
        transformer.mesh.free_buffers()  # The decoder has better use for the memory.
    return unpack_latents(patches, shape, patch)
