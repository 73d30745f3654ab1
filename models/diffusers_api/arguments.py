"""Arguments of Diffusers in the form that our stages take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from models.machine.checks import integer, number, short
from models.machine.errors import InputError


def convention(forced: Any, given: str | None) -> str | None:
    """Return the convention of an empty prompt that a caller asks for.

    Raises:
        InputError: it is asked for in two ways.
    """
    if forced is None:
        return given
    if not isinstance(forced, bool):
        raise InputError(f"force_zeros_for_empty_prompt {short(forced)} must be true or false")
    if given is not None:
        raise InputError("force_zeros_for_empty_prompt and empty_prompt say the same: give one of them")
    return "zeros" if forced else "encoded"


def guides(scale: Any) -> bool:
    """Whether a call with this scale needs the unconditional branch; a list is judged later."""
    return scale is None or not isinstance(scale, int | float) or scale > 1


def scale_of_guidance(scale: Any) -> Any:
    """Return the scale that our sampler takes: 1 in the place of one below, where Diffusers does not guide."""
    if scale is None or np.ndim(scale) > 0:
        return scale
    return max(number("guidance_scale", scale), 1.0)


def lora_scale(attention_kwargs: Any) -> float:
    """Return the scale of LoRAs for a call.

    Raises:
        InputError: there is another argument of attention.
    """
    if attention_kwargs is None:
        return 1.0
    if not isinstance(attention_kwargs, Mapping):
        raise InputError(f"attention_kwargs {short(attention_kwargs)} must be a dict or None")
    unknown = sorted(set(attention_kwargs) - {"scale"}, key=str)
    if unknown:
        raise InputError(f"attention_kwargs has {short(unknown[0])}: only scale, the weight of LoRAs, is taken")
    return number("attention_kwargs: scale", attention_kwargs.get("scale", 1.0))


def repeated(name: str, value: Any, videos: int) -> Any:
    """Return prompts or their tensors, each `videos` times in a row. One negative serves all."""
    if videos == 1 or value is None or isinstance(value, str):
        return value
    if name.startswith("negative") and hasattr(value, "__len__") and len(value) == 1:
        return value
    if isinstance(value, list | tuple):
        return [each for each in value for _ in range(videos)]
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim:
        tensor = torch.as_tensor(value)
        return tensor.repeat_interleave(videos, 0)
    raise InputError(f"{name} {short(value)} must be a text, a list or a tensor")


def whole_frames(num_frames: Any, step: int, tell: Callable[[str], None]) -> Any:
    """Return a number of frames of the form `step` k + 1, rounded down; None stays None."""
    if num_frames is None:
        return None
    frames = integer("num_frames", num_frames)
    kept = (frames - 1) // step * step + 1
    if kept == frames or frames < 1:
        return frames
    tell(f"num_frames {frames} is not {step}k + 1: the video has {kept} frames")
    return kept


def on_cpu(generator: Any, tell: Callable[[str], None]) -> Any:
    """Return generators on the CPU: in the place of one that is elsewhere, a fresh one of its seed."""
    if isinstance(generator, list | tuple):
        return [on_cpu(each, tell) for each in generator]
    if isinstance(generator, torch.Generator) and generator.device.type != "cpu":
        seed = generator.initial_seed()
        tell(
            f"the generator is on {generator.device}: noise is drawn on the CPU with its seed {seed}, so the video is "
            "not the one that a GPU makes of it"
        )
        return torch.Generator().manual_seed(seed)
    return generator
