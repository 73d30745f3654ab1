"""Golden rules of attention over a sequence that is sharded across devices."""

import math
from typing import NamedTuple

import torch
import ttnn

from models.mock.golden.fidelity import plus, product, times, truncate
from models.mock.golden.rounding import packed, round_to, to_tf32
from models.mock.golden.rules import MeshShards, Shards, local_rule, mesh_rule

_SDPA = "ttnn/operations/transformer/sdpa/device/kernels"
_MASK = f"{_SDPA}/dataflow/dataflow_common.hpp generate_noncausal_padded_mask, fill_causal_diagonal_tile_bf16"


# Constants of the streaming kernel's exponential (Schraudolph, "A Fast, Compact Approximation of the Exponential
# Function", 1999): the bits of a float, read as an integer, grow like its logarithm.
_BITS_PER_E = 256 / math.log(2)
_BITS_OF_ONE = 32500.818359375


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    program,
    config,
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    """Compute softmax attention over one stream of keys; with `is_causal`, query i sees keys 0 to i.

    Only `fp32_dest_acc_en` decides which kernel runs (upstream `sdpa_program_factory.cpp`). The streaming kernel
    ignores `matmul_math_fidelity` here: the host passes it to ring attention alone.
    """
    scale = _scale(query, scale, config)
    chunks = _chunks(key, value, program)
    if config.fp32_dest_acc_en:
        if not is_causal:
            return _normalized(_exact(query, chunks, scale, config, narrow=False), config, narrow=False)
        if program is None:
            raise ValueError("causal attention without a program_config is not covered by this golden")
        rows, keys = program.q_chunk_size, program.k_chunk_size
        parts = []
        for first in range(0, query.shape[2], rows):
            part = query[:, :, first : first + rows]
            seen = chunks[: -(-(first + rows) // keys)]
            state = _exact(part, seen, scale, config, narrow=False, first_query=first)
            parts.append(_normalized(state, config, narrow=False))
        return torch.cat(parts, dim=2)
    if is_causal:
        raise ValueError("causal attention in the streaming kernel is not covered by this golden")
    return _streaming(query, chunks, scale, config, config.math_fidelity)


def _scale(query: torch.Tensor, scale: float | None, config) -> float:
    """Return the scale; the default is that of the tile-padded head width, as in the program factories."""
    if config is None:
        raise ValueError("attention without a compute_kernel_config is not covered by this golden")
    return (_tiles(query.shape[-1]) * 32) ** -0.5 if scale is None else scale


def _chunks(key: torch.Tensor, value: torch.Tensor, program) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cut one stream of keys and values into chunks (FlashAttention-2, arXiv:2307.08691)."""
    size = max(key.shape[2], 1) if program is None else program.k_chunk_size
    return [(k, v) for k, v in zip(key.split(size, dim=2), value.split(size, dim=2), strict=True) if k.shape[2]]


class _State(NamedTuple):
    """What the older kernel keeps between chunks: row maxima, 32 sums per row, and the output before normalization."""

    top: torch.Tensor
    sums: torch.Tensor
    out: torch.Tensor


def _exact(
    query: torch.Tensor, chunks, scale: float, config, *, narrow: bool, first_query: int | None = None
) -> _State:
    """Go through the chunks as the older kernel does, `compute_common.hpp`, `sdpa_inner_loop`.

    With the position of the `first_query` attention is causal: minus infinity is added to scores of later keys before
    their maximum is taken (`apply_causal_mask_lightweight`). The caller leaves out the chunks of keys that no query
    of the chunk sees (`k_chunk_end`). With them the result would differ: between two chunks sums are cut to TF32.

    With `exp_approx_mode=False`. Joint attention keeps everything in bfloat16 between the steps (`narrow`); plain and
    ring attention keep scores, probabilities and sums in float32. The factors between chunks and the output are
    bfloat16 in all (upstream `sdpa_program_factory.cpp`, `joint_sdpa_program_factory.cpp`,
    `ring_joint_sdpa_program_factory.cpp`: `im_df`, `stats_df`).
    """
    fidelity = config.math_fidelity
    keep_scale = truncate(torch.tensor(scale, dtype=torch.float32), 7)
    state: _State | None = None
    first = 0
    for key, value in chunks:
        scores = _stored(product(query, key.mT, config), narrow)
        future = torch.zeros((), dtype=torch.bool)
        if first_query is not None:
            queries = torch.arange(first_query, first_query + query.shape[2])
            future = torch.arange(first, first + key.shape[2]) > queries[:, None]
            scores = scores.masked_fill(future, -torch.inf)
        first += key.shape[2]
        best = truncate(scores.amax(-1, keepdim=True), 7)
        best = best if state is None else torch.maximum(state.top, best)
        weights = torch.exp(plus(scores, -best) * scale).masked_fill(future, 0.0)
        sums = _column_sums(weights, narrow)
        out = _bf16(product(_stored(weights, narrow), value, config))
        if state is not None:
            keep = _bf16(torch.exp(plus(state.top, -best) * keep_scale))
            sums = _stored(plus(sums, _stored(times(state.sums, keep, fidelity), narrow)), narrow)
            out = _added(out, times(state.out, keep, fidelity))
        state = _State(best, sums, out)
    assert state is not None
    return state


def _normalized(state: _State, config, *, narrow: bool) -> torch.Tensor:
    """Divide by the sums: the last reduction, the reciprocal and the product of the older kernel.

    The reduction multiplies 32 sums per row by ones (`matmul_reduce`). The reciprocal reads its float32 result through
    SrcA, so cut to TF32 (`recip_block_inplace`).
    """
    total = product(state.sums, torch.ones(32, 1), config)
    total = _bf16(total) if narrow else to_tf32(total)
    return times(state.out, _stored(1 / total, narrow), config.math_fidelity)


def _stored(value: torch.Tensor, narrow: bool) -> torch.Tensor:
    return _bf16(value) if narrow else value


def _column_sums(weights: torch.Tensor, narrow: bool) -> torch.Tensor:
    """Add up the tiles of each row in L1, as the packer does: 32 sums per row."""
    sums: torch.Tensor | None = None
    for tile in torch.nn.functional.pad(weights, (0, -weights.shape[-1] % 32)).split(32, dim=-1):
        if sums is None:
            sums = _stored(tile, narrow)
            continue
        sums = _added(sums, tile) if narrow else sums + tile
    assert sums is not None
    return sums


def _added(held: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Pack to bfloat16 and add to what L1 holds; that sum is rounded half to even."""
    return round_to(held + _bf16(value), ttnn.bfloat16)


def _streaming(query: torch.Tensor, chunks, scale: float, config, fidelity) -> torch.Tensor:
    """Compute attention as the streaming kernel does.

    Source: `compute_streaming.hpp`, `sdpa_inner_loop_step` and `normalize_row_streaming`. It differs from `_exact` in
    three points. Products and differences accumulate in bfloat16. The exponential is approximate (its call is
    `exp_packthread_tile<true, ...>` whatever `exp_approx_mode` says), except for the factors between chunks
    (`exp_tile_first_column`). The packer adds up probabilities tile by tile, so a row has 32 sums until the end.
    """
    top, sums, out = None, torch.zeros(()), torch.zeros(())
    keep_scale = truncate(torch.tensor(scale, dtype=torch.float32), 7)
    for key, value in chunks:
        scores = product(query, key.mT, config, fidelity)
        highest = scores.amax(-1, keepdim=True)
        best = highest if top is None else torch.maximum(top, highest)
        weights = approximate_exp(_bf16(plus(scores, -best)), scale)
        columns = _column_sums(weights, narrow=True)
        added = product(weights, value, config, fidelity)
        if top is None:
            sums, out = columns, added
        else:
            keep = _bf16(torch.exp(_bf16(plus(top, -best)) * keep_scale))
            sums = _added(columns, times(sums, keep, config.math_fidelity, float32=False))
            out = _added(added, times(out, keep, config.math_fidelity, float32=False))
        top = best
    total = product(sums, torch.ones(32, 1), config, fidelity)
    return times(out, _bf16(1 / total), config.math_fidelity, float32=False)


def approximate_exp(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Return `exp(x * scale)` for x <= 0, in bfloat16, within 3% of the exact value.

    Source: wheel, `tt_metal/hw/ckernels/wormhole_b0/metal/llk_api/llk_sfpu/ckernel_sfpu_exp.h`, `exp_init` and
    `calculate_exponential` with `APPROXIMATION_MODE` and without `CLAMP_NEGATIVE`. The kernel multiplies and adds,
    rounds to a sign and 15 bits, and shifts these to the position of a float's exponent. The stored value loses the
    last of these bits, and the packer's ReLU sets negative values to zero.
    """
    bits = torch.round(x * (_BITS_PER_E * scale) + _BITS_OF_ONE).clamp(-32767, 32767).to(torch.int32)
    value = ((bits.abs() << 15) & -(1 << 16)).view(torch.float32)
    return torch.where(bits < 0, torch.zeros(()), value)


def _bf16(value: torch.Tensor) -> torch.Tensor:
    return packed(value, ttnn.bfloat16)


@local_rule("ttnn.transformer.scaled_dot_product_attention", source=f"{_SDPA}/compute/sdpa.cpp; {_MASK}")
def attention(
    input_tensor_q,
    input_tensor_k,
    input_tensor_v,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    program_config=None,
    compute_kernel_config=None,
):
    """Compute attention: queries see all keys, or with `is_causal` (the op's default) those up to their own.

    Keys after the logical length (the rest of the last tile or chunk) get minus infinity, column by column. The golden
    does not model the older kernel's approximate exponential, which is on unless the program config sets
    `exp_approx_mode=False`.
    """
    if is_causal and input_tensor_q.shape[2] != input_tensor_k.shape[2]:
        raise ValueError("causal attention of other numbers of queries and keys is not covered by this golden")
    if input_tensor_q.shape[1] != input_tensor_k.shape[1]:
        raise ValueError("grouped keys and values are not covered by this golden")
    return _attention(
        input_tensor_q,
        input_tensor_k,
        input_tensor_v,
        scale,
        program_config,
        compute_kernel_config,
        is_causal=is_causal,
    )


def _tiles(rows: int) -> int:
    return -(-rows // 32)


def _require_rear(joint_strategy: str) -> None:
    if joint_strategy != "rear":
        raise ValueError(f"joint_strategy {joint_strategy!r}: the kernel knows 'rear' only")


@mesh_rule(
    "ttnn.transformer.ring_joint_scaled_dot_product_attention",
    source=f"{_SDPA}/dataflow/ring_joint_writer.cpp: global_n_partial_col, joint_l_partial_col",
)
def ring_joint_attention(
    input_tensor_q: MeshShards,
    input_tensor_k: MeshShards,
    input_tensor_v: MeshShards,
    joint_tensor_q: MeshShards | None = None,
    joint_tensor_k: MeshShards | None = None,
    joint_tensor_v: MeshShards | None = None,
    *,
    joint_strategy: str,
    logical_n: int,
    cluster_axis: int,
    scale: float | None = None,
    dim: int = 2,
    logical_l: int = 0,
    use_column_major_ccl: bool = False,
    program_config=None,
    compute_kernel_config=None,
) -> list[Shards]:
    """Compute attention of local and joint queries over all devices' keys (the first `logical_n` rows) and joint keys.

    Joint tensors are replicated over the ring. Rows after `logical_n` hold padding. Their queries are computed like any
    other (the result has no meaning), and their keys are masked. The third output is the kernel's scratch for running
    statistics. It is NaN here, so that no result can depend on it.

    Each chip starts with its own keys and goes on with those of the next chip (`ring_utils.hpp`, `RingIdSequencer`);
    the joint keys come with those of the last chip. So the same queries of different chips get different results.

    A chip without a real row also gets NaN from the older kernel, except the last chip if there are joint keys. There
    the kernel skips the first turn of the ring, but still merges the second turn with what the first would have written
    (`compute_common.hpp:2075`, `ring_joint_writer.cpp:1302`: `ring_iter > 0`).
    """
    _require_rear(joint_strategy)
    if dim != 2 or logical_l:
        raise ValueError(f"dim={dim}, logical_l={logical_l} are not covered by this golden")
    q, k, v = input_tensor_q, input_tensor_k, input_tensor_v
    size = len(q.shards)
    batch, heads, n, width = q.shape
    no_joint = MeshShards([q.shards[0].new_zeros(batch, heads, 0, width)] * size, q.mesh_shape, q.dtype)
    joint_q, joint_k, joint_v = joint_tensor_q or no_joint, joint_tensor_k or no_joint, joint_tensor_v or no_joint
    spatial: Shards = [torch.empty(0)] * size
    joint: Shards = [torch.empty(0)] * size
    config, program = compute_kernel_config, program_config
    scale = _scale(q.shards[0], scale, config)
    for group in q.groups(cluster_axis):
        for place, i in enumerate(group):
            query = torch.cat([q.shards[i], joint_q.shards[i]], dim=2)
            turns = []
            for turn in range(len(group)):
                at = (place + turn) % len(group)
                real = slice(0, max(logical_n - at * n, 0))
                chunks = _chunks(k.shards[group[at]][:, :, real], v.shards[group[at]][:, :, real], program)
                if at == len(group) - 1:
                    chunks += _chunks(joint_k.shards[i], joint_v.shards[i], program)
                turns.append(chunks)
            if not config.fp32_dest_acc_en:
                fidelity = (program.matmul_math_fidelity if program else None) or config.math_fidelity
                out = _streaming(query, [chunk for chunks in turns for chunk in chunks], scale, config, fidelity)
            elif turns[0]:
                out = _merged(query, [chunks for chunks in turns if chunks], scale, config, q.dtype)
            else:
                out = torch.full_like(query, torch.nan)
            spatial[i], joint[i] = out[:, :, :n], out[:, :, n:]
    rows = 2 * (_tiles(n) + _tiles(joint_q.shape[2])) * 32
    scratch = torch.full((batch, heads, rows, 1), float("nan"))
    return [spatial, joint, [scratch] * size]


def _merged(query: torch.Tensor, turns: list, scale: float, config, dtype: ttnn.DataType) -> torch.Tensor:
    """Merge the outputs of the ring's turns as the older kernel does: each is normalized, and kept as `dtype`.

    Source: `compute_common.hpp`, `sdpa_inner_loop`, its branch for `RING`: with l the logarithm of a turn's sum,
    `out = previous - sigmoid(l - previous l) * (previous - out)`.
    """
    out, top = torch.zeros(()), None
    for chunks in turns:
        state = _exact(query, chunks, scale, config, narrow=False)
        logarithm = _bf16(torch.log(to_tf32(product(state.sums, torch.ones(32, 1), config))))
        factor = truncate(torch.tensor(scale, dtype=torch.float32), 7)
        current = _bf16(plus(_bf16(times(state.top, factor, config.math_fidelity)), logarithm))
        now = _bf16(_normalized(state, config, narrow=False))
        if top is None:
            out, top = packed(now, dtype), current
            continue
        share = _bf16(1 / (1 + torch.exp(-plus(current, -top))))
        less = _bf16(times(_bf16(plus(out, -now)), share, config.math_fidelity))
        out = packed(plus(out, -less), dtype)
        top = _bf16(plus(top, _bf16(torch.nn.functional.softplus(plus(current, -top)))))
    return out


@local_rule(
    "ttnn.transformer.joint_scaled_dot_product_attention",
    source=f"{_SDPA}/dataflow/joint_writer.cpp; {_MASK}",
)
def joint_attention(
    input_tensor_q,
    input_tensor_k,
    input_tensor_v,
    joint_tensor_q,
    joint_tensor_k,
    joint_tensor_v,
    *,
    joint_strategy: str,
    scale: float | None = None,
    program_config=None,
    compute_kernel_config=None,
):
    """Compute attention over the keys of both sequences, each cut into chunks by itself.

    This is always the older kernel: `joint_sdpa.cpp` has no other.
    """
    _require_rear(joint_strategy)
    scale = _scale(input_tensor_q, scale, compute_kernel_config)
    chunks = _chunks(input_tensor_k, input_tensor_v, program_config)
    chunks += _chunks(joint_tensor_k, joint_tensor_v, program_config)
    query = torch.cat([input_tensor_q, joint_tensor_q], dim=2)
    state = _exact(query, chunks, scale, compute_kernel_config, narrow=True)
    out = _normalized(state, compute_kernel_config, narrow=True)
    rows = input_tensor_q.shape[2]
    return out[:, :, :rows], out[:, :, rows:]
