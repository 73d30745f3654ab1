"""Two halves of a mesh that run the two branches of guidance side by side, and the swap of their results."""

from typing import cast

import ttnn

from models.machine.ways import FUSED, Ways
from models.parallel.collectives import gather
from models.parallel.layout import Layout
from models.parallel.mesh import Axis, Mesh

# Bytes of the queue in the receiving core's L1 through which the packets of a tensor pass. It is small because every
# core reserves this much of its L1, and attention's buffers leave only 9 KB of L1 free
# (`models.layers.attention_chunks.L1_BUDGET`).
_QUEUE_BYTES = 8192
_Sockets = tuple["ttnn.MeshSocket", "ttnn.MeshSocket"]


class Halves:
    """A mesh cut in two along the layout's CFG axis. Each half is a `Mesh` with the layout's SP and TP.

    Submeshes have memory allocators of their own, so allocate nothing on the whole mesh while the halves are in use.
    """

    def __init__(self, device: ttnn.MeshDevice, layout: Layout, ways: Ways = FUSED) -> None:
        """Cut `device`, or take the halves that it was cut into before: they stay open as long as it does.

        Args:
            device: an open mesh.
            layout: a layout with a CFG axis.
            ways: see `Mesh`.

        Raises:
            ValueError: the layout has no CFG axis or is for another mesh.
        """
        shape = (device.shape[0], device.shape[1])
        if layout.cfg_axis is None or shape != layout.mesh_shape:
            raise ValueError(f"layout {layout} does not cut mesh {shape[0]}x{shape[1]} in halves: name it with cfg")
        self.layout = layout
        half = layout.branch
        # A shape tells which cut it was. Halves cut again would have other allocators for the same memory.
        parts = [part for part in device.get_submeshes() if tuple(part.shape) == half.mesh_shape]
        parts = parts or device.create_submeshes(ttnn.MeshShape(*half.mesh_shape))
        self.conditional, self.unconditional = (Mesh(part, half, ways) for part in parts)
        self._axis = Axis(layout.cfg_axis, half.mesh_shape[layout.cfg_axis])
        self._sockets: tuple[_Sockets, _Sockets] | None = None

    def swap(self, x: ttnn.Tensor, y: ttnn.Tensor) -> tuple[ttnn.Tensor, ttnn.Tensor]:
        """Give each half the tensor of the other half.

        Neighbouring chips on the two sides of the cut exchange whole tensors and spread them over their half, because a
        fabric of lines carries sockets between neighbours only.

        Args:
            x: tensor on the conditional half, [1, 1, N / SP, I], fractured over SP, replicated over TP.
            y: tensor on the unconditional half, with the shape and placement of x.

        Returns:
            y on the conditional half and x on the unconditional half, with the shapes and placements of x and y.
        """
        there, back = self.connect()
        whole_x, whole_y = self._whole(x, self.conditional), self._whole(y, self.unconditional)
        got_y, got_x = _like(whole_y, self.conditional), _like(whole_x, self.unconditional)
        # `send_direct_async` is not used. Its kernel addresses DRAM from the view of its own core's NOC, but the
        # fabric's router does the write and uses the other NOC (ttnn 0.81.1, sender_direct_writer.cpp, lines 145, 157,
        # 170 and 182).
        ttnn.experimental.send_async(whole_x, there[0])
        ttnn.experimental.recv_async(got_x, there[1])
        ttnn.experimental.send_async(whole_y, back[0])
        ttnn.experimental.recv_async(got_y, back[1])
        last = self._axis.size - 1
        return self._spread(got_y, self.conditional, last), self._spread(got_x, self.unconditional, 0)

    def release(self) -> None:
        """Free the persistent buffers of both halves and the sockets."""
        self._sockets = None
        self.conditional.release()
        self.unconditional.release()

    def connect(self) -> tuple[_Sockets, _Sockets]:
        """Create the sockets in both directions between the chips next to the cut; later calls return the same ones.

        Their queues stay in L1 from then on. Connect before the first forward pass, so that every program is built with
        the queues present. A program that needs their room is then refused at once and not in the second step.
        """
        if self._sockets is None:
            self._sockets = self._pairs()
        return self._sockets

    def _pairs(self) -> tuple[_Sockets, _Sockets]:
        axis, last = self._axis.index, self._axis.size - 1
        along = self.conditional.layout.mesh_shape[1 - axis]
        edge = [ttnn.MeshCoordinate(*((last, i) if axis == 0 else (i, last))) for i in range(along)]
        other_edge = [ttnn.MeshCoordinate(*((0, i) if axis == 0 else (i, 0))) for i in range(along)]
        there = _pair(self.conditional, edge, self.unconditional, other_edge, ttnn.CoreCoord(0, 0))
        back = _pair(self.unconditional, other_edge, self.conditional, edge, ttnn.CoreCoord(0, 1))
        return there, back

    def _whole(self, x: ttnn.Tensor, mesh: Mesh) -> ttnn.Tensor:
        """Make x the same along the cut axis, by a gather over SP if SP is that axis."""
        return gather(x, dim=2, over=mesh.sp) if mesh.sp.index == self._axis.index else x

    def _spread(self, x: ttnn.Tensor, mesh: Mesh, edge: int) -> ttnn.Tensor:
        """Copy the tensor of the chip at `edge` to all chips along the cut axis, then cut it to SP shards again."""
        axis = mesh.sp if mesh.sp.index == self._axis.index else mesh.tp
        if axis.size == 1:
            return x
        rows, width = x.shape[2], x.shape[3]
        stacked = gather(x, dim=0, over=axis)
        whole = ttnn.slice(stacked, [edge, 0, 0, 0], [edge + 1, 1, rows, width])
        return ttnn.mesh_partition(whole, 2, cluster_axis=axis.index) if axis is mesh.sp else whole


def place(device: ttnn.MeshDevice, layout: Layout, ways: Ways = FUSED) -> Mesh | Halves:
    """Return `device` with its layout: one mesh, or two halves if the layout has a CFG axis.

    Raises:
        ValueError: the layout is for another mesh.
    """
    return Mesh(device, layout, ways) if layout.cfg_axis is None else Halves(device, layout, ways)


def _like(x: ttnn.Tensor, mesh: Mesh) -> ttnn.Tensor:
    return ttnn.allocate_tensor_on_device(x.shape, x.dtype, x.layout, mesh.device)


def _pair(sender: Mesh, from_: list, receiver: Mesh, to: list, core: ttnn.CoreCoord) -> _Sockets:
    connections = [
        ttnn.SocketConnection(ttnn.MeshCoreCoord(a, core), ttnn.MeshCoreCoord(b, core))
        for a, b in zip(from_, to, strict=True)
    ]
    memory = ttnn.SocketMemoryConfig(ttnn.BufferType.L1, _QUEUE_BYTES)
    return cast(
        _Sockets, ttnn.create_socket_pair(sender.device, receiver.device, ttnn.SocketConfig(connections, memory))
    )
