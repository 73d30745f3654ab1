"""Rotary position embedding: a pair of tables and the op that applies them."""

from dataclasses import dataclass

import ttnn


@dataclass(frozen=True)
class RotaryTable:
    """Tables of a rotary position embedding.

    `cos` and `sin` are [1, H / TP, N / SP, E] and hold the value of each pair twice. `rotate` [1, 1, 32, 32] is the
    matrix that rotates pairs.
    """

    cos: ttnn.Tensor
    sin: ttnn.Tensor
    rotate: ttnn.Tensor

    def apply(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """Rotate x [1, H / TP, N / SP, E], which is fractured like the tables."""
        return ttnn.experimental.rotary_embedding_llama(x, self.cos, self.sin, self.rotate, is_decode_mode=False)
