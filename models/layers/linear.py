"""Linear layers with tensor parallelism (Megatron-LM, arXiv:1909.08053): split by columns or by rows."""

from collections.abc import Callable, Sequence

import ttnn

from models.conversion import (
    COLUMN_PARALLEL_BIAS,
    COLUMN_PARALLEL_WEIGHT,
    ROW_PARALLEL_BIAS,
    ROW_PARALLEL_WEIGHT,
    Conversion,
    describe_packing,
)
from models.layers import compute
from models.layers.matmul import gathered_matmul, large_matmul, plain_gathered_matmul
from models.layers.module import Module, Parameter
from models.layers.width import Width
from models.parallel import TILE, Mesh, all_reduce, gather, reduce_scatter


def fuse_columns(parts: Sequence, shards: int, layers: int = 1):
    """Join host matrices [in, out_i] so that a split of the columns gives each of `shards` its part of every matrix.

    Shard s holds `[part_0 shard s | part_1 shard s | ...]`. With several `layers` each shard is cut into that many
    pieces. Layer l of the result [layers, 1, in, out / layers] then holds piece l of every shard.
    """
    if len(parts) == layers == 1:
        return parts[0]
    split = [part.mT.chunk(shards * layers, dim=-2) for part in parts]
    order = [shard * layers + layer for layer in range(layers) for shard in range(shards)]
    joined = _join_rows([chunks[index] for index in order for chunks in split])
    return joined.mT if layers == 1 else joined.unflatten(0, (layers, 1, -1)).mT


def tile_pairs(first, second):
    """Interleave the column tiles of two host matrices [in, out]: `first` tile 0, `second` tile 0, and so on.

    The fused SwiGLU of ttnn's `minimal_matmul` needs (gate, up) in this order: kernel
    `minimal_matmul/device/kernels/compute_metal2.cpp`, `swiglu_block`.
    """
    split = [part.mT.split(TILE, dim=-2) for part in (first, second)]
    return _join_rows([tile for pair in zip(*split, strict=True) for tile in pair]).mT


def spare_dim(mesh: Mesh, size: int, dim: int) -> int | None:
    """Return `dim`, along which a weight of `size` elements is sharded over SP too, or None if it is not.

    It is sharded if the layout asks for it and whole tiles divide `size`.
    """
    return dim if mesh.layout.fsdp and mesh.sp.size > 1 and _splits(mesh, size) else None


def _splits(mesh: Mesh, size: int) -> bool:
    """Return whether each chip of SP gets whole tiles of `size` elements."""
    return size % (mesh.sp.size * TILE) == 0


def _join_rows(rows: list):
    """Join host matrices [out_i, in]. Checkpoint matrices are [out, in], so this is one plain copy.

    `torch.cat` would do the same, but on the meta device it imports half of torch's compiler.
    """
    sizes = [row.shape[-2] for row in rows]
    joined = rows[0].new_empty(*rows[0].shape[:-2], sum(sizes), rows[0].shape[-1])
    for target, row in zip(joined.split(sizes, dim=-2), rows, strict=True):
        target.copy_(row)
    return joined


def _packing(*, outputs: int = 1, rows: Width | None = None, columns: Width | None = None, order: str = "") -> str:
    """What shapes do not tell of a packed weight or bias: stacked outputs, padding, and an order of its own."""
    padded = [
        f"{name} {width.packing}" for name, width in (("rows", rows), ("columns", columns)) if width and width.is_padded
    ]
    return describe_packing(f"{outputs} outputs" if outputs > 1 else "", *padded, order)


class ColumnParallelLinear(Module):
    """The layer `y = x @ W + b` with the columns of W sharded over TP.

    It maps x [.., in], replicated over TP, to y [.., out * parts], fractured over TP on the last dim. Several matrices
    with the same input may be fused. `names` lists their checkpoint modules, and each may hold `chunks` stacked
    outputs. The output of a chip is its shares of all of them side by side.
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
        flattened: Conversion | None = None,
        swiglu: bool = False,
        over_sp: bool = False,
        fidelity: ttnn.MathFidelity = ttnn.MathFidelity.HiFi4,
    ) -> None:
        """Declare the layer.

        Args:
            mesh: the mesh.
            names: checkpoint modules whose matrices are fused.
            in_width: input features.
            out_width: features of each output.
            chunks: number of outputs stacked in each checkpoint matrix.
            bias: whether the modules have biases.
            kernel: shape of the checkpoint weight if it is not [out, in], such as that of a strided convolution;
                `flatten` then turns it into [out, in].
            flatten: see `kernel`.
            flattened: kind of conversion of the weight if there is `flatten`.
            swiglu: the two chunks are (up, gate) of a gated product, which `gathered` then computes.
            over_sp: shard the columns over SP as well, for inputs that are replicated there; `whole` joins the outputs.
                It has no effect if the columns do not divide into whole tiles.
            fidelity: math fidelity of the product.
        """
        super().__init__(mesh)
        self.parts = len(names) * chunks
        self.cuts = mesh.sp.size if over_sp and _splits(mesh, out_width.padded // mesh.tp.size) else 1
        self.local_width = out_width.padded // mesh.tp.size // self.cuts
        self.swiglu = swiglu
        self.fidelity = fidelity
        self.in_one_op = mesh.fuses("gathered-matmul" if mesh.tp.size > 1 else "matmul")
        self.paired = swiglu and mesh.fuses("swiglu") and (self.in_one_op or mesh.fuses("matmul"))
        shards, cuts, paired = mesh.tp.size, self.cuts, self.paired

        def weight(*matrices):
            flat = [flatten(matrix) if flatten is not None else matrix for matrix in matrices]
            parts = [chunk for matrix in flat for chunk in matrix.chunk(chunks, dim=0)]
            padded = [in_width.pad(out_width.pad(p.T, 1), 0) for p in parts]
            return tile_pairs(padded[1], padded[0]) if paired else fuse_columns(padded, shards, cuts)

        def fused_bias(*vectors):
            parts = [chunk for vector in vectors for chunk in vector.chunk(chunks, dim=0)]
            fused = fuse_columns([out_width.pad(p[None], 1) for p in parts], shards, cuts)
            return fused if cuts > 1 else fused[None, None]

        shape = (chunks * out_width.size, in_width.size)
        self.weight = Parameter(
            {f"{name}.weight": kernel or shape for name in names},
            weight,
            sp=spare_dim(mesh, in_width.padded, 0) if cuts == 1 else 0,
            tp=1 if cuts == 1 else 3,
            moves_only=True,
            conversion=COLUMN_PARALLEL_WEIGHT if flatten is None else flattened,
            packing=_packing(
                outputs=chunks, rows=in_width, columns=out_width, order="gate and up in tile pairs" if paired else ""
            ),
        )
        if bias:
            self.bias = Parameter(
                {f"{name}.bias": shape[:1] for name in names},
                fused_bias,
                sp=0 if cuts > 1 else None,
                tp=3,
                conversion=COLUMN_PARALLEL_BIAS,
                packing=_packing(outputs=chunks, columns=out_width),
            )
        self.has_bias = bias

    def __call__(
        self, x: ttnn.Tensor, *, activation: str | None = None, dtype: ttnn.DataType = ttnn.bfloat16
    ) -> ttnn.Tensor:
        """Map x [1, B, M, in], replicated over TP, to [1, B, M, parts * out / TP].

        The result is fractured over TP, or over TP and SP.
        """
        return ttnn.linear(
            x,
            self.weight.whole(self.mesh) if self.cuts == 1 else self.weight.tensor,
            bias=self.bias.tensor if self.has_bias else None,
            activation=activation,
            dtype=dtype,
            compute_kernel_config=compute.matrix(self.fidelity),
        )

    def gathered(self, x: ttnn.Tensor, dtype: ttnn.DataType = ttnn.bfloat16) -> list[ttnn.Tensor]:
        """Gather x [1, 1, M, in / TP], fractured over TP, and multiply.

        Returns:
            One [1, 1, M, out / TP] of `dtype` per part, fractured over TP. With SwiGLU there is one output, `up *
            silu(gate)`.
        """
        weight, bias = self.weight.whole(self.mesh), self.bias.tensor if self.has_bias else None
        separate = self.swiglu and not self.paired
        product = gathered_matmul if self.in_one_op else plain_gathered_matmul
        outputs = product(
            x,
            weight,
            self.mesh,
            bias=bias,
            parts=1 if self.paired else self.parts,
            swiglu=self.paired,
            dtype=ttnn.bfloat16 if separate else dtype,
            fidelity=self.fidelity,
        )
        if not separate:
            return outputs
        up, gate = outputs
        return [ttnn.multiply(up, ttnn.silu(gate), dtype=dtype)]

    def split(self, y: ttnn.Tensor) -> list[ttnn.Tensor]:
        """Cut a fused output into its parts, each [1, B, M, out / TP] and fractured like the output."""
        rows, step = y.shape[2], self.local_width
        return [
            ttnn.slice(y, [0, 0, 0, part * step], [1, y.shape[1], rows, (part + 1) * step])
            for part in range(self.parts)
        ]

    def whole(self, part: ttnn.Tensor) -> ttnn.Tensor:
        """Return one of `split`'s parts, gathered over SP if the columns are sharded there.

        It stays fractured over TP.
        """
        return part if self.cuts == 1 else gather(part, dim=3, over=self.mesh.sp)


class RowParallelLinear(Module):
    """The layer `y = x @ W + b` with the rows of W sharded over TP. The product of each chip is a partial sum."""

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
            conversion=ROW_PARALLEL_WEIGHT,
            packing=_packing(rows=in_width, columns=out_width),
        )
        self.has_bias = bias
        if bias:
            self.bias = Parameter(
                {f"{name}.bias": (out_width.size,)},
                lambda vector: out_width.pad(vector[None, None, None], 3),
                dtype=ttnn.float32,
                conversion=ROW_PARALLEL_BIAS,
                packing=_packing(columns=out_width),
            )

    def partial(self, x: ttnn.Tensor, *, dtype: ttnn.DataType = ttnn.bfloat16) -> ttnn.Tensor:
        """Map x [1, B, M, in / TP], fractured over TP, to this chip's partial sum [1, B, M, out], without bias."""
        weight = self.weight.whole(self.mesh)
        if self.mesh.fuses("matmul"):
            return large_matmul(x, weight, self.mesh, dtype=dtype, fidelity=self.fidelity)
        return ttnn.linear(x, weight, dtype=dtype, compute_kernel_config=compute.matrix(self.fidelity))

    def fractured(self, x: ttnn.Tensor, dtype: ttnn.DataType = ttnn.bfloat16) -> ttnn.Tensor:
        """Compute a layer without bias: x [1, B, M, in / TP] -> y [1, B, M, out / TP] bfloat16, both fractured over TP.

        The partial sums travel between chips in `dtype`.
        """
        y = reduce_scatter(self.partial(x, dtype=dtype), dim=3, over=self.mesh.tp)
        return y if y.dtype == ttnn.bfloat16 else ttnn.typecast(y, ttnn.bfloat16)

    def replicated(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """Map x [1, B, M, in / TP], fractured over TP, to y [1, B, M, out] float32, replicated over TP.

        The op is `linear`: `minimal_matmul` cuts float32 results to the 10 bits of TF32, which makes them 0.03% small.
        """
        y = ttnn.linear(
            x, self.weight.whole(self.mesh), dtype=ttnn.float32, compute_kernel_config=compute.matrix(self.fidelity)
        )
        y = all_reduce(y, over=self.mesh.tp)
        return ttnn.add(y, self.bias.tensor) if self.has_bias else y
