"""Large matrix products with what can be fused into them: the gather of the input, SwiGLU, the split of the output."""

import ttnn

from models.layers import compute
from models.parallel import TILE, Mesh, gather

# With float32 accumulation a destination register holds four tiles.
_SUBBLOCK_TILES = 4
# Blocks of 8 x 8 x 8 tiles: two input buffers of 2 x 128 KB, output 128 KB and float32 partials 256 KB fit the 1.46 MB
# of L1 that circular buffers may use, and each tile read is used eight times.
_BLOCK_TILES = 8


def blocking(
    mesh: Mesh, rows: int, inner: int, columns: int, *, core_rows: int, pairs: bool = False
) -> ttnn.MinimalMatmulConfig:
    """Block sizes of a product [rows, inner] x [inner, columns] on `core_rows` rows of the grid.

    Rule: at most 8 tiles a side, not more than a core's share of the output, `inner` a divisor of one chip's share
    of the gathered dim (a ring wants that, and on a line it wastes nothing), columns even where tile pairs belong
    together.

    Args:
        mesh: the mesh.
        rows, inner, columns: elements; `inner` on one chip before a gather.
        core_rows: rows of the compute grid to use.
        pairs: whether neighbouring column tiles must stay in one block.
    """
    core_columns = mesh.grid[0]
    # The op lays rows of the output over grid columns when it transposes, which it does by default.
    m_block = _side(rows, core_columns)
    n_block = _side(columns, core_rows)
    if pairs:
        n_block += n_block % 2
    width = 2 if n_block % 2 == 0 else 1
    height = 2 if m_block % 2 == 0 and 2 * width <= _SUBBLOCK_TILES else 1
    return ttnn.MinimalMatmulConfig(
        M_block_size=m_block,
        K_block_size=max(side for side in range(1, _BLOCK_TILES + 1) if _tiles(inner) % side == 0),
        N_block_size=n_block,
        subblock_h=height,
        subblock_w=width,
        compute_with_storage_grid_size=ttnn.CoreCoord(core_columns, core_rows),
    )


def large_matmul(
    x: ttnn.Tensor, weight: ttnn.Tensor, mesh: Mesh, *, dtype: ttnn.DataType, fidelity: ttnn.MathFidelity
) -> ttnn.Tensor:
    """`x @ weight` of what a chip holds, on its whole grid: x [1, 1, M, K], weight [K, N] -> [1, 1, M, N]."""
    return ttnn.experimental.minimal_matmul(
        x,
        weight,
        config=blocking(mesh, x.shape[2], x.shape[3], weight.shape[1], core_rows=mesh.grid[1]),
        compute_kernel_config=compute.matrix(fidelity),
        dtype=dtype,
    )


def gathered_matmul(
    x: ttnn.Tensor,
    weight: ttnn.Tensor,
    mesh: Mesh,
    *,
    bias: ttnn.Tensor | None = None,
    parts: int = 1,
    swiglu: bool = False,
    dtype: ttnn.DataType = ttnn.bfloat16,
    fidelity: ttnn.MathFidelity,
) -> list[ttnn.Tensor]:
    """`gather(x) @ weight + bias` in one op, cut into `parts` along the columns, or with SwiGLU on tile pairs.

    Args:
        x: [1, 1, M, K / TP], fractured over TP.
        weight: [K, N / TP], fractured over TP.
        mesh: the mesh.
        bias: [1, 1, 1, N / TP], fractured over TP.
        parts: equal parts of the output columns.
        swiglu: column tiles come in pairs (gate, up); the output has one tile `silu(gate) * up` for each.
        dtype: of the outputs.
        fidelity: of the product.

    Returns:
        `parts` tensors [1, 1, M, N / TP / parts] fractured over TP; half as wide with SwiGLU.
    """
    rows, inner = x.shape[2], x.shape[3]
    options = {
        "bias_tensor": bias,
        "compute_kernel_config": compute.matrix(fidelity),
        "fuse_swiglu": swiglu,
        "dtype": dtype,
    }
    if mesh.tp.size == 1:
        config = blocking(mesh, rows, inner, weight.shape[1], core_rows=mesh.grid[1], pairs=swiglu)
        if parts == 1:
            return [ttnn.experimental.minimal_matmul(x, weight, config=config, **options)]
        return list(ttnn.experimental.minimal_matmul_split(x, weight, chunks=parts, config=config, **options))
    core_rows = mesh.grid[1] - 1  # The last row of cores moves the data.
    links, workers = _groups(mesh.grid[0], mesh.tp.links)
    return list(
        ttnn.experimental.all_gather_minimal_matmul_async(
            x,
            weight,
            config=blocking(mesh, rows, inner, weight.shape[1], core_rows=core_rows, pairs=swiglu),
            multi_device_global_semaphore=mesh.semaphores("gathered_matmul", 2),
            persistent_output_buffer=mesh.buffer("gathered_matmul", (1, 1, rows, inner * mesh.tp.size), x.dtype),
            topology=mesh.tp.topology,
            cluster_axis=mesh.tp.index,
            num_links=links,
            num_workers_per_link=workers,
            num_buffers_per_channel=8,
            chunks=parts,
            **options,
        )
    )


def plain_gathered_matmul(
    x: ttnn.Tensor,
    weight: ttnn.Tensor,
    mesh: Mesh,
    *,
    bias: ttnn.Tensor | None = None,
    parts: int = 1,
    dtype: ttnn.DataType = ttnn.bfloat16,
    fidelity: ttnn.MathFidelity,
) -> list[ttnn.Tensor]:
    """`gathered_matmul` from separate ops, without SwiGLU: the equal that the fused one is tested against."""
    whole = gather(x, mesh, dim=3, over=mesh.tp)
    y = ttnn.linear(whole, weight, bias=bias, dtype=dtype, compute_kernel_config=compute.matrix(fidelity))
    if parts == 1:
        return [y]
    rows, step = y.shape[2], y.shape[3] // parts
    return [ttnn.slice(y, [0, 0, 0, i * step], [1, 1, rows, (i + 1) * step]) for i in range(parts)]


def _groups(columns: int, links: int) -> tuple[int, int]:
    """Links to use and columns of cores for each: groups of one size, of which the last may be smaller, not empty."""
    return max((count, -(-columns // count)) for count in range(1, links + 1) if _groups_of(columns, count) == count)


def _groups_of(columns: int, links: int) -> int:
    return -(-columns // -(-columns // links))


def _tiles(elements: int) -> int:
    return -(-elements // TILE)


def _side(elements: int, cores: int) -> int:
    """Tiles of one block side: a core's share, at most 8."""
    return max(1, min(_BLOCK_TILES, -(-_tiles(elements) // cores)))
