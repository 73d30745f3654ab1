"""A run's state between two steps: the latents so far, the estimate of the last ones, and others in their place.

Nothing is read unless it is asked for, and reading changes nothing: no captured program reads or writes more than
without it. Each tensor that is read crosses to the host once: 8.5 MB in float32 for 848x480 and 163 frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ttnn

from models.mochi.sampling.branches import Branches
from models.mochi.sampling.packing import pack_latents, unpack_latents
from models.mochi.sampling.solver import EULER, estimate_weights
from models.mochi.transformer import MochiTransformer

if TYPE_CHECKING:
    import torch


class StepState:
    """The state after a step. It can be read until the function that was given it returns.

    Attributes:
        step: steps done, from 1.
        steps: of the run, n.
        sigma: noise level of the latents.
    """

    def __init__(self, reader: StateReader, step: int):
        """Refer to the state of a run after `step` steps."""
        self.step = step
        self.steps = len(reader.sigmas) - 1
        self.sigma = float(reader.sigmas[step])
        self._reader = reader

    def latents(self) -> torch.Tensor:
        """Download the latents [1, C, T, H, W] float32, normalised: a share `sigma` of them is noise.

        Raises:
            RuntimeError: the run has gone on since.
        """
        return self._reader.latents(self.step)

    def estimate(self) -> torch.Tensor:
        """Return the estimate of the latents at the end, `z + sigma v`, [1, C, T, H, W] float32, normalised.

        v is the velocity of the last step. The estimate after the last step is what the run returns. It costs two
        downloads.

        Raises:
            RuntimeError: the run has gone on since.
        """
        return self._reader.estimate(self.step)

    def replace(self, latents: torch.Tensor) -> None:
        """Put other latents [1, C, T, H, W] float32 in the place of the present ones, before the next step.

        What the solver keeps of earlier steps stays, and estimates are of what replaced them from the next step on.

        Raises:
            RuntimeError: the run has gone on since.
        """
        self._reader.replace(self.step, latents)


class StateReader:
    """Reads the state of one run. Euler's method keeps nothing, so the state before each step is copied on the mesh."""

    def __init__(
        self,
        transformer: MochiTransformer,
        branches: Branches,
        patches: torch.Tensor,
        shape: Sequence[int],
        sigmas: Sequence[float],
        solver: str,
    ):
        """Allocate what reading needs, before any program is captured.

        Args:
            transformer: the model.
            branches: of the run.
            patches: the noise, packed.
            shape: of the latents, [1, C, T, H, W].
            sigmas: n + 1 noise levels.
            solver: of `models.mochi.sampling.solver`.
        """
        self.sigmas = sigmas
        self._transformer, self._branches = transformer, branches
        self._shape, self._tokens = tuple(shape), patches.shape[0]
        self._weights = estimate_weights(solver, sigmas)
        self._before = transformer.upload_patches(patches) if solver == EULER else None
        self._step = 0

    def before_step(self) -> None:
        """Keep the state that a step begins with, where the solver does not."""
        if self._before is not None:
            ttnn.copy(self._branches.flow.state_1BNI, self._before)

    def after_step(self, step: int) -> StepState:
        """Return the state after `step` steps."""
        self._step = step
        return StepState(self, step)

    def close(self) -> None:
        """Read nothing any more."""
        self._step = -1

    def latents(self, step: int) -> torch.Tensor:
        """Download the latents; see `StepState.latents`."""
        self._check(step)
        return self._download(self._branches.flow.state_1BNI)

    def estimate(self, step: int) -> torch.Tensor:
        """Return the estimate; see `StepState.estimate`."""
        latents = self.latents(step)
        weight = float(self._weights[step - 1])
        if weight == 0:
            return latents
        if self._before is not None:
            return latents + weight * (latents - self._download(self._before))
        return latents + weight * self._download(self._branches.flow.kept[0])

    def replace(self, step: int, latents: torch.Tensor) -> None:
        """Replace the latents; see `StepState.replace`."""
        self._check(step)
        self._branches.replace(pack_latents(latents, self._transformer.config.patch_size))

    def _download(self, patches_1BNI: ttnn.Tensor) -> torch.Tensor:
        patches = self._transformer.download_patches(patches_1BNI, self._tokens)
        return unpack_latents(patches, self._shape, self._transformer.config.patch_size)

    def _check(self, step: int) -> None:
        if step != self._step:
            raise RuntimeError(f"the state after step {step} is gone: read it in the function that was given it")
