"""Sizes of a video in pixels and frames, in latents and in tokens.

Sources: Diffusers `MochiPipeline.prepare_latents` and `AutoencoderKLMochi._decode`; Genmo `pipelines.py` (github
genmoai/mochi).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from models.machine.checks import integer, short
from models.machine.errors import InputError

if TYPE_CHECKING:
    from models.mochi.config import TransformerConfig
    from models.mochi.vae.config import DecoderConfig

FPS = 30
# H.264 has no larger pictures (ITU-T H.264, table A-1 and A.3.1: 139264 macroblocks at level 6.2, and along one side at
# most the square root of 8 times as many).
MOST_PIXELS = 16880
# About an hour: far more than any mesh holds.
MOST_FRAMES = 108_001


@dataclass(frozen=True)
class Scales:
    """Compression factors of a checkpoint's VAE and transformer. The defaults are Mochi 1's.

    Attributes:
        temporal: frames per latent frame.
        spatial: pixels per latent pixel, along height and along width.
        patch: latent pixels per visual token, along height and along width.
        channels: number of latent channels.
    """

    temporal: int = 6
    spatial: int = 8
    patch: int = 2
    channels: int = 12

    @classmethod
    def from_configs(cls, transformer: TransformerConfig, vae: DecoderConfig) -> Scales:
        """Take the scales from the configurations of the two models.

        Raises:
            InputError: the two disagree on the number of latent channels.
        """
        if vae.latent_channels != transformer.in_channels:
            raise InputError(
                f"the transformer has {transformer.in_channels} latent channels and the VAE {vae.latent_channels}: "
                "they are not of one checkpoint"
            )
        return cls(
            temporal=prod(vae.temporal_expansions),
            spatial=prod(vae.spatial_expansions),
            patch=transformer.patch_size,
            channels=transformer.in_channels,
        )


@dataclass(frozen=True)
class Geometry:
    """Sizes of one video and the sizes that follow from them.

    Attributes:
        height: pixels, a multiple of `spatial * patch` (16).
        width: pixels, a multiple of `spatial * patch` (16).
        num_frames: number of frames, `temporal * k + 1` (6k + 1).
        scales: the checkpoint's compression factors.

    Raises:
        ValueError: a size breaks its rule; the message gives the value, the rule and the nearest valid sizes.
    """

    height: int
    width: int
    num_frames: int
    scales: Scales = field(default_factory=Scales)

    def __post_init__(self) -> None:
        step = self.scales.spatial * self.scales.patch
        for name in ("height", "width"):
            self._settle(name, step, 0, f"a positive multiple of {step}", MOST_PIXELS)
        self._settle("num_frames", self.scales.temporal, 1, f"{self.scales.temporal}k + 1 with k >= 0", MOST_FRAMES)

    def _settle(self, name: str, step: int, offset: int, rule: str, most: int) -> None:
        """Check one size, and keep a NumPy number as a Python one."""
        object.__setattr__(self, name, _checked(name, getattr(self, name), step, offset, rule, most))

    @property
    def latent_frames(self) -> int:
        """Number of frames of the latent, T = k + 1."""
        return (self.num_frames - 1) // self.scales.temporal + 1

    @property
    def latent_height(self) -> int:
        """Number of rows of the latent."""
        return self.height // self.scales.spatial

    @property
    def latent_width(self) -> int:
        """Number of columns of the latent."""
        return self.width // self.scales.spatial

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """Shape BCTHW of the latent of one video."""
        return (1, self.scales.channels, self.latent_frames, self.latent_height, self.latent_width)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Numbers of visual tokens along (frames, rows, columns)."""
        patch = self.scales.patch
        return (self.latent_frames, self.latent_height // patch, self.latent_width // patch)

    @property
    def num_tokens(self) -> int:
        """Number of visual tokens of the sequence."""
        return prod(self.token_grid)

    @property
    def decoded_frames(self) -> int:
        """Number of frames that the VAE decoder computes: `temporal` for each latent frame."""
        return self.latent_frames * self.scales.temporal

    @property
    def surplus_frames(self) -> int:
        """Number of leading frames of the decoder's output that are not part of the video (168 - 163 = 5)."""
        return self.decoded_frames - self.num_frames

    def seconds(self, fps: float = FPS) -> float:
        """Return the playing time in seconds."""
        return self.num_frames / fps


def _checked(name: str, given: Any, step: int, offset: int, rule: str, most: int) -> int:
    """Return `given`, a positive integer of the form `step * k + offset` and at most `most`, as a Python number.

    Raises:
        ValueError: it is not.
    """
    value = integer(name, given, f"an integer ({rule})")
    if value > most:
        raise InputError(f"{name} {short(value)} must be {rule}, and at most {most}")
    if value > 0 and value % step == offset % step:
        return value
    smallest = offset if offset > 0 else step
    below = max(smallest, (value - offset) // step * step + offset)
    nearest = f"{below}" if value < smallest else f"{below} or {below + step}"
    raise InputError(f"{name} {short(value)} must be {rule}: the nearest valid is {nearest}")
