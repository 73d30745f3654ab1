"""Joint attention of a visual sequence, sharded over SP, and a text sequence, replicated over SP."""

import struct
from dataclasses import dataclass

import ttnn

from models.layers import compute
from models.layers.attention_chunks import Chunks, choose_chunks
from models.parallel import TILE, Mesh, gather, round_up


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of one stream, each [1, H / TP, M, E]."""

    q: ttnn.Tensor
    k: ttnn.Tensor
    v: ttnn.Tensor

    @property
    def rows(self) -> int:
        """Number of tokens on one chip."""
        return self.q.shape[2]


def joint_attention(
    visual: Heads,
    text: Heads | None,
    mesh: Mesh,
    *,
    tokens: int,
    scale: float,
    fidelity: ttnn.MathFidelity,
    streaming: bool = False,
    chunks: Chunks | None = None,
) -> tuple[ttnn.Tensor, ttnn.Tensor | None]:
    """Compute softmax attention in which all visual and text tokens see each other.

    ttnn has two kernels. The streaming kernel overlaps the softmax with the matrix products and accumulates in
    bfloat16. It always uses an approximate exponential, whatever `exp_approx_mode` says (upstream
    `sdpa/device/kernels/compute/compute_streaming.hpp`). All published times of ring attention were measured with it.
    The other kernel accumulates in float32 with the exact exponential.

    Args:
        visual: [1, H / TP, N / SP, E], fractured over SP on tokens and over TP on heads.
        text: [1, H / TP, L, E], replicated over SP, fractured over TP on heads; None for a prompt without tokens.
        mesh: the mesh.
        tokens: number of real visual tokens. The tokens after them, up to N, are padding and are never attended to.
        scale: factor on the scores.
        fidelity: math fidelity of both products. LoFi counts for ring attention's streaming kernel alone: the plain
            streaming kernel has HiFi2 whatever it is told, and the other kernel would take LoFi for the softmax too.
        streaming: use the streaming kernel if there is one for the case. Attention to text without SP always uses the
            other kernel.
        chunks: rows of queries and of keys that a core processes at a time; `choose_chunks` chooses them if None.

    Returns:
        Outputs of both streams, with the shapes and placements of their queries.
    """
    if not mesh.fuses("ring-attention" if mesh.sp.size > 1 else "joint-attention") and (mesh.sp.size > 1 or text):
        return _composed(
            visual, text, mesh, tokens=tokens, scale=scale, fidelity=fidelity, streaming=streaming, chunks=chunks
        )
    if mesh.sp.size > 1:
        return _ring(
            visual, text, mesh, tokens=tokens, scale=scale, fidelity=fidelity, streaming=streaming, chunks=chunks
        )
    if fidelity == ttnn.MathFidelity.LoFi:
        fidelity = ttnn.MathFidelity.HiFi2
    stored = visual.rows
    visual = Heads(*(_rows(x, tokens) for x in (visual.q, visual.k, visual.v)))
    program, config = attention_program(
        mesh,
        visual.q,
        visual.k,
        core_rows=mesh.grid[1],
        text=text.rows if text else 0,
        fidelity=fidelity,
        streaming=streaming and text is None,
        chunks=chunks,
    )
    if text is None:
        out = ttnn.transformer.scaled_dot_product_attention(
            visual.q,
            visual.k,
            visual.v,
            is_causal=False,
            scale=_float32(scale),
            program_config=program,
            compute_kernel_config=config,
        )
        return _rows(out, stored), None
    spatial, joint = ttnn.transformer.joint_scaled_dot_product_attention(
        visual.q,
        visual.k,
        visual.v,
        text.q,
        text.k,
        text.v,
        joint_strategy="rear",
        scale=_float32(scale),
        program_config=program,
        compute_kernel_config=config,
    )
    return _rows(spatial, stored), joint


def _float32(value: float) -> float:
    """Return the float32 next to `value`. The bindings refuse a Python float that float32 cannot represent exactly."""
    return struct.unpack("f", struct.pack("f", value))[0]


def _composed(
    visual: Heads,
    text: Heads | None,
    mesh: Mesh,
    *,
    tokens: int,
    scale: float,
    fidelity: ttnn.MathFidelity,
    streaming: bool,
    chunks: Chunks | None,
) -> tuple[ttnn.Tensor, ttnn.Tensor | None]:
    """Compute joint attention as plain attention of joined queries to gathered and joined keys."""
    rows, heads, width = visual.rows, visual.q.shape[1], visual.q.shape[3]

    def keys(own: ttnn.Tensor, of_text: ttnn.Tensor | None) -> ttnn.Tensor:
        whole = _bfloat16(gather(own, dim=2, over=mesh.sp))
        if whole.shape[2] > tokens:
            whole = ttnn.slice(whole, [0, 0, 0, 0], [1, heads, tokens, width])
        return whole if of_text is None else ttnn.concat([whole, _bfloat16(of_text)], dim=2)

    q = _bfloat16(visual.q)
    if text is not None:
        q = ttnn.concat([q, _bfloat16(text.q)], dim=2)
    k, v = keys(visual.k, text.k if text else None), keys(visual.v, text.v if text else None)
    program, config = attention_program(
        mesh, q, k, core_rows=mesh.grid[1], fidelity=fidelity, streaming=streaming, chunks=chunks
    )
    out = ttnn.transformer.scaled_dot_product_attention(
        q, k, v, is_causal=False, scale=_float32(scale), program_config=program, compute_kernel_config=config
    )
    if text is None:
        return out, None
    spatial = ttnn.slice(out, [0, 0, 0, 0], [1, heads, rows, width])
    joint = ttnn.slice(out, [0, 0, rows, 0], [1, heads, rows + text.rows, width])
    return tuple(x if x.dtype == visual.q.dtype else ttnn.typecast(x, visual.q.dtype) for x in (spatial, joint))


def _bfloat16(x: ttnn.Tensor) -> ttnn.Tensor:
    """Convert to bfloat16, because only whole tiles of bfloat8_b can be joined."""
    return x if x.dtype == ttnn.bfloat16 else ttnn.typecast(x, ttnn.bfloat16)


def _rows(x: ttnn.Tensor, rows: int) -> ttnn.Tensor:
    """View x [1, H, M, E] with `rows` rows of the same tiles.

    Attention never sees keys in the rest of the last tile.

    Raises:
        ValueError: `rows` rows do not occupy the same tiles as M rows.
    """
    _, heads, stored, width = x.shape
    if rows == stored:
        return x
    if round_up(rows, TILE) != round_up(stored, TILE):
        raise ValueError(f"{rows} rows are not the tiles of {stored}: without SP only the last tile may hold padding")
    return ttnn.reshape(x, ttnn.Shape([1, heads, rows, width]), ttnn.Shape(list(x.padded_shape)))


def _ring(
    visual: Heads,
    text: Heads | None,
    mesh: Mesh,
    *,
    tokens: int,
    scale: float,
    fidelity: ttnn.MathFidelity,
    streaming: bool,
    chunks: Chunks | None,
) -> tuple[ttnn.Tensor, ttnn.Tensor | None]:
    """Compute ring attention: keys and values travel around SP while each chip attends to those that have arrived.

    In ttnn 0.81.1 the kernel that does not stream returns undefined outputs on a chip that holds only padding. The last
    chip is an exception if there is text. The undefined outputs do no harm: the visual rows of such a chip are padding,
    and no other chip reads its text.

    Raises:
        ValueError: the rows of a chip are not whole tiles. The kernel would cut off the rest without an error.
    """
    _, heads, rows, width = visual.k.shape
    if rows % TILE:
        raise ValueError(f"{rows} visual rows per chip are not whole tiles of {TILE}: pad them")
    gathered = (1, heads, rows * mesh.sp.size, width)
    # The last core row moves keys and values. The other rows compute.
    compute_rows = mesh.grid[1] - 1
    program, config = attention_program(
        mesh,
        visual.q,
        visual.k,
        core_rows=compute_rows,
        text=text.rows if text else 0,
        shards=mesh.sp.size,
        fidelity=fidelity,
        streaming=streaming,
        chunks=chunks,
    )
    spatial, joint, _ = ttnn.transformer.ring_joint_scaled_dot_product_attention(
        visual.q,
        visual.k,
        visual.v,
        text.q if text else None,
        text.k if text else None,
        text.v if text else None,
        persistent_output_buffer_k=mesh.buffer("ring_attention_k", gathered, visual.k.dtype),
        persistent_output_buffer_v=mesh.buffer("ring_attention_v", gathered, visual.v.dtype),
        joint_strategy="rear",
        logical_n=tokens,
        program_config=program,
        scale=scale,
        compute_kernel_config=config,
        dim=2,
        multi_device_global_semaphore=mesh.semaphores("ring_attention", 2),
        num_links=mesh.sp.links,
        cluster_axis=mesh.sp.index,
        mesh_device=mesh.device,
        topology=mesh.sp.topology,
        ccl_core_grid_offset=ttnn.CoreCoord(0, compute_rows),
    )
    return spatial, joint if text else None


def attention_program(
    mesh: Mesh,
    q: ttnn.Tensor,
    k: ttnn.Tensor,
    *,
    core_rows: int,
    fidelity: ttnn.MathFidelity,
    streaming: bool = False,
    text: int = 0,
    shards: int = 1,
    chunks: Chunks | None = None,
) -> tuple[ttnn.SDPAProgramConfig, ttnn.WormholeComputeKernelConfig]:
    """Return the chunk sizes and the arithmetic of attention on `core_rows` rows of the grid.

    Args:
        mesh: the mesh.
        q: queries of one chip [1, H, M, E].
        k: keys of one chip [1, H, N, E].
        core_rows: rows of the compute grid that compute attention.
        fidelity: math fidelity of both products.
        streaming: see `joint_attention`. With the streaming kernel the fidelity is set for the products alone, because
            LoFi for everything would compute the normalisation in LoFi too. ttnn refuses this setting for the other
            kernel.
        text: rows of the text stream, the same number for queries and keys; 0 without text.
        shards: number of chips whose keys every query sees.
        chunks: chunks to use in place of those of `choose_chunks`.
    """
    joint = (text,) if text else ()
    chunks = chunks or choose_chunks(
        (q.shape[2], *joint),
        (k.shape[2],) * shards + joint,
        heads=q.shape[1],
        width=q.shape[3],
        cores=mesh.grid[0] * core_rows,
        element_bytes=1088 / 1024 if k.dtype == ttnn.bfloat8_b else 2.0,
        streaming=streaming,
    )
    program = ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=ttnn.CoreCoord(mesh.grid[0], core_rows),
        q_chunk_size=chunks.q,
        k_chunk_size=chunks.k,
        exp_approx_mode=False,
        matmul_math_fidelity=fidelity if streaming else None,
    )
    return program, compute.bfloat16_accumulation() if streaming else compute.matrix(fidelity)
