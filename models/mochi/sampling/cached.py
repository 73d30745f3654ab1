"""Branches of guidance that reuse blocks: forwards in parts, and what they keep on the mesh between steps.

A step that compares is two programs: the head (the first block of each branch, and the sums that decide) and a tail,
which runs the other blocks or reuses what they added. The host reads two numbers of each mesh between them, once. Where
nothing is compared a step is one program. All that a program leaves to another is in tensors that keep their addresses,
allocated before any program is captured (`models.parallel.replay`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import ttnn

from models.layers import compute
from models.mochi.sampling.branches import BranchesInTurn, BranchesOnHalves, StepKind
from models.mochi.sampling.reuse import Blocks, Decisions, ReusePolicy
from models.mochi.transformer import Grid, MochiTransformer, PreparedPrompt
from models.parallel import Replay, all_reduce


class CachedBranch:
    """One branch's forward in parts, and what it keeps of its last computed step."""

    def __init__(
        self, transformer: MochiTransformer, prompt: PreparedPrompt, grid: Grid, rows: int, *, compares: bool
    ) -> None:
        """Allocate what the branch keeps: one activation, or four and a copy of the text stream if it compares.

        Args:
            transformer: the model.
            prompt: of this branch.
            grid: result of `transformer.grid`.
            rows: visual tokens of a shard, N / SP.
            compares: whether steps are compared.
        """
        self._model, self._prompt, self._grid, self._compares = transformer, prompt, grid, compares
        shape = (1, 1, rows, transformer.stream_width)
        self._rest = self._kept(shape)  # last block's output - first block's output, of the last computed step
        if compares:
            self._visual = self._kept(shape)  # first block's output, of this step
            self._text = None if prompt.text_1BLP is None else self._kept(tuple(prompt.text_1BLP.shape))
            self._moved = self._kept(shape)  # first block's residual, of this step
            self._last = self._kept(shape)  # first block's residual, of the last computed step
            self._real = self._real_rows(rows)
            self._decisive = self._kept((2, 1, 1, 1), ttnn.float32)

    def _kept(self, shape: tuple[int, ...], dtype: ttnn.DataType = ttnn.bfloat16) -> ttnn.Tensor:
        """Return zeros of one chip's shape, to which programs write."""
        return ttnn.zeros(shape, dtype=dtype, layout=ttnn.TILE_LAYOUT, device=self._model.mesh.device)

    def _real_rows(self, rows: int) -> ttnn.Tensor:
        """Return [2, 1, N / SP, 1] float32, fractured over SP: 1 for rows of tokens, 0 for padding."""
        mesh = self._model.mesh
        real = (np.arange(rows * mesh.sp.size) < self._grid.tokens).astype(np.float32)
        return mesh.upload(np.stack([real, real])[:, None, :, None], dtype=ttnn.float32, sp=2)

    def forward(self, patches_1BNI: ttnn.Tensor, blocks: Blocks) -> ttnn.Tensor:
        """Predict in one program; arguments and result as in `MochiTransformer.__call__`."""
        streams = self._model.begin(patches_1BNI, self._prompt)
        visual_1BND, text_1BLP = self._model.run(*streams, self._prompt, self._grid, 0, 1)
        return self._finish(visual_1BND, text_1BLP, blocks)

    def head(self, patches_1BNI: ttnn.Tensor, others: ttnn.Tensor | None = None) -> ttnn.Tensor:
        """Run the first block, keep what it gives, and return the sums that decide.

        Args:
            patches_1BNI: as in `MochiTransformer.__call__`.
            others: what this returned for another branch on the same mesh; added to the sums.

        Returns:
            [2, 1, 1, 1] float32, replicated: the sums of `|r - r_last|` and `|r_last|` over the real tokens, with r the
            first block's residual. Before the first computed step they say nothing.
        """
        embedded_1BND, embedded_1BLP = self._model.begin(patches_1BNI, self._prompt)
        visual_1BND, text_1BLP = self._model.run(embedded_1BND, embedded_1BLP, self._prompt, self._grid, 0, 1)
        ttnn.subtract(visual_1BND, embedded_1BND, output_tensor=self._moved)
        ttnn.copy(visual_1BND, self._visual)
        if text_1BLP is not None:
            ttnn.copy(text_1BLP, self._text)
        sums = self._sums()
        ttnn.copy(sums if others is None else ttnn.add(sums, others), self._decisive)
        return self._decisive

    def tail(self, blocks: Blocks) -> ttnn.Tensor:
        """Predict after `head`; the result is that of `MochiTransformer.__call__`."""
        if blocks is Blocks.COMPUTED:
            ttnn.copy(self._moved, self._last)
        return self._finish(self._visual, self._text, blocks)

    def predict(self, patches_1BNI: ttnn.Tensor, blocks: Blocks) -> ttnn.Tensor:
        """Predict with whatever a step runs whose outcome is known; arguments and result as in `forward`."""
        if not self._compares:
            return self.forward(patches_1BNI, blocks)
        self.head(patches_1BNI)
        return self.tail(blocks)

    def _finish(self, visual_1BND: ttnn.Tensor, text_1BLP: ttnn.Tensor | None, blocks: Blocks) -> ttnn.Tensor:
        if blocks is Blocks.REUSED:
            return self._model.finish(ttnn.add(visual_1BND, self._rest), self._prompt)
        last_1BND, _ = self._model.run(visual_1BND, text_1BLP, self._prompt, self._grid, 1)
        ttnn.subtract(last_1BND, visual_1BND, output_tensor=self._rest)
        return self._model.finish(last_1BND, self._prompt)

    def _sums(self) -> ttnn.Tensor:
        """Return the sums of this branch alone.

        Padding features are zeros. Padding rows may hold anything, a NaN too (attention leaves them undefined on some
        chips), so they are replaced and not multiplied by zero.
        """
        mesh, config = self._model.mesh, compute.accurate()
        change = ttnn.subtract(self._moved, self._last, dtype=ttnn.float32)
        last = ttnn.typecast(self._last, ttnn.float32)
        of_rows = [
            ttnn.sum(ttnn.abs(values), dim=-1, keepdim=True, compute_kernel_config=config) for values in (change, last)
        ]
        real = ttnn.where(self._real, ttnn.concat(of_rows, dim=0), 0.0)
        sums = ttnn.sum(real, dim=2, keepdim=True, compute_kernel_config=config)
        for axis in (mesh.tp, mesh.sp):
            sums = all_reduce(sums, over=axis)
        return sums


class _Programs:
    """The programs of one mesh, each captured under its name and the kind of its steps."""

    def __init__(self, device: ttnn.MeshDevice, *, capture: bool) -> None:
        self._device, self._capture = device, capture
        self._replays: dict[tuple[str, StepKind], Replay[Any]] = {}

    def run(self, name: str, kind: StepKind, program: Callable[[], Any]) -> Any:
        """Run a program, which sends the same ops each time that its name and kind of step are the same."""
        key = (name, kind)
        if key not in self._replays:
            self._replays[key] = Replay(self._device, capture=self._capture)
        return self._replays[key](program)

    def finish(self) -> None:
        """Wait for what was replayed, because the next program begins with the same semaphores."""
        for replay in self._replays.values():
            if replay.is_captured:
                replay.finish()
                return

    def release(self) -> None:
        """Free what was captured."""
        for replay in self._replays.values():
            replay.release()


class ReusingInTurn(BranchesInTurn):
    """`BranchesInTurn` that reuses blocks; the branches of a step decide together."""

    def __init__(self, *arguments: Any, reuse: ReusePolicy, capture: bool = False, **options: Any) -> None:
        """Take the arguments of `BranchesInTurn`, and the policy."""
        super().__init__(*arguments, capture=capture, **options)
        self._decisions = Decisions(reuse)
        self._programs = _Programs(self.transformer.mesh.device, capture=capture)
        self._cached = [
            CachedBranch(
                self.transformer, prompt, self.grid, self.state_1BNI.shape[2], compares=reuse.threshold is not None
            )
            for prompt in self.prompts
        ]

    def step(self, index: int, kind: StepKind) -> Blocks:
        """Advance the state by step `index` in the way that `kind` says; return what was done with the blocks."""
        self.select(index, kind)
        blocks = self._decisions.wanted(index, kind.branches)
        if self._decisions.policy.threshold is None:
            self._run(blocks.value, kind, lambda branch: branch.forward(self.state_1BNI, blocks))
        else:
            sums = self._programs.run("head", kind, lambda: self._heads(kind))
            if blocks is Blocks.COMPARED:
                blocks = self._decisions.compared([self.transformer.mesh.read(sums)])
            self._programs.finish()
            self._run(f"tail {blocks.value}", kind, lambda branch: branch.tail(blocks))
        self._programs.finish()
        self._decisions.done(blocks, kind.branches)
        return blocks

    def predict(self, branch: int, blocks: Blocks = Blocks.COMPUTED) -> ttnn.Tensor:
        """A forward that computes or reuses the blocks: 0 is the conditional branch."""
        return self._cached[branch].predict(self.state_1BNI, blocks)

    def _heads(self, kind: StepKind) -> ttnn.Tensor:
        """Run the first block of each branch, and return the sums over all of them."""
        sums = None
        for branch in self._cached[: kind.branches]:
            sums = branch.head(self.state_1BNI, sums)
        assert sums is not None
        return sums

    def _run(self, name: str, kind: StepKind, predict: Callable[[CachedBranch], ttnn.Tensor]) -> None:
        """Predict and advance in one program."""
        cached = self._cached[: kind.branches]
        self._programs.run(name, kind, lambda: self.apply(kind, [predict(branch) for branch in cached]))

    def release(self) -> None:
        """Free what was captured."""
        super().release()
        self._programs.release()


class ReusingOnHalves(BranchesOnHalves):
    """`BranchesOnHalves` that reuse blocks.

    Both halves decide together, as the branches in turn do, so that every layout reuses the same steps. The host reads
    two numbers of each half and adds them: the halves run at the same time, and a swap would take as long as a read.
    """

    def __init__(self, *arguments: Any, reuse: ReusePolicy, capture: bool = False, **options: Any) -> None:
        """Take the arguments of `BranchesOnHalves`, and the policy."""
        super().__init__(*arguments, capture=capture, **options)
        self._decisions = Decisions(reuse)
        self._programs = [_Programs(model.mesh.device, capture=capture) for model in self.models]
        self._cached = [
            CachedBranch(model, prompt, grid, state.shape[2], compares=reuse.threshold is not None)
            for model, prompt, grid, state in zip(self.models, self.prompts, self.grids, self.states, strict=True)
        ]

    def step(self, index: int, kind: StepKind) -> Blocks:
        """Advance both states by step `index` in the way that `kind` says; return what was done with the blocks."""
        self.select(index)
        blocks = self._decisions.wanted(index, kind.branches)
        if self._decisions.policy.threshold is None:
            predictions = self._each(
                kind, blocks.value, lambda half: self._cached[half].forward(self.states[half], blocks)
            )
        else:
            heads = self._each(kind, "head", lambda half: self._cached[half].head(self.states[half]))
            if blocks is Blocks.COMPARED:
                blocks = self._decisions.compared(
                    [model.mesh.read(sums) for model, sums in zip(self.models, heads, strict=False)]
                )
            self._finish()
            predictions = self._each(kind, f"tail {blocks.value}", lambda half: self._cached[half].tail(blocks))
        self.apply(kind, predictions)
        self._finish()
        self._decisions.done(blocks, kind.branches)
        return blocks

    def predict(self, half: int, blocks: Blocks = Blocks.COMPUTED) -> ttnn.Tensor:
        """The forward of one half, which computes or reuses the blocks: 0 is the conditional branch."""
        return self._cached[half].predict(self.states[half], blocks)

    def _each(self, kind: StepKind, name: str, program: Callable[[int], ttnn.Tensor]) -> list[ttnn.Tensor]:
        """Run a program on each half that takes part; it is the same in every kind of step."""
        running = self._programs[: kind.branches]
        return [
            programs.run(name, StepKind.CONDITIONAL, functools.partial(program, half))
            for half, programs in enumerate(running)
        ]

    def _finish(self) -> None:
        for programs in self._programs:
            programs.finish()

    def release(self) -> None:
        """Free what was captured."""
        super().release()
        for programs in self._programs:
            programs.release()
