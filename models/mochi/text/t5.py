"""The T5 v1.1 encoder on a mesh, tensor parallel over TP, replicated over SP.

Source: T5 (arXiv:1910.10683) as in transformers' `modeling_t5.py`: pre-norm blocks without biases, attention scores
without scaling and with a learned bias by relative position, and a gated feed-forward with the tanh GELU.

Shapes: L text tokens, C width of the features, H heads, E head width. Only the real tokens of a prompt are encoded, so
nothing is masked. The residual stream is float32, because the encoder is known to lose accuracy in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import ttnn

from models.conversion import POSITION_BIAS, TEXT_NORM_WEIGHT, TOKEN_EMBEDDING, describe_packing
from models.layers import (
    ColumnParallelLinear,
    Module,
    Parameter,
    RowParallelLinear,
    TensorSource,
    Width,
    compute,
    rms_norm,
    split_heads,
)
from models.layers.module import file_of
from models.machine.errors import InputError
from models.mochi.text.config import T5_XXL, T5Config
from models.parallel import Layout, Mesh, gather

__all__ = ["T5_XXL", "T5Config", "T5Encoder", "position_buckets", "text_layout"]

MAX_TOKENS = 256
_TIED = "encoder.embed_tokens.weight"


def position_buckets(tokens: int, buckets: int, max_distance: int) -> np.ndarray:
    """Return the bucket [tokens, tokens] of the distance key - query, in both directions.

    Half of the buckets are for keys after the query. In each half, half of the buckets hold one distance each. The
    others grow logarithmically up to `max_distance`. Source: transformers `T5Attention._relative_position_bucket`.
    """
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.abs(distance)
    # The reference computes these logarithms in float32, which decides ties at bucket edges.
    log = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    large = exact + (log / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)).astype(np.int64)
    return np.where(far < exact, far, np.minimum(large, half - 1)) + np.where(distance > 0, half, 0)


def text_layout(layout: Layout, heads: int) -> Layout:
    """Return the layout of the text encoder beside a transformer in `layout`.

    It has the widest TP that divides the heads. A prompt is too short to be sharded, so the chips along SP would only
    repeat each other's work and weights.
    """
    turned = replace(layout, sp_axis=layout.tp_axis, tp_axis=layout.sp_axis)
    fitting = [candidate for candidate in (layout, turned) if heads % candidate.tp == 0]
    return max(fitting, key=lambda candidate: candidate.tp, default=layout)


class T5Encoder(Module):
    """The T5 encoder, which maps token ids to features.

    It uses the mesh in a layout of its own, see `text_layout`.
    """

    def __init__(self, config: T5Config, mesh: Mesh) -> None:
        mesh = mesh.relaid(text_layout(mesh.layout, config.num_heads))
        super().__init__(mesh)
        self.config = config
        tp = mesh.tp.size
        width = Width.sharded(config.d_model, tp)
        heads = Width.heads(config.num_heads, config.d_kv, tp)
        self.embedding = Parameter(
            {"shared.weight": (config.vocab_size, config.d_model)},
            lambda table: width.pad(table, 1),
            tp=1,
            layout=ttnn.ROW_MAJOR_LAYOUT,
            moves_only=True,
            conversion=TOKEN_EMBEDDING,
            packing=width.packing,
        )
        buckets = position_buckets(
            MAX_TOKENS, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )

        all_heads = Width(config.num_heads, config.num_heads, 1, heads.extra_groups)

        def by_position(table):
            """Return the bias [1, H, MAX_TOKENS, MAX_TOKENS] from the table [buckets, H].

            Shorter prompts use its corner.
            """
            return all_heads.pad(table[buckets].permute(2, 0, 1), 0)[None]

        self.position_bias = Parameter(
            {
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
                    config.relative_attention_num_buckets,
                    config.num_heads,
                )
            },
            by_position,
            tp=1,
            dtype=ttnn.float32,
            conversion=POSITION_BIAS,
            packing=describe_packing(f"distances up to {config.relative_attention_max_distance}", all_heads.packing),
        )
        self.blocks = [T5Block(mesh, config, width, heads, index) for index in range(config.num_layers)]
        self.norm = T5Norm(mesh, "encoder.final_layer_norm", width, config.layer_norm_epsilon)

    @classmethod
    def from_checkpoint(
        cls, checkpoint, mesh: Mesh, *, on_parameter: Callable[[int, int], None] | None = None
    ) -> T5Encoder:
        """Build the encoder from a checkpoint component and load its weights strictly.

        Raises:
            ValueError: the configuration or the weights do not fit.
        """
        model = cls(T5Config.from_dict(checkpoint.config), mesh)
        model.load(checkpoint, on_parameter=on_parameter)
        return model

    def part_of(self, source: TensorSource) -> TensorSource:
        """Return all tensors of a T5 encoder, with the embedding under one name."""
        return _Untied(source)

    def __call__(self, ids) -> ttnn.Tensor:
        """Encode the tokens of one prompt.

        Args:
            ids: host token ids [L] of the prompt's real tokens, 1 <= L <= 256.

        Returns:
            Features [1, 1, L, C], replicated, bfloat16.

        Raises:
            ValueError: there are too many tokens, or none.
        """
        ids = np.asarray(ids, dtype=np.int32).reshape(1, -1)
        length = ids.shape[1]
        if not 1 <= length <= MAX_TOKENS:
            raise InputError(f"{length} tokens: the text encoder takes 1 to {MAX_TOKENS}")
        uploaded = self.mesh.upload(ids, dtype=ttnn.uint32, layout=ttnn.ROW_MAJOR_LAYOUT)
        x = ttnn.embedding(uploaded, self.embedding.tensor, layout=ttnn.TILE_LAYOUT)
        x = ttnn.typecast(ttnn.reshape(x, (1, 1, length, x.shape[-1])), ttnn.float32)
        table = self.position_bias.tensor
        bias = ttnn.slice(table, [0, 0, 0, 0], [1, table.shape[1], length, length])
        for block in self.blocks:
            x = block(x, bias)
        features = gather(self.norm(x), dim=3, over=self.mesh.tp)
        return ttnn.slice(features, [0, 0, 0, 0], [1, 1, length, self.config.d_model])


class T5Block(Module):
    """Self-attention and a gated feed-forward. Each follows a norm and is added to the residual stream."""

    def __init__(self, mesh: Mesh, config: T5Config, width: Width, heads: Width, index: int) -> None:
        super().__init__(mesh)
        self.prefix = f"encoder.block.{index}."
        self.heads = heads.padded // heads.padded_group // mesh.tp.size
        attention, inner = "layer.0.SelfAttention", Width.sharded(config.d_ff, mesh.tp.size)
        feed_forward = "layer.1.DenseReluDense"
        self.attention_norm = T5Norm(mesh, "layer.0.layer_norm", width, config.layer_norm_epsilon)
        self.qkv = ColumnParallelLinear(mesh, [f"{attention}.{name}" for name in "qkv"], width, heads)
        self.out = ColumnParallelLinear(mesh, [f"{attention}.o"], heads, width)
        self.feed_forward_norm = T5Norm(mesh, "layer.1.layer_norm", width, config.layer_norm_epsilon)
        self.gate_up = ColumnParallelLinear(mesh, [f"{feed_forward}.wi_0", f"{feed_forward}.wi_1"], width, inner)
        self.down = RowParallelLinear(mesh, f"{feed_forward}.wo", inner, width)

    def __call__(self, x: ttnn.Tensor, bias: ttnn.Tensor) -> ttnn.Tensor:
        """Run the block on x [1, 1, L, C / TP] float32, fractured over TP, with the bias [1, H / TP, L, L] float32.

        The result has the shape, type and placement of x.
        """
        q, k, v = (split_heads(part, self.heads) for part in self.qkv.gathered(self.attention_norm(x)))
        exact = compute.accurate()
        scores = ttnn.matmul(q, k, transpose_b=True, dtype=ttnn.float32, compute_kernel_config=exact)
        weights = ttnn.softmax(ttnn.add(scores, bias), dim=-1, compute_kernel_config=exact)
        attended = ttnn.matmul(ttnn.typecast(weights, ttnn.bfloat16), v, compute_kernel_config=exact)
        (attended,) = self.out.gathered(ttnn.experimental.nlp_concat_heads(attended))
        x = ttnn.add(x, ttnn.typecast(attended, ttnn.float32))
        gate, up = self.gate_up.gathered(self.feed_forward_norm(x))
        inner = ttnn.multiply(ttnn.gelu(gate, variant=ttnn.GeluVariant.Tanh), up)
        return ttnn.add(x, ttnn.typecast(self.down.fractured(inner), ttnn.float32))


class T5Norm(Module):
    """Root-mean-square norm with a learned weight over features fractured over TP."""

    def __init__(self, mesh: Mesh, name: str, width: Width, eps: float) -> None:
        super().__init__(mesh)
        self.width = width
        self.eps = eps
        self.weight = Parameter(
            {f"{name}.weight": (width.size,)},
            lambda vector: width.pad(vector * width.norm_factor, 0)[None, None, None],
            tp=3,
            dtype=ttnn.float32,
            conversion=TEXT_NORM_WEIGHT,
            packing=width.packing,
        )

    def __call__(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """Norm x [1, 1, L, C / TP] float32, fractured over TP.

        The result is bfloat16 with the same shape and placement.
        """
        return rms_norm(ttnn.typecast(x, ttnn.bfloat16), self.weight.tensor, self.mesh, self.width, self.eps)


class _Untied:
    """A T5 checkpoint without the second name of its embedding. Some files have both names, some only the second."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._only_tied = "shared.weight" not in set(source.keys())

    def keys(self):
        """Return the names of all tensors, the embedding as `shared.weight`."""
        names = set(self._source.keys()) - {_TIED}
        return names | {"shared.weight"} if self._only_tied else names

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._source.shape(self._own(key))

    def tensor(self, key: str):
        """Read one tensor to the host."""
        return self._source.tensor(self._own(key))

    def where(self, key: str) -> str:
        """Return the file of a tensor, for messages."""
        return file_of(self._source, self._own(key))

    def _own(self, key: str) -> str:
        return _TIED if self._only_tied and key == "shared.weight" else key
