"""Configuration of the AsymmDiT, as Diffusers writes it to `transformer/config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.machine.checks import typed
from models.machine.errors import InputError

# Number of heads of the caption pool, which the architecture fixes (Diffusers `MochiCombinedTimestepCaptionEmbedding`
# call).
POOL_HEADS = 8
# Settings of the reference that the port does not vary.
_FIXED = {"qk_norm": "rms_norm", "activation_fn": "swiglu"}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the AsymmDiT. Names and defaults are those of Diffusers; the defaults are Mochi 1 preview's."""

    patch_size: int = 2
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    num_layers: int = 48
    pooled_projection_dim: int = 1536
    in_channels: int = 12
    out_channels: int | None = None
    text_embed_dim: int = 4096
    time_embed_dim: int = 256
    max_sequence_length: int = 256

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Read the dictionary of a `config.json`.

        Raises:
            ValueError: the port does not implement a setting.
        """
        for name, value in _FIXED.items():
            if config.get(name, value) != value:
                raise InputError(f"transformer config: {name} is {config[name]!r}, only {value!r} is implemented")
        made = typed(cls, config, "transformer config")
        if made.output_channels != made.in_channels:
            raise InputError(
                f"transformer config: out_channels {made.output_channels} is not in_channels {made.in_channels}; "
                "sampling needs a prediction of the latents' own shape"
            )
        if made.attention_head_dim % 2:
            raise InputError(
                f"transformer config: attention_head_dim {made.attention_head_dim} is odd; RoPE needs pairs"
            )
        return made

    @property
    def output_channels(self) -> int:
        """Number of channels of the prediction."""
        return self.out_channels or self.in_channels

    @property
    def inner_dim(self) -> int:
        """Width of the visual stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def ff_inner_dim(self) -> int:
        """Inner width of the visual feed-forward."""
        return 4 * self.inner_dim * 2 // 3

    @property
    def ff_context_inner_dim(self) -> int:
        """Inner width of the text feed-forward."""
        return 4 * self.pooled_projection_dim * 2 // 3

    @property
    def patch_values(self) -> int:
        """Number of values in one latent patch."""
        return self.patch_size**2 * self.in_channels


# Model configurations by name, for plans and dry runs without a checkpoint. "preview" is genmo/mochi-1-preview.
CONFIGS = {"preview": TransformerConfig()}


def config_named(name: str) -> TransformerConfig:
    """Return the configuration called `name`.

    Raises:
        ValueError: there is no configuration with that name.
    """
    if name not in CONFIGS:
        raise InputError(f"model config {name!r} does not exist: choose one of {', '.join(sorted(CONFIGS))}")
    return CONFIGS[name]
