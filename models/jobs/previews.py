"""Pictures of a video while it is made: a strip of its latent frames every few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from models.machine.checks import whole
from models.machine.errors import InputError
from models.machine.files import renamed_when_done
from models.mochi.preview import LatentRgb, strip

if TYPE_CHECKING:
    import numpy as np

    from models.mochi.sampling.state import StepState


def preview_files(out: Path, every: int, steps: int) -> list[Path]:
    """Return the files of the previews of a video, one for each step that has one.

    Raises:
        InputError: `every` is no whole number from 1 to the number of steps.
    """
    if steps == 0:
        raise InputError("preview needs a step, and this run does none: leave it out")
    every = whole(f"with {steps} steps, preview", every, 1, steps)
    return [_file(out, step, steps) for step in range(every, steps + 1, every)]


def write_png(picture: np.ndarray, path: Path) -> None:
    """Write a picture uint8 [H, W, 3], whole or not at all.

    Raises:
        OSError: the file could not be written.
    """
    from PIL import Image

    with renamed_when_done(path) as scratch:
        Image.fromarray(picture).save(scratch, format="PNG")


class Previews:
    """Writes a strip every few steps: what a pipeline takes as `on_state`.

    A picture that cannot be written costs the rest of them, never the video.
    """

    def __init__(self, look: LatentRgb, out: Path, every: int, tell: Callable[[str], None]):
        """Write beside the video `out` every `every` steps; `tell` gets a line for the user."""
        self._look, self._out, self._every, self._tell = look, out, every, tell
        self._failed = False

    def __call__(self, video: int, state: StepState) -> None:
        """Write the strip of the state after a step, if it has one."""
        if state.step % self._every or self._failed:
            return
        picture = strip(self._look.pictures(state.estimate()))
        try:
            write_png(picture, _file(self._out, state.step, state.steps))
        except OSError as error:
            if isinstance(error, InputError):
                raise
            self._failed = True
            self._tell(f"the preview of step {state.step} cannot be written ({error.strerror}): there are no more")


def _file(out: Path, step: int, steps: int) -> Path:
    return out.with_suffix(f".step-{step:0{len(str(steps))}}.png")
