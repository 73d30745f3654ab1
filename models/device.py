"""The one doorway to a mesh: real cards where there are any, the simulator where it is named, else a mock mesh.

Pipelines and command-line programs open their mesh here; model code takes a `ttnn.MeshDevice` and does not
know which kind it got. Nothing here reads the environment or imports ttnn until a mesh is opened.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Literal, cast, get_args

from loguru import logger

from models.machine import simulator
from models.machine.checks import short
from models.machine.errors import InputError, MachineError
from models.machine.host import CARD_DIRECTORY, bind_process, cards, check_limits, environment, log_level, quiet_ttnn
from models.machine.systems import block_within
from models.machine.systems import system as system_named

if TYPE_CHECKING:
    import ttnn

__all__ = [
    "DEFAULT_MESH",
    "HARDWARE_HINT",
    "MODES",
    "Mode",
    "OpenMesh",
    "RunMode",
    "cards",
    "choose_mode",
    "open_mesh",
    "parse_mesh",
    "quiet_ttnn",
]

DEFAULT_MESH = "2x4"
"""Mesh used where the user names none."""

HARDWARE_HINT = (
    "install the kernel driver tt-kmd, flash the firmware with tt-flash and install the sfpi compiler, so "
    f"that {CARD_DIRECTORY} lists the cards; or use mode 'golden' or 'dry-run', which need none"
)
"""How a machine without cards gets to hardware."""

MODES = {
    "hardware": "hardware: computed on Tenstorrent cards",
    "simulator": "simulator: ttnn's kernels executed by Tenstorrent's functional simulator, not on silicon",
    "golden": "golden: a mock mesh, numbers computed by torch on this host, not on silicon",
}
"""The modes that compute numbers, each with a sentence that a user reads first."""

# DRAM of each chip that is set aside for captured programs. A guided step is about 4000 ops; what an op takes is a few
# KB of dispatch commands, which only silicon can tell exactly: ttnn names the size that it needed if this is too small.
TRACE_BYTES = 128 << 20
# ttnn's limit on a wait for the chips; it reads it when it first looks for devices.
OPERATION_TIMEOUT = "TT_METAL_OPERATION_TIMEOUT_SECONDS"
RunMode = Literal["hardware", "simulator", "golden", "dry-run"]
Mode = Literal["auto", "hardware", "simulator", "golden", "dry-run"]
REAL = ("hardware", "simulator")
"""The modes in which ttnn's kernels run."""


@dataclass
class OpenMesh:
    """An open mesh and how it runs. Close it, or use it in a `with` block."""

    device: "ttnn.MeshDevice"
    mode: RunMode
    system: str
    """What the mesh is part of: a mock system's name, "hardware" or "simulator"."""
    can_capture: bool = False
    """Whether a stretch of program can be captured and replayed: mock and simulator have no queues to replay from."""
    _parent: "ttnn.MeshDevice | None" = None
    _closed: bool = field(default=False, init=False)

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed the mesh."""
        return not self._closed

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the mesh."""
        rows, cols = self.device.shape
        return rows, cols

    def close(self) -> None:
        """Close the mesh; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self.mode not in REAL:
            _mock().close_mock_mesh(self.device)
            return
        ttnn = quiet_ttnn()
        ttnn.close_mesh_device(self.device)
        if self._parent is not None:
            ttnn.close_mesh_device(self._parent)
        ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)

    def __enter__(self) -> "OpenMesh":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_mesh(mesh: str | tuple[int, int]) -> tuple[int, int]:
    """Return (rows, columns) of a mesh given like "2x4" or (2, 4).

    Raises:
        InputError: `mesh` is not two positive numbers.
    """
    if not isinstance(mesh, (str, tuple, list)):
        raise InputError(f"mesh {short(mesh)} is not ROWSxCOLUMNS: write e.g. 2x4, or give an open mesh")
    text = mesh if isinstance(mesh, str) else "x".join(map(short, mesh[:3]))
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*[xX]\s*([0-9]{1,6})\s*", text)
    rows, cols = (int(match[1]), int(match[2])) if match else (0, 0)
    if rows < 1 or cols < 1:
        raise InputError(f"mesh {short(text)} is not ROWSxCOLUMNS with at least one chip each; write e.g. 2x4")
    return rows, cols


def choose_mode(mode: Mode = "auto", *, card_directory: Path | None = None) -> RunMode:
    """The mode a run will have: the one named, or for "auto" hardware if there are cards, else golden.

    ttnn opens the simulator wherever the environment names one, cards or not. So "auto" is then "simulator".

    Args:
        mode: what was asked for.
        card_directory: where to look for cards; the kernel driver's directory by default.

    Raises:
        InputError: there is no such mode.
        MachineError: mode "hardware" on a machine without cards or with a simulator named, or mode "simulator" without
            what it needs.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode {mode!r} does not exist; choose one of {', '.join(get_args(Mode))}")
    found, named = cards(card_directory), simulator.named()
    if mode == "simulator" or (mode == "auto" and named is not None):
        simulator.check()
        return "simulator"
    if mode == "auto":
        return "hardware" if found else "golden"
    if mode == "hardware" and named is not None:
        raise MachineError(
            f"mode 'hardware': {simulator.VARIABLE} names {named}, which ttnn would open in place of the cards; unset "
            "it, or use mode 'simulator'"
        )
    if mode == "hardware" and not found:
        raise MachineError(f"mode 'hardware' needs a Tenstorrent card and none was found; {HARDWARE_HINT}")
    return cast(RunMode, mode)


def open_mesh(
    mesh: str | tuple[int, int] = DEFAULT_MESH,
    mode: Mode = "auto",
    *,
    system: str | None = None,
    ring: bool | None = None,
    operation_seconds: float | None = None,
    card_directory: Path | None = None,
) -> OpenMesh:
    """Open a mesh.

    Naming mode "golden" or "dry-run" is what asks for a mock on a machine with cards; "auto" never does.

    Args:
        mesh: shape, as "2x4" or (2, 4).
        mode: "hardware", "simulator" (Tenstorrent's functional simulator, which the environment names), "golden" (mock
            mesh, numbers from torch), "dry-run" (mock mesh, no numbers), or "auto": see `choose_mode`.
        system: what the mesh is part of, by its name in `models.machine.systems`. It chooses the mock; on hardware it
            says whether the fabric is started as rings, which the machine's cables must allow. By default the smallest
            mock that holds the mesh, and lines.
        ring: on hardware, whether the fabric is started as rings; by the system if None.
        operation_seconds: on hardware, the time after which ttnn gives up waiting for chips that make no progress. It
            counts at the first open of a process, and not where the user's environment has a limit. None is no limit.
        card_directory: where to look for cards; the kernel driver's directory by default.

    Raises:
        ValueError: the mesh, the mode or the system is not one, or the mesh does not fit it.
        RuntimeError: no card for mode "hardware", or this process is bound to another cluster.
    """
    rows, cols = parse_mesh(mesh)
    check_limits()
    chosen = choose_mode(mode, card_directory=card_directory)
    named = system_named(system) if system is not None else None
    if chosen in REAL:
        device, parent = _open_real(
            rows, cols, chosen, named is not None and named.ring if ring is None else ring, operation_seconds
        )
        opened = OpenMesh(device, chosen, chosen, can_capture=chosen == "hardware", _parent=parent)
    else:
        if named is not None and named.mock is None:
            raise InputError(f"system {named.name} has no mock, so nothing can be run for it without cards")
        mock = named.mock if named is not None else None
        device = _mock().open_mock_mesh(
            rows, cols, numbers=chosen == "golden", system=mock, beside_cards=mode != "auto"
        )
        whole = _mock().process_system()
        assert whole is not None
        opened = OpenMesh(device, chosen, whole.name)
    if mode == "auto":
        why = {"hardware": "cards found", "simulator": f"named by {simulator.VARIABLE}"}.get(
            chosen, "no card found: mock mesh, numbers from torch"
        )
        logger.info(f"mesh {rows}x{cols} in mode {chosen} ({why})")
    return opened


def _mock() -> ModuleType:
    """Import the mock, which a run on hardware never needs."""
    from models.mock import mesh

    return mesh


def _open_real(
    rows: int, cols: int, mode: RunMode, ring: bool, operation_seconds: float | None
) -> "tuple[ttnn.MeshDevice, ttnn.MeshDevice | None]":
    """The mesh, and the mesh of the whole machine if it had to be opened around it.

    With a fabric every chip of the machine has to be open, so a smaller mesh is cut from the whole. A single chip has
    no fabric, and ttnn refuses to start one.
    """
    bind_process("cards" if mode == "hardware" else "simulator")
    ttnn = quiet_ttnn()
    trace_bytes = TRACE_BYTES if mode == "hardware" else 0
    variables = log_level("warn")
    if mode == "simulator":
        variables |= simulator.variables()
    elif operation_seconds is not None and not os.environ.get(OPERATION_TIMEOUT):
        variables[OPERATION_TIMEOUT] = f"{operation_seconds:.0f}"
    with environment(variables):
        if ttnn.get_num_devices() > 1:
            ttnn.set_fabric_config(ttnn.FabricConfig.FABRIC_1D_RING if ring else ttnn.FabricConfig.FABRIC_1D)
    whole = None
    try:
        all_rows, all_cols = ttnn._ttnn.multi_device.SystemMeshDescriptor().shape()
        if rows * cols == all_rows * all_cols:
            return ttnn.open_mesh_device(ttnn.MeshShape(rows, cols), trace_region_size=trace_bytes), None
        block = block_within((all_rows, all_cols), rows, cols)
        if block is None:
            raise InputError(
                f"mesh {rows}x{cols} does not fit this {'machine' if mode == 'hardware' else mode}'s "
                f"{all_rows}x{all_cols} chips; "
                "choose a rectangle within it"
            )
        whole = ttnn.open_mesh_device(ttnn.MeshShape(all_rows, all_cols), trace_region_size=trace_bytes)
        device = whole.create_submesh(ttnn.MeshShape(*block))
        if block != (rows, cols):
            device.reshape(ttnn.MeshShape(rows, cols))
        return device, whole
    except BaseException:
        if whole is not None:
            ttnn.close_mesh_device(whole)
        ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)
        raise
