"""What the whole suite shares: each test on its own mock system, and meshes by layout name."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from loguru import logger

_ELSEWHERE = pytest.StashKey[Any]()  # a tests.systems.Elsewhere, or None
_peaks: dict[str, dict[str, float | None]] = {}


def pytest_configure(config: pytest.Config) -> None:
    logger.disable("ttnn")  # it prints its configuration when imported
    # Read by OpenMP when torch loads it: golden matrices are small, and threads that spin while they wait take the
    # cores from whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.getoption("--outcomes-to") is not None:
        from tests.systems import Reporter

        config.pluginmanager.register(Reporter(config.getoption("--outcomes-to")))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accuracy", action="store_true", help="print the worst accuracy that each test measured")
    parser.addoption("--system", help="run every test on this mock system, such as galaxy-torus, and not on its own")
    parser.addoption("--outcomes-to", type=int, metavar="DESCRIPTOR", help="for the suite's own use: see tests.systems")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Peak memory; with --accuracy also, per test function, the worst PCC and relative RMSE over meshes and sizes."""
    for name, peaks in _peaks.items():
        for system, peak in peaks.items():
            if peak is not None:
                beside = f", its process for system {system}" if system else ""
                terminalreporter.line(f"peak memory of {name}{beside}: {peak:.1f} GB")
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


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give an xdist worker whole files, and all tests of the other system to one: it starts one process for them."""
    if config.getoption("numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadgroup"
        config.pluginmanager.register(_PlainIds())


class _PlainIds:
    """Takes xdist's ``@group`` off the ids in reports, so that ``--last-failed`` finds the tests again."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        report.nodeid = report.nodeid.partition("@")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from tests.systems import T3000, system_of

    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        system = system_of(item)
        item.add_marker(pytest.mark.xdist_group(item.path.stem if system == T3000 else system))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    from models.device import cards
    from tests.systems import place

    if not cards():
        session.config.stash[_ELSEWHERE] = place(session)


def pytest_sessionfinish(session: pytest.Session) -> None:
    from tests.systems import peak_gigabytes

    peaks = {"": peak_gigabytes()}
    elsewhere = session.config.stash.get(_ELSEWHERE, None)
    if elsewhere is not None:
        elsewhere.close()
        peaks[elsewhere.system] = elsewhere.peak
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peaks"] = peaks
    else:
        _peaks["this process"] = peaks


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:  # type: ignore[no-untyped-def]
    _peaks[node.gateway.id] = getattr(node, "workeroutput", {}).get("peaks", {})


@pytest.fixture(scope="session")
def open_layout() -> Iterator[Callable]:
    """Give the mesh of a layout such as ``2x4sp0tp1``; layouts of one shape share a device that is opened once.

    With ``-plain`` behind it, layers compose single ops instead of using fused ones. Cards are open as one mesh at a
    time: two meshes of the same chips would each take all of their memory.
    """
    from models.device import OpenMesh, cards, open_mesh
    from models.parallel import Layout, Mesh
    from tests.systems import PLAIN

    devices: dict[tuple[int, int], OpenMesh] = {}
    meshes: dict[str, Mesh] = {}

    def close() -> None:
        for mesh in meshes.values():
            mesh.release()
        meshes.clear()
        for device in devices.values():
            device.close()
        devices.clear()

    def open_(layout_text: str) -> Mesh:
        layout = Layout.parse(layout_text.removesuffix(PLAIN))
        if layout.mesh_shape not in devices:
            if cards():
                close()
            devices[layout.mesh_shape] = open_mesh(layout.mesh_shape)
        if layout_text not in meshes:
            device = devices[layout.mesh_shape].device
            meshes[layout_text] = Mesh(device, layout, fused=not layout_text.endswith(PLAIN))
        return meshes[layout_text]

    yield open_
    close()


@pytest.fixture
def mesh(request: pytest.FixtureRequest, open_layout: Callable):
    """The mesh of the layout that the test is parametrised with (indirectly)."""
    return open_layout(request.param)
