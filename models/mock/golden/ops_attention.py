"""Golden rules of attention over a sequence that is sharded across devices."""

import torch

from models.mock.golden.rules import MeshShards, Shards, local_rule, mesh_rule


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * scale
    return torch.matmul(torch.softmax(scores, dim=-1), value), torch.logsumexp(scores, dim=-1, keepdim=True)


def _require_rear(joint_strategy: str) -> None:
    if joint_strategy != "rear":
        raise ValueError(f"joint_strategy {joint_strategy!r}: the kernel knows 'rear' only")


@mesh_rule(
    "ttnn.transformer.ring_joint_scaled_dot_product_attention",
    source="sdpa/device/kernels/compute/ring_joint_sdpa.cpp: logical_n and joint_l masks; "
    "tests/nightly/t3000/ccl/test_ring_joint_attention.py",
)
def ring_joint_attention(
    q: MeshShards,
    k: MeshShards,
    v: MeshShards,
    joint_q: MeshShards,
    joint_k: MeshShards,
    joint_v: MeshShards,
    *,
    joint_strategy: str,
    logical_n: int,
    cluster_axis: int,
    scale: float | None = None,
    persistent_output_buffer_k: MeshShards | None = None,
    persistent_output_buffer_v: MeshShards | None = None,
    dim: int = 2,
    **options,
) -> list[Shards]:
    """Attention of local and joint queries over all devices' keys (the first ``logical_n`` rows) and joint keys.

    Joint tensors are replicated over the ring. Rows past ``logical_n`` hold padding: their queries are attended like
    any other (the result is not meaningful), their keys are masked.
    """
    _require_rear(joint_strategy)
    given = {name for name, value in options.items() if value not in (None, False, 0)}
    unknown = given - {"use_column_major_ccl"}
    if unknown or dim != 2:
        raise ValueError(f"options not covered by this golden: dim={dim}, {sorted(unknown)}")
    size = len(q.shards)
    spatial: Shards = [torch.empty(0)] * size
    joint: Shards = [torch.empty(0)] * size
    lse: Shards = [torch.empty(0)] * size
    for group in q.groups(cluster_axis):
        keys = torch.cat([k.shards[i] for i in group], dim=2)[:, :, :logical_n]
        values = torch.cat([v.shards[i] for i in group], dim=2)[:, :, :logical_n]
        for i in group:
            n = q.shards[i].shape[2]
            query = torch.cat([q.shards[i], joint_q.shards[i]], dim=2)
            out, log_sum = _attention(
                query, torch.cat([keys, joint_k.shards[i]], 2), torch.cat([values, joint_v.shards[i]], 2), scale
            )
            spatial[i], joint[i], lse[i] = out[:, :, :n], out[:, :, n:], log_sum
    return [spatial, joint, lse]


@local_rule(
    "ttnn.transformer.joint_scaled_dot_product_attention",
    source="sdpa/device/kernels/compute/joint_sdpa.cpp; tests/ttnn/unit_tests/operations/sdpa/test_joint_attention.py",
)
def joint_attention(q, k, v, joint_q, joint_k, joint_v, *, joint_strategy: str, scale: float | None = None):
    """Attention over the concatenation of both sequences; outputs are split again."""
    _require_rear(joint_strategy)
    out, _ = _attention(torch.cat([q, joint_q], 2), torch.cat([k, joint_k], 2), torch.cat([v, joint_v], 2), scale)
    return out[:, :, : q.shape[2]], out[:, :, q.shape[2] :]
