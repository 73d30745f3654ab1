"""Fixtures of the whole test suite: one cluster per process, meshes by layout name."""

import os
from collections.abc import Callable, Iterator

import pytest
from loguru import logger

PLAIN = "-plain"


def pytest_configure(config: pytest.Config) -> None:
    logger.disable("ttnn")  # it prints its configuration when imported
    # Read by OpenMP when torch loads it: golden matrices are small, and threads that spin while they wait take the
    # cores from whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accuracy", action="store_true", help="print the worst accuracy that each test measured")
    parser.addoption("--system", help="the mock system of which meshes are parts, such as galaxy-torus")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With --accuracy: per test function, the worst PCC and relative RMSE over its meshes and sizes."""
    if not config.getoption("--accuracy"):
        return
    from tests.support import ACCURACY

    terminalreporter.section("accuracy against the float32 reference (worst case; rmse is relative)")
    for test in sorted({row.test for row in ACCURACY}):
        rows = [row for row in ACCURACY if row.test == test]
        ratios = [row.rmse / row.bf16_rmse for row in rows if row.bf16_rmse]
        beside = f", {max(ratios):.2f} x PyTorch's bfloat16 rmse" if ratios else ""
        pcc, rmse = min(row.pcc for row in rows), max(row.rmse for row in rows)
        terminalreporter.line(f"{test}: {len(rows)} comparisons, pcc {pcc:.5f}, rmse {rmse:.4f}{beside}")


def _chips(item: pytest.Item) -> int:
    from models.parallel import Layout

    try:
        params = item.callspec.params  # type: ignore[attr-defined]
        rows, cols = Layout.parse((params.get("halves") or params["mesh"]).removesuffix(PLAIN)).mesh_shape
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0  # the test wants no mesh of ours
    return rows * cols


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bind this process's mock cluster to a system that holds every mesh the selected tests want.

    A process sees one cluster only. Alone, tests for up to 8 chips run on the T3000 they are written for; together
    with 4x8 tests they run on part of a Galaxy.
    """
    from models.device import cards
    from models.mock.mesh import set_process_system

    chips = max((_chips(item) for item in items), default=0)
    if chips and not cards():
        set_process_system(config.getoption("--system") or ("t3000" if chips <= 8 else "galaxy"))


@pytest.fixture(scope="session")
def open_layout() -> Iterator[Callable]:
    """Open the mesh of a layout such as ``2x4sp0tp1``, once per session; real cards where there are some.

    With ``-plain`` behind it, layers compose single ops instead of using fused ones. Cards are open as one mesh at a
    time: two meshes of the same chips would each take all of their memory.
    """
    from models.device import OpenMesh, cards, open_mesh
    from models.parallel import Layout, Mesh

    opened: dict[str, tuple[OpenMesh, Mesh]] = {}

    def close() -> None:
        for device, mesh in opened.values():
            mesh.release()
            device.close()
        opened.clear()

    def open_(layout_text: str) -> Mesh:
        if layout_text not in opened:
            if cards():
                close()
            layout = Layout.parse(layout_text.removesuffix(PLAIN))
            device = open_mesh(layout.mesh_shape)
            opened[layout_text] = (device, Mesh(device.device, layout, fused=not layout_text.endswith(PLAIN)))
        return opened[layout_text][1]

    yield open_
    close()


@pytest.fixture
def mesh(request: pytest.FixtureRequest, open_layout: Callable):
    """The mesh of the layout that the test is parametrised with (indirectly)."""
    return open_layout(request.param)
