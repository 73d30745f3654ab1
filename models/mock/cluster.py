"""Mock systems: the Tenstorrent machines that the mock mesh can stand for, and their cluster descriptors.

A cluster descriptor is a YAML file for the runtime. It lists the chips, the chips on PCIe, the wiring of Ethernet
channels between chips, and the tensix rows that are switched off. The files are written from the wiring rules below
into a directory that the caller gives. The hash of its content is part of a file's name.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models.machine.errors import InputError
from models.machine.systems import block_within, mock_of

Coord = tuple[int, int]
Link = tuple[tuple[int, int], tuple[int, int]]
"""A link: two ends, each (chip, Ethernet channel)."""


@dataclass(frozen=True)
class Wiring:
    """Chips of one system and their connections."""

    coords: dict[int, Coord]
    """Chip id -> (row, column) in the system's natural mesh."""
    links: tuple[Link, ...]
    mmio: tuple[int, ...]
    """Chips on PCIe; the others are reached over Ethernet."""
    boards: tuple[tuple[int, ...], ...]
    bus_ids: dict[int, int] | None = None
    """Chip id -> PCIe bus, for the Galaxy's trays; None for other systems."""


@dataclass(frozen=True)
class MockSystem:
    """How the mock stands for a machine of `models.machine.systems`: its chips, their links and their descriptor."""

    name: str
    shape: Coord
    """Natural mesh, (rows, columns)."""
    grid: Coord
    """Compute grid of each chip as the mesh reports it, (x, y) in cores."""
    board: str
    """Board type word of the descriptor: n150, n300 or ubb."""
    harvest_mask: int
    """Bit mask of the tensix rows that are switched off, one bit per row."""
    wire: Callable[[], Wiring]
    ring: bool = False
    """Whether rows and columns are closed to rings."""

    @property
    def chips(self) -> int:
        """Number of chips."""
        return self.shape[0] * self.shape[1]

    def block(self, rows: int, cols: int) -> Coord | None:
        """Return the rectangle of this system that a rows x cols mesh is made from, or None if it does not fit."""
        return block_within(self.shape, rows, cols)


def _bundle(a: int, b: int, channels_a: tuple[int, ...], channels_b: tuple[int, ...]) -> list[Link]:
    return [((a, i), (b, j)) for i, j in zip(channels_a, channels_b, strict=True)]


def _n150() -> Wiring:
    return Wiring(coords={0: (0, 0)}, links=(), mmio=(0,), boards=((0,),))


def _n300_cards(columns: int) -> Wiring:
    """Return the wiring of `columns` n300 cards, each with a left (PCIe) and a right (remote) chip.

    One card is a row of two chips. Two or four cards stand in two rows, with their remote chips on the outside. Of four
    columns of chips, the two in the middle are PCIe chips, as in a T3000. Two columns of chips are the left half of
    that.
    """
    if columns == 1:
        return Wiring(
            coords={0: (0, 0), 1: (0, 1)},
            links=tuple(_bundle(0, 1, (8, 9), (0, 1))),
            mmio=(0,),
            boards=((0, 1),),
        )
    cards = columns
    inner = {0: (0, 1), 1: (1, 1), 2: (0, 2), 3: (1, 2)}
    coords = {chip: inner[chip] for chip in range(cards)}
    links: list[Link] = []
    for left in range(cards):
        row, column = inner[left]
        coords[left + cards] = (row, column - 1 if column == 1 else column + 1)
        links += _bundle(left, left + cards, (8, 9), (0, 1))
    for top in range(0, cards, 2):
        links += _bundle(top, top + 1, (14, 15), (14, 15))
        links += _bundle(top + cards, top + cards + 1, (6, 7), (6, 7))
    if cards == 4:
        links += _bundle(0, 2, (6, 7), (6, 7)) + _bundle(1, 3, (0, 1), (0, 1))
    return Wiring(
        coords=coords,
        links=tuple(links),
        mmio=tuple(range(cards)),
        boards=tuple((left, left + cards) for left in range(cards)),
    )


# The Galaxy has four trays of 2x4 chips. Each tray is a mirror image of its neighbour, so the channel group that points
# away from the middle of the machine is the same on every chip.
_OUTWARD_Y, _OUTWARD_X, _INWARD_X, _INWARD_Y = (tuple(range(4 * g, 4 * g + 4)) for g in range(4))
_BOARD_CODE = {"n150": 0x18, "n300": 0x14, "ubb": 0x35}  # Bits 36-55 of a board id give its type.
_TRAY_BUS = (0xC0, 0x40, 0x00, 0x80)
_ROWS, _COLS = 4, 8


def _galaxy_chip(row: int, col: int) -> int:
    tray = 2 * (row >= _ROWS // 2) + (col >= _COLS // 2)
    location = min(row, _ROWS - 1 - row) * (_COLS // 2) + min(col, _COLS - 1 - col)
    return 4 * location + tray


def _galaxy_links(ring: bool) -> Iterator[Link]:
    for row in range(_ROWS):
        for col in range(_COLS):
            here = _galaxy_chip(row, col)
            if col + 1 < _COLS:
                leave = _INWARD_X if col < _COLS // 2 else _OUTWARD_X
                arrive = _INWARD_X if col + 1 >= _COLS // 2 else _OUTWARD_X
                yield from _bundle(here, _galaxy_chip(row, col + 1), leave, arrive)
            elif ring:
                yield from _bundle(here, _galaxy_chip(row, 0), _OUTWARD_X, _OUTWARD_X)
            if row + 1 < _ROWS:
                leave = _INWARD_Y if row < _ROWS // 2 else _OUTWARD_Y
                arrive = _INWARD_Y if row + 1 >= _ROWS // 2 else _OUTWARD_Y
                yield from _bundle(here, _galaxy_chip(row + 1, col), leave, arrive)
            elif ring:
                yield from _bundle(here, _galaxy_chip(0, col), _OUTWARD_Y, _OUTWARD_Y)


def _galaxy(ring: bool = False) -> Wiring:
    coords = {_galaxy_chip(r, c): (r, c) for r in range(_ROWS) for c in range(_COLS)}
    chips = tuple(sorted(coords))
    return Wiring(
        coords=coords,
        links=tuple(_galaxy_links(ring)),
        mmio=chips,
        boards=(chips,),
        bus_ids={chip: _TRAY_BUS[chip % 4] + chip // 4 + 1 for chip in chips},
    )


def _system(name: str, board: str, harvest_mask: int, wire: Callable[[], Wiring]) -> MockSystem:
    """Return a mock system with the shape, grid and ring of the machine that it stands for."""
    machine = mock_of(name)
    return MockSystem(name, machine.mesh, machine.grid, board, harvest_mask, wire, machine.ring)


SYSTEMS: dict[str, MockSystem] = {
    system.name: system
    for system in (
        _system("n150", "n150", 0b1, _n150),
        _system("n300", "n300", 0b11, lambda: _n300_cards(1)),
        _system("n300-pair", "n300", 0b11, lambda: _n300_cards(2)),
        _system("t3000", "n300", 0b11, lambda: _n300_cards(4)),
        _system("galaxy", "ubb", 0b1, _galaxy),
        _system("galaxy-torus", "ubb", 0b1, lambda: _galaxy(ring=True)),
    )
}
"""All mock systems by name, smallest first."""


def system_named(name: str) -> MockSystem:
    """Return the system called `name`.

    Raises:
        ValueError: there is no system with that name.
    """
    if name not in SYSTEMS:
        raise InputError(f"mock system {name!r} does not exist; choose one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def system_for(rows: int, cols: int, *, ring: bool = False) -> MockSystem:
    """Return the smallest system that holds a rows x cols mesh, with wrap-around links if `ring`.

    Raises:
        ValueError: no system holds it.
    """
    if rows < 1 or cols < 1:
        raise InputError(f"mesh {rows}x{cols} has an empty axis; both axes need at least one chip, e.g. 2x4")
    for system in SYSTEMS.values():
        if system.ring == ring and system.block(rows, cols):
            return system
    raise InputError(
        f"mesh {rows}x{cols} fits no mock system; the largest is a 4x8 Galaxy (or 8x4, 1x32, 32x1), "
        "so choose a rectangle within it, e.g. 4x8, 2x4 or 1x8"
    )


def descriptor(system: MockSystem) -> str:
    """Return the system's cluster descriptor as YAML text."""
    wiring = system.wire()
    chips = sorted(wiring.coords)
    lines = [f"# {system.name}: {system.shape[0]}x{system.shape[1]} mock cluster", "arch:"]
    lines += [f"  {chip}: wormhole_b0" for chip in chips]
    if wiring.bus_ids is None:
        lines += ["chips:"]
        lines += [f"  {chip}: [{wiring.coords[chip][1]}, {wiring.coords[chip][0]}, 0, 0]" for chip in chips]
    else:
        lines += ["chips: {}", "chip_to_bus_id:"]
        lines += [f"  {chip}: '0x{bus:04x}'" for chip, bus in sorted(wiring.bus_ids.items())]
    lines += ["chip_unique_ids:"]
    lines += [f"  {chip}: {0x4D4F434800000000 + chip + 1}" for chip in chips]
    lines += ["ethernet_connections:"] if wiring.links else ["ethernet_connections: []"]
    for (a, channel_a), (b, channel_b) in wiring.links:
        lines += [f"  - [{{chip: {a}, chan: {channel_a}}}, {{chip: {b}, chan: {channel_b}}}]"]
    lines += ["ethernet_connections_to_remote_devices: []", "chips_with_mmio:"]
    lines += [f"  - {index}: {chip}" for index, chip in enumerate(wiring.mmio)]
    lines += ["harvesting:"]
    lines += [
        f"  {chip}: {{noc_translation: true, harvest_mask: {system.harvest_mask}, dram_harvesting_mask: 0, "
        "eth_harvesting_mask: 0, pcie_harvesting_mask: 0}"
        for chip in chips
    ]
    lines += ["boards:"]
    for index, board in enumerate(wiring.boards):
        members = ", ".join(str(chip) for chip in board)
        lines += [
            f"  - [{{board_id: {(1 << 56) + (_BOARD_CODE[system.board] << 36) + index + 1}}}, "
            f"{{board_type: {system.board}}}, "
            f"{{chips: [{members}]}}]"
        ]
    return "\n".join(lines) + "\n"


def write_descriptor(system: MockSystem, directory: Path) -> Path:
    """Write the system's descriptor into `directory` (created if absent) and return its path.

    The name contains the hash of the content, and a rename makes the file visible, so processes may write it at the
    same time.
    """
    text = descriptor(system).encode()
    path = directory / f"{system.name}-{hashlib.sha256(text).hexdigest()[:16]}.yaml"
    if path.exists() and path.read_bytes() == text:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{system.name}-")
    with os.fdopen(handle, "wb") as file:
        file.write(text)
    os.replace(temporary, path)
    return path
