"""Collective operations over one mesh axis. On an axis of size 1 each is a no-op, so 1x1 runs the same code as 4x8."""

import ttnn

from models.parallel.mesh import Axis


def gather(x: ttnn.Tensor, *, dim: int, over: Axis) -> ttnn.Tensor:
    """Concatenate the shards of `x` along `dim` over one mesh axis.

    `x` is fractured over the axis on `dim`. The result is replicated over it.
    """
    if over.size == 1:
        return x
    return ttnn.all_gather(x, dim=dim, cluster_axis=over.index, topology=over.topology, num_links=over.links)


def reduce_scatter(x: ttnn.Tensor, *, dim: int, over: Axis) -> ttnn.Tensor:
    """Sum partial values over one mesh axis; each chip keeps its chunk of `dim`.

    `x` is a partial sum of full size on every chip. The result is fractured over the axis on `dim`.
    """
    if over.size == 1:
        return x
    if "reduce-scatter" in over.plain:
        return ttnn.mesh_partition(_sum(x, over), dim, cluster_axis=over.index)
    return ttnn.reduce_scatter(x, dim=dim, cluster_axis=over.index, topology=over.topology, num_links=over.links)


def all_reduce(x: ttnn.Tensor, *, over: Axis) -> ttnn.Tensor:
    """Sum partial values over one mesh axis; every chip gets the whole sum."""
    if over.size == 1:
        return x
    if "all-reduce" in over.plain:
        return _sum(x, over)
    return ttnn.all_reduce(x, cluster_axis=over.index, topology=over.topology, num_links=over.links)


def _sum(x: ttnn.Tensor, over: Axis) -> ttnn.Tensor:
    """Gather the partial values of all chips and add them in float32, in the same order on every chip."""
    parts, rest = x.shape[0], list(x.shape)[1:]
    stacked = gather(x, dim=0, over=over)
    total = ttnn.slice(stacked, [0, *(0 for _ in rest)], [parts, *rest])
    for chip in range(1, over.size):
        part = ttnn.slice(stacked, [chip * parts, *(0 for _ in rest)], [(chip + 1) * parts, *rest])
        total = ttnn.add(total, part, dtype=ttnn.float32)
    return total if total.dtype == x.dtype else ttnn.typecast(total, x.dtype)
