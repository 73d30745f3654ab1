"""The decoder's part of the VAE configuration (names of Diffusers' `AutoencoderKLMochi`)."""

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
        channels = self.decoder_block_out_channels
        if self.out_channels != _COLOURS:
            raise InputError(f"vae config: out_channels {self.out_channels} must be {_COLOURS}, the colours of a pixel")
        if not 1 <= len(channels) <= _MOST_STAGES + 1:
            raise InputError(
                f"vae config: decoder_block_out_channels has {len(channels)} entries, but must have 1 to "
                f"{_MOST_STAGES + 1}"
            )
        if any(width % 32 for width in channels):
            raise InputError(
                f"vae config: decoder_block_out_channels {list(channels)} must be multiples of 32, the number of groups"
            )
        stages = len(channels) - 1
        if len(self.layers_per_block) != stages + 2:
            raise InputError(
                f"vae config: layers_per_block {list(self.layers_per_block)} must have {stages + 2} entries"
            )
        if self.layers_per_block[0] < 1:
            raise InputError(f"vae config: layers_per_block {list(self.layers_per_block)} must begin with 1 or more")
        for name in ("temporal_expansions", "spatial_expansions"):
            if len(getattr(self, name)) != stages:
                raise InputError(f"vae config: {name} {list(getattr(self, name))} must have {stages} entries")
        for name in ("scaling_factor", "latents_std"):
            value = getattr(self, name)
            for part in value if isinstance(value, tuple) else (value,):
                if not _SMALLEST <= part <= 1 / _SMALLEST:
                    raise InputError(f"vae config: {name} {part:g} must be from {_SMALLEST:g} to {1 / _SMALLEST:g}")
        if any(abs(part) > 1 / _SMALLEST for part in self.latents_mean):
            raise InputError(f"vae config: latents_mean must lie within {1 / _SMALLEST:g}")
        if len(self.latents_mean) != len(self.latents_std) or len(self.latents_mean) not in (0, self.latent_channels):
            raise InputError(
                f"vae config: latents_mean and latents_std must both have {self.latent_channels} entries, or none"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read a VAE's `config.json`.

        A key that is absent has Diffusers' default, which for the statistics are those of Mochi 1 preview. Null means
        none, and only the statistics can be null.

        Raises:
            ValueError: the values do not fit together, or the activation is not SiLU.
        """
        statistics = {"latents_mean": LATENTS_MEAN, "latents_std": LATENTS_STD} | {
            name: () if config[name] is None else config[name]
            for name in ("latents_mean", "latents_std")
            if name in config
        }
        if config.get("act_fn", "silu") not in ("silu", "swish"):
            raise InputError(f"vae config: act_fn {config['act_fn']!r} is not supported: the decoder knows silu")
        return typed(cls, {**config, **statistics}, "vae config")

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
