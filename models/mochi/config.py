"""Configuration of the AsymmDiT, as Diffusers writes it to `transformer/config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.machine.checks import typed
from models.machine.errors import InputError

# Number of heads of the caption pool, which the architecture fixes (Diffusers `MochiCombinedTimestepCaptionEmbedding`
# call).
POOL_HEADS = 8
MOST_LAYERS, MOST_CHANNELS = 128, 256
"""Far more than a mesh holds or a VAE has; declaring so many still takes no more than seconds."""
# Settings of the reference that the port does not vary.
_FIXED = {"qk_norm": "rms_norm", "activation_fn": "swiglu"}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the AsymmDiT. Names and defaults are those of Diffusers; the defaults are Mochi 1 preview's."""

    patch_size: int = field(default=2, metadata={"most": 16})
    num_attention_heads: int = field(default=24, metadata={"most": 256})
    attention_head_dim: int = field(default=128, metadata={"most": 1024})
    num_layers: int = field(default=48, metadata={"most": MOST_LAYERS})
    pooled_projection_dim: int = field(default=1536, metadata={"most": 1 << 16})
    in_channels: int = field(default=12, metadata={"most": MOST_CHANNELS})
    out_channels: int | None = field(default=None, metadata={"most": MOST_CHANNELS})
    text_embed_dim: int = field(default=4096, metadata={"most": 1 << 16})
    time_embed_dim: int = field(default=256, metadata={"most": 1 << 16})
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
        if made.time_embed_dim % 2:
            raise InputError(f"transformer config: time_embed_dim {made.time_embed_dim} is odd; sines need cosines")
        if made.text_embed_dim % POOL_HEADS:
            raise InputError(
                f"transformer config: text_embed_dim {made.text_embed_dim} is no multiple of {POOL_HEADS}, the heads "
                "of the caption pool"
            )
        return made

    @property
    def blocks(self) -> dict[str, int]:
        """Numbers of blocks by what their tensors' names begin with."""
        return {"transformer_blocks.": self.num_layers}

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
