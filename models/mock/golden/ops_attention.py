"""Golden rules of attention over a sequence that is sharded across devices."""

import math

import torch
import ttnn

from models.mock.golden.fidelity import product, truncate
from models.mock.golden.rounding import round_to
from models.mock.golden.rules import MeshShards, Shards, local_rule, mesh_rule

_SDPA = "ttnn/operations/transformer/sdpa/device/kernels"
_MASK = f"{_SDPA}/dataflow/dataflow_common.hpp generate_noncausal_padded_mask"


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
    can_stream: bool = True,
) -> torch.Tensor:
    """Compute softmax attention chunk by chunk of keys, as the kernels do (FlashAttention-2, arXiv:2307.08691).

    The default scale is that of the tile-padded head width, as in the program factories. Only `fp32_dest_acc_en`
    decides which kernel runs (`ring_joint_sdpa_program_factory.cpp`: `use_streaming_compute`).
    """
    if config is None:
        raise ValueError("attention without a compute_kernel_config is not covered by this golden")
    scale = (_tiles(query.shape[-1]) * 32) ** -0.5 if scale is None else scale
    size = key.shape[2] if program is None else program.k_chunk_size
    chunks = [(k, v) for k, v in zip(key.split(size, dim=2), value.split(size, dim=2), strict=True)]
    if config.fp32_dest_acc_en or not can_stream:
        return _exact(query, chunks, scale, config)
    return _streaming(query, chunks, scale, config, program.matmul_math_fidelity if program else None)


def _exact(query: torch.Tensor, chunks, scale: float, config) -> torch.Tensor:
    """Compute attention as the older kernel does, `compute_common.hpp`, with `exp_approx_mode=False`.

    Scores, probabilities and the running maximum, sum and output are bfloat16 between the steps, whatever the compute
    config says (`ring_joint_sdpa_program_factory.cpp`, `im_df` and `stats_df`).
    """
    top, total, out = None, torch.zeros(()), torch.zeros(())
    for key, value in chunks:
        scores = _bf16(product(query, key.mT, config))
        highest = scores.amax(-1, keepdim=True)
        best = highest if top is None else torch.maximum(top, highest)
        weights = _bf16(torch.exp((scores - best) * scale))
        keep = torch.ones(()) if top is None else _bf16(torch.exp((top - best) * scale))
        total = _bf16(total * keep + weights.sum(-1, keepdim=True))
        out = _bf16(out * keep + product(weights, value, config))
        top = best
    return out / total


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
        scores = _bf16(product(query, key.mT, config, fidelity))
        highest = scores.amax(-1, keepdim=True)
        best = highest if top is None else torch.maximum(top, highest)
        weights = approximate_exp(_bf16(scores - best), scale)
        columns = torch.zeros(())
        for tile in torch.nn.functional.pad(weights, (0, -weights.shape[-1] % 32)).split(32, dim=-1):
            columns = _bf16(columns + tile)
        added = product(weights, value, config, fidelity)
        if top is None:
            sums, out = columns, added
        else:
            keep = _bf16(torch.exp((top - best) * keep_scale))
            sums = _bf16(_bf16(sums * keep) + columns)
            out = _bf16(_bf16(out * keep) + added)
        top = best
    total = product(sums, torch.ones(32, 1), config)
    return out * _bf16(1 / total)


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
    return round_to(value, ttnn.bfloat16)


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
    """Compute attention without a mask: all queries see all keys.

    Keys after the logical length (the rest of the last tile or chunk) get minus infinity, column by column. The golden
    does not model the older kernel's approximate exponential, which is on unless the program config sets
    `exp_approx_mode=False`.
    """
    if is_causal:
        raise ValueError("causal attention (the op's default) is not covered by this golden")
    if input_tensor_q.shape[1] != input_tensor_k.shape[1]:
        raise ValueError("grouped keys and values are not covered by this golden")
    return _attention(input_tensor_q, input_tensor_k, input_tensor_v, scale, program_config, compute_kernel_config)


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
    for group in q.groups(cluster_axis):
        keys = torch.cat([k.shards[i] for i in group], dim=2)[:, :, :logical_n]
        values = torch.cat([v.shards[i] for i in group], dim=2)[:, :, :logical_n]
        for place, i in enumerate(group):
            query = torch.cat([q.shards[i], joint_q.shards[i]], dim=2)
            is_last = place == len(group) - 1 and joint_k.shape[2] > 0
            if compute_kernel_config.fp32_dest_acc_en and place * n >= logical_n and not is_last:
                out = torch.full_like(query, torch.nan)
                spatial[i], joint[i] = out[:, :, :n], out[:, :, n:]
                continue
            out = _attention(
                query,
                torch.cat([keys, joint_k.shards[i]], 2),
                torch.cat([values, joint_v.shards[i]], 2),
                scale,
                program_config,
                compute_kernel_config,
            )
            spatial[i], joint[i] = out[:, :, :n], out[:, :, n:]
    rows = 2 * (_tiles(n) + _tiles(joint_q.shape[2])) * 32
    scratch = torch.full((batch, heads, rows, 1), float("nan"))
    return [spatial, joint, [scratch] * size]


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
    """Compute attention over the concatenation of both sequences, and split the output again.

    This is always the older kernel: `joint_sdpa.cpp` has no other.
    """
    _require_rear(joint_strategy)
    pairs = (
        (input_tensor_q, joint_tensor_q),
        (input_tensor_k, joint_tensor_k),
        (input_tensor_v, joint_tensor_v),
    )
    query, key, value = (torch.cat(pair, dim=2) for pair in pairs)
    out = _attention(query, key, value, scale, program_config, compute_kernel_config, can_stream=False)
    rows = input_tensor_q.shape[2]
    return out[:, :, :rows], out[:, :, rows:]
