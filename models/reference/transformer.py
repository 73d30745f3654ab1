"""Random Diffusers `MochiTransformer3DModel`s of any size, the reference for the TTNN AsymmDiT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import MochiTransformer3DModel

from models.reference.random_weights import randomize_

# Gains on the modulation weights. Modulation reads silu(conditioning), whose spread is well below one. Without a gain
# the tanh gates would stay small and the blocks would have little effect.
MODULATION_GAINS = {
    "norm1.linear.weight": 2.0,
    "norm1_context.linear.weight": 2.0,
    "norm1_context.linear_1.weight": 2.0,
    "norm_out.linear.weight": 2.0,
}


def random_transformer(
    *,
    num_attention_heads: int,
    attention_head_dim: int,
    num_layers: int,
    pooled_projection_dim: int,
    text_embed_dim: int,
    time_embed_dim: int = 256,
    in_channels: int = 12,
    patch_size: int = 2,
    seed: int = 0,
) -> MochiTransformer3DModel:
    """Return a float32 reference transformer in eval mode with every parameter randomised.

    Gates use a good part of their range, so every block changes the residual streams by a similar amount. With inputs
    of unit variance the activations stay of order one.

    Args:
        num_attention_heads: heads of the joint attention; times `attention_head_dim` it is the visual width.
        attention_head_dim: width of a head, even (RoPE pairs channels).
        num_layers: number of blocks, at least 1; the last one is `context_pre_only`.
        pooled_projection_dim: width of the text stream.
        text_embed_dim: width of the T5 features; a multiple of 8 (the attention pool has 8 heads).
        time_embed_dim: channels of the sinusoidal timestep embedding, even.
        in_channels: latent channels in and out.
        patch_size: edge of a spatial patch.
        seed: any integer; the same arguments give the same weights.

    Raises:
        ValueError: the reference could not run with a size.
    """
    if text_embed_dim % 8:
        raise ValueError(f"text_embed_dim {text_embed_dim} must be a multiple of 8, the caption pool's heads")
    if attention_head_dim % 2:
        raise ValueError(f"attention_head_dim {attention_head_dim} must be even: RoPE turns channel pairs")
    if num_layers < 1:
        raise ValueError(f"num_layers {num_layers} must be at least 1")
    model: Any = MochiTransformer3DModel(
        patch_size=patch_size,
        num_attention_heads=num_attention_heads,
        attention_head_dim=attention_head_dim,
        num_layers=num_layers,
        pooled_projection_dim=pooled_projection_dim,
        in_channels=in_channels,
        text_embed_dim=text_embed_dim,
        time_embed_dim=time_embed_dim,
    )
    randomize_(model, seed, MODULATION_GAINS)
    return model.eval().requires_grad_(False)


def save_transformer(model: Any, directory: Path | str) -> Path:
    """Write a `random_transformer` as component `transformer` of a Diffusers-layout `directory`.

    Returns:
        The directory.
    """
    directory = Path(directory)
    model.save_pretrained(directory / "transformer")
    return directory
