"""The parts of the VAE configuration, decoder and encoder (names of Diffusers' `AutoencoderKLMochi`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from models.machine.checks import typed
from models.machine.errors import InputError
from models.mochi.config import MOST_CHANNELS
from weight_cache.checkpoints.names import LATENTS_MEAN, LATENTS_STD

# Least scale of latents, and the inverse of the largest: beyond, the weights that they are folded into overflow.
_SMALLEST = 1e-6
_COLOURS = 3
# Of each colour the sine and cosine of 2 pi 2^6 and 2 pi 2^7 times its value (Diffusers `FourierFeatures`).
FOURIER_POWERS = (6, 7)
FEATURES = _COLOURS * (1 + 2 * len(FOURIER_POWERS))
_MOST_STAGES = 8  # Each is an upsampling: more would make a picture of one latent pixel.


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder. Defaults are Mochi 1 preview's. Tuples per block are ordered as in Diffusers: output first.

    `latents_mean` and `latents_std` are empty if the configuration says null. Latents are then only divided by
    `scaling_factor`.
    """

    latent_channels: int = field(default=12, metadata={"most": MOST_CHANNELS})
    out_channels: int = 3
    decoder_block_out_channels: tuple[int, ...] = field(default=(128, 256, 512, 768), metadata={"most": 1 << 14})
    layers_per_block: tuple[int, ...] = field(default=(3, 3, 4, 6, 3), metadata={"least": 0, "most": 64})
    temporal_expansions: tuple[int, ...] = field(default=(1, 2, 3), metadata={"most": 16})
    spatial_expansions: tuple[int, ...] = field(default=(2, 2, 2), metadata={"most": 16})
    scaling_factor: float = 1.0
    latents_mean: tuple[float, ...] = field(default=(), metadata={"least": None})
    latents_std: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check that the sizes fit together.

        Raises:
            ValueError: they do not.
        """
        if self.out_channels != _COLOURS:
            raise InputError(f"vae config: out_channels {self.out_channels} must be {_COLOURS}, the colours of a pixel")
        _check_stages(self, "decoder_block_out_channels")
        _check_statistics(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read a VAE's `config.json`.

        A key that is absent has Diffusers' default, which for the statistics are those of Mochi 1 preview. Null means
        none, and only the statistics can be null.

        Raises:
            ValueError: the values do not fit together, or the activation is not SiLU.
        """
        return typed(cls, _complete(config), "vae config")

    @property
    def blocks(self) -> dict[str, int]:
        """Numbers of blocks by what their tensors' names begin with."""
        last, *ups, first = reversed(self.layers_per_block)
        return {"decoder.block_in.resnets.": last, "decoder.block_out.resnets.": first} | {
            f"decoder.up_blocks.{index}.resnets.": layers for index, layers in enumerate(ups)
        }

    @property
    def time_factor(self) -> int:
        """Number of frames per latent frame."""
        return prod(self.temporal_expansions)


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder. Defaults are Mochi 1 preview's. Tuples per block are ordered as in Diffusers: input first.

    `in_channels` are the colours with their Fourier features. `add_attention_block` says for each stage whether its
    residual blocks are each followed by attention over time. For the statistics see `DecoderConfig`.
    """

    in_channels: int = 15
    latent_channels: int = field(default=12, metadata={"most": MOST_CHANNELS})
    encoder_block_out_channels: tuple[int, ...] = field(default=(64, 128, 256, 384), metadata={"most": 1 << 14})
    layers_per_block: tuple[int, ...] = field(default=(3, 3, 4, 6, 3), metadata={"least": 0, "most": 64})
    add_attention_block: tuple[bool, ...] = (False, True, True, True, True)
    temporal_expansions: tuple[int, ...] = field(default=(1, 2, 3), metadata={"most": 16})
    spatial_expansions: tuple[int, ...] = field(default=(2, 2, 2), metadata={"most": 16})
    scaling_factor: float = 1.0
    latents_mean: tuple[float, ...] = field(default=(), metadata={"least": None})
    latents_std: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check that the sizes fit together.

        Raises:
            ValueError: they do not.
        """
        if self.in_channels != FEATURES:
            raise InputError(
                f"vae config: in_channels {self.in_channels} must be {FEATURES}, the colours and their Fourier features"
            )
        _check_stages(self, "encoder_block_out_channels")
        if len(self.add_attention_block) != len(self.layers_per_block):
            raise InputError(
                f"vae config: add_attention_block {list(self.add_attention_block)} must have "
                f"{len(self.layers_per_block)} entries"
            )
        _check_statistics(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> EncoderConfig:
        """Read a VAE's `config.json`; see `DecoderConfig.from_dict`.

        Raises:
            ValueError: the values do not fit together, or the activation is not SiLU.
        """
        return typed(cls, _complete(config), "vae config")

    @property
    def blocks(self) -> dict[str, int]:
        """Numbers of blocks by what their tensors' names begin with."""
        first, *downs, last = self.layers_per_block
        return {"encoder.block_in.resnets.": first, "encoder.block_out.resnets.": last} | {
            f"encoder.down_blocks.{index}.resnets.": layers for index, layers in enumerate(downs)
        }

    @property
    def time_factor(self) -> int:
        """Number of frames per latent frame."""
        return prod(self.temporal_expansions)

    @property
    def space_factor(self) -> int:
        """Number of rows per latent row, and of columns."""
        return prod(self.spatial_expansions)


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a VAE's `config.json` with the statistics that it leaves out, after a look at its activation."""
    if config.get("act_fn", "silu") not in ("silu", "swish"):
        raise InputError(f"vae config: act_fn {config['act_fn']!r} is not supported: the vae knows silu")
    statistics = {"latents_mean": LATENTS_MEAN, "latents_std": LATENTS_STD} | {
        name: () if config[name] is None else config[name] for name in ("latents_mean", "latents_std") if name in config
    }
    return {**config, **statistics}


def _check_stages(config: DecoderConfig | EncoderConfig, widths: str) -> None:
    """Check the channels of each stage, under the name `widths`, and what else has an entry for each."""
    channels = getattr(config, widths)
    if not 1 <= len(channels) <= _MOST_STAGES + 1:
        raise InputError(f"vae config: {widths} has {len(channels)} entries, but must have 1 to {_MOST_STAGES + 1}")
    if any(width % 32 for width in channels):
        raise InputError(f"vae config: {widths} {list(channels)} must be multiples of 32, the number of groups")
    stages = len(channels) - 1
    if len(config.layers_per_block) != stages + 2:
        raise InputError(f"vae config: layers_per_block {list(config.layers_per_block)} must have {stages + 2} entries")
    if config.layers_per_block[0] < 1:
        raise InputError(f"vae config: layers_per_block {list(config.layers_per_block)} must begin with 1 or more")
    for name in ("temporal_expansions", "spatial_expansions"):
        if len(getattr(config, name)) != stages:
            raise InputError(f"vae config: {name} {list(getattr(config, name))} must have {stages} entries")


def _check_statistics(config: DecoderConfig | EncoderConfig) -> None:
    """Check what latents are normalised with."""
    for name in ("scaling_factor", "latents_std"):
        value = getattr(config, name)
        for part in value if isinstance(value, tuple) else (value,):
            if not _SMALLEST <= part <= 1 / _SMALLEST:
                raise InputError(f"vae config: {name} {part:g} must be from {_SMALLEST:g} to {1 / _SMALLEST:g}")
    if any(abs(part) > 1 / _SMALLEST for part in config.latents_mean):
        raise InputError(f"vae config: latents_mean must lie within {1 / _SMALLEST:g}")
    if len(config.latents_mean) != len(config.latents_std) or len(config.latents_mean) not in (
        0,
        config.latent_channels,
    ):
        raise InputError(
            f"vae config: latents_mean and latents_std must both have {config.latent_channels} entries, or none"
        )
