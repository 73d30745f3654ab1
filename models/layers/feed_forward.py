"""SwiGLU feed-forward (arXiv:2002.05202) with tensor parallelism."""

import ttnn

from models.layers.linear import ColumnParallelLinear, RowParallelLinear
from models.layers.module import Module
from models.layers.width import Width
from models.parallel import Mesh


class SwiGLUFeedForward(Module):
    """The layer `(x W_up * silu(x W_gate)) W_down` without biases.

    The checkpoint has the form of Diffusers' `FeedForward(activation_fn="swiglu")`. `net.0.proj` stacks up (first half)
    and gate (second half). `net.2` is down.
    """

    def __init__(
        self,
        mesh: Mesh,
        name: str,
        width: Width,
        inner: int,
        fidelity: ttnn.MathFidelity,
        dtype: ttnn.DataType = ttnn.bfloat16,
        exchanged: ttnn.DataType = ttnn.bfloat16,
    ) -> None:
        """Declare the layer.

        `dtype` is the type of the gated product between the matrices, `exchanged` that of partial sums over TP.
        """
        super().__init__(mesh)
        self.dtype = dtype
        self.exchanged = exchanged if mesh.tp.size > 1 else ttnn.bfloat16
        self.prefix = f"{name}."
        inner_width = Width.sharded(inner, mesh.tp.size)
        self.up_gate = ColumnParallelLinear(
            mesh, ["net.0.proj"], width, inner_width, chunks=2, swiglu=True, fidelity=fidelity
        )
        self.down = RowParallelLinear(mesh, "net.2", inner_width, width, fidelity=fidelity)

    def __call__(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """Map x [1, 1, M, D / TP], fractured over TP, to y with the shape and placement of x."""
        (inner,) = self.up_gate.gathered(x, self.dtype)
        return self.down.fractured(inner, self.exchanged)
