"""The systems file: complete, sourced, and in agreement with what ttnn says of the mock."""

import pytest

from models.machine import systems as module
from models.machine.systems import mock_of, system, systems
from models.mock.cluster import SYSTEMS
from models.mock.mesh import process_system


@pytest.mark.parametrize(
    ("name", "mesh", "grid", "tflops"),
    [("loudbox", (2, 4), (8, 8), 131.1), ("T3K", (2, 4), (8, 8), 131.1), ("galaxy", (4, 8), (8, 9), 147.5)],
)
def test_published_systems(name, mesh, grid, tflops):
    found = system(name)
    assert (found.mesh, found.grid, found.chips) == (mesh, grid, mesh[0] * mesh[1])
    assert found.peak_flops("HiFi2") / 1e12 == pytest.approx(tflops, abs=0.1)
    assert found.peak_flops("LoFi", cores=1) == 4.096e12
    assert found.architecture.dram_bytes == 12 * 1_070_773_184


def test_blackhole_is_marked_as_unverified():
    assert {found.verified for found in systems().values() if found.architecture.name == "blackhole"} == {False}


def test_every_mock_stands_for_a_system():
    assert {found.mock for found in systems().values() if found.verified} == set(SYSTEMS)
    with pytest.raises(ValueError, match=r"no system of systems\.toml has the mock 't4000'"):
        mock_of("t4000")


def test_names_are_unique():
    names = [name for found in systems().values() for name in (found.name, *found.aliases)]
    assert len(names) == len(set(names))


def test_bad_names():
    with pytest.raises(ValueError, match="system 't4000' does not exist: choose from n150, n300"):
        system("t4000")
    with pytest.raises(ValueError, match="'HiFi5' does not exist: choose from LoFi, HiFi2"):
        system("galaxy").peak_flops("HiFi5")


@pytest.mark.parametrize(
    ("line", "message"),
    [("clock_hz = 1\nsource = {}", "differ in clock_hz"), ("source = {clock = 'x'}", "differ in clock")],
)
def test_a_figure_needs_its_source(tmp_path, monkeypatch, line, message):
    data = tmp_path / "systems.toml"
    data.write_text(f"[architecture.new]\n{line}\n[system]\n")
    monkeypatch.setattr(module, "DATA", data)
    with pytest.raises(ValueError, match=message):
        systems.__wrapped__()


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_the_mock_agrees(mesh):
    """ttnn's own answers on the mesh that this process has: grid, links and DRAM."""
    import ttnn

    here = process_system()
    if here is None:
        pytest.skip("real cards: they need not be of a system in the file")
    found = mock_of(here.name)
    assert mesh.grid == found.grid
    assert (mesh.sp.links, mesh.tp.links) == found.links
    view = ttnn.get_memory_view(mesh.device, ttnn.BufferType.DRAM)
    assert view.num_banks == found.architecture.dram_banks
    # A few MB of each bank are the runtime's own.
    assert 0.99 < view.total_bytes_per_bank / found.architecture.dram_bank_bytes <= 1.01
