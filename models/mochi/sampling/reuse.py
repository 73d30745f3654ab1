"""Reuse of a step's blocks: which steps run only the first block and take the rest from an earlier step.

Neighbouring steps of the denoising loop do nearly the same work. So a step may run the first block and add what the
other blocks added in the last computed step. Either a threshold decides (the first block's residual, output - input,
has hardly moved since the last computed step), or a list that was calibrated before.

Sources: ParaAttention's first-block cache (github chengzeyi/ParaAttention); Diffusers `hooks/first_block_cache.py`,
whose formula and order of updates these are. A policy is data of the host: this module needs neither torch nor ttnn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from models.machine.errors import InputError


class Blocks(Enum):
    """What a step does with the blocks after the first one."""

    COMPUTED = "computed"
    """Runs them."""
    COMPARED = "compared"
    """Compares the first block's residual with that of the last computed step, then runs or reuses them."""
    REUSED = "reused"
    """Adds what they added in the last computed step."""


class ReusePolicy(Protocol):
    """Decides, before each step, what it does with the blocks after the first one."""

    @property
    def threshold(self) -> float | None:
        """The largest change of the residual at which blocks are reused; None if no step compares."""

    def blocks(self, index: int) -> Blocks:
        """Return what step `index` does."""


@dataclass(frozen=True)
class ReuseBelow:
    """Compare in every step but those that are always computed: the first and the last one, unless others are named."""

    threshold: float
    computed: frozenset[int]

    @classmethod
    def of(cls, threshold: float, steps: int) -> ReuseBelow:
        """Return the policy of a run of `steps` steps."""
        return cls(threshold, frozenset({0, steps - 1}))

    def blocks(self, index: int) -> Blocks:
        """Return what step `index` does."""
        return Blocks.COMPUTED if index in self.computed else Blocks.COMPARED


@dataclass(frozen=True)
class ReuseSteps:
    """Reuse in listed steps, and compute all others; nothing is compared and nothing is read.

    `note` is a line for the user on where the list comes from.
    """

    reused: frozenset[int]
    note: str | None = field(default=None, compare=False)

    def check(self, steps: int) -> None:
        """Check that a run of `steps` steps has the listed ones and computes its first and last one.

        Raises:
            InputError: it does not.
        """
        for index in sorted(self.reused):
            if not 0 < index < steps - 1:
                raise InputError(
                    f"step {index} cannot be reused: of {steps} steps, 0 to {steps - 1}, the first and the last are "
                    "always computed; leave it out of the reused steps"
                )

    @property
    def threshold(self) -> None:
        """None: no step compares."""
        return None

    def blocks(self, index: int) -> Blocks:
        """Return what step `index` does."""
        return Blocks.REUSED if index in self.reused else Blocks.COMPUTED


def check_reused(policy: ReusePolicy, steps: int, blocks: int = 2) -> None:
    """Check that a policy fits a run and a model. What it reuses where nothing is fresh is no error (`Decisions`).

    Args:
        policy: of the run.
        steps: of the run.
        blocks: of the model, if it is known.

    Raises:
        InputError: it reuses the first or the last step, or one that the run does not have; or the model has one block
            only.
    """
    if blocks < 2:
        raise InputError("reuse skips the blocks after the first one, and the model has only one: leave reuse off")
    listed = [index for index in {0, steps - 1} if policy.blocks(index) is Blocks.REUSED]
    ReuseSteps(frozenset(listed) | getattr(policy, "reused", frozenset())).check(steps)


def planned(policy: ReusePolicy | None, branches: Sequence[int]) -> Forwards:
    """Return what each step will compute. A step that compares counts as computed.

    Args:
        policy: of the run; None for none.
        branches: for each step, how many branches take part.
    """
    made, decisions = Forwards(), None if policy is None else Decisions(policy)
    for index, number in enumerate(branches):
        wanted = Blocks.COMPUTED if decisions is None else decisions.wanted(index, number)
        blocks = Blocks.REUSED if wanted is Blocks.REUSED else Blocks.COMPUTED
        if decisions is not None:
            decisions.done(blocks, number)
        made.add(number, blocks)
    return made


def nothing_fresh(policy: ReusePolicy | None, branches: Sequence[int]) -> list[int]:
    """Return the steps that a policy would reuse and that are computed, because nothing fresh is there to reuse."""
    if policy is None:
        return []
    done = planned(policy, branches).steps
    return [
        index
        for index, (_, blocks) in enumerate(done)
        if policy.blocks(index) is Blocks.REUSED and blocks is Blocks.COMPUTED
    ]


def kept_tensors(policy: ReusePolicy) -> int:
    """Return how many tensors of the visual stream a branch keeps between steps (`models.mochi.sampling.cached`)."""
    return 1 if policy.threshold is None else 4


class Decisions:
    """What each step does in the end: a policy, and the rule that only what is fresh is reused.

    A branch of guidance that the last computed step did not run has nothing to reuse, so the step is computed.
    """

    def __init__(self, policy: ReusePolicy) -> None:
        """Begin a run: no step has been computed."""
        self.policy = policy
        self._branches = 0

    def wanted(self, index: int, branches: int) -> Blocks:
        """Return what step `index` does, which runs the first `branches` branches."""
        return self.policy.blocks(index) if branches <= self._branches else Blocks.COMPUTED

    def compared(self, sums: Sequence[Sequence[float]]) -> Blocks:
        """Return what a step does that compares.

        Args:
            sums: for each branch the sums over all real tokens of `|r - r_last|` and of `|r_last|`. Their ratio over
                all branches is `mean |r - r_last| / mean |r_last|` of the branches as one batch, as Diffusers' Mochi
                pipeline runs them.
        """
        moved, size = (sum(column) for column in zip(*sums, strict=True))
        change = moved / size if size > 0 else math.inf
        assert self.policy.threshold is not None
        return Blocks.REUSED if change <= self.policy.threshold else Blocks.COMPUTED  # A NaN computes.

    def done(self, blocks: Blocks, branches: int) -> None:
        """Take note of a step that was done."""
        if blocks is Blocks.COMPUTED:
            self._branches = branches


@dataclass
class Forwards:
    """The forwards of a run, step by step: how many branches took part, and what they did after the first block."""

    steps: list[tuple[int, Blocks]] = field(default_factory=list)

    def add(self, branches: int, blocks: Blocks) -> None:
        """Take note of a step."""
        self.steps.append((branches, blocks))

    @property
    def reused(self) -> list[int]:
        """The steps that were reused."""
        return [index for index, (_, blocks) in enumerate(self.steps) if blocks is Blocks.REUSED]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of forwards computed and reused per branch, and the reused steps."""
        counts = {
            branch: {
                blocks.value: sum(number > index and done is blocks for number, done in self.steps)
                for blocks in (Blocks.COMPUTED, Blocks.REUSED)
            }
            for index, branch in enumerate(("conditional", "unconditional"))
        }
        return counts | {"reused_steps": self.reused}
