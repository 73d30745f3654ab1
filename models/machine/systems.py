"""Tenstorrent systems as data: chips, cores, memory, links, with a source for every number (`systems.toml`).

Code outside the model reads the facts about a machine here: the mock, the cost model, the command line. Model code asks
the open mesh instead.
"""

import functools
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from models.machine.errors import InputError

DATA = Path(__file__).with_name("systems.toml")
# Fields that are names. All other fields are figures and need a source.
_NAMES = frozenset({"name", "aliases", "architecture", "mock", "verified", "ring", "source"})


@dataclass(frozen=True)
class Architecture:
    """One chip architecture. Units: Hz, bytes, bytes per second."""

    name: str
    clock_hz: float
    flops_per_core_cycle: int
    """FLOPs of one core in one cycle at LoFi; a multiply-add is two."""
    fidelity_passes: dict[str, int]
    """Math fidelity, such as HiFi2 -> passes of the matrix engine."""
    l1_bytes: int
    """Bytes of L1 of one core that circular buffers and L1 tensors share."""
    dram_banks: int
    dram_bank_bytes: int
    dram_bytes_per_second: float
    link_bytes_per_second: float
    """Bandwidth of one Ethernet link in one direction."""
    source: dict[str, str]

    @property
    def dram_bytes(self) -> int:
        """Bytes of DRAM of one chip."""
        return self.dram_banks * self.dram_bank_bytes

    def peak_flops(self, cores: int, fidelity: str) -> float:
        """Return the matrix FLOP per second of `cores` cores.

        Raises:
            ValueError: there is no such fidelity.
        """
        if fidelity not in self.fidelity_passes:
            raise InputError(
                f"math fidelity {fidelity!r} does not exist: choose from {', '.join(self.fidelity_passes)}"
            )
        return cores * self.flops_per_core_cycle * self.clock_hz / self.fidelity_passes[fidelity]


@dataclass(frozen=True)
class System:
    """One machine: its chips and their connections."""

    name: str
    aliases: tuple[str, ...]
    architecture: Architecture
    mesh: tuple[int, int]
    """Chips, (rows, columns)."""
    grid: tuple[int, int]
    """Compute cores of a chip, (x, y)."""
    links: tuple[int, int]
    """Ethernet links between neighbours along (axis 0, axis 1)."""
    ring: bool
    """Whether both axes are closed to rings; otherwise they are lines."""
    verified: bool
    """Whether any code here opens such a system, at least as a mock."""
    source: dict[str, str]
    mock: str | None = None
    """The mock system that stands for this one."""

    @property
    def chips(self) -> int:
        """Number of chips."""
        return self.mesh[0] * self.mesh[1]

    @property
    def cores(self) -> int:
        """Number of compute cores of one chip."""
        return self.grid[0] * self.grid[1]

    def peak_flops(self, fidelity: str, cores: int | None = None) -> float:
        """Return the matrix FLOP per second of one chip, or of `cores` of its cores.

        Raises:
            ValueError: there is no such fidelity.
        """
        return self.architecture.peak_flops(self.cores if cores is None else cores, fidelity)


@functools.cache
def systems() -> dict[str, System]:
    """Return every system by name.

    Raises:
        ValueError: the data file has a figure without a source, or an unknown field.
    """
    data = tomllib.loads(DATA.read_text(encoding="utf-8"))
    kinds = {name: _make(Architecture, name, table) for name, table in data["architecture"].items()}
    return {
        name: _make(System, name, table | {"architecture": kinds[table["architecture"]]})
        for name, table in data["system"].items()
    }


def system(name: str) -> System:
    """Return the system called `name`, by its own name or an alias.

    Raises:
        ValueError: there is no such system.
    """
    wanted = name.strip().lower()
    for candidate in systems().values():
        if wanted in (candidate.name, *candidate.aliases):
            return candidate
    raise InputError(f"system {name!r} does not exist: choose from {', '.join(systems())}")


def mock_of(mock: str) -> System:
    """Return the system that the mock system `mock` stands for.

    Raises:
        ValueError: there is no such system.
    """
    for candidate in systems().values():
        if candidate.mock == mock:
            return candidate
    raise InputError(f"no system of {DATA.name} has the mock {mock!r}")


def chip_dram() -> int:
    """Return the DRAM bytes of the smallest chip of all verified systems."""
    return min(found.architecture.dram_bytes for found in systems().values() if found.verified)


def block_within(shape: tuple[int, int], rows: int, cols: int) -> tuple[int, int] | None:
    """The rectangle of a mesh of `shape` that a rows x cols mesh is made from, or None if it does not fit.

    It is the mesh itself where that fits, else its transpose, else (for a line) the flattest rectangle
    through which the line can wind.
    """
    candidates = [(rows, cols), (cols, rows)]
    if 1 in (rows, cols):
        length = rows * cols
        candidates += [(r, length // r) for r in range(2, shape[0] + 1) if length % r == 0]
    return next((b for b in candidates if b[0] <= shape[0] and b[1] <= shape[1]), None)


def _make(kind: type, name: str, table: dict[str, Any]) -> Any:
    figures = {key for key in table if key not in _NAMES}
    if figures != set(table.get("source", {})):
        unmatched = sorted(figures ^ set(table.get("source", {})))
        raise ValueError(f"{DATA.name}, {name}: figures and sources differ in {', '.join(unmatched)}")
    unknown = set(table) - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"{DATA.name}, {name}: unknown fields {', '.join(sorted(unknown))}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return kind(name=name, **values)
