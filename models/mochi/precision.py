"""Precision policies of the transformer: storage types of its large matrices, and the arithmetic.

A policy covers the work that takes the time: attention, and the matrices of attention and feed-forward. Everything else
(norms, modulation, embeddings, the final layer, the sampler's float32 state) is the same in all policies.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.machine.errors import InputError


@dataclass(frozen=True)
class Precision:
    """A precision policy, with ttnn's names for types and fidelities.

    Attributes:
        name: name that the user gives.
        weights: storage form of the large matrices, a name of `weight_cache.precision`. The weight store sees nothing
            else of a policy.
        attended: type of queries, keys and values. bfloat8_b halves the bytes that the ring carries. ttnn's ring
            attention takes one type for all three.
        inputs: type of the tensors that the large matrices are multiplied with, besides attention's output.
            bfloat8_b halves the bytes that the links carry.
        exchanged: type of attention's output on its way to the other chips, and of partial sums over chips. Both wait
            for the links, so that bfloat8_b takes half the time.
        matmul: math fidelity of the products with the large matrices.
        attention: math fidelity of both products of attention.
        streaming: whether attention uses ttnn's streaming kernel. It is faster (models/performance/cost_model.toml),
            but its exponential has errors of up to 3% in both directions, and it accumulates in bfloat16.
    """

    name: str
    weights: str
    attended: str
    inputs: str
    exchanged: str
    matmul: str
    attention: str
    streaming: bool

    def __str__(self) -> str:
        attention = f"{self.attention} {'streaming' if self.streaming else 'exact'} attention"
        return (
            f"{self.name} (weights {self.weights}, {self.matmul} products of {self.inputs}, "
            f"queries, keys and values {self.attended}, exchanged in {self.exchanged}, {attention})"
        )

    @classmethod
    def named(cls, name: str) -> Precision:
        """Return the policy called `name`.

        Raises:
            ValueError: there is no policy with that name.
        """
        if name not in PRECISIONS:
            raise InputError(f"precision {name!r} does not exist: choose one of {', '.join(PRECISIONS)}")
        return PRECISIONS[name]


# Policies from the most exact to the fastest. The accuracy that bfloat8_b costs depends on the matrices stored in it.
# It is least for the matrices of the feed-forwards, which are also the largest, and most for those of q, k and v
# (tests/mochi/transformer/test_precision.py; docs/precision.md).
PRECISIONS = {
    policy.name: policy
    for policy in (
        Precision("accurate", "bf16", "bfloat16", "bfloat16", "bfloat16", "HiFi4", "HiFi4", False),
        Precision("bf16", "bf16", "bfloat16", "bfloat16", "bfloat16", "HiFi2", "HiFi2", False),
        Precision("default", "mixed", "bfloat8_b", "bfloat16", "bfloat8_b", "HiFi2", "HiFi2", True),
        Precision("bf8", "bf8", "bfloat8_b", "bfloat16", "bfloat8_b", "HiFi2", "HiFi2", True),
        Precision("fast", "bf8", "bfloat8_b", "bfloat8_b", "bfloat8_b", "HiFi2", "LoFi", True),
    )
}
