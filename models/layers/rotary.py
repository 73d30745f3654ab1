"""Rotary position embedding as a pair of tables and the op that applies them."""

from dataclasses import dataclass

import ttnn


@dataclass(frozen=True)
class RotaryTable:
    """`cos` and `sin` [1, H / TP, N / SP, E], each pair's value twice; `rotate` [1, 1, 32, 32] turns pairs."""

    cos: ttnn.Tensor
    sin: ttnn.Tensor
    rotate: ttnn.Tensor

    def apply(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """Rotate x [1, H / TP, N / SP, E], fractured like the table."""
        return ttnn.experimental.rotary_embedding_llama(x, self.cos, self.sin, self.rotate, is_decode_mode=False)
