"""Large matrix products, fused with the gather of the input, SwiGLU, or the split of the output."""

import ttnn

from models.layers import compute
from models.parallel import TILE, Mesh, gather

# A destination register holds four tiles with float32 accumulation.
_SUBBLOCK_TILES = 4
# Blocks have 8 x 8 x 8 tiles. Two input buffers of 2 x 128 KB, the output of 128 KB and float32 partials of 256 KB fit
# the 1.46 MB of L1 that circular buffers may use. Each tile that is read is used eight times.
_BLOCK_TILES = 8


def blocking(
    mesh: Mesh, rows: int, inner: int, columns: int, *, core_rows: int, pairs: bool = False
) -> ttnn.MinimalMatmulConfig:
    """Choose the block sizes of a product [rows, inner] x [inner, columns] on `core_rows` rows of the grid.

    The rule: a side has at most 8 tiles and at most a core's share of the output. `inner` divides one chip's share of
    the gathered dim, which a ring needs and which costs nothing on a line. The number of column tiles is even if tile
    pairs must stay together.

    Args:
        mesh: the mesh.
        rows, inner, columns: elements; `inner` is counted on one chip before a gather.
        core_rows: rows of the compute grid to use.
        pairs: whether neighbouring column tiles must stay in one block.
    """
    core_columns = mesh.grid[0]
    # The op transposes by default, and then distributes the rows of the output over grid columns.
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
    """Compute `x @ weight` locally on the whole grid of a chip: x [1, 1, M, K], weight [K, N] -> [1, 1, M, N]."""
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
    """Compute `gather(x) @ weight + bias` in one op, cut into `parts` along the columns, or with SwiGLU on tile pairs.

    Args:
        x: [1, 1, M, K / TP], fractured over TP.
        weight: [K, N / TP], fractured over TP.
        mesh: the mesh.
        bias: [1, 1, 1, N / TP], fractured over TP.
        parts: number of equal parts of the output columns.
        swiglu: column tiles come in pairs (gate, up); the output has one tile `silu(gate) * up` for each pair.
        dtype: type of the outputs.
        fidelity: math fidelity of the product.

    Returns:
        `parts` tensors [1, 1, M, N / TP / parts], fractured over TP; half as wide with SwiGLU.
    """
    if mesh.tp.size == 1:
        return _local_matmul(x, weight, mesh, bias=bias, parts=parts, swiglu=swiglu, dtype=dtype, fidelity=fidelity)
    rows, inner = x.shape[2], x.shape[3]
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
            **_options(bias, swiglu, dtype, fidelity),
        )
    )


def _options(
    bias: ttnn.Tensor | None, swiglu: bool, dtype: ttnn.DataType, fidelity: ttnn.MathFidelity
) -> dict[str, object]:
    return {
        "bias_tensor": bias,
        "compute_kernel_config": compute.matrix(fidelity),
        "fuse_swiglu": swiglu,
        "dtype": dtype,
    }


def _local_matmul(
    x: ttnn.Tensor,
    weight: ttnn.Tensor,
    mesh: Mesh,
    *,
    bias: ttnn.Tensor | None,
    parts: int,
    swiglu: bool,
    dtype: ttnn.DataType,
    fidelity: ttnn.MathFidelity,
) -> list[ttnn.Tensor]:
    """Compute `gathered_matmul` of an x that is whole on every chip."""
    config = blocking(mesh, x.shape[2], x.shape[3], weight.shape[1], core_rows=mesh.grid[1], pairs=swiglu)
    options = _options(bias, swiglu, dtype, fidelity)
    if parts == 1:
        return [ttnn.experimental.minimal_matmul(x, weight, config=config, **options)]
    return list(ttnn.experimental.minimal_matmul_split(x, weight, chunks=parts, config=config, **options))


def plain_gathered_matmul(
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
    """Compute `gathered_matmul` with separate ops. Tests compare the fused op with it."""
    whole = gather(x, dim=3, over=mesh.tp)
    if swiglu:
        return _local_matmul(whole, weight, mesh, bias=bias, parts=1, swiglu=True, dtype=dtype, fidelity=fidelity)
    y = ttnn.linear(whole, weight, bias=bias, dtype=dtype, compute_kernel_config=compute.matrix(fidelity))
    if parts == 1:
        return [y]
    rows, step = y.shape[2], y.shape[3] // parts
    return [ttnn.slice(y, [0, 0, 0, i * step], [1, 1, rows, (i + 1) * step]) for i in range(parts)]


def _groups(columns: int, links: int) -> tuple[int, int]:
    """Return the number of links to use and the columns of cores for each.

    All groups of columns have one size. Only the last may be smaller, and it is not empty.
    """
    return max((count, -(-columns // count)) for count in range(1, links + 1) if _groups_of(columns, count) == count)


def _groups_of(columns: int, links: int) -> int:
    return -(-columns // -(-columns // links))


def _tiles(elements: int) -> int:
    return -(-elements // TILE)


def _side(elements: int, cores: int) -> int:
    """Return the tiles of one block side: a core's share, at most 8."""
    return max(1, min(_BLOCK_TILES, -(-_tiles(elements) // cores)))
