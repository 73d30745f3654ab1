"""Golden rules of the fused ops."""

import torch
import ttnn

from models.mock.golden.fidelity import TILE, added_in_l1, plus, product, register, times, truncate
from models.mock.golden.ops_norm import HIGHEST, inverse_root, row_sums, squares
from models.mock.golden.rounding import to_tf32
from models.mock.golden.rules import MeshShards, Shards, local_rule, mesh_rule

_MATMUL = (
    "ttnn/operations/experimental/minimal_matmul/device/kernels/compute_metal2.cpp (wheel): fused bias, swiglu_block; "
    "tests/ttnn/nightly/unit_tests/operations/experimental/test_minimal_matmul.py"
)
_NORM = (
    "ttnn/operations/experimental/ccl/dit_fused_distributed_rmsnorm/device/kernels/compute/dit_rmsnorm_fused_compute.cpp"
    " (wheel): sum of squares per row, gather, rsqrt, weight, bias, rotation, float32 in between"
)
_GATHERED = "ttnn/operations/experimental/ccl/all_gather_minimal_matmul_async/device/kernels/compute.cpp"
_ROTATION = ttnn.WormholeComputeKernelConfig(
    math_fidelity=ttnn.MathFidelity.HiFi4, math_approx_mode=False, fp32_dest_acc_en=True, packer_l1_acc=True
)
_DEFAULT_BLOCK = 8  # Tiles of the inner dimension without a config.
_DEFAULT = ttnn.WormholeComputeKernelConfig(
    math_fidelity=ttnn.MathFidelity.HiFi2, math_approx_mode=False, fp32_dest_acc_en=True, packer_l1_acc=True
)


def _swiglu(x: torch.Tensor, compute) -> torch.Tensor:
    """Return `silu(gate) * up` of column tiles that come in (gate, up) pairs."""
    if not compute.fp32_dest_acc_en:
        raise ValueError("SwiGLU without fp32_dest_acc_en is not covered by this golden")
    pairs = x.unflatten(-1, (-1, 2, TILE))
    return (torch.nn.functional.silu(pairs[..., 0, :]) * pairs[..., 1, :]).flatten(-2)


def _matmul(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, fuse_swiglu: bool, config, compute, *, local: bool
) -> torch.Tensor:
    """Multiply block by block of the inner dimension; the packer adds up the blocks' sums.

    A copy ends the op, and it cuts to TF32. A bias is added to the sums instead (`fidelity.plus`). SwiGLU without a
    bias in the kernel of one chip (`local`) has no copy: the last block's sum reaches SrcB as bfloat16, and the sums of
    the others are added there.
    """
    compute = compute or _DEFAULT
    width = TILE * (config.K_block_size if config is not None else _DEFAULT_BLOCK)
    sums = [product(x, y, compute) for x, y in zip(a.split(width, -1), b.split(width, -2), strict=True)]
    last = sums.pop() if fuse_swiglu and bias is None and local else None
    held: torch.Tensor | None = None
    for part in sums:
        held = added_in_l1(held, part, compute)
    if last is not None:
        out = last if held is None else plus(held, truncate(last, 7))
    else:
        assert held is not None
        out = to_tf32(held) if bias is None else plus(held, bias.reshape(-1))
    out = register(out, compute)
    return _swiglu(out, compute) if fuse_swiglu else out


@local_rule("ttnn.experimental.minimal_matmul", source=_MATMUL)
def minimal_matmul(
    input_tensor, weight_tensor, *, bias_tensor=None, fuse_swiglu: bool = False, config=None, compute_kernel_config=None
):
    """Return `input @ weight + bias`, optionally followed by SwiGLU on tile pairs."""
    return _matmul(input_tensor, weight_tensor, bias_tensor, fuse_swiglu, config, compute_kernel_config, local=True)


@local_rule("ttnn.experimental.minimal_matmul_split", source=_MATMUL)
def minimal_matmul_split(
    input_tensor,
    weight_tensor,
    *,
    chunks: int = 3,
    dim: int = -1,
    bias_tensor=None,
    fuse_swiglu: bool = False,
    config=None,
    compute_kernel_config=None,
):
    """Return `minimal_matmul`, cut into `chunks` along the columns."""
    out = _matmul(input_tensor, weight_tensor, bias_tensor, fuse_swiglu, config, compute_kernel_config, local=True)
    return list(out.chunk(chunks, dim=dim))


@mesh_rule(
    "ttnn.experimental.all_gather_minimal_matmul_async",
    source=f"{_GATHERED}: rows of K arrive in mesh order",
)
def all_gather_minimal_matmul_async(
    input_tensor: MeshShards,
    weight_tensor: MeshShards,
    *,
    bias_tensor: MeshShards | None = None,
    cluster_axis: int,
    chunks: int = 1,
    dim: int = -1,
    fuse_swiglu: bool = False,
    force_transpose: bool = True,
    config=None,
    compute_kernel_config=None,
) -> list[Shards]:
    """Concatenate the group's inputs along the last dim, multiply by each chip's own weight, and cut into `chunks`.

    `force_transpose` only chooses which grid axis carries the rows.
    """
    outputs: list[Shards] = [list(input_tensor.shards) for _ in range(chunks)]
    for group in input_tensor.groups(cluster_axis):
        whole = torch.cat([input_tensor.shards[i] for i in group], dim=-1)
        for i in group:
            bias = None if bias_tensor is None else bias_tensor.shards[i]
            weight = weight_tensor.shards[i]
            out = _matmul(whole, weight, bias, fuse_swiglu, config, compute_kernel_config, local=False)
            for part, piece in enumerate(out.chunk(chunks, dim=dim)):
                outputs[part][i] = piece
    return outputs


@mesh_rule("ttnn.experimental.dit_fused_distributed_rmsnorm", source=_NORM)
def dit_fused_distributed_rmsnorm(
    input_tensor: MeshShards,
    cluster_axis: int | None,
    mesh_device=None,
    multi_device_global_semaphore=None,
    *,
    epsilon: float = 1e-5,
    num_heads_per_device: int = 1,
    per_head_norm: bool = False,
    weight: MeshShards | None = None,
    bias: MeshShards | None = None,
    transformation_mat: MeshShards | None = None,
    rope_cos: MeshShards | None = None,
    rope_sin: MeshShards | None = None,
    num_preferred_links: int | None = None,
    compute_kernel_config=None,
) -> Shards:
    """Compute the root-mean-square norm over the whole row or over each head, then the other steps of the op.

    These are weight, bias, head split and rotation. With `cluster_axis` the row is the group's shards side by side.
    Without it the row is each chip's own columns.
    """
    if per_head_norm and cluster_axis is not None:
        raise ValueError("a norm per head is local: cluster_axis must be None")
    if compute_kernel_config is not None and not compute_kernel_config.fp32_dest_acc_en:
        raise ValueError("this norm without fp32_dest_acc_en is not covered by this golden")
    fidelity = HIGHEST if compute_kernel_config is None else compute_kernel_config.math_fidelity
    shards = input_tensor.shards
    groups = [[i] for i in range(len(shards))] if cluster_axis is None else input_tensor.groups(cluster_axis)
    heads = num_heads_per_device if per_head_norm else 1
    operands = [s for s in (weight, bias, transformation_mat, rope_cos, rope_sin) if s is not None]
    out: Shards = list(shards)
    done: dict[tuple[int, ...], torch.Tensor] = {}
    for group in groups:
        inputs = tuple(id(shards[i]) for i in group)
        sums = [_sums_of_squares(shards[i], heads, fidelity) for i in group]
        width = shards[group[0]].shape[-1] // heads * len(group)
        inverse = inverse_root(_gathered(sums) / width, epsilon)
        for i in group:
            key = (*inputs, id(shards[i]), *(id(s.shards[i]) for s in operands))
            if key in done:
                out[i] = done[key]
                continue
            y = times(shards[i].unflatten(-1, (heads, -1)), inverse, fidelity).flatten(-2)
            y = y if weight is None else times(y, weight.shards[i].reshape(-1), fidelity)
            y = y if bias is None else plus(y, bias.shards[i].reshape(-1))
            if num_heads_per_device > 1 or per_head_norm or rope_cos is not None:
                batch, _, rows, _ = y.shape
                y = y.reshape(batch, rows, num_heads_per_device, -1).transpose(1, 2)
            if rope_cos is not None and rope_sin is not None and transformation_mat is not None:
                turn = transformation_mat.shards[i].reshape(TILE, TILE)
                rotated = product(y.unflatten(-1, (-1, TILE)), turn, _ROTATION).flatten(-2)
                y = times(y, rope_cos.shards[i], fidelity) + times(rotated, rope_sin.shards[i], fidelity)
            out[i] = done[key] = y
    return out


def _sums_of_squares(x: torch.Tensor, heads: int, fidelity: ttnn.MathFidelity) -> torch.Tensor:
    """Return a row's sums for each head [..., heads, 1]. The packer first adds up the squares of a row's tiles."""
    squared = squares(x, fidelity).unflatten(-1, (heads, -1, TILE))
    return row_sums(squared.sum(-2))


def _gathered(sums: list[torch.Tensor]) -> torch.Tensor:
    """Add the sums of all chips in pairs, in the register. A single one is reduced once more, as TF32."""
    if len(sums) == 1:
        return to_tf32(sums[0])
    pairs = [plus(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
    return torch.stack(pairs).sum(0)
