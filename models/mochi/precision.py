"""Precision policies of the transformer: what its large matrices are stored in, and how its arithmetic is done.

A policy speaks of the work that time goes into: attention and the matrices of attention and feed-forward. Everything
else (norms, modulation, embeddings, the final layer, float32 state of the sampler) is the same in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """A policy; ttnn's names for types and fidelities.

    Attributes:
        name: what the user calls it.
        weights: how the large matrices are stored, a name of `weight_cache.precision`; all that the store of weights
            sees of a policy.
        attended: type of queries, keys and values; bfloat8_b halves what the ring carries. ttnn's ring attention
            takes one type for all three.
        inputs: type of what the large matrices are multiplied with, and of partial sums over chips; bfloat8_b halves
            what the links carry.
        matmul: math fidelity of the products with the large matrices.
        attention: math fidelity of both products of attention.
        streaming: whether attention takes ttnn's streaming kernel. It is the faster one
            (models/performance/cost_model.toml); its exponential is off by up to 3% either way, and it accumulates in
            bfloat16.
    """

    name: str
    weights: str
    attended: str
    inputs: str
    matmul: str
    attention: str
    streaming: bool

    def __str__(self) -> str:
        attention = f"{self.attention} {'streaming' if self.streaming else 'exact'} attention"
        return (
            f"{self.name} (weights {self.weights}, {self.matmul} products of {self.inputs}, "
            f"queries, keys and values {self.attended}, {attention})"
        )

    @classmethod
    def named(cls, name: str) -> Precision:
        """The policy of that name.

        Raises:
            ValueError: there is none.
        """
        if name not in PRECISIONS:
            raise ValueError(f"precision {name!r} does not exist: choose one of {', '.join(PRECISIONS)}")
        return PRECISIONS[name]


# From the most exact to the fastest. What bfloat8_b costs in accuracy differs by what is stored in it: least for the
# matrices of the feed-forwards, which are also the largest, most for those of q, k and v (tests/mochi/transformer/
# test_precision.py; README).
PRECISIONS = {
    policy.name: policy
    for policy in (
        Precision("accurate", "bf16", "bfloat16", "bfloat16", "HiFi4", "HiFi4", False),
        Precision("bf16", "bf16", "bfloat16", "bfloat16", "HiFi2", "HiFi2", False),
        Precision("default", "mixed", "bfloat8_b", "bfloat16", "HiFi2", "HiFi2", True),
        Precision("bf8", "bf8", "bfloat8_b", "bfloat16", "HiFi2", "HiFi2", True),
        Precision("fast", "bf8", "bfloat8_b", "bfloat8_b", "HiFi2", "LoFi", True),
    )
}
