"""What `generate` assumes where the user says nothing: Genmo's values, or a checkpoint's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from models.machine.checks import integer, number
from models.machine.errors import InputError

if TYPE_CHECKING:
    from weight_cache.checkpoints.checkpoint import Checkpoint

# Beside model_index.json; may hold any of the fields of `Defaults`, and of `CONVENTIONS`.
DEFAULTS_FILE = "generation_defaults.json"
# Fields of `models.mochi.conventions.Conventions`, which reads them.
CONVENTIONS = ("first_frames", "empty_prompt")


@dataclass(frozen=True)
class Defaults:
    """Generation settings; the values here are those of Genmo's command line (github genmoai/mochi).

    Attributes:
        height: pixels.
        width: pixels.
        num_frames: frames of the video, 6k + 1.
        num_steps: denoising steps.
        guidance_scale: guidance scale, the same in every step.
        threshold_noise: where the linear part of the schedule ends, as a share of the noise removed.
        seed: of the latent noise.
        fps: frames per second of the written file.
    """

    height: int = 480
    width: int = 848
    num_frames: int = 163
    num_steps: int = 64
    guidance_scale: float = 6.0
    threshold_noise: float = 0.025
    seed: int = 1710977262
    fps: int = 30

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Defaults:
        """Return the settings of a checkpoint: these defaults, and its own `DEFAULTS_FILE` over them.

        Raises:
            InputError: the file has a name that is not a setting, or a value of another kind.
        """
        own = checkpoint.optional_json(DEFAULTS_FILE)
        try:
            return cls().overridden({name: value for name, value in own.items() if name not in CONVENTIONS})
        except InputError as error:
            raise InputError(f"{checkpoint.directory / DEFAULTS_FILE}: {error}") from error

    def overridden(self, values: Mapping[str, Any]) -> Defaults:
        """These defaults with `values` instead, wherever one is given (not None).

        Raises:
            ValueError: a name that is not a setting, or a value of another kind than the default's.
        """
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in values:
            if name not in known:
                raise InputError(f"{name} is not a generation setting; known are {', '.join(known)}")
        return replace(self, **{name: _like(known[name], name, v) for name, v in values.items() if v is not None})


def _like(known: int | float, name: str, value: Any) -> Any:
    """Return a number, also one of NumPy, as the kind that the default is."""
    try:
        return number(name, value) if isinstance(known, float) else integer(name, value)
    except InputError as error:
        raise InputError(f"{error}, like {known}") from error
