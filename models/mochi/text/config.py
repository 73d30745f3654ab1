"""Configuration of the T5 encoder, as transformers writes it to `text_encoder/config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.machine.checks import typed
from models.machine.errors import InputError


@dataclass(frozen=True)
class T5Config:
    """Sizes of the encoder, with transformers' names and its `T5Config`'s defaults."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

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
