"""Conventions in which the implementations of Mochi 1 differ, and which of them a checkpoint follows.

First frames: an upsampling by t in time makes t frames of the first one, and t - 1 of them are surplus. Genmo
(genmoai/mochi `vae/models.py`, `DepthToSpaceTime`) and ComfyUI (`ldm/genmo/vae/model.py`) drop them right there, so
that later causal convolutions see a repeated first frame. Diffusers (`autoencoder_kl_mochi.py`) carries them along and
drops them at the end. Both give 6 (T - 1) + 1 frames of T latent ones. The first ten differ.

Empty prompt: Genmo (`pipelines.py`, `get_conditioning_for_prompts`) masks all its tokens, so that no text takes part.
Diffusers does the same with `force_zeros_for_empty_prompt`; without it, and in ComfyUI, T5 encodes the end token alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from models.machine.errors import InputError
from models.mochi.defaults import CONVENTIONS, DEFAULTS_FILE
from weight_cache.checkpoints.names import is_preview_vae

if TYPE_CHECKING:
    from weight_cache.checkpoints.checkpoint import Checkpoint

FirstFrames = Literal["genmo", "diffusers"]
EmptyPrompt = Literal["zeros", "encoded"]


@dataclass(frozen=True)
class Conventions:
    """What a checkpoint was made for; the values here are those of Mochi 1 preview in Genmo's code.

    Attributes:
        first_frames: where the decoder drops surplus frames: inside each upsampling (`genmo`) or at the end
            (`diffusers`).
        empty_prompt: `zeros`, where no text token takes part, or `encoded`, where T5 encodes the end token.
    """

    first_frames: FirstFrames = "genmo"
    empty_prompt: EmptyPrompt = "zeros"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: one is not known.
        """
        check_first_frames(self.first_frames)
        check_empty_prompt(self.empty_prompt)

    def __str__(self) -> str:
        """Return both in a few words."""
        return f"first frames {self.first_frames}, empty prompt {self.empty_prompt}"

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Conventions:
        """Return the conventions of a checkpoint.

        The rule, in this order:

        1. What its `generation_defaults.json` says.
        2. Genmo's and ComfyUI's files follow the code that they were made for.
        3. In Diffusers' layout, the VAE of Mochi 1 preview is decoded Genmo's way, in which it was trained; `names.py`
           (`is_preview_vae`) says how it is known. Any other VAE is decoded Diffusers' way. An empty prompt is what
           `force_zeros_for_empty_prompt` in `model_index.json` says.

        Raises:
            InputError: a value is not known.
        """
        if checkpoint.home == "diffusers":
            made = cls(
                "genmo" if is_preview_vae(checkpoint.vae.config) else "diffusers",
                "zeros" if _forces_zeros(checkpoint) else "encoded",
            )
        else:
            made = cls("genmo", "zeros" if checkpoint.home == "genmo" else "encoded")
        own = checkpoint.optional_json(DEFAULTS_FILE)
        try:
            return made.overridden(**{name: own.get(name) for name in CONVENTIONS})
        except InputError as error:
            raise InputError(f"{checkpoint.directory / DEFAULTS_FILE}: {error}") from error

    def overridden(self, first_frames: Any = None, empty_prompt: Any = None) -> Conventions:
        """Return these with others instead, wherever one is given (not None).

        Raises:
            InputError: a value is not known.
        """
        wanted = {"first_frames": first_frames, "empty_prompt": empty_prompt}
        return replace(self, **{name: value for name, value in wanted.items() if value is not None})


assert tuple(field.name for field in fields(Conventions)) == CONVENTIONS


def check_first_frames(value: Any) -> FirstFrames:
    """Return `value`.

    Raises:
        InputError: it is neither `genmo` nor `diffusers`.
    """
    if value not in get_args(FirstFrames):
        raise InputError(
            f"first_frames {value!r} must be genmo (surplus frames are dropped inside each upsampling) or diffusers "
            "(at the end)"
        )
    return cast(FirstFrames, value)


def check_empty_prompt(value: Any) -> EmptyPrompt:
    """Return `value`.

    Raises:
        InputError: it is neither `zeros` nor `encoded`.
    """
    if value not in get_args(EmptyPrompt):
        raise InputError(
            f"empty_prompt {value!r} must be zeros (no text takes part, as in Genmo's code) or encoded (the end token, "
            "as in Diffusers and ComfyUI)"
        )
    return cast(EmptyPrompt, value)


def check_keep_all_frames(first_frames: str, keep_all_frames: bool) -> None:
    """Check that a decoder which is to keep all frames has them.

    Raises:
        InputError: Genmo's way never computes them.
    """
    if keep_all_frames and first_frames == "genmo":
        raise InputError(
            "all frames cannot be kept where first_frames is genmo: surplus frames are dropped inside the decoder; "
            "decode with first_frames diffusers"
        )


def _forces_zeros(checkpoint: Checkpoint) -> bool:
    name = "force_zeros_for_empty_prompt"
    value = checkpoint.index.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"{name} {value!r} in {checkpoint.directory / 'model_index.json'} must be true or false")
    return value
