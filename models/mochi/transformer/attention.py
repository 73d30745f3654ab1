"""Asymmetric joint attention: each stream has its own, non-square projections into shared heads."""

import ttnn

from models.layers import (
    Chunks,
    ColumnParallelLinear,
    HeadRMSNorm,
    Heads,
    Module,
    RotaryTable,
    Width,
    joint_attention,
    split_heads,
)
from models.mochi.config import TransformerConfig
from models.mochi.precision import Precision
from models.mochi.transformer.widths import Widths
from models.parallel import Mesh

_QK_EPS = 1e-5


class JointAttention(Module):
    """Attention over visual and text tokens (Diffusers `MochiAttention` with `MochiAttnProcessor2_0`)."""

    def __init__(
        self,
        mesh: Mesh,
        config: TransformerConfig,
        widths: Widths,
        precision: Precision,
        *,
        text_output: bool,
        chunks: Chunks | None = None,
    ) -> None:
        super().__init__(mesh)
        self.prefix = "attn1."
        self.heads = config.num_attention_heads // mesh.tp.size
        self.chunks = chunks
        self.scale = config.attention_head_dim**-0.5
        self.fidelity = getattr(ttnn.MathFidelity, precision.attention)
        self.streaming = precision.streaming
        self.attended = getattr(ttnn, precision.attended)
        self.exchanged = getattr(ttnn, precision.exchanged) if mesh.tp.size > 1 else ttnn.bfloat16
        visual, text, heads = widths.visual, widths.text, widths.heads

        def linear(names: list[str], in_width: Width, out_width: Width, *, bias: bool = False) -> ColumnParallelLinear:
            fidelity = getattr(ttnn.MathFidelity, precision.matmul)
            return ColumnParallelLinear(mesh, names, in_width, out_width, bias=bias, fidelity=fidelity)

        def norm(name: str) -> HeadRMSNorm:
            return HeadRMSNorm(mesh, name, config.num_attention_heads, widths.head, _QK_EPS, self.attended)

        self.to_qkv = linear(["to_q", "to_k", "to_v"], visual, heads)
        self.add_qkv = linear(["add_q_proj", "add_k_proj", "add_v_proj"], text, heads)
        self.norm_q, self.norm_k = norm("norm_q"), norm("norm_k")
        self.norm_added_q, self.norm_added_k = norm("norm_added_q"), norm("norm_added_k")
        self.to_out = linear(["to_out.0"], heads, visual, bias=True)
        self.to_add_out = linear(["to_add_out"], heads, text, bias=True) if text_output else None

    def __call__(
        self, spatial_1BND: ttnn.Tensor, text_1BLP: ttnn.Tensor | None, rope: RotaryTable, tokens: int
    ) -> tuple[ttnn.Tensor, ttnn.Tensor | None]:
        """Compute the attention outputs of both streams.

        Args:
            spatial_1BND: [1, 1, N / SP, D / TP], fractured over SP on N and over TP on D.
            text_1BLP: [1, 1, L, P / TP], replicated over SP, fractured over TP; None without text.
            rope: rotation of the visual queries and keys.
            tokens: number of real visual tokens over all shards.

        Returns:
            [1, 1, N / SP, D / TP], fractured over SP and TP; and [1, 1, L, P / TP], fractured over TP, or None in the
            last block and without text.
        """
        q, k, v = self.to_qkv.gathered(spatial_1BND)
        visual = Heads(self.norm_q(q, rope), self.norm_k(k, rope), self._values(v))
        text = None
        if text_1BLP is not None:
            q, k, v = self.add_qkv.gathered(text_1BLP)
            text = Heads(self.norm_added_q(q), self.norm_added_k(k), self._values(v))
        spatial, joint = joint_attention(
            visual,
            text,
            self.mesh,
            tokens=tokens,
            scale=self.scale,
            fidelity=self.fidelity,
            streaming=self.streaming,
            chunks=self.chunks,
        )
        (spatial,) = self.to_out.gathered(self._joined(spatial))
        if joint is None or self.to_add_out is None:
            return spatial, None
        (joint,) = self.to_add_out.gathered(self._joined(joint))
        return spatial, joint

    def _joined(self, out: ttnn.Tensor) -> ttnn.Tensor:
        """Join the heads of [1, H / TP, M, E] to [1, 1, M, H E / TP], in the type in which chips exchange it."""
        joined = ttnn.experimental.nlp_concat_heads(out)
        return joined if joined.dtype == self.exchanged else ttnn.typecast(joined, self.exchanged)

    def _values(self, v: ttnn.Tensor) -> ttnn.Tensor:
        """Reshape [1, 1, M, H E / TP] to [1, H / TP, M, E] in the policy's type."""
        if v.dtype != self.attended:
            v = ttnn.typecast(v, self.attended)
        return split_heads(v, self.heads)
