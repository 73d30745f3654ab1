"""What the whole suite shares: each test on its own mock system, and meshes by layout name."""

import collections
import contextlib
import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

_ELSEWHERE = pytest.StashKey[list[Any]]()  # of tests.systems.Elsewhere
_devices: dict[tuple[int, int], Any] = {}  # the open models.device.OpenMesh by shape
_after_tidying = {"resident": 0.0}
_peaks: dict[str, dict[str, float | None]] = {}


def pytest_configure(config: pytest.Config) -> None:
    from models.machine.host import collect_rarely

    collect_rarely()
    logger.disable("ttnn")  # it prints its configuration when imported
    # Read by OpenMP when torch loads it: golden matrices are small, and threads that spin while they wait take the
    # cores from whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.getoption("--evidence") is not None:
        from tests.recording import Recorder

        config.pluginmanager.register(Recorder(Path(config.getoption("--evidence"))))
    if config.getoption("--outcomes-to") is not None:
        from tests.systems import Reporter

        config.pluginmanager.register(Reporter(config.getoption("--outcomes-to")))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accuracy", action="store_true", help="print the worst accuracy that each test measured")
    parser.addoption("--evidence", metavar="FILE", help="add a line to FILE per test: the op configurations it ran")
    parser.addoption("--screenshots", metavar="FOLDER", help="write the pictures of the page that the documents show")
    parser.addoption("--system", help="run every test on this mock system, such as galaxy-torus, and not on its own")
    parser.addoption("--outcomes-to", type=int, metavar="DESCRIPTOR", help="for the suite's own use: see tests.systems")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Peak memory; with --accuracy also, per test function, the worst PCC and relative RMSE over meshes and sizes."""
    for name, peaks in _peaks.items():
        for system, peak in peaks.items():
            if peak is not None:
                beside = f", its other processes, system {system}" if system else ""
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):  # type: ignore[no-untyped-def]
    """Give an xdist worker whole files, and all tests of the Galaxy to one: it starts one process for them."""
    if config.option.dist != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    from tests.systems import names_galaxy

    config.option.loadscopereorder = False  # `pytest_collection_modifyitems` has ordered them

    class ByFileAndSystem(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "galaxy" if names_galaxy(nodeid) else nodeid.partition("::")[0]

    return ByFileAndSystem(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where workers share the files, give out those of few tests first: these are the long ones, whole runs.

    Files of many short tests then end the run, so that no worker waits long for the other.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    from tests.systems import names_galaxy

    counts = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (not names_galaxy(item.nodeid), counts[item.path], str(item.path)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    from models.device import REAL, choose_mode
    from tests.systems import place

    if choose_mode() not in REAL:
        session.config.stash[_ELSEWHERE] = place(session)
    # What the libraries and the test modules hold stays until the end: no collection has to look at it again.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After a file's last test and after a large one free what they left.

    A model and its layers refer to each other, and ttnn keeps the programs that it built for every shape.
    """
    from tests.systems import resident_gigabytes

    same_file = nextitem is not None and nextitem.path == item.path
    if same_file and resident_gigabytes() < _after_tidying["resident"] + 0.1:
        return
    gc.collect()
    if not same_file:
        for device in _devices.values():
            device.device.clear_program_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    _after_tidying["resident"] = resident_gigabytes()


def pytest_sessionfinish(session: pytest.Session) -> None:
    from tests.systems import peak_gigabytes

    gc.unfreeze()
    peaks = {"": peak_gigabytes()}
    for elsewhere in session.config.stash.get(_ELSEWHERE, []):
        elsewhere.close()
        peaks[elsewhere.system] = max(peaks.get(elsewhere.system) or 0.0, elsewhere.peak or 0.0) or None
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

    With ``-plain`` behind it, layers compose single ops instead of using fused ones; with ``-plain-norm`` only instead
    of that one. Cards are open as one mesh at a time: two meshes of the same chips would each take all of their memory.
    """
    from models.device import REAL, choose_mode, open_mesh
    from models.machine.ways import FUSED, Ways, parse_plain
    from models.parallel import Layout, Mesh
    from tests.systems import PLAIN

    meshes: dict[str, Mesh] = {}

    def close() -> None:
        for mesh in meshes.values():
            mesh.release()
        meshes.clear()
        for device in _devices.values():
            device.close()
        _devices.clear()

    def open_(layout_text: str) -> Mesh:
        name, plain, ops = layout_text.partition(PLAIN)
        layout = Layout.parse(name)
        if layout.mesh_shape not in _devices:
            if choose_mode() in REAL:
                close()
            _devices[layout.mesh_shape] = open_mesh(layout.mesh_shape)
        if layout_text not in meshes:
            device = _devices[layout.mesh_shape].device
            meshes[layout_text] = Mesh(
                device, layout, Ways(parse_plain(ops.removeprefix("-") or "all")) if plain else FUSED
            )
        return meshes[layout_text]

    yield open_
    close()


@pytest.fixture
def mesh(request: pytest.FixtureRequest, open_layout: Callable):
    """The mesh of the layout that the test is parametrised with (indirectly)."""
    return open_layout(request.param)
