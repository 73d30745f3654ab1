"""Causal attention over time, pixel by pixel: what the encoder has after its residual blocks.

Formulas are those of Diffusers `attention_processor.py` (`MochiVaeAttnProcessor2_0`) and `autoencoder_kl_mochi.py`.
Activations x_BTHWC are those of `models.mochi.vae.blocks`. In the attention P is pixels, and every pixel is a sequence
of T frames: x_P1TC. No chip needs anything of another: frames are never split.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import ttnn

from models.conversion import PIXEL_ATTENTION_BIAS, PIXEL_ATTENTION_WEIGHT
from models.layers import Chunks, compute
from models.layers.attention import attention_program
from models.layers.group_norm import FrameGroupNorm
from models.layers.module import Module, Parameter
from models.layers.staging import frames_of, then
from models.mochi.vae.blocks import Shared
from models.parallel import TILE, Mesh, round_up
from models.parallel.halo import Extent
from models.parallel.rows import copy_rows, write_rows

HEAD = 32
# Largest chunk of queries and of keys. Up to so many frames every query meets all keys in one step.
_MOST_CHUNK = 256
# The norm of queries and keys divides by at least this (Diffusers `Attention`, `eps`).
_EPS = 1e-5
# Bytes that the tensors of one band of rows may take, and their number at once: queries, keys and values, before and
# after the norm, and what comes out.
BAND_BYTES = 640 << 20
BAND_TENSORS = 8


class PixelAttention(Module):
    """The layer `x + attention(group_norm(x))`, in which each frame of a pixel sees itself and the frames before it.

    Queries and keys are divided by their length (L2 norm) and the scale is that of the head, so scores stay within
    `+-1 / sqrt(32)`.
    """

    def __init__(self, shared: Shared, norm: str, attention: str, channels: int) -> None:
        super().__init__(shared.mesh)
        self.channels, self.heads = channels, channels // HEAD
        self.norm = FrameGroupNorm(shared.mesh, f"{norm}.norm_layer", channels, shared.sums, silu=False)
        square = (channels, channels)

        def joined(*matrices):
            import torch

            return torch.cat([matrix.T for matrix in matrices], dim=1)

        self.qkv = Parameter(
            {f"{attention}.to_{name}.weight": square for name in "qkv"}, joined, conversion=PIXEL_ATTENTION_WEIGHT
        )
        self.out = Parameter({f"{attention}.to_out.0.weight": square}, joined, conversion=PIXEL_ATTENTION_WEIGHT)
        self.bias = Parameter(
            {f"{attention}.to_out.0.bias": (channels,)},
            lambda vector: vector[None, None, None],
            dtype=ttnn.float32,
            conversion=PIXEL_ATTENTION_BIAS,
        )

    def __call__(self, x_BTHWC: ttnn.Tensor, extent: Extent) -> ttnn.Tensor:
        """Run the layer on x [1, T, H, W, C]. The result has the same shape and placement."""
        x_THWC = frames_of(x_BTHWC)
        normed = ttnn.allocate_tensor_on_device(
            ttnn.Shape(list(x_THWC.shape)), x_THWC.dtype, ttnn.ROW_MAJOR_LAYOUT, self.mesh.device
        )
        self.norm(x_BTHWC, extent, normed)
        frames, rows, columns, _ = x_THWC.shape
        spans = list(bands(frames, rows, columns, self.channels))
        if len(spans) == 1:  # A copy of everything would be the tensor itself, and be freed with it.
            change = self._attended(normed)
            out = then(ttnn.add, x_BTHWC, ttnn.reshape(change, list(x_BTHWC.shape)))
            ttnn.deallocate(change)
            return out
        for start, stop in spans:
            begin, end = [0, start, 0, 0], [frames, stop, columns, self.channels]
            change = self._attended(copy_rows(normed, begin, end))
            value = then(ttnn.add, copy_rows(x_THWC, begin, end), change)
            ttnn.deallocate(change)
            write_rows(x_THWC, value, begin)
            ttnn.deallocate(value)
        ttnn.deallocate(normed)
        return x_BTHWC

    def _attended(self, x_THWC: ttnn.Tensor) -> ttnn.Tensor:
        """Return the attention's output for a band [T, h, W, C]; x is freed."""
        frames, rows, columns, channels = x_THWC.shape
        pixels = rows * columns
        if frames == 1:
            # A frame that sees only itself takes its own value.
            flat = ttnn.reshape(x_THWC, [1, 1, pixels, channels])
            out = self._projected(then(self._values, then(ttnn.to_layout, flat, ttnn.TILE_LAYOUT)))
            return ttnn.reshape(then(ttnn.to_layout, out, ttnn.ROW_MAJOR_LAYOUT), [1, rows, columns, channels])
        moved = then(ttnn.permute, x_THWC, [1, 2, 0, 3])
        moved = ttnn.reshape(moved, [pixels, 1, frames, channels])
        tiled = then(ttnn.to_layout, moved, ttnn.TILE_LAYOUT)
        out = self._projected(then(self._attend, tiled))
        flat = then(ttnn.to_layout, out, ttnn.ROW_MAJOR_LAYOUT)
        return then(ttnn.permute, ttnn.reshape(flat, [rows, columns, frames, channels]), [2, 0, 1, 3])

    def _values(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """Return the values of x [1, 1, M, C] alone."""
        weight = ttnn.slice(self.qkv.tensor, [0, 2 * self.channels], [self.channels, 3 * self.channels])
        out = _linear(x, weight)
        ttnn.deallocate(weight)
        return out

    def _projected(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """Multiply by the output's weight, add its bias, and free x."""
        return then(_linear, x, self.out.tensor, self.bias.tensor)

    def _attend(self, x_P1TC: ttnn.Tensor) -> ttnn.Tensor:
        fused = _linear(x_P1TC, self.qkv.tensor)
        q, k, v = ttnn.experimental.nlp_create_qkv_heads(
            fused, num_heads=self.heads, num_kv_heads=self.heads, transpose_k_heads=False
        )
        ttnn.deallocate(fused)
        # The root-mean-square norm is sqrt(32) times the L2 norm, of queries and of keys.
        q, k = (
            then(ttnn.rms_norm, x, epsilon=_EPS**2 / HEAD, compute_kernel_config=compute.accurate()) for x in (q, k)
        )
        out = causal_attention(self.mesh, q, k, v, _SCALE)
        for tensor in (q, k, v):
            ttnn.deallocate(tensor)
        return then(ttnn.experimental.nlp_concat_heads, out)


def causal_attention(mesh: Mesh, q: ttnn.Tensor, k: ttnn.Tensor, v: ttnn.Tensor, scale: float) -> ttnn.Tensor:
    """Compute attention of queries, keys and values [P, heads, T, 32] in which each frame sees those up to its own.

    `scale` must be exact in float32.
    """
    rows = min(round_up(q.shape[2], TILE), _MOST_CHUNK)
    program, config = attention_program(
        mesh, q, k, core_rows=mesh.grid[1], fidelity=ttnn.MathFidelity.HiFi4, chunks=Chunks(rows, rows)
    )
    return ttnn.transformer.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, program_config=program, compute_kernel_config=config
    )


# Of scores of queries and keys that the root-mean-square norm made sqrt(32) times too long, in float32.
_SCALE = struct.unpack("f", struct.pack("f", HEAD**-1.5))[0]


def _linear(x: ttnn.Tensor, weight: ttnn.Tensor, bias: ttnn.Tensor | None = None) -> ttnn.Tensor:
    return ttnn.linear(x, weight, bias=bias, dtype=ttnn.bfloat16, compute_kernel_config=compute.accurate())


def bands(frames: int, rows: int, columns: int, channels: int) -> Iterator[tuple[int, int]]:
    """Cut rows into the fewest bands (start, stop) whose attention takes at most `BAND_BYTES`, or single rows."""
    row = band_row_bytes(frames, columns, channels)
    count = -(-rows // max(BAND_BYTES // row, 1))
    step = -(-rows // count)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def band_row_bytes(frames: int, columns: int, channels: int) -> int:
    """Return the bytes that the attention of one row of pixels takes."""
    return BAND_TENSORS * round_up(frames, TILE) * columns * channels * 2
