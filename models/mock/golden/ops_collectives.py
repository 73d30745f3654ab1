"""Golden rules of the collectives: the values of each device after an exchange between devices.

Topology, number of links, semaphores and chunking change the time of arrival, and in a reduction the order of the
additions. They never change the values that arrive.
"""

import torch
import ttnn

from models.mock.golden.fidelity import plus
from models.mock.golden.rounding import packed
from models.mock.golden.rules import MeshShards, Shards, mesh_rule

_OPERATIONS = "ttnn/operations"
_REDUCE_SOURCE = (
    f"{_OPERATIONS}/ccl/reduce_scatter/reduce_scatter.cpp; "
    f"{_OPERATIONS}/experimental/ccl/reduce_scatter_minimal_async/device/kernels/line_reduction.cpp"
)


def _gather(x: MeshShards, dim: int, cluster_axis: int | None) -> Shards:
    out: Shards = list(x.shards)
    for group in x.groups(cluster_axis):
        if len(group) == 1:
            continue
        gathered = torch.cat([x.shards[i] for i in group], dim=dim)
        for i in group:
            out[i] = gathered
    return out


def _chain(shards: Shards, dtype: ttnn.DataType) -> torch.Tensor:
    """Sum shards as partial sums travel along a line: each step adds two operands as stored and stores the result.

    The addition runs in the matrix engine (`fidelity.plus`).
    """
    total = shards[0]
    for shard in shards[1:]:
        total = packed(plus(total, shard), dtype)
    return total


def _line_sum(shards: Shards, position: int, dtype: ttnn.DataType) -> torch.Tensor:
    """Return the sum as the device at `position` of a line computes it.

    It adds one partial sum from either side and its own shard.
    """
    ahead, behind = shards[:position], shards[:position:-1]
    own = shards[position]
    for side in (ahead, behind):
        if side:
            own = _chain([_chain(side, dtype), own], dtype)
    return own


def _scatter(x: MeshShards, dim: int, cluster_axis: int | None) -> Shards:
    out: Shards = list(x.shards)
    for group in x.groups(cluster_axis):
        if x.shape[dim] % len(group):
            raise ValueError(f"dim {dim} of {tuple(x.shape)} does not split over {len(group)} devices")
        for position, i in enumerate(group):
            out[i] = torch.chunk(x.shards[i], len(group), dim=dim)[position]
    return out


def _reduce_scatter(x: MeshShards, dim: int, cluster_axis: int | None, dtype: ttnn.DataType) -> Shards:
    if cluster_axis is None and 1 not in x.mesh_shape:
        # The op runs once per mesh axis, so device (r, c) gets chunk r * cols + c of the whole sum.
        first = MeshShards(_reduce_scatter(x, dim, 0, dtype), x.mesh_shape, dtype)
        return _reduce_scatter(first, dim, 1, dtype)
    out: Shards = list(x.shards)
    for group in x.groups(cluster_axis):
        if x.shape[dim] % len(group):
            raise ValueError(f"dim {dim} of {tuple(x.shape)} does not split over {len(group)} devices")
        for position, i in enumerate(group):
            chunks = [torch.chunk(x.shards[j], len(group), dim=dim)[position] for j in group]
            out[i] = _line_sum(chunks, position, dtype)
    return out


@mesh_rule(
    "ttnn.all_gather",
    source=f"{_OPERATIONS}/ccl/all_gather/all_gather_nanobind.cpp",
)
def all_gather(input_tensor: MeshShards, dim: int, *, cluster_axis: int | None = None) -> Shards:
    """Concatenate the group's shards along `dim` in mesh order, on every device of the group."""
    return _gather(input_tensor, dim, cluster_axis)


@mesh_rule(
    "ttnn.experimental.all_gather_async",
    source="upstream tests/nightly/t3000/ccl/test_minimal_all_gather_async.py",
)
def all_gather_async(
    input_tensor: MeshShards,
    persistent_output_buffer=None,
    dim: int | None = None,
    *,
    cluster_axis: int | None = None,
    use_broadcast: bool = False,
    use_optimal_ccl_for_llama: bool = False,
) -> Shards:
    """Compute `all_gather`. `dim` is given by name, or by position after the tensor or after the buffer."""
    if isinstance(persistent_output_buffer, int) and dim is None:
        dim = persistent_output_buffer
    if not isinstance(dim, int):
        raise ValueError("give dim, cluster_axis and the semaphores by name")
    return _gather(input_tensor, dim, cluster_axis)


@mesh_rule("ttnn.reduce_scatter", source=_REDUCE_SOURCE)
def reduce_scatter(input_tensor: MeshShards, dim: int, *, cluster_axis: int | None = None) -> Shards:
    """Sum over the group; each device keeps its chunk of `dim` in mesh order.

    The sum is rounded at every hop of a line.
    """
    return _reduce_scatter(input_tensor, dim, cluster_axis, input_tensor.dtype)


@mesh_rule("ttnn.experimental.reduce_scatter_minimal_async", source=_REDUCE_SOURCE)
def reduce_scatter_minimal_async(
    input_tensor: MeshShards, persistent_output_buffers=None, dim: int | None = None, *, cluster_axis: int | None = None
) -> Shards:
    """Compute `reduce_scatter`."""
    if dim is None:
        raise ValueError("give dim, cluster_axis and the semaphores by name")
    return _reduce_scatter(input_tensor, dim, cluster_axis, input_tensor.dtype)


@mesh_rule("ttnn.all_reduce", source=f"{_OPERATIONS}/ccl/all_reduce/all_reduce.cpp; then as ttnn.reduce_scatter")
def all_reduce(input_tensor: MeshShards, *, cluster_axis: int | None = None) -> Shards:
    """Sum over the group, on every device of the group. Without an axis, sum over axis 0, then over axis 1.

    The op is a reduce-scatter and an all-gather, or an all-gather and a local sum, depending on the shape. The golden
    computes the first. It uses one device's order of additions for the whole group, so that all devices of the group
    have the same sum, as they do in the op.
    """
    if cluster_axis is None and 1 not in input_tensor.mesh_shape:
        first = MeshShards(all_reduce(input_tensor, cluster_axis=0), input_tensor.mesh_shape, input_tensor.dtype)
        return all_reduce(first, cluster_axis=1)
    out: Shards = list(input_tensor.shards)
    for group in input_tensor.groups(cluster_axis):
        total = _line_sum([input_tensor.shards[i] for i in group], len(group) // 2, input_tensor.dtype)
        for i in group:
            out[i] = total
    return out


@mesh_rule("ttnn.mesh_partition", source=f"{_OPERATIONS}/ccl/mesh_partition/mesh_partition_nanobind.cpp")
def mesh_partition(input_tensor: MeshShards, dim: int, cluster_axis: int | None = None) -> Shards:
    """Keep each device's own chunk of `dim`, by its position along `cluster_axis`. No data moves."""
    return _scatter(input_tensor, dim, cluster_axis)
