"""Golden rules of the fused ops: each is the plain composition with its intermediate values kept in float32."""

import torch

from models.mock.golden.fidelity import product
from models.mock.golden.rules import MeshShards, Shards, local_rule, mesh_rule

_MATMUL = (
    "ttnn/operations/experimental/minimal_matmul/device/kernels/compute_metal2.cpp (wheel): fused bias, swiglu_block; "
    "tests/ttnn/nightly/unit_tests/operations/experimental/test_minimal_matmul.py"
)
_NORM = (
    "ttnn/operations/experimental/ccl/dit_fused_distributed_rmsnorm/device/kernels/compute/dit_rmsnorm_fused_compute.cpp"
    " (wheel): sum of squares per row, gather, rsqrt, weight, bias, rotation, float32 in between"
)
_TILE = 32


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up` of column tiles that come in (gate, up) pairs."""
    pairs = x.unflatten(-1, (-1, 2, _TILE))
    return (torch.nn.functional.silu(pairs[..., 0, :]) * pairs[..., 1, :]).flatten(-2)


def _matmul(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, fuse_swiglu: bool, config) -> torch.Tensor:
    out = product(a, b, config)
    if bias is not None:
        out = out + bias.reshape(-1)
    return _swiglu(out) if fuse_swiglu else out


@local_rule("ttnn.experimental.minimal_matmul", source=_MATMUL)
def minimal_matmul(
    input_tensor, weight_tensor, *, bias_tensor=None, fuse_swiglu: bool = False, compute_kernel_config=None
):
    """Return `input @ weight + bias`, optionally followed by SwiGLU on tile pairs."""
    return _matmul(input_tensor, weight_tensor, bias_tensor, fuse_swiglu, compute_kernel_config)


@local_rule("ttnn.experimental.minimal_matmul_split", source=_MATMUL)
def minimal_matmul_split(
    input_tensor,
    weight_tensor,
    *,
    chunks: int = 3,
    dim: int = -1,
    bias_tensor=None,
    fuse_swiglu: bool = False,
    compute_kernel_config=None,
):
    """Return `minimal_matmul`, cut into `chunks` along the columns."""
    out = _matmul(input_tensor, weight_tensor, bias_tensor, fuse_swiglu, compute_kernel_config)
    return list(out.chunk(chunks, dim=dim))


@mesh_rule(
    "ttnn.experimental.all_gather_minimal_matmul_async",
    source=f"{_MATMUL}; all_gather_minimal_matmul_async/device/kernels: rows of K arrive in mesh order",
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
            out = _matmul(whole, weight_tensor.shards[i], bias, fuse_swiglu, compute_kernel_config)
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
) -> Shards:
    """Compute the root-mean-square norm over the whole row or over each head, then the other steps of the op.

    These are weight, bias, head split and rotation. With `cluster_axis` the row is the group's shards side by side.
    Without it the row is each chip's own columns.
    """
    if per_head_norm and cluster_axis is not None:
        raise ValueError("a norm per head is local: cluster_axis must be None")
    shards = input_tensor.shards
    groups = [[i] for i in range(len(shards))] if cluster_axis is None else input_tensor.groups(cluster_axis)
    means: list[torch.Tensor] = [shards[0]] * len(shards)
    for group in groups:
        if per_head_norm:
            (i,) = group
            means[i] = shards[i].unflatten(-1, (num_heads_per_device, -1)).square().mean(-1)
            continue
        total = torch.stack([shards[i].square().sum(-1, keepdim=True) for i in group]).sum(0)
        for i in group:
            means[i] = total / (shards[i].shape[-1] * len(group))
    out: Shards = []
    done: dict[tuple[int, ...], torch.Tensor] = {}
    operands = [s for s in (weight, bias, transformation_mat, rope_cos, rope_sin) if s is not None]
    for i, x in enumerate(shards):
        key = (id(x), id(means[i]) if cluster_axis is not None else 0, *(id(s.shards[i]) for s in operands))
        if key not in done:
            scale = torch.rsqrt(means[i] + epsilon)
            if per_head_norm:
                scale = scale.repeat_interleave(x.shape[-1] // num_heads_per_device, dim=-1)
            y = x * scale
            y = y if weight is None else y * weight.shards[i].reshape(-1)
            y = y if bias is None else y + bias.shards[i].reshape(-1)
            if num_heads_per_device > 1 or per_head_norm or rope_cos is not None:
                batch, _, rows, _ = y.shape
                y = y.reshape(batch, rows, num_heads_per_device, -1).transpose(1, 2)
            if rope_cos is not None and rope_sin is not None and transformation_mat is not None:
                turn = transformation_mat.shards[i].reshape(_TILE, _TILE)
                rotated = (y.unflatten(-1, (-1, _TILE)) @ turn).flatten(-2)
                y = y * rope_cos.shards[i] + rotated * rope_sin.shards[i]
            done[key] = y
        out.append(done[key])
    return out
