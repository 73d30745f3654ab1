"""The denoising loop: from noise to latents, one step after the other, with the state on the mesh.

Its parts: `packing` turns latents into patches, `schedule` gives the noise levels, `solver` how a step combines
predictions, `branches` runs it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from models.machine.errors import InputError
from models.mochi.sampling.branches import (
    Branches,
    BranchesInTurn,
    BranchesOnHalves,
    GuidanceParallel,
    Schedule,
    StepKind,
)
from models.mochi.sampling.cached import ReusingInTurn, ReusingOnHalves
from models.mochi.sampling.packing import pack_latents, unpack_latents
from models.mochi.sampling.reuse import Forwards, ReusePolicy, check_reused
from models.mochi.sampling.schedule import model_times
from models.mochi.sampling.solver import EULER, solver_weights
from models.mochi.sampling.state import StateReader, StepState
from models.mochi.transformer import MochiTransformer

if TYPE_CHECKING:
    import torch

Prompt = tuple["torch.Tensor", "torch.Tensor"]


class StepPolicy(Protocol):
    """Decides what each step computes, before it runs."""

    def kind(self, index: int) -> StepKind:
        """Return the kind of step `index`."""


@dataclass(frozen=True)
class GuideByScale:
    """Guide every step whose scale is not 1; guidance of 1 is the conditional branch alone."""

    scales: Sequence[float]

    def kind(self, index: int) -> StepKind:
        """Return the kind of step `index`."""
        return StepKind.CONDITIONAL if self.scales[index] == 1.0 else StepKind.GUIDED


@dataclass(frozen=True)
class ReuseUnconditional:
    """Compute the unconditional branch in every K-th guided step of the run's middle, and reuse its difference between.

    The first third of the steps and the last one are as `GuideByScale` has them: the difference changes fast there. A
    guided step after one at scale 1 computes both branches too.
    """

    scales: Sequence[float]
    every: int

    def kind(self, index: int) -> StepKind:
        """Return the kind of step `index`."""
        if self.scales[index] == 1.0:
            return StepKind.CONDITIONAL
        steps = len(self.scales)
        start = -(-steps // 3)
        if not start < index < steps - 1:
            return StepKind.GUIDED
        before = itertools.takewhile(lambda scale: scale != 1.0, reversed(self.scales[start:index]))
        return StepKind.DIFFERENCE if len(list(before)) % self.every else StepKind.GUIDED


def real_tokens(prompt: Prompt) -> torch.Tensor:
    """Caption features [L, C] of the tokens whose mask is set, from features [1, L_max, C] and mask [1, L_max]."""
    features, mask = prompt
    return features[0][mask[0].bool()]


def denoise(
    transformer: MochiTransformer,
    latents: torch.Tensor,
    *,
    sigmas: Sequence[float],
    guidance: Sequence[float],
    prompt: Prompt,
    negative: Prompt | None,
    parallel: GuidanceParallel | None = None,
    policy: StepPolicy | None = None,
    solver: str = EULER,
    reuse: ReusePolicy | None = None,
    forwards: Forwards | None = None,
    capture: bool = False,
    on_step: Callable[[int], bool | None] | None = None,
    on_state: Callable[[StepState], object] | None = None,
) -> torch.Tensor:
    """Integrate the flow from noise to latents; the state is float32 and stays on the mesh.

    Source: Genmo ``pipelines.py`` ``sample_model``; Diffusers ``FlowMatchEulerDiscreteScheduler.step``.

    Args:
        transformer: the loaded model.
        latents: noise [1, C, T, H, W] float32.
        sigmas: n + 1 noise levels from 1 down to 0.
        guidance: n guidance scales.
        prompt: caption features [1, L, C] and mask [1, L]; only tokens whose mask is set take part.
        negative: the same for the unconditional pass; may be None where every scale is 1.
        parallel: the other half of the mesh, where the layout has one; idle if every scale is 1.
        policy: decides the kind of each step; `GuideByScale` of the guidance scales if None.
        solver: how a step combines the predictions so far: one of `models.mochi.sampling.solver.SOLVERS`.
        reuse: decides which steps reuse blocks of an earlier one (`models.mochi.sampling.reuse`); none if None.
        forwards: is told what each step computed.
        capture: record a step's ops on the chips and replay them; the mesh must have been opened for it.
        on_step: called after each step with the number of steps done; True ends the run there.
        on_state: called after each step, before `on_step`, with what can be read of the state then, and replaced; the
            numbers of a run are the same with it and without, unless it replaces some.

    Returns:
        Latents [1, C, T, H, W] float32: of the last step that was done.

    Raises:
        ValueError: schedules of unequal length, latents that are not whole patches, guidance without ``negative``, or
            no such solver, or reuse of steps that are always computed.
    """
    steps, policy = len(guidance), policy or GuideByScale(guidance)
    if len(sigmas) != steps + 1:
        raise InputError(f"{len(sigmas)} sigmas for {steps} guidance scales: a schedule of n steps has n + 1 sigmas")
    if negative is None and any(scale != 1.0 for scale in guidance):
        raise InputError(
            "guidance other than 1 needs a negative prompt's embeddings (those of the empty prompt will do)"
        )
    patch, shape = transformer.config.patch_size, latents.shape
    if shape[0] != 1 or shape[1] != transformer.config.in_channels or shape[3] % patch or shape[4] % patch:
        raise InputError(
            f"latents {tuple(shape)} do not fit: they must be [1, {transformer.config.in_channels}, T, H, W] "
            f"with H and W multiples of the patch size {patch}"
        )
    size = (shape[2], shape[3] // patch, shape[4] // patch)
    grid, times = transformer.grid(*size), model_times(sigmas)
    patches = pack_latents(latents, patch)
    prompts = [transformer.prepare(real_tokens(prompt), times)]
    weights = solver_weights(solver, sigmas, guidance)
    schedules = [Schedule.upload(transformer.mesh, guidance, weights)]
    if reuse is not None:
        check_reused(reuse, steps, len(transformer.blocks))
    kinds = {policy.kind(index) for index in range(steps)}
    if kinds <= {StepKind.CONDITIONAL}:
        negative = None
    keeps = StepKind.DIFFERENCE in kinds
    branches: Branches
    if negative is None or parallel is None:
        if negative is not None:
            prompts.append(transformer.prepare(real_tokens(negative), times))
        in_turn = BranchesInTurn if reuse is None else functools.partial(ReusingInTurn, reuse=reuse)
        branches = in_turn(transformer, grid, patches, prompts, schedules[0], keeps_difference=keeps, capture=capture)
    else:
        if keeps:
            raise InputError("two halves compute both branches at once, so the unconditional one is not reused on them")
        other = parallel.unconditional
        prompts.append(other.prepare(real_tokens(negative), times))
        schedules.append(Schedule.upload(other.mesh, guidance, weights))
        grids = [grid, other.grid(*size)]
        on_halves = BranchesOnHalves if reuse is None else functools.partial(ReusingOnHalves, reuse=reuse)
        branches = on_halves(transformer, parallel, grids, patches, prompts, schedules, capture=capture)
    reader = None
    if on_state is not None:
        reader = StateReader(transformer, branches, patches, shape, sigmas, solver)
    try:
        for index in range(steps):
            kind = policy.kind(index)
            if kind is StepKind.GUIDED and negative is None:
                raise InputError(f"the policy guides step {index}, but there is no negative prompt to guide with")
            if reader is not None:
                reader.before_step()
            done = branches.step(index, kind)
            if forwards is not None:
                forwards.add(kind.branches, done)
            if on_state is not None and reader is not None:
                on_state(reader.after_step(index + 1))
            if on_step is not None and on_step(index + 1):
                break
        patches = transformer.download_patches(branches.state_1BNI, grid.tokens)
    finally:
        if reader is not None:
            reader.close()
        branches.release()
        transformer.mesh.free_buffers()  # The decoder has better use for the memory.
    return unpack_latents(patches, shape, patch)
