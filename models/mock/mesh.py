"""Opening mock meshes: one cluster per process, any number of meshes on it.

ttnn binds a process to the first cluster it sees. The mock therefore opens the whole of one system, once. Every mesh is
a submesh of it: a rectangle is cut out, and reshaped if the requested shape is its transpose or a line. Each submesh
has its own allocators, so meshes on the same chips do not share memory.

ttnn keeps 5 MB of host memory and two threads for every chip of the *system* for each submesh ever made, closed or
not. So a mesh that was closed empty is handed out again to the next user of its shape.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.machine import leftovers, simulator
from models.machine.errors import InputError
from models.machine.files import refused_as_the_machines
from models.machine.host import bind_process, environment, log_level, quiet_ttnn, refuse_cards
from models.mock.cluster import Coord, MockSystem, system_for, system_named, write_descriptor
from models.mock.toolchain import CACHE_MEND, cache_directory, mock_variables, prepare_toolchain

if TYPE_CHECKING:
    import ttnn

_Kind = tuple[Coord, Coord]
"""The rectangle that a mesh is made from, and its shape."""


@dataclass
class _Opened:
    mesh: ttnn.MeshDevice
    kind: _Kind
    numbers: bool


@dataclass
class _Process:
    """State of the one cluster of this process."""

    system: MockSystem | None = None
    beside_cards: bool = False
    seen_by_ttnn: bool = False
    parent: ttnn.MeshDevice | None = None

    def __post_init__(self) -> None:
        self.opened: dict[int, _Opened] = {}
        self.idle: dict[_Kind, list[ttnn.MeshDevice]] = {}


_process = _Process()
_lock = threading.RLock()


def set_process_system(name: str, *, beside_cards: bool = False) -> None:
    """Choose the mock system of this process before its first mesh is opened.

    Choosing the same system again is no error.

    Args:
        name: name of a system in `models.mock.cluster.SYSTEMS`, e.g. "t3000" or "galaxy".
        beside_cards: continue although the machine has real cards.

    Raises:
        ValueError: no system has that name.
        RuntimeError: the process already has another system.
    """
    system = system_named(name)
    with _lock:
        if _process.system is not None and _process.system is not system:
            raise _bound_elsewhere(f"system {name!r}")
        _process.system = system
        _process.beside_cards |= beside_cards


def process_system() -> MockSystem | None:
    """Return the mock system of this process, or None if it is not chosen yet."""
    return _process.system


def open_mock_mesh(
    rows: int, cols: int, *, numbers: bool = True, system: str | None = None, beside_cards: bool = False
) -> ttnn.MeshDevice:
    """Open a rows x cols mock mesh.

    The first open chooses the system of the process: `system` if given, else the one set by `set_process_system`, else
    the smallest that holds the mesh. Later meshes come from the same system. Several may be open at the same time. A
    mesh has no allocations and no cached programs, whether it is new or was closed before.

    Args:
        rows: chips along mesh axis 0.
        cols: chips along mesh axis 1.
        numbers: run torch golden functions beside every op while this mesh is open. Without them every device tensor
            reads back as zeros. Golden execution applies to the whole process, not to one mesh.
        system: name of a system in `models.mock.cluster.SYSTEMS`. "galaxy-torus" has ring topology.
        beside_cards: continue although the machine has real cards.

    Raises:
        ValueError: no system holds such a mesh.
        RuntimeError: the system of the process does not hold it, or the machine has cards and `beside_cards` is not
            set.
        FileNotFoundError: ttnn or ziglang is not installed.
    """
    with _lock:
        refuse_cards(beside_cards=beside_cards or _process.beside_cards)
        chosen = system_named(system) if system is not None else _process.system or system_for(rows, cols)
        block = chosen.block(rows, cols)
        if block is None:
            best = system_for(rows, cols)  # Raises if no system holds the mesh.
        if _process.system is not None and (chosen is not _process.system or block is None):
            raise _bound_elsewhere(f"mesh {rows}x{cols}" + (f" of {system!r}" if system else ""))
        if block is None:
            raise InputError(
                f"mesh {rows}x{cols} does not fit mock system {chosen.name!r} ({_shape(chosen.shape)}); "
                f"use system {best.name!r}"
            )
        if _process.parent is None:
            _process.parent = _open_parent(chosen)
        kind = (block, (rows, cols))
        idle = _process.idle.setdefault(kind, [])
        mesh = idle.pop() if idle else _cut(_process.parent, kind)
        if numbers:
            try:
                _golden().install()
            except BaseException:
                idle.append(mesh)
                raise
        _process.opened[id(mesh)] = _Opened(mesh, kind, numbers)
        return mesh


def close_mock_mesh(mesh: ttnn.MeshDevice) -> None:
    """Close a mesh from `open_mock_mesh`.

    The cluster stays open for the next mesh until the process ends or `release_cluster` is called. So does the mesh
    itself, for the next user of its shape, unless somebody still holds a tensor on it: then ttnn closes it for good.

    Raises:
        ValueError: the mesh is not from `open_mock_mesh`, or is already closed.
    """
    with _lock:
        opened = _process.opened.pop(id(mesh), None)
        if opened is None:
            raise ValueError("this mesh was not opened by open_mock_mesh or is closed already; close it once")
        try:
            if opened.numbers:
                _golden().uninstall()
        finally:
            if _empty(opened):
                _process.idle[opened.kind].append(mesh)
            else:
                quiet_ttnn().close_mesh_device(mesh)


@contextlib.contextmanager
def mock_mesh(
    rows: int, cols: int, *, numbers: bool = True, system: str | None = None, beside_cards: bool = False
) -> Iterator[ttnn.MeshDevice]:
    """Open a mock mesh for a `with` block, with the arguments of `open_mock_mesh`."""
    mesh = open_mock_mesh(rows, cols, numbers=numbers, system=system, beside_cards=beside_cards)
    try:
        yield mesh
    finally:
        close_mock_mesh(mesh)


def release_cluster() -> None:
    """Close every mock mesh and the cluster itself. The process stays bound to its system."""
    with _lock:
        for opened in list(_process.opened.values()):
            close_mock_mesh(opened.mesh)
        if _process.parent is not None:
            ttnn = quiet_ttnn()
            for mesh in [mesh for meshes in _process.idle.values() for mesh in meshes]:
                ttnn.close_mesh_device(mesh)
            _process.idle.clear()
            _limits().detach()
            ttnn.close_mesh_device(_process.parent)
            _process.parent = None
            ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)


def _cut(parent: ttnn.MeshDevice, kind: _Kind) -> ttnn.MeshDevice:
    ttnn = quiet_ttnn()
    block, shape = kind
    mesh = parent.create_submesh(ttnn.MeshShape(*block))
    if block != shape:
        mesh.reshape(ttnn.MeshShape(*shape))
    return mesh


def _empty(opened: _Opened) -> bool:
    """Drop what nobody holds any more and the cached programs; tell whether the mesh is then as good as new."""
    mesh = opened.mesh
    if tuple(mesh.shape) != opened.kind[1]:
        return False
    parts = [mesh, *mesh.get_submeshes()]
    _sweep()
    if any(map(_allocated, parts)):
        gc.collect()  # A model and its layers refer to each other.
        _sweep()
        if any(map(_allocated, parts)):
            return False
    for part in parts:
        part.clear_program_cache()
    return True


def _allocated(mesh: ttnn.MeshDevice) -> bool:
    """Whether anything lies in the mesh's memory. A part that its user closed counts as full."""
    ttnn = quiet_ttnn()
    types = ttnn.BufferType
    try:
        views = [ttnn.get_memory_view(mesh, kind) for kind in (types.DRAM, types.L1, types.L1_SMALL, types.TRACE)]
    except RuntimeError:
        return True
    return any(view.total_bytes_allocated_per_bank for view in views)


def _sweep() -> None:
    engine = _golden().active()
    if engine is not None:
        engine.store.sweep(everything=True)


def _golden():  # type: ignore[no-untyped-def]
    from models.mock import golden

    return golden


def _limits():  # type: ignore[no-untyped-def]
    from models.mock import limits

    return limits


def _open_parent(system: MockSystem) -> ttnn.MeshDevice:
    """Open the whole system as one mesh. With more than one chip it has a fabric, as on hardware."""
    ttnn = quiet_ttnn()
    variables: dict[str, str | None] = {simulator.VARIABLE: None}  # ttnn would open what it names.
    if not _process.seen_by_ttnn:
        bind_process("mock")
        chain = prepare_toolchain()
        clusters = cache_directory() / "clusters"
        with refused_as_the_machines(clusters, CACHE_MEND):
            descriptor = write_descriptor(system, clusters)
        variables |= mock_variables(chain, descriptor)
        logs = leftovers.temporary_folder("mochi-tt-mock-")
        atexit.register(leftovers.remove, logs)
        atexit.register(release_cluster)
        variables["TT_METAL_LOGS_PATH"] = variables["TMPDIR"] = str(logs)  # MPI makes a folder there and leaves it.
        variables |= log_level("error")
    fabric = ttnn.FabricConfig.FABRIC_1D_RING if system.ring else ttnn.FabricConfig.FABRIC_1D
    with environment(variables):
        if system.chips > 1:
            ttnn.set_fabric_config(fabric)
        _process.seen_by_ttnn, _process.system = True, system
        parent = ttnn.open_mesh_device(ttnn.MeshShape(*system.shape))
    _limits().attach()
    return parent


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _bound_elsewhere(wanted: str) -> RuntimeError:
    system = _process.system
    assert system is not None
    return RuntimeError(
        f"{wanted} does not fit this process's mock cluster, {system.name} ({_shape(system.shape)}), which "
        "was chosen at the first open and cannot change; open the larger mesh first, call "
        "set_process_system before any open, or use another process"
    )
