"""What the stages of the pipeline return, and the forms that frames can take.

Shapes: B videos, C latent channels, T latent frames, F frames, H and W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from models.mochi.sampling.reuse import Forwards
from models.mochi.text.encoder import TextEmbeddings
from models.mochi.vae.frames import to_uint8

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Encoded:
    """Prompts as the transformer takes them.

    Attributes:
        prompts: one per video.
        negatives: of the unconditional branch: one for all videos, one per video, or none where guidance is off.
    """

    prompts: list[TextEmbeddings]
    negatives: list[TextEmbeddings]


@dataclass(frozen=True)
class Denoised:
    """What `MochiPipeline.denoise` returns.

    Attributes:
        latents: normalised latents, float32 [B, C, T, H / 8, W / 8].
        sigmas: the n + 1 noise levels of the schedule.
        guidance: the n guidance scales.
        steps_done: steps that were done, over all videos: fewer than B n after an interrupt.
        forwards: per video that was begun, what each step computed and reused.
    """

    latents: torch.Tensor
    sigmas: list[float]
    guidance: list[float]
    steps_done: int
    forwards: list[Forwards] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether no interrupt ended the run early."""
        return self.steps_done == len(self.guidance) * len(self.latents)


@dataclass
class MochiOutput:
    """What a call of the pipeline returns.

    Attributes:
        frames: for `"np"` float32 [B, F, H, W, 3] from 0 to 1; for `"pt"` the same as a tensor
            [B, F, 3, H, W]; for `"pil"` a list of pictures per video; for `"latent"` the denoised,
            still normalised latents, float32 [B, 12, T, H / 8, W / 8].
        sigmas: the n + 1 sigmas used.
        guidance: the n guidance scales used.
        prompts: tokens and truncation of each prompt.
        negatives: the same of each negative prompt; empty where no step needed one.
        seconds: wall time per stage.
        forwards: per video, what each step computed and reused.
        is_complete: False after an interrupt. The frames are then those of latents that still hold noise.
    """

    frames: Any
    sigmas: list[float]
    guidance: list[float]
    prompts: list[TextEmbeddings]
    negatives: list[TextEmbeddings]
    seconds: dict[str, float] = field(default_factory=dict)
    is_complete: bool = True
    forwards: list[Forwards] = field(default_factory=list)


def as_output(frames_BFHWC: np.ndarray, output_type: str) -> Any:
    """Return frames, float32 from 0 to 1, as `MochiOutput.frames` has them for an output type other than "latent"."""
    if output_type == "np":
        return frames_BFHWC
    if output_type == "pt":
        return torch.from_numpy(frames_BFHWC).permute(0, 1, 4, 2, 3)
    from PIL import Image

    return [[Image.fromarray(frame) for frame in to_uint8(video)] for video in frames_BFHWC]
