"""The branches of guidance on the mesh: one step at a time, in turn on one mesh or side by side on two halves."""

from __future__ import annotations

import functools
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

    @property
    def branches(self) -> int:
        """How many branches take part: the first ones of conditional, unconditional."""
        return 2 if self is StepKind.GUIDED else 1


class Branches(Protocol):
    """One denoising run on the mesh: the state, and the programs that advance it."""

    @property
    def state_1BNI(self) -> ttnn.Tensor:
        """The noisy latents as patches [1, 1, N / SP, I] float32, fractured over SP."""

    def step(self, index: int, kind: StepKind) -> Blocks:
        """Advance the state by step `index` in the way that `kind` says; return what was done with the blocks."""

    def release(self) -> None:
        """Free what was captured."""


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
    def upload(cls, mesh: Mesh, scales: Sequence[float], steps: Sequence[float]) -> Schedule:
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
        patches: torch.Tensor,
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

    def step(self, index: int, kind: StepKind) -> Blocks:
        """Advance the state by step `index` in the way that `kind` says; return what was done with the blocks."""
        self.select(index, kind)
        replay = self._guided if kind is StepKind.GUIDED else self._alone
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
        """Advance the state, in place, by the predictions of the branches that took part."""
        if kind is StepKind.GUIDED:
            return self.advance(*predictions)
        return euler(self.state_1BNI, predictions[0], self.schedule.now()[1])

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
        self.states = [model.upload_patches(patches) for model in self.models]
        self._forwards: list[Replay[ttnn.Tensor]] = [
            Replay(model.mesh.device, capture=capture) for model in self.models
        ]

    @property
    def state_1BNI(self) -> ttnn.Tensor:
        """The state on the conditional half."""
        return self.states[0]

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
        return self.models[half](self.states[half], self.prompts[half], self.grids[half])

    def advance(self, conditional: ttnn.Tensor, unconditional: ttnn.Tensor) -> None:
        """Swap the predictions and advance both states, in place."""
        other_unconditional, other_conditional = self.halves.swap(conditional, unconditional)
        pairs = ((conditional, other_unconditional), (other_conditional, unconditional))
        for state, pair, schedule in zip(self.states, pairs, self.schedules, strict=True):
            scale, step = schedule.now()
            euler(state, guided(*pair, scale), step)

    def _follow(self, conditional: ttnn.Tensor) -> None:
        """Advance both states, in place, by the conditional half's prediction."""
        _, copied = self.halves.swap(conditional, self.states[1])  # The swap takes a tensor of each half.
        for state, velocity, schedule in zip(self.states, (conditional, copied), self.schedules, strict=True):
            euler(state, velocity, schedule.now()[1])

    def release(self) -> None:
        """Free what was captured."""
        for forward in self._forwards:
            forward.release()
