"""Configuration of the T5 encoder, as transformers writes it to `text_encoder/config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.machine.checks import typed
from models.machine.errors import InputError
from models.mochi.config import MOST_LAYERS


@dataclass(frozen=True)
class T5Config:
    """Sizes of the encoder, with transformers' names and its `T5Config`'s defaults."""

    vocab_size: int = 32128
    d_model: int = field(default=512, metadata={"most": 1 << 16})
    d_kv: int = field(default=64, metadata={"most": 1024})
    d_ff: int = field(default=2048, metadata={"most": 1 << 18})
    num_layers: int = field(default=6, metadata={"most": MOST_LAYERS})
    num_heads: int = field(default=8, metadata={"most": 256})
    relative_attention_num_buckets: int = field(default=32, metadata={"least": 4, "most": 1024})
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = field(default=1e-6, metadata={"most": 0.01})

    def __post_init__(self) -> None:
        """Check that the buckets have distances to hold.

        Raises:
            InputError: they have not.
        """
        exact = self.relative_attention_num_buckets // 4  # see `position_buckets`
        if self.relative_attention_max_distance <= exact:
            raise InputError(
                f"text encoder config: relative_attention_max_distance {self.relative_attention_max_distance} must be "
                f"above {exact}, a quarter of relative_attention_num_buckets"
            )

    @property
    def blocks(self) -> dict[str, int]:
        """Numbers of blocks by what their tensors' names begin with."""
        return {"encoder.block.": self.num_layers}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> T5Config:
        """Read the dictionary of a `config.json`.

        Raises:
            ValueError: the model does not have the gated-GELU form of T5 v1.1. Only this form is implemented.
        """
        kind = config.get("feed_forward_proj", "relu")
        if kind != "gated-gelu":
            raise InputError(f"text encoder config: feed_forward_proj is {kind!r}, only 'gated-gelu' is implemented")
        return typed(cls, config, "text encoder config")


# Sizes of the text encoder of Mochi 1 preview, T5 v1.1 XXL.
T5_XXL = T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
