"""Padded widths of one AsymmDiT on one mesh, computed once and shared by its modules."""

from __future__ import annotations

from dataclasses import dataclass

from models.layers import Width
from models.machine.errors import InputError
from models.mochi.config import POOL_HEADS, TransformerConfig


@dataclass(frozen=True)
class Widths:
    """Stored widths: D (visual), P (text), attention heads, one head, caption features and the caption pool's heads."""

    visual: Width
    text: Width
    heads: Width
    head: Width
    caption: Width
    pool: Width

    @classmethod
    def of(cls, config: TransformerConfig, tp: int) -> Widths:
        """Return the widths for `tp` tensor shards.

        Raises:
            ValueError: TP does not divide the attention heads.
        """
        heads = config.num_attention_heads
        if heads % tp:
            raise InputError(f"TP={tp} does not divide the model's {heads} attention heads: choose another layout")
        return cls(
            visual=Width.sharded(config.inner_dim, tp),
            text=Width.sharded(config.pooled_projection_dim, tp),
            heads=Width.heads(config.num_attention_heads, config.attention_head_dim),
            head=Width.heads(1, config.attention_head_dim),
            caption=Width.plain(config.text_embed_dim),
            pool=Width.heads(POOL_HEADS, config.text_embed_dim // POOL_HEADS, tp),
        )
