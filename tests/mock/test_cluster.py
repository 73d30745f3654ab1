from collections import Counter
from pathlib import Path

import pytest
import yaml

from models.mock.cluster import (
    SYSTEMS,
    MockSystem,
    block_within,
    descriptor,
    system_for,
    system_named,
    write_descriptor,
)

EVERY = pytest.mark.parametrize("system", SYSTEMS.values(), ids=list(SYSTEMS))


def positions(system: MockSystem) -> dict[int, tuple[int, int]]:
    return system.wire().coords


@EVERY
def test_chips_fill_the_mesh_once(system: MockSystem) -> None:
    rows, cols = system.shape
    places = positions(system)
    assert sorted(places) == list(range(rows * cols))
    assert sorted(places.values()) == [(r, c) for r in range(rows) for c in range(cols)]


@EVERY
def test_every_channel_has_one_link(system: MockSystem) -> None:
    ends = Counter(end for link in system.wire().links for end in link)
    assert all(count == 1 for count in ends.values())
    assert all(0 <= channel < 16 for _, channel in ends)


@EVERY
def test_links_join_exactly_the_neighbours(system: MockSystem) -> None:
    rows, cols = system.shape
    places = positions(system)
    bundle = 4 if system.board == "ubb" else 2
    wanted: Counter[frozenset[tuple[int, int]]] = Counter()
    for r in range(rows):
        for c in range(cols):
            if r + 1 < rows or system.ring:
                wanted[frozenset(((r, c), ((r + 1) % rows, c)))] += bundle
            if c + 1 < cols or system.ring:
                wanted[frozenset(((r, c), (r, (c + 1) % cols)))] += bundle
    found = Counter(frozenset((places[a], places[b])) for (a, _), (b, _) in system.wire().links)
    assert found == wanted


@EVERY
def test_descriptor_describes_the_system(system: MockSystem) -> None:
    tree = yaml.safe_load(descriptor(system))
    chips = set(range(system.chips))
    assert set(tree["arch"]) == chips == set(tree["harvesting"]) == set(tree["chip_unique_ids"])
    assert len(set(tree["chip_unique_ids"].values())) == system.chips
    assert sorted(chip for board in tree["boards"] for chip in board[2]["chips"]) == sorted(chips)
    assert {chip for entry in tree["chips_with_mmio"] for chip in entry.values()} <= chips
    assert len(tree["ethernet_connections"]) == len(system.wire().links)
    # A harvested row takes one of the ten rows of eight cores.
    harvested = {bin(entry["harvest_mask"]).count("1") for entry in tree["harvesting"].values()}
    assert harvested == {10 - system.grid[1]}


@pytest.mark.parametrize(
    ("shape", "name", "block"),
    [
        ((1, 1), "n150", (1, 1)),
        ((1, 2), "n300", (1, 2)),
        ((2, 1), "n300", (1, 2)),
        ((2, 2), "n300-pair", (2, 2)),
        ((1, 4), "n300-pair", (2, 2)),
        ((2, 4), "t3000", (2, 4)),
        ((4, 2), "t3000", (2, 4)),
        ((1, 8), "t3000", (2, 4)),
        ((8, 1), "t3000", (2, 4)),
        ((1, 3), "t3000", (1, 3)),
        ((2, 8), "galaxy", (2, 8)),
        ((4, 4), "galaxy", (4, 4)),
        ((3, 5), "galaxy", (3, 5)),
        ((5, 3), "galaxy", (3, 5)),
        ((4, 8), "galaxy", (4, 8)),
        ((8, 4), "galaxy", (4, 8)),
        ((1, 32), "galaxy", (4, 8)),
        ((32, 1), "galaxy", (4, 8)),
    ],
)
def test_smallest_system_that_holds_a_mesh(shape: tuple[int, int], name: str, block: tuple[int, int]) -> None:
    system = system_for(*shape)
    assert system.name == name
    assert system.block(*shape) == block


def test_ring_is_a_system_of_its_own() -> None:
    assert system_for(4, 8, ring=True).name == "galaxy-torus"


@pytest.mark.parametrize("shape", [(16, 2), (2, 16), (5, 8), (1, 33), (1, 31), (6, 6)])
def test_mesh_that_fits_nothing(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"mesh {shape[0]}x{shape[1]} fits no mock system.*4x8"):
        system_for(*shape)


@pytest.mark.parametrize("shape", [(0, 1), (2, 0), (-1, 4)])
def test_empty_mesh(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one chip"):
        system_for(*shape)


def test_unknown_system() -> None:
    with pytest.raises(ValueError, match=r"'t4000' does not exist.*t3000"):
        system_named("t4000")


def test_block_never_exceeds_the_system() -> None:
    for rows in range(1, 12):
        for cols in range(1, 12):
            block = block_within((4, 8), rows, cols)
            if block is not None:
                assert block[0] <= 4
                assert block[1] <= 8
                assert block[0] * block[1] == rows * cols


def test_written_once_and_mended(tmp_path: Path) -> None:
    directory = tmp_path / "clusters"
    path = write_descriptor(system_named("t3000"), directory)
    written = path.stat().st_mtime_ns
    assert write_descriptor(system_named("t3000"), directory) == path
    assert path.stat().st_mtime_ns == written
    path.write_text("arch:")
    write_descriptor(system_named("t3000"), directory)
    assert path.read_text() == descriptor(system_named("t3000"))
    other = write_descriptor(system_named("galaxy"), directory)
    assert sorted(directory.iterdir()) == sorted([path, other])
