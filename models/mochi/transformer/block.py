"""One AsymmDiT block: joint attention, then one feed-forward per stream.

Each has a modulated norm before it and a gated norm after it.
"""

import ttnn

from models.layers import Chunks, Module, RotaryTable, SwiGLUFeedForward, Width, rms_norm
from models.mochi.config import TransformerConfig
from models.mochi.precision import Precision
from models.mochi.transformer.attention import JointAttention
from models.mochi.transformer.conditioning import Modulation
from models.mochi.transformer.widths import Widths
from models.parallel import Mesh

_EPS = 1e-6
_KINDS = ("scale", "gate", "scale", "gate")


class Stream(Module):
    """The work of a block on one residual stream besides attention. The residual stays fractured over TP."""

    def __init__(self, mesh: Mesh, width: Width, feed_forward: SwiGLUFeedForward | None, dtype: ttnn.DataType) -> None:
        """Declare a stream; `dtype` is the type of the tensors that its large matrices are multiplied with."""
        super().__init__(mesh)
        self.width = width
        self.feed_forward = feed_forward
        self.dtype = dtype

    def modulated(self, x: ttnn.Tensor, weight: ttnn.Tensor) -> ttnn.Tensor:
        """Norm x [1, 1, M, width / TP] with `weight` [1, 1, 1, width / TP], as input of the large matrices."""
        return rms_norm(x, weight, self.mesh, self.width, _EPS, self.dtype)

    def gated(self, residual: ttnn.Tensor, x: ttnn.Tensor, gate: ttnn.Tensor) -> ttnn.Tensor:
        """Return `residual + norm(x) * gate`; residual, x and result are [1, 1, M, width / TP]."""
        return ttnn.add(residual, rms_norm(x, gate, self.mesh, self.width, _EPS))

    def finish(self, residual: ttnn.Tensor, attended: ttnn.Tensor, weights: list[ttnn.Tensor]) -> ttnn.Tensor:
        """Add attention's output and the feed-forward to the residual; `weights` are gate, scale, gate."""
        attention_gate, scale, gate = weights
        residual = self.gated(residual, attended, attention_gate)
        assert self.feed_forward is not None
        return self.gated(residual, self.feed_forward(self.modulated(residual, scale)), gate)


class TransformerBlock(Module):
    """A transformer block.

    With `last` it has the context-pre-only form, which reads the text stream and does not write it.
    """

    def __init__(
        self,
        mesh: Mesh,
        config: TransformerConfig,
        widths: Widths,
        precision: Precision,
        index: int,
        *,
        last: bool,
        chunks: Chunks | None = None,
    ) -> None:
        super().__init__(mesh)
        self.prefix = f"transformer_blocks.{index}."
        visual, text = widths.visual, widths.text
        self.visual_modulation = Modulation(mesh, "norm1.linear", visual, visual, _KINDS)
        if last:
            self.text_modulation = Modulation(mesh, "norm1_context.linear_1", visual, text, ("scale",))
        else:
            self.text_modulation = Modulation(mesh, "norm1_context.linear", visual, text, _KINDS)
        self.attention = JointAttention(mesh, config, widths, precision, text_output=not last, chunks=chunks)

        inputs, exchanged = getattr(ttnn, precision.inputs), getattr(ttnn, precision.exchanged)

        def feed_forward(name: str, width: Width, inner: int) -> SwiGLUFeedForward:
            fidelity = getattr(ttnn.MathFidelity, precision.matmul)
            return SwiGLUFeedForward(mesh, name, width, inner, fidelity, inputs, exchanged)

        self.visual = Stream(mesh, visual, feed_forward("ff", visual, config.ff_inner_dim), inputs)
        text_feed_forward = None if last else feed_forward("ff_context", text, config.ff_context_inner_dim)
        self.text = Stream(mesh, text, text_feed_forward, inputs)

    def modulations(self, conditioning_11SD: ttnn.Tensor) -> tuple[list[ttnn.Tensor], list[ttnn.Tensor]]:
        """Return the tables of both streams' norm weights for all steps.

        `conditioning_11SD` is silu(conditioning) [1, 1, S, D], replicated.
        """
        return self.visual_modulation(conditioning_11SD), self.text_modulation(conditioning_11SD)

    def __call__(
        self,
        spatial_1BND: ttnn.Tensor,
        text_1BLP: ttnn.Tensor | None,
        visual: list[ttnn.Tensor],
        text: list[ttnn.Tensor],
        rope: RotaryTable,
        tokens: int,
    ) -> tuple[ttnn.Tensor, ttnn.Tensor | None]:
        """Run the block.

        Args:
            spatial_1BND: [1, 1, N / SP, D / TP], fractured over SP on N and over TP on D.
            text_1BLP: [1, 1, L, P / TP], replicated over SP, fractured over TP; None without text.
            visual, text: the step's rows of the tables of `modulations`, each [1, 1, 1, width / TP]; `text` is not read
                without a text stream.
            rope: rotation of the visual queries and keys.
            tokens: number of real visual tokens over all shards.

        Returns:
            Both streams with their placements unchanged; the text stream is None after the last block.
        """
        normed_spatial = self.visual.modulated(spatial_1BND, visual[0])
        normed_text = None if text_1BLP is None else self.text.modulated(text_1BLP, text[0])
        attended, attended_text = self.attention(normed_spatial, normed_text, rope, tokens)
        spatial_1BND = self.visual.finish(spatial_1BND, attended, visual[1:])
        if attended_text is None:
            return spatial_1BND, None
        return spatial_1BND, self.text.finish(text_1BLP, attended_text, text[1:])
