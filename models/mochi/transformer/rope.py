"""Learned 3-D rotary position embedding: cosines and sines per token and head, computed once per geometry.

Source: Genmo `dit/joint_model/rope_mixed.py` and Diffusers `MochiRoPE`. The angle of token n, head h, pair f is `sum_d
position[n, d] * pos_frequencies[d, h, f]`. Spatial positions are the centres of bins. The range of the bins is scaled
so that the whole image has the area of 192 x 192.
"""

import math

import numpy as np
import ttnn

from models.conversion import ROTARY_FREQUENCIES
from models.layers import Module, Parameter, RotaryTable, Width
from models.mochi.config import TransformerConfig
from models.parallel import TILE, Mesh, round_up

_TARGET_AREA = 192 * 192


def padded_tokens(tokens: int, sp: int) -> int:
    """Return the number of visual tokens as stored: whole tiles per SP shard.

    This holds without SP too, because the fused norm and rotation reads no table whose rows are not whole tiles.
    """
    return round_up(tokens, TILE * sp)


def positions(frames: int, rows: int, columns: int) -> np.ndarray:
    """Return the positions [3, N] (time, height, width) of `frames * rows * columns` tokens in that order, float64."""
    scale = math.sqrt(_TARGET_AREA / (rows * columns))

    def centres(count: int) -> np.ndarray:
        return (np.arange(count) + 0.5 - count / 2) * scale

    grid = np.meshgrid(np.arange(frames), centres(rows), centres(columns), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in grid])


class RotaryEmbedding(Module):
    """The learned frequencies, and the rotation tables of a geometry computed from them."""

    def __init__(self, mesh: Mesh, config: TransformerConfig, head: Width) -> None:
        super().__init__(mesh)
        heads, width = config.num_attention_heads, config.attention_head_dim
        # Neighbouring channels form a pair and share an angle. Padded channels get angle 0.
        self.frequencies = Parameter(
            {"pos_frequencies": (3, heads, width // 2)},
            lambda f: head.pad(f.repeat_interleave(2, dim=-1), 2)[:, :, None],
            tp=1,
            dtype=ttnn.float32,
            conversion=ROTARY_FREQUENCIES,
            packing=head.packing,
        )

    def __call__(self, frames: int, rows: int, columns: int) -> RotaryTable:
        """Return the tables for a grid of `frames x rows x columns` tokens, padded to whole tiles per SP shard.

        Angles, cosines and sines are float32 on the mesh. The tables are bfloat16, the dtype of the rotation op.
        """
        place = positions(frames, rows, columns)
        tokens = place.shape[1]
        host = np.zeros((3, 1, padded_tokens(tokens, self.mesh.sp.size), 1), dtype=np.float32)
        host[:, 0, :tokens, 0] = place
        frequencies = self.frequencies.tensor
        _, heads, _, width = frequencies.shape
        angles = None
        for axis in range(3):
            place_11N1 = self.mesh.upload(host[axis : axis + 1], dtype=ttnn.float32, sp=2)
            frequency = ttnn.slice(frequencies, [axis, 0, 0, 0], [axis + 1, heads, 1, width])
            part = ttnn.multiply(place_11N1, frequency)
            angles = part if angles is None else ttnn.add(angles, part)
        cos = ttnn.typecast(ttnn.cos(angles), ttnn.bfloat16)
        sin = ttnn.typecast(ttnn.sin(angles), ttnn.bfloat16)
        return RotaryTable(cos, sin, self.mesh.upload(_pair_rotation()))


def _pair_rotation() -> np.ndarray:
    """Return the 32 x 32 matrix that maps (a, b) to (-b, a) in every pair of columns."""
    matrix = np.zeros((1, 1, TILE, TILE), dtype=np.float32)
    even = np.arange(0, TILE, 2)
    matrix[0, 0, even + 1, even] = -1.0
    matrix[0, 0, even, even + 1] = 1.0
    return matrix
