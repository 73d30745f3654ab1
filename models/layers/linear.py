"""Linear layers split over tensor parallelism (Megatron-LM, arXiv:1909.08053): columns, or rows."""

from collections.abc import Callable, Sequence

import ttnn

from models.layers import compute
from models.layers.matmul import gathered_matmul, plain_gathered_matmul
from models.layers.module import Module, Parameter
from models.layers.width import Width
from models.parallel import TILE, Mesh, all_reduce, reduce_scatter


def fuse_columns(parts: Sequence, shards: int):
    """Join host matrices [in, out_i] so that a split of the columns into ``shards`` gives each shard its part of all.

    Shard s then holds ``[part_0 shard s | part_1 shard s | ...]``.
    """
    if len(parts) == 1:
        return parts[0]
    split = [part.mT.chunk(shards, dim=-2) for part in parts]
    return _join_rows([chunks[shard] for shard in range(shards) for chunks in split]).mT


def tile_pairs(first, second):
    """Interleave the column tiles of two host matrices [in, out]: ``first`` tile 0, ``second`` tile 0, ...

    It is the order in which the fused SwiGLU of ttnn's minimal_matmul wants (gate, up): kernel
    ``minimal_matmul/device/kernels/compute_metal2.cpp``, ``swiglu_block``.
    """
    split = [part.mT.split(TILE, dim=-2) for part in (first, second)]
    return _join_rows([tile for pair in zip(*split, strict=True) for tile in pair]).mT


def spare_dim(mesh: Mesh, size: int, dim: int) -> int | None:
    """``dim`` of ``size`` elements if the layout shards weights over SP too and whole tiles divide it, else None."""
    splits = mesh.layout.fsdp and mesh.sp.size > 1 and size % (mesh.sp.size * TILE) == 0
    return dim if splits else None


def _join_rows(rows: list):
    """Join host matrices [out_i, in]. Checkpoint matrices are [out, in], so this is one plain copy.

    ``torch.cat`` would do the same, but imports half of torch's compiler when it is asked for shapes only.
    """
    sizes = [row.shape[-2] for row in rows]
    joined = rows[0].new_empty(*rows[0].shape[:-2], sum(sizes), rows[0].shape[-1])
    for target, row in zip(joined.split(sizes, dim=-2), rows, strict=True):
        target.copy_(row)
    return joined


class ColumnParallelLinear(Module):
    """``y = x @ W + b`` with the columns of W over TP.

    x [.., in] replicated over TP -> y [.., out * parts] fractured over TP on the last dim. Several matrices of one
    input may be fused: ``names`` lists their checkpoint modules, and each may hold ``chunks`` stacked outputs; a chip's
    output is then its shares of all of them side by side.
    """

    def __init__(
        self,
        mesh: Mesh,
        names: Sequence[str],
        in_width: Width,
        out_width: Width,
        *,
        chunks: int = 1,
        bias: bool = False,
        kernel: tuple[int, ...] | None = None,
        flatten: Callable | None = None,
        swiglu: bool = False,
        fidelity: ttnn.MathFidelity = ttnn.MathFidelity.HiFi4,
    ) -> None:
        """Declare the layer.

        Args:
            mesh: the mesh.
            names: checkpoint modules whose matrices are fused.
            in_width: input features.
            out_width: features of each output.
            chunks: outputs stacked in each checkpoint matrix.
            bias: whether the modules have biases.
            kernel: the checkpoint weight's shape where it is not [out, in], such as a strided convolution's;
                ``flatten`` then makes [out, in] of it.
            flatten: see ``kernel``.
            swiglu: the two chunks are (up, gate) of a gated product, which `gathered` then computes.
            fidelity: of the product.
        """
        super().__init__(mesh)
        self.parts = len(names) * chunks
        self.local_width = out_width.padded // mesh.tp.size
        self.swiglu = swiglu
        self.fidelity = fidelity
        shards, paired = mesh.tp.size, swiglu and mesh.fused

        def weight(*matrices):
            flat = [flatten(matrix) if flatten is not None else matrix for matrix in matrices]
            parts = [chunk for matrix in flat for chunk in matrix.chunk(chunks, dim=0)]
            padded = [in_width.pad(out_width.pad(p.T, 1), 0) for p in parts]
            return tile_pairs(padded[1], padded[0]) if paired else fuse_columns(padded, shards)

        def fused_bias(*vectors):
            parts = [chunk for vector in vectors for chunk in vector.chunk(chunks, dim=0)]
            return fuse_columns([out_width.pad(p[None], 1) for p in parts], shards)[None, None]

        shape = (chunks * out_width.size, in_width.size)
        self.weight = Parameter(
            {f"{name}.weight": kernel or shape for name in names},
            weight,
            sp=spare_dim(mesh, in_width.padded, 0),
            tp=1,
            moves_only=True,
            packing="gate and up in tile pairs" if paired else "",
        )
        if bias:
            self.bias = Parameter({f"{name}.bias": shape[:1] for name in names}, fused_bias, tp=3)
        self.has_bias = bias

    def __call__(
        self, x: ttnn.Tensor, *, activation: str | None = None, dtype: ttnn.DataType = ttnn.bfloat16
    ) -> ttnn.Tensor:
        """x [1, B, M, in] replicated over TP -> [1, B, M, parts * out / TP] fractured over TP."""
        return ttnn.linear(
            x,
            self.weight.whole(self.mesh),
            bias=self.bias.tensor if self.has_bias else None,
            activation=activation,
            dtype=dtype,
            compute_kernel_config=compute.matrix(self.fidelity),
        )

    def gathered(self, x: ttnn.Tensor) -> list[ttnn.Tensor]:
        """Gather x [1, 1, M, in / TP] fractured over TP and multiply: one [1, 1, M, out / TP] per part, fractured.

        With SwiGLU there is one output, ``up * silu(gate)``.
        """
        weight, bias = self.weight.whole(self.mesh), self.bias.tensor if self.has_bias else None
        if self.mesh.fused:
            parts = 1 if self.swiglu else self.parts
            return gathered_matmul(
                x, weight, self.mesh, bias=bias, parts=parts, swiglu=self.swiglu, fidelity=self.fidelity
            )
        outputs = plain_gathered_matmul(x, weight, self.mesh, bias=bias, parts=self.parts, fidelity=self.fidelity)
        if not self.swiglu:
            return outputs
        up, gate = outputs
        return [ttnn.multiply(up, ttnn.silu(gate))]

    def split(self, y: ttnn.Tensor) -> list[ttnn.Tensor]:
        """Cut a fused output into its parts, each [1, B, M, out / TP] fractured over TP."""
        rows, step = y.shape[2], self.local_width
        return [
            ttnn.slice(y, [0, 0, 0, part * step], [1, y.shape[1], rows, (part + 1) * step])
            for part in range(self.parts)
        ]


class RowParallelLinear(Module):
    """``y = x @ W + b`` with the rows of W over TP; each chip's product is a partial sum."""

    def __init__(
        self,
        mesh: Mesh,
        name: str,
        in_width: Width,
        out_width: Width,
        *,
        bias: bool = False,
        fidelity: ttnn.MathFidelity = ttnn.MathFidelity.HiFi4,
    ) -> None:
        super().__init__(mesh)
        self.fidelity = fidelity
        self.weight = Parameter(
            {f"{name}.weight": (out_width.size, in_width.size)},
            lambda matrix: in_width.pad(out_width.pad(matrix.T, 1), 0),
            sp=spare_dim(mesh, out_width.padded, 1),
            tp=0,
            moves_only=True,
        )
        self.has_bias = bias
        if bias:
            self.bias = Parameter(
                {f"{name}.bias": (out_width.size,)},
                lambda vector: out_width.pad(vector[None, None, None], 3),
                dtype=ttnn.float32,
            )

    def partial(self, x: ttnn.Tensor, *, dtype: ttnn.DataType = ttnn.bfloat16) -> ttnn.Tensor:
        """x [1, B, M, in / TP] fractured over TP -> this chip's partial sum [1, B, M, out], without bias."""
        config = compute.matrix(self.fidelity)
        return ttnn.linear(x, self.weight.whole(self.mesh), dtype=dtype, compute_kernel_config=config)

    def fractured(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """Finish a layer without bias: x [1, B, M, in / TP] -> y [1, B, M, out / TP], both fractured over TP."""
        return reduce_scatter(self.partial(x), self.mesh, dim=3, over=self.mesh.tp)

    def replicated(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """x [1, B, M, in / TP] fractured over TP -> y [1, B, M, out] float32, replicated over TP."""
        y = all_reduce(self.partial(x, dtype=ttnn.float32), self.mesh, over=self.mesh.tp)
        return ttnn.add(y, self.bias.tensor) if self.has_bias else y
