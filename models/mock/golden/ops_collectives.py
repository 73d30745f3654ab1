"""Golden rules of the collectives: what each device holds after data moved between devices.

Topology, number of links, semaphores and chunking change when data arrives, never what arrives.
"""

import torch

from models.mock.golden.rules import MeshShards, Shards, mesh_rule

_CCL_TESTS = "tt-metal tests/nightly/t3000/ccl and ttnn/operations/ccl.py golden helpers"


def _gather(x: MeshShards, dim: int, cluster_axis: int | None) -> Shards:
    out: Shards = list(x.shards)
    for group in x.groups(cluster_axis):
        if len(group) == 1:
            continue
        gathered = torch.cat([x.shards[i] for i in group], dim=dim)
        for i in group:
            out[i] = gathered
    return out


def _reduce(x: MeshShards, cluster_axis: int | None) -> Shards:
    out: Shards = list(x.shards)
    for group in x.groups(cluster_axis):
        total = torch.stack([x.shards[i] for i in group]).sum(dim=0)
        for i in group:
            out[i] = total
    return out


def _scatter(x: MeshShards, dim: int, cluster_axis: int | None) -> Shards:
    out: Shards = list(x.shards)
    for group in x.groups(cluster_axis):
        for position, i in enumerate(group):
            out[i] = torch.chunk(x.shards[i], len(group), dim=dim)[position]
    return out


@mesh_rule("ttnn.all_gather", source=f"{_CCL_TESTS}: test_minimal_all_gather_async.py")
def all_gather(input_tensor: MeshShards, dim: int, *, cluster_axis: int | None = None, **_) -> Shards:
    """Concatenate the group's shards along ``dim`` in mesh order, on every device of the group."""
    return _gather(input_tensor, dim, cluster_axis)


@mesh_rule("ttnn.experimental.all_gather_async", source=f"{_CCL_TESTS}: test_minimal_all_gather_async.py")
def all_gather_async(input_tensor: MeshShards, *args, dim: int | None = None, cluster_axis=None, **_) -> Shards:
    """As `all_gather`; ``dim`` may come as the first or, behind a persistent buffer, the second argument."""
    if dim is None:
        dim = next(a for a in args if isinstance(a, int))
    return _gather(input_tensor, dim, cluster_axis)


@mesh_rule("ttnn.reduce_scatter", source=f"{_CCL_TESTS}: test_minimal_reduce_scatter_async.py")
@mesh_rule(
    "ttnn.experimental.reduce_scatter_minimal_async",
    source=f"{_CCL_TESTS}: test_minimal_reduce_scatter_async.py",
)
def reduce_scatter(input_tensor: MeshShards, dim: int = 3, *_args, cluster_axis: int | None = None, **_) -> Shards:
    """Sum over the group in float32, then each device keeps its chunk of ``dim`` in mesh order.

    The device adds hop by hop and rounds each partial sum to the tensor's dtype; the golden rounds once. The
    difference is below one unit in the last place per hop.
    """
    summed = MeshShards(_reduce(input_tensor, cluster_axis), input_tensor.mesh_shape)
    return _scatter(summed, dim, cluster_axis)


@mesh_rule("ttnn.all_reduce", source=f"{_CCL_TESTS}: test_all_reduce_async.py")
def all_reduce(input_tensor: MeshShards, *_args, cluster_axis: int | None = None, **_) -> Shards:
    """Sum over the group, on every device of the group."""
    return _reduce(input_tensor, cluster_axis)


@mesh_rule("ttnn.mesh_partition", source="ttnn/operations/ccl.py: _golden_function_mesh_partition")
def mesh_partition(input_tensor: MeshShards, dim: int, cluster_axis: int | None = None, **_) -> Shards:
    """Each device keeps its own chunk of ``dim``, by its position along ``cluster_axis``; nothing travels."""
    return _scatter(input_tensor, dim, cluster_axis)
