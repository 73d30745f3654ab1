"""Cases of the VAE's encoder: attention over time, pixel by pixel."""

from __future__ import annotations

import torch

from models.conformance.bench import Bench, Output, case
from models.mochi.vae.temporal import causal_attention

_SCALE = 0.125  # exact in float32, which the bindings insist on


@case(
    "causal attention",
    "ttnn.transformer.scaled_dot_product_attention",
    "keys up to the query's own, scores in float32",
    3e-2,
)
def _causal_attention(bench: Bench) -> list[Output]:
    """The sequences of a few pixels, whose last tile is not full."""
    q, k, v = (bench.normal(6, 2, 43, 32) for _ in range(3))
    queries, keys, values = (bench.up(x) for x in (q, k, v))
    out = causal_attention(bench.mesh, queries, keys, values, _SCALE)

    def exact() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=_SCALE)

    return [Output(out, exact)]
