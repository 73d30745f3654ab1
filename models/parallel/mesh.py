"""A mesh device with its layout: the placement of tensors, and the resources that collectives need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import ttnn

from models.machine.ways import FUSED, Ways
from models.parallel.layout import Layout

TILE = 32
_T = TypeVar("_T")


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Axis:
    """One mesh axis in its role: `index` in the mesh, `size` in chips, Ethernet `links` between neighbours.

    `topology` is a ring if the last chip is a neighbour of the first and the fabric was started as a ring, else a line.
    Two chips are a line: in a ring, the gather of ring attention expects a third chip and would wait for it forever.
    `plain` names the ops that are avoided (`models.machine.ways`).
    """

    index: int
    size: int
    links: int = 1
    topology: ttnn.Topology = ttnn.Topology.Linear
    plain: frozenset[str] = frozenset()


class Mesh:
    """A ttnn mesh device, its `Layout`, and the collective resources that live as long as the mesh."""

    def __init__(self, device: ttnn.MeshDevice, layout: Layout, ways: Ways = FUSED) -> None:
        """Bind `device` to `layout`.

        Args:
            device: an open mesh.
            layout: the roles of the axes.
            ways: the fused ops that layers compose of single ops instead, and what is not used of the links. Tests
                compare the fused ops with these compositions.

        Raises:
            ValueError: the layout is for another mesh shape, or for halves.
        """
        shape = (device.shape[0], device.shape[1])
        if layout.cfg_axis is not None:
            raise ValueError(f"layout {layout} is for two halves of a mesh: use models.parallel.Halves")
        if shape != layout.mesh_shape:
            raise ValueError(f"layout {layout} is not for the open mesh {shape[0]}x{shape[1]}: use its own shape")
        self.device = device
        self.layout = layout
        self.ways = ways
        self.sp = self._axis(layout.sp_axis)
        self.tp = self._axis(layout.tp_axis)
        grid = device.compute_with_storage_grid_size()
        self.grid = (grid.x, grid.y)
        self._alternating: dict[Hashable, tuple[list, int]] = {}

    def relaid(self, layout: Layout) -> Mesh:
        """Return the same chips in another layout, or this mesh itself if the layout is its own."""
        return self if layout == self.layout else type(self)(self.device, layout, self.ways)

    def fuses(self, op: str) -> bool:
        """Return whether layers may use a fused op, by its name in `models.machine.ways`."""
        return op not in self.ways.plain

    def _axis(self, index: int) -> Axis:
        """Return one axis of the layout, with its topology and the number of links between its chips."""
        size = self.layout.mesh_shape[index]
        if size == 1:
            return Axis(index, size)
        ways = self.ways
        probe = ttnn.allocate_tensor_on_device(ttnn.Shape([TILE, TILE]), ttnn.bfloat16, ttnn.TILE_LAYOUT, self.device)
        line = size == 2 or ways.lines
        topology = ttnn.Topology.Linear if line else ttnn.get_usable_topology(probe, cluster_axis=index)
        ttnn.deallocate(probe)
        links = ttnn.get_num_links(self.device, index)
        return Axis(index, size, min(links, ways.links or links), topology, ways.plain)

    def upload(
        self,
        host,
        *,
        dtype: ttnn.DataType = ttnn.bfloat16,
        layout: ttnn.Layout = ttnn.TILE_LAYOUT,
        sp: int | None = None,
        tp: int | None = None,
    ) -> ttnn.Tensor:
        """Upload a host tensor or array to the mesh: dim `sp` split over SP, dim `tp` over TP, the rest replicated.

        Raises:
            ValueError: a split dim is not divisible by its axis.
        """
        return ttnn.to_device(self.distribute(host, dtype=dtype, layout=layout, sp=sp, tp=tp), self.device)

    def distribute(
        self,
        host,
        *,
        dtype: ttnn.DataType = ttnn.bfloat16,
        layout: ttnn.Layout = ttnn.TILE_LAYOUT,
        sp: int | None = None,
        tp: int | None = None,
    ) -> ttnn.Tensor:
        """Return the ttnn host tensor that `upload` sends to the mesh, with one shard per chip.

        Raises:
            ValueError: a split dim is not divisible by its axis.
        """
        import torch

        shape = ttnn.MeshShape(*self.layout.mesh_shape)
        rows, cols = self._split_dims(host, sp, tp)
        mapper = ttnn.create_mesh_mapper(
            shape, ttnn.MeshMapperConfig(row_dim=rows, col_dim=cols, mesh_shape_override=shape)
        )
        return ttnn.from_torch(torch.as_tensor(host), dtype=dtype, layout=layout, mesh_mapper=mapper)

    def _split_dims(self, host, sp: int | None, tp: int | None) -> list[int | None]:
        """Return the dim of `host` that each mesh axis splits."""
        dims: list[int | None] = [None, None]
        for axis, dim, name in ((self.sp, sp, "SP"), (self.tp, tp, "TP")):
            if dim is None or axis.size == 1:
                continue
            if host.shape[dim] % axis.size:
                raise ValueError(
                    f"dim {dim} of shape {tuple(host.shape)} does not split over {name}={axis.size}: pad it first"
                )
            dims[axis.index] = dim
        return dims

    def download(self, tensor: ttnn.Tensor, *, sp: int | None = None, tp: int | None = None):
        """Download a tensor to the host: dim `sp` joined over SP, dim `tp` over TP, one replica of the rest.

        Returns:
            A `torch.Tensor` of the tensor's own dtype.
        """
        parts = ttnn.get_device_tensors(ttnn.from_device(tensor))
        rows, cols = self.layout.mesh_shape
        grid = [[ttnn.to_torch(parts[r * cols + c]) for c in range(cols)] for r in range(rows)]
        by_axis = {self.sp.index: sp, self.tp.index: tp}
        joined_rows = [_join(row, by_axis[1]) for row in grid]
        return _join(joined_rows, by_axis[0])

    def read(self, tensor: ttnn.Tensor) -> list[float]:
        """Read a small replicated tensor from the first chip, after all that was sent before; values in row order."""
        return ttnn.to_torch(ttnn.get_device_tensors(ttnn.from_device(tensor))[0]).flatten().tolist()

    def alternating(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return one of two long-lived resources under `key`, and the other one at the next call.

        `make` makes each once. A chip may be one collective ahead of its neighbour. With one resource, its next message
        could overwrite values that the neighbour still reads. With two, the barrier of the collective in between
        prevents this.
        """
        made, turn = self._alternating.get(key, ([], 0))
        if len(made) < 2:
            made.append(make())
        self._alternating[key] = (made, turn + 1)
        return made[turn % 2]

    def semaphores(self, name: str, count: int) -> list:
        """Return `count` global semaphores for the collective `name`, alternating between two sets."""
        columns, rows = self.grid

        def make() -> list:
            corner = ttnn.CoreCoord(columns - 1, rows - 1)
            cores = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), corner)})
            return [ttnn.create_global_semaphore(self.device, cores, 0) for _ in range(count)]

        return self.alternating(("semaphores", name, count), make)

    def buffer(self, name: str, shape: Sequence[int], dtype: ttnn.DataType) -> ttnn.Tensor:
        """Return a persistent DRAM buffer of one device's `shape`, alternating between two.

        A result in this buffer is overwritten after two more calls with the same name, shape and dtype.
        """
        return self.alternating(
            ("buffer", name, tuple(shape), dtype),
            lambda: ttnn.allocate_tensor_on_device(ttnn.Shape(list(shape)), dtype, ttnn.TILE_LAYOUT, self.device),
        )

    def free_buffers(self) -> None:
        """Free the persistent buffers; the next use makes them again.

        Semaphores stay, because programs hold their addresses.
        """
        for key, (made, _) in list(self._alternating.items()):
            if all(isinstance(resource, ttnn.Tensor) for resource in made):
                for buffer in made:
                    ttnn.deallocate(buffer)
                del self._alternating[key]

    def release(self) -> None:
        """Free the persistent buffers and semaphores."""
        self.free_buffers()
        self._alternating.clear()


def _join(parts: list, dim: int | None):
    if dim is None or len(parts) == 1:
        return parts[0]
    import torch

    return torch.cat(parts, dim=dim)
