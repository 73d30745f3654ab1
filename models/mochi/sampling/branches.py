"""The branches of guidance on the mesh: one step at a time, in turn on one mesh or side by side on two halves."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import numpy as np
import ttnn

from models.mochi.sampling.reuse import Blocks
from models.mochi.transformer import Grid, MochiTransformer, PreparedPrompt, StepTable
from models.parallel import TILE, Halves, Mesh, Replay

if TYPE_CHECKING:
    import torch


class StepKind(Enum):
    """What one denoising step computes."""

    GUIDED = "guided"
    """Both branches, joined by classifier-free guidance."""
    CONDITIONAL = "conditional"
    """The conditional branch alone."""
    DIFFERENCE = "difference"
    """The conditional branch, guided by the difference of the branches that the last guided step kept."""

    @property
    def branches(self) -> int:
        """How many branches take part: the first ones of conditional, unconditional."""
        return 2 if self is StepKind.GUIDED else 1


class Branches(Protocol):
    """One denoising run on the mesh: the state, and the programs that advance it."""

    @property
    def flow(self) -> Flow:
        """The state, and what the solver keeps; on the conditional half, where there are two."""

    @property
    def state_1BNI(self) -> ttnn.Tensor:
        """The noisy latents as patches [1, 1, N / SP, I] float32, fractured over SP."""

    def step(self, index: int, kind: StepKind) -> Blocks:
        """Advance the state by step `index` in the way that `kind` says; return what was done with the blocks."""

    def replace(self, patches: torch.Tensor) -> None:
        """Put other patches [N, I] in the place of the state."""

    def release(self) -> None:
        """Free what was captured."""


def guided(conditional: ttnn.Tensor, unconditional: ttnn.Tensor, scale: ttnn.Tensor) -> ttnn.Tensor:
    """Classifier-free guidance ``u + s (c - u)`` (arXiv:2207.12598) on predictions [1, 1, N / SP, I] float32.

    ``scale`` is [1, 1, 1, 1] float32.
    """
    return ttnn.add(unconditional, ttnn.multiply(ttnn.subtract(conditional, unconditional), scale))


def combined(sources: Sequence[ttnn.Tensor], weights: Sequence[ttnn.Tensor]) -> ttnn.Tensor:
    """The sum of ``weights[i] sources[i]``: sources [1, 1, N / SP, I] float32, weights [1, 1, 1, 1] float32."""
    terms = [ttnn.multiply(source, weight) for source, weight in zip(sources, weights, strict=True)]
    return functools.reduce(ttnn.add, terms)


@dataclass(frozen=True)
class Flow:
    """The state on one mesh and what the solver keeps of earlier steps, [1, 1, N / SP, I] float32 over SP.

    Their addresses do not change, so that a captured program can advance them.
    """

    state_1BNI: ttnn.Tensor
    kept: Sequence[ttnn.Tensor]

    @classmethod
    def begin(cls, transformer: MochiTransformer, patches: torch.Tensor, kept: int) -> Flow:
        """Put patches of noise on the mesh, and ``kept`` tensors of zeros beside them."""
        state = transformer.upload_patches(patches)
        return cls(state, [transformer.upload_patches(patches.new_zeros(patches.shape)) for _ in range(kept)])

    def replace(self, transformer: MochiTransformer, patches: torch.Tensor) -> None:
        """Put other patches in the place of the state; what the solver keeps of earlier steps stays."""
        transformer.write_patches(patches, self.state_1BNI)

    def advance(self, velocity: ttnn.Tensor, weights: Sequence[Sequence[ttnn.Tensor]]) -> None:
        """Make a step of the solver (`models.mochi.sampling.solver`), in place.

        Args:
            velocity: the model's, joined by guidance.
            weights: m + 1 rows of m + 1 weights, where m tensors are kept.
        """
        sources = (velocity, *self.kept)
        moved, *fresh = [combined(sources, row) for row in weights]
        ttnn.add(self.state_1BNI, moved, output_tensor=self.state_1BNI)
        for tensor, kept in zip(fresh, self.kept, strict=True):
            ttnn.copy(tensor, kept)


@dataclass(frozen=True)
class GuidanceParallel:
    """Where the unconditional branch runs beside the conditional one: the same model, loaded on the other half."""

    halves: Halves
    unconditional: MochiTransformer


@dataclass(frozen=True)
class Schedule:
    """Numbers of all steps on one mesh: the scale of guidance, and the solver's weights."""

    table: StepTable
    kept: int
    """How many tensors the solver keeps: m."""

    @classmethod
    def upload(cls, mesh: Mesh, scales: Sequence[float], weights: np.ndarray) -> Schedule:
        """Put n scales and the weights [n, m + 1, m + 1] of `models.mochi.sampling.solver` on a mesh."""
        kept = weights.shape[1] - 1
        numbers = [np.asarray(scales), *weights.reshape(len(weights), -1).T]
        columns = [np.asarray(values, dtype=np.float32)[None, None, :, None] for values in numbers]
        # Whole tiles, because a piece of a row begins at a tile.
        tiles = [np.repeat(column, TILE, axis=3) for column in columns]
        return cls(StepTable([[mesh.upload(tile, dtype=ttnn.float32) for tile in tiles]]), kept)

    def now(self) -> tuple[ttnn.Tensor, list[tuple[ttnn.Tensor, ...]]]:
        """The current step's scale, and its m + 1 rows of m + 1 weights; each number is [1, 1, 1, 1] float32."""
        scale, *weights = (ttnn.slice(row, [0, 0, 0, 0], [1, 1, 1, 1]) for row in self.table.group(0))
        return scale, list(itertools.batched(weights, self.kept + 1))


class BranchesInTurn:
    """One mesh, one state; a guided step is two forwards, every other kind needs one only."""

    def __init__(
        self,
        transformer: MochiTransformer,
        grid: Grid,
        patches: torch.Tensor,
        prompts: Sequence[PreparedPrompt],
        schedule: Schedule,
        *,
        keeps_difference: bool = False,
        capture: bool = False,
    ) -> None:
        """Put the state on the mesh. ``keeps_difference`` makes guided steps keep what `StepKind.DIFFERENCE` needs."""
        self.transformer = transformer
        self.grid = grid
        self.prompts = prompts
        self.schedule = schedule
        self.flow: Flow = Flow.begin(transformer, patches, schedule.kept)
        self.difference = transformer.upload_patches(patches.new_zeros(patches.shape)) if keeps_difference else None
        device = transformer.mesh.device
        self._replays = {kind: Replay[ttnn.Tensor](device, capture=capture) for kind in StepKind}

    @property
    def state_1BNI(self) -> ttnn.Tensor:
        """The noisy latents."""
        return self.flow.state_1BNI

    def step(self, index: int, kind: StepKind) -> Blocks:
        """Advance the state by step `index` in the way that `kind` says; return what was done with the blocks."""
        self.select(index, kind)
        replay = self._replays[kind]
        replay(lambda: self.apply(kind, [self.predict(branch) for branch in range(kind.branches)]))
        replay.finish()
        return Blocks.COMPUTED

    def select(self, index: int, kind: StepKind) -> None:
        """Make the numbers of step `index` the current ones."""
        self.schedule.table.select(index)
        for prompt in self.prompts[: kind.branches]:
            prompt.select(index)

    def predict(self, branch: int) -> ttnn.Tensor:
        """A forward: 0 is the conditional branch."""
        return self.transformer(self.state_1BNI, self.prompts[branch], self.grid)

    def apply(self, kind: StepKind, predictions: Sequence[ttnn.Tensor]) -> ttnn.Tensor:
        """Advance the state, in place, by the predictions of the branches that took part.

        `StepKind.DIFFERENCE` guides the conditional prediction c by what was kept: ``c + (u' - c')`` stands for the
        unconditional one. This is FasterCache's reuse (arXiv:2410.19355, equations 9 and 10; Diffusers
        ``hooks/faster_cache.py``) with both of its weights at 1. Its low and high frequencies of u' - c' are weighted
        apart, which takes a two-dimensional Fourier transform of each latent frame, and frames lie cut over the mesh.
        """
        if kind is StepKind.GUIDED:
            return self.advance(*predictions)
        scale, weights = self.schedule.now()
        velocity = predictions[0]
        if kind is StepKind.DIFFERENCE:
            velocity = guided(velocity, ttnn.add(velocity, self.difference), scale)
        self.flow.advance(velocity, weights)
        return self.state_1BNI

    def advance(self, conditional: ttnn.Tensor, unconditional: ttnn.Tensor) -> ttnn.Tensor:
        """Guide the predictions and advance the state, in place; keep their difference where that is wanted."""
        if self.difference is not None:
            ttnn.subtract(unconditional, conditional, output_tensor=self.difference)
        scale, weights = self.schedule.now()
        self.flow.advance(guided(conditional, unconditional, scale), weights)
        return self.state_1BNI

    def replace(self, patches: torch.Tensor) -> None:
        """Put other patches [N, I] in the place of the state."""
        self.flow.replace(self.transformer, patches)

    def release(self) -> None:
        """Free what was captured."""
        for replay in self._replays.values():
            replay.release()


class BranchesOnHalves:
    """Two halves of a mesh, each with the whole state; each makes one forward, they swap, and both advance alike."""

    def __init__(
        self,
        transformer: MochiTransformer,
        parallel: GuidanceParallel,
        grids: Sequence[Grid],
        patches: torch.Tensor,
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
        self.flows = [
            Flow.begin(model, patches, schedule.kept) for model, schedule in zip(self.models, schedules, strict=True)
        ]
        self._forwards: list[Replay[ttnn.Tensor]] = [
            Replay(model.mesh.device, capture=capture) for model in self.models
        ]

    @property
    def flow(self) -> Flow:
        """The flow on the conditional half."""
        return self.flows[0]

    @property
    def state_1BNI(self) -> ttnn.Tensor:
        """The state on the conditional half."""
        return self.flows[0].state_1BNI

    @property
    def states(self) -> list[ttnn.Tensor]:
        """The state on each half."""
        return [flow.state_1BNI for flow in self.flows]

    def step(self, index: int, kind: StepKind) -> Blocks:
        """Advance both states by step `index` in the way that `kind` says; return what was done with the blocks.

        In a conditional step the unconditional half only takes over what the other half predicts.
        """
        self.select(index)
        running = self._forwards[: kind.branches]
        self.apply(kind, [forward(functools.partial(self.predict, half)) for half, forward in enumerate(running)])
        for forward in running:
            forward.finish()
        return Blocks.COMPUTED

    def select(self, index: int) -> None:
        """Make the numbers of step `index` the current ones, on both halves."""
        for schedule, prompt in zip(self.schedules, self.prompts, strict=True):
            schedule.table.select(index)
            prompt.select(index)

    def apply(self, kind: StepKind, predictions: Sequence[ttnn.Tensor]) -> None:
        """Advance both states, in place, by the predictions of the halves that took part."""
        if kind is StepKind.GUIDED:
            self.advance(*predictions)
        else:
            self._follow(predictions[0])

    def predict(self, half: int) -> ttnn.Tensor:
        """The forward of one half: 0 is the conditional branch."""
        return self.models[half](self.flows[half].state_1BNI, self.prompts[half], self.grids[half])

    def advance(self, conditional: ttnn.Tensor, unconditional: ttnn.Tensor) -> None:
        """Swap the predictions and advance both states, in place."""
        other_unconditional, other_conditional = self.halves.swap(conditional, unconditional)
        pairs = ((conditional, other_unconditional), (other_conditional, unconditional))
        for flow, pair, schedule in zip(self.flows, pairs, self.schedules, strict=True):
            scale, weights = schedule.now()
            flow.advance(guided(*pair, scale), weights)

    def _follow(self, conditional: ttnn.Tensor) -> None:
        """Advance both states, in place, by the conditional half's prediction."""
        _, copied = self.halves.swap(conditional, self.flows[1].state_1BNI)  # The swap takes a tensor of each half.
        for flow, velocity, schedule in zip(self.flows, (conditional, copied), self.schedules, strict=True):
            flow.advance(velocity, schedule.now()[1])

    def replace(self, patches: torch.Tensor) -> None:
        """Put other patches [N, I] in the place of the state, on both halves."""
        for model, flow in zip(self.models, self.flows, strict=True):
            flow.replace(model, patches)

    def release(self) -> None:
        """Free what was captured."""
        for forward in self._forwards:
            forward.release()
