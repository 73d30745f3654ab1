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
    return ttnn.reduce_scatter(x, dim=dim, cluster_axis=over.index, topology=over.topology, num_links=over.links)


def all_reduce(x: ttnn.Tensor, *, over: Axis) -> ttnn.Tensor:
    """Sum partial values over one mesh axis; every chip gets the whole sum."""
    if over.size == 1:
        return x
    return ttnn.all_reduce(x, cluster_axis=over.index, topology=over.topology, num_links=over.links)
