"""Editing a video by RF-inversion: back to the noise that it would be made of, and forth again with other words.

Source: Rout et al., "Semantic Image Inversion and Editing using Rectified Stochastic Differential Equations",
arXiv:2410.10792, with gamma 0 in the inversion, a blank prompt and no guidance there, as logtd/ComfyUI-MochiEdit does.
With sigma the share of noise, v the velocity of the model (an estimate of video less noise), z the state and x the
latents of the video:

- The inversion integrates the flow from the video to noise: `z += (sigma[i] - sigma[i + 1]) v` with rising sigmas.
- A step of the run from there follows `(1 - eta) v + eta (x - z) / sigma`. The second part leads straight to the video.
  eta falls in a line from its first value to 0 at a share of the steps.

Shapes: B videos, C latent channels, T latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.machine.checks import number
from models.machine.errors import InputError
from models.mochi.sampling.solver import EULER

if TYPE_CHECKING:
    import torch

    from models.mochi.sampling.state import StepState

ETA, ETA_END = 0.9, 0.35
"""Defaults: eta falls from 0.9 to 0 within the first 10 of 30 steps or so."""


@dataclass(frozen=True)
class Edit:
    """How strongly a run is held to the video.

    Attributes:
        eta: at the first step, from 0 (not at all) to 1 (the video itself).
        end: share of the steps after which it is 0.
    """

    eta: float = ETA
    end: float = ETA_END

    @classmethod
    def of(cls, edit: Any, eta: Any, end: Any, *, strength: Any, solver: str | None) -> Edit | None:
        """Read what a caller gives; None where no editing is asked for.

        Raises:
            InputError: a value breaks its rule, or is given without `edit`, or together with what excludes it.
        """
        if not isinstance(edit, bool):
            raise InputError(f"edit {edit!r} must be true or false")
        if not edit:
            if eta is not None or end is not None:
                raise InputError("eta and eta_end belong to editing: give edit too")
            return None
        if strength is not None:
            raise InputError("edit starts from the video's own noise, and strength from the video with other: give one")
        if solver is not None:
            check_solver(solver)
        made = cls(*(number(n, d if v is None else v) for n, v, d in (("eta", eta, ETA), ("eta_end", end, ETA_END))))
        if not 0 <= made.eta <= 1 or not 0 <= made.end <= 1:
            raise InputError(f"eta {made.eta:g} and eta_end {made.end:g} must be from 0 to 1")
        return made

    def etas(self, steps: int) -> list[float]:
        """Return eta of each of n steps."""
        end = self.end * steps
        return [max(self.eta * (1 - index / end), 0.0) if index < end else 0.0 for index in range(steps)]


def check_solver(solver: str) -> None:
    """Check the solver of an editing run, whether it was asked for or is a preset's.

    Raises:
        InputError: it keeps predictions of earlier states, which editing replaces.
    """
    if solver != EULER:
        raise InputError(
            f"edit changes the state between steps, so that its solver is {EULER}, not {solver}: ask for {EULER}, or "
            "leave out a preset that has another"
        )


@dataclass
class Pull:
    """Leads the states of a run back to a video; is called as `on_state`.

    Attributes:
        edit: how strongly.
        sigmas: n + 1 noise levels of the run.
        start_BCTHW: what it starts from.
        latents_BCTHW: of the video, [1, C, T, H, W].
        further: is called after it; None for nothing.
    """

    edit: Edit
    sigmas: Sequence[float]
    start_BCTHW: torch.Tensor
    latents_BCTHW: torch.Tensor
    further: Callable[[int, Any], Any] | None = None
    _before: dict[int, torch.Tensor] = field(default_factory=dict)

    def __call__(self, video: int, state: StepState) -> None:
        """Replace the state after a step by what the step with eta would have left."""
        index = state.step - 1
        eta = self.edit.etas(len(self.sigmas) - 1)[index]
        if eta > 0:
            before = self.start_BCTHW[video : video + 1] if index == 0 else self._before[video]
            now, after = self.sigmas[index : index + 2]
            straight = before + (now - after) / now * (self.latents_BCTHW - before)
            made = (1 - eta) * state.latents() + eta * straight
            state.replace(made)
            self._before[video] = made
        if self.further is not None:
            self.further(video, state)
