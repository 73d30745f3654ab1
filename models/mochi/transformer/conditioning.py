"""Values that depend only on timestep and caption. They are computed for all steps at once, before the denoising loop.

Sources: Diffusers `MochiCombinedTimestepCaptionEmbedding`, `MochiAttentionPool`, `MochiRMSNormZero`; Genmo
`dit/joint_model/asymm_models_joint.py` and `layers.py`.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import ttnn

from models.layers import ColumnParallelLinear, Module, Width, attention_program, compute
from models.machine.errors import InputError
from models.mochi.config import POOL_HEADS, TransformerConfig
from models.mochi.transformer.widths import Widths
from models.parallel import Mesh, gather


def sinusoid(timesteps, channels: int) -> np.ndarray:
    """Return sinusoidal features [1, 1, S, channels] of model times (0..1000): cosines, then sines, base 10000.

    Source: Diffusers `get_timestep_embedding` with `flip_sin_to_cos=True, downscale_freq_shift=0`. The features are
    input data like the times themselves. They are computed in float64 because the angles reach 1000.
    """
    half = channels // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half)
    angles = np.asarray(timesteps, dtype=np.float64)[:, None] * frequencies[None]
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)[None, None]


class CaptionPool(Module):
    """Attention pooling of the caption: the mean token attends to all tokens, itself included."""

    def __init__(self, mesh: Mesh, config: TransformerConfig, widths: Widths) -> None:
        super().__init__(mesh)
        self.prefix = "time_embed.pooler."
        self.width = config.text_embed_dim
        self.heads = widths.pool.padded // widths.pool.padded_group // mesh.tp.size
        self.scale = (config.text_embed_dim // POOL_HEADS) ** -0.5
        self.to_q = ColumnParallelLinear(mesh, ["to_q"], widths.caption, widths.pool, bias=True)
        self.to_kv = ColumnParallelLinear(mesh, ["to_kv"], widths.caption, widths.pool, chunks=2, bias=True)
        self.to_out = ColumnParallelLinear(mesh, ["to_out"], widths.pool, widths.visual, bias=True)

    def __call__(self, features_11LC: ttnn.Tensor | None) -> ttnn.Tensor:
        """Pool caption features [1, 1, L, C], replicated, to [1, 1, 1, D / TP], fractured over TP.

        `features_11LC` is None without tokens. The mean is then zero and attends only to itself. The reference does the
        same with an all-False mask.
        """
        if features_11LC is None:
            pooled = self.mesh.upload(np.zeros((1, 1, 1, self.width), dtype=np.float32))
            tokens = pooled
        else:
            pooled = self._mean(features_11LC)
            tokens = ttnn.concat([pooled, features_11LC], dim=2)
        q = self._heads(self.to_q(pooled))
        k, v = (self._heads(part) for part in self.to_kv.split(self.to_kv(tokens)))
        program, config = attention_program(
            self.mesh, q, k, core_rows=self.mesh.grid[1], fidelity=ttnn.MathFidelity.HiFi4
        )
        out = ttnn.transformer.scaled_dot_product_attention(
            q, k, v, is_causal=False, scale=self.scale, program_config=program, compute_kernel_config=config
        )
        out = ttnn.experimental.nlp_concat_heads(out)
        return self.to_out(gather(out, dim=3, over=self.mesh.tp))

    def _mean(self, features_11LC: ttnn.Tensor) -> ttnn.Tensor:
        """Return the mean token [1, 1, 1, C].

        ttnn's `mean` cuts 1 / L to bfloat16, which makes the mean up to 0.8% too small. A sum and a float32 factor do
        not.
        """
        total = ttnn.sum(
            ttnn.typecast(features_11LC, ttnn.float32), dim=2, keepdim=True, compute_kernel_config=compute.accurate()
        )
        return ttnn.typecast(ttnn.multiply(total, 1 / features_11LC.shape[2]), ttnn.bfloat16)

    def _heads(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """Reshape [1, 1, M, heads E] to [1, heads, M, E]."""
        rows, width = x.shape[2], x.shape[3] // self.heads
        return ttnn.permute(ttnn.reshape(x, (1, rows, self.heads, width)), (0, 2, 1, 3))


class Conditioning(Module):
    """Timestep embedding plus pooled caption, for all steps of a schedule at once, and the caption projection."""

    def __init__(self, mesh: Mesh, config: TransformerConfig, widths: Widths) -> None:
        super().__init__(mesh)
        self.channels = config.time_embed_dim
        visual = widths.visual
        time = Width.plain(config.time_embed_dim)
        step = "time_embed.timestep_embedder"
        self.linear_1 = ColumnParallelLinear(mesh, [f"{step}.linear_1"], time, visual, bias=True)
        self.linear_2 = ColumnParallelLinear(mesh, [f"{step}.linear_2"], visual, visual, bias=True)
        self.pool = CaptionPool(mesh, config, widths)
        self.caption = ColumnParallelLinear(mesh, ["time_embed.caption_proj"], widths.caption, widths.text, bias=True)

    def __call__(self, timesteps, features_11LC: ttnn.Tensor | None) -> tuple[ttnn.Tensor, ttnn.Tensor | None]:
        """Condition every step on the caption.

        Args:
            timesteps: S model times, (1 - sigma) * 1000.
            features_11LC: caption features [1, 1, L, C], replicated; None for a prompt without tokens.

        Returns:
            silu(conditioning) [1, 1, S, D], replicated; and the start of the text stream [1, 1, L, P / TP], fractured
            over TP (None without tokens).
        """
        tp = self.mesh.tp
        x = self.linear_1(self.mesh.upload(sinusoid(timesteps, self.channels)), activation="silu")
        x = self.linear_2(gather(x, dim=3, over=tp), dtype=ttnn.float32)
        pooled = self.pool(features_11LC)
        conditioning = ttnn.silu(ttnn.add(x, pooled, dtype=ttnn.float32))
        conditioning = gather(ttnn.typecast(conditioning, ttnn.bfloat16), dim=3, over=tp)
        return conditioning, None if features_11LC is None else self.caption(features_11LC)


class Modulation(Module):
    """Adaptive norm weights of one stream of one block, for all steps.

    `kinds` names the stacked outputs in checkpoint order: "scale" gives `1 + s`, "gate" gives `tanh(g)`, "shift" gives
    the value itself. The matrices are 27% of the model and process S rows once per video, so they are sharded over SP
    as well as TP. Chips exchange the tables, never the matrices.
    """

    def __init__(self, mesh: Mesh, name: str, width: Width, out_width: Width, kinds: tuple[str, ...]) -> None:
        super().__init__(mesh)
        self.linear = ColumnParallelLinear(mesh, [name], width, out_width, chunks=len(kinds), bias=True, over_sp=True)
        self.kinds = kinds
        self.factor = out_width.norm_factor

    def __call__(self, conditioning_11SD: ttnn.Tensor) -> list[ttnn.Tensor]:
        """Map conditioning [1, 1, S, D], replicated, to one table [1, 1, S, width / TP] per kind, fractured over TP.

        The tables are float32. They include the padded width's norm factor unless they are shifts.
        """
        tables = []
        for kind, part in zip(
            self.kinds, self.linear.split(self.linear(conditioning_11SD, dtype=ttnn.float32)), strict=True
        ):
            if kind == "scale":
                part = ttnn.add(part, 1.0)
            elif kind == "gate":
                part = ttnn.tanh(part)
            if kind != "shift" and self.factor != 1.0:
                part = ttnn.multiply(part, self.factor)
            tables.append(self.linear.whole(part))
        return tables


class StepTable:
    """Rows of values, one row per denoising step. The current row is in a tensor whose address does not change.

    `select` makes another row the current one. The tensors that `group` returns then hold the values of that row. So
    one program serves all steps, and can be replayed.
    """

    def __init__(self, groups: Sequence[Sequence[ttnn.Tensor]]) -> None:
        """Join groups of tables [1, 1, S, W_i] into one table; the given tables are freed."""
        joined, self._columns, start = [], [], 0
        for group in groups:
            ends = list(itertools.accumulate((table.shape[3] for table in group), initial=start))
            self._columns.append(list(itertools.pairwise(ends)))
            start = ends[-1]
            joined.append(_join(group))
        self._table = _join(joined)
        self.steps, self._width = self._table.shape[2], start
        self._row = ttnn.slice(self._table, [0, 0, 0, 0], [1, 1, 1, start])

    def select(self, step: int) -> None:
        """Make the row of `step` the current one.

        Raises:
            ValueError: there is no such row.
        """
        if not 0 <= step < self.steps:
            raise InputError(f"step {step} is not among the {self.steps} that were prepared")
        ttnn.slice(self._table, [0, 0, step, 0], [1, 1, step + 1, self._width], output_tensor=self._row)

    def group(self, index: int) -> list[ttnn.Tensor]:
        """Return the current row's pieces [1, 1, 1, W_i] of one group."""
        return [ttnn.slice(self._row, [0, 0, 0, start], [1, 1, 1, end]) for start, end in self._columns[index]]


def _join(tables: Sequence[ttnn.Tensor]) -> ttnn.Tensor:
    """Join tables [1, 1, S, W_i] along the columns and free them."""
    if len(tables) == 1:
        return tables[0]
    joined = ttnn.concat(list(tables), dim=3)
    for table in tables:
        ttnn.deallocate(table)
    return joined
