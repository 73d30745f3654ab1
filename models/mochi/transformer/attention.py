"""The asymmetric joint attention: both streams have their own, non-square projections into shared heads."""

import ttnn

from models.layers import ColumnParallelLinear, HeadRMSNorm, Heads, Module, joint_attention
from models.mochi.config import TransformerConfig
from models.mochi.transformer.rope import RotaryTable
from models.mochi.transformer.widths import Widths
from models.parallel import Mesh, gather

_QK_EPS = 1e-5


class JointAttention(Module):
    """Attention over visual and text tokens (Diffusers ``MochiAttention`` with ``MochiAttnProcessor2_0``)."""

    def __init__(self, mesh: Mesh, config: TransformerConfig, widths: Widths, *, text_output: bool) -> None:
        super().__init__(mesh)
        self.prefix = "attn1."
        self.heads = config.num_attention_heads // mesh.tp.size
        self.scale = config.attention_head_dim**-0.5
        visual, text, heads, head = widths.visual, widths.text, widths.heads, widths.head
        self.to_qkv = ColumnParallelLinear(mesh, ["to_q", "to_k", "to_v"], visual, heads)
        self.add_qkv = ColumnParallelLinear(mesh, ["add_q_proj", "add_k_proj", "add_v_proj"], text, heads)
        self.norm_q = HeadRMSNorm(mesh, "norm_q", head, _QK_EPS)
        self.norm_k = HeadRMSNorm(mesh, "norm_k", head, _QK_EPS)
        self.norm_added_q = HeadRMSNorm(mesh, "norm_added_q", head, _QK_EPS)
        self.norm_added_k = HeadRMSNorm(mesh, "norm_added_k", head, _QK_EPS)
        self.to_out = ColumnParallelLinear(mesh, ["to_out.0"], heads, visual, bias=True)
        self.to_add_out = ColumnParallelLinear(mesh, ["to_add_out"], heads, text, bias=True) if text_output else None

    def __call__(
        self, spatial_1BND: ttnn.Tensor, text_1BLP: ttnn.Tensor | None, rope: RotaryTable, tokens: int
    ) -> tuple[ttnn.Tensor, ttnn.Tensor | None]:
        """Attend.

        Args:
            spatial_1BND: [1, 1, N / SP, D], fractured over SP on N, replicated over TP.
            text_1BLP: [1, 1, L, P], replicated; None without text.
            rope: rotation of the visual queries and keys.
            tokens: real visual tokens over all shards.

        Returns:
            [1, 1, N / SP, D / TP] fractured over SP and TP; [1, 1, L, P / TP] fractured over TP, or None in the last
            block and without text.
        """
        q, k, v = self._split(self.to_qkv(spatial_1BND))
        visual = Heads(rope.apply(self.norm_q(q)), rope.apply(self.norm_k(k)), v)
        text = None
        if text_1BLP is not None:
            q, k, v = self._split(self.add_qkv(text_1BLP))
            text = Heads(self.norm_added_q(q), self.norm_added_k(k), v)
        spatial, joint = joint_attention(visual, text, self.mesh, tokens=tokens, scale=self.scale)
        spatial = self.to_out(self._merge(spatial))
        if joint is None or self.to_add_out is None:
            return spatial, None
        return spatial, self.to_add_out(self._merge(joint))

    def _split(self, qkv: ttnn.Tensor) -> tuple[ttnn.Tensor, ttnn.Tensor, ttnn.Tensor]:
        """[1, 1, M, 3 H E / TP] -> three [1, H / TP, M, E]."""
        q, k, v = ttnn.experimental.nlp_create_qkv_heads(
            qkv, num_heads=self.heads, num_kv_heads=self.heads, transpose_k_heads=False
        )
        return q, k, v

    def _merge(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """[1, H / TP, M, E] fractured over TP -> [1, 1, M, H E] replicated over TP."""
        return gather(ttnn.experimental.nlp_concat_heads(x), self.mesh, dim=3, over=self.mesh.tp)
