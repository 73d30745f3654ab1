"""Golden rules of attention over a sequence that is sharded across devices."""

import torch

from models.mock.golden.rules import MeshShards, Shards, local_rule, mesh_rule


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)


def _tiles(rows: int) -> int:
    return -(-rows // 32)


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
    joint_q: MeshShards | None = None,
    joint_k: MeshShards | None = None,
    joint_v: MeshShards | None = None,
    *,
    joint_strategy: str,
    logical_n: int,
    cluster_axis: int,
    scale: float | None = None,
    dim: int = 2,
    **options,
) -> list[Shards]:
    """Attention of local and joint queries over all devices' keys (the first ``logical_n`` rows) and joint keys.

    Joint tensors are replicated over the ring. Rows past ``logical_n`` hold padding: their queries are attended like
    any other (the result is not meaningful), their keys are masked. The third output is the kernel's scratch for
    running statistics; it is filled with NaN here, so that nothing can rest on it.
    """
    _require_rear(joint_strategy)
    given = {name for name, value in options.items() if value not in (None, False, 0)}
    unknown = given - {"use_column_major_ccl"}
    if unknown or dim != 2:
        raise ValueError(f"options not covered by this golden: dim={dim}, {sorted(unknown)}")
    size = len(q.shards)
    batch, heads, n, width = q.shape
    no_joint = MeshShards([q.shards[0].new_zeros(batch, heads, 0, width)] * size, q.mesh_shape)
    joint_q, joint_k, joint_v = joint_q or no_joint, joint_k or no_joint, joint_v or no_joint
    spatial: Shards = [torch.empty(0)] * size
    joint: Shards = [torch.empty(0)] * size
    for group in q.groups(cluster_axis):
        keys = torch.cat([k.shards[i] for i in group], dim=2)[:, :, :logical_n]
        values = torch.cat([v.shards[i] for i in group], dim=2)[:, :, :logical_n]
        for i in group:
            query = torch.cat([q.shards[i], joint_q.shards[i]], dim=2)
            out = _attention(
                query,
                torch.cat([keys, joint_k.shards[i]], 2),
                torch.cat([values, joint_v.shards[i]], 2),
                scale,
            )
            spatial[i], joint[i] = out[:, :, :n], out[:, :, n:]
    rows = 2 * (_tiles(n) + _tiles(joint_q.shape[2])) * 32
    scratch = torch.full((batch, heads, rows, 1), float("nan"))
    return [spatial, joint, [scratch] * size]


@local_rule(
    "ttnn.transformer.joint_scaled_dot_product_attention",
    source="sdpa/device/kernels/compute/joint_sdpa.cpp; tests/ttnn/unit_tests/operations/sdpa/test_joint_attention.py",
)
def joint_attention(q, k, v, joint_q, joint_k, joint_v, *, joint_strategy: str, scale: float | None = None):
    """Attention over the concatenation of both sequences; outputs are split again."""
    _require_rear(joint_strategy)
    out = _attention(torch.cat([q, joint_q], 2), torch.cat([k, joint_k], 2), torch.cat([v, joint_v], 2), scale)
    return out[:, :, : q.shape[2]], out[:, :, q.shape[2] :]
