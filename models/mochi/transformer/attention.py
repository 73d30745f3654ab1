"""The asymmetric joint attention: both streams have their own, non-square projections into shared heads."""

import ttnn

from models.layers import ColumnParallelLinear, HeadRMSNorm, Heads, Module, RotaryTable, joint_attention, split_heads
from models.mochi.config import TransformerConfig
from models.mochi.transformer.widths import Widths
from models.parallel import Mesh

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
        self.norm_q = HeadRMSNorm(mesh, "norm_q", config.num_attention_heads, head, _QK_EPS)
        self.norm_k = HeadRMSNorm(mesh, "norm_k", config.num_attention_heads, head, _QK_EPS)
        self.norm_added_q = HeadRMSNorm(mesh, "norm_added_q", config.num_attention_heads, head, _QK_EPS)
        self.norm_added_k = HeadRMSNorm(mesh, "norm_added_k", config.num_attention_heads, head, _QK_EPS)
        self.to_out = ColumnParallelLinear(mesh, ["to_out.0"], heads, visual, bias=True)
        self.to_add_out = ColumnParallelLinear(mesh, ["to_add_out"], heads, text, bias=True) if text_output else None

    def __call__(
        self, spatial_1BND: ttnn.Tensor, text_1BLP: ttnn.Tensor | None, rope: RotaryTable, tokens: int
    ) -> tuple[ttnn.Tensor, ttnn.Tensor | None]:
        """Attend.

        Args:
            spatial_1BND: [1, 1, N / SP, D / TP], fractured over SP on N and over TP on D.
            text_1BLP: [1, 1, L, P / TP], replicated over SP, fractured over TP; None without text.
            rope: rotation of the visual queries and keys.
            tokens: real visual tokens over all shards.

        Returns:
            [1, 1, N / SP, D / TP] fractured over SP and TP; [1, 1, L, P / TP] fractured over TP, or None in the last
            block and without text.
        """
        q, k, v = self.to_qkv.gathered(spatial_1BND)
        visual = Heads(self.norm_q(q, rope), self.norm_k(k, rope), split_heads(v, self.heads))
        text = None
        if text_1BLP is not None:
            q, k, v = self.add_qkv.gathered(text_1BLP)
            text = Heads(self.norm_added_q(q), self.norm_added_k(k), split_heads(v, self.heads))
        spatial, joint = joint_attention(visual, text, self.mesh, tokens=tokens, scale=self.scale)
        (spatial,) = self.to_out.gathered(ttnn.experimental.nlp_concat_heads(spatial))
        if joint is None or self.to_add_out is None:
            return spatial, None
        (joint,) = self.to_add_out.gathered(ttnn.experimental.nlp_concat_heads(joint))
        return spatial, joint
