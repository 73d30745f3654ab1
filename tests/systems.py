"""Which mock system a test's meshes are part of, and the process in which the tests of another system run.

ttnn binds a process to one cluster. So the system belongs to the test: `system_of` reads it from the test alone, and a
process that has tests of both systems gives those of the Galaxy to a process of their own. So it does with the tests of
a file that are marked ``alone``, since they need much memory or open many meshes. Meshes and programs leave memory
behind, so a process of that kind ends when it holds more than `ENOUGH` after a test, and another one goes on.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

T3000, GALAXY = "t3000", "galaxy"
PLAIN = "-plain"
_T3000_CHIPS = 8
ENOUGH = 2.1  # GB that a test may leave behind; the largest one of the Galaxy takes 0.7 GB while it runs


def system_of(item: pytest.Item) -> str:
    """Name the mock system on which a test runs.

    It is the one that its mark ``system`` names, else the smaller one that holds the layouts in its parameters if its
    meshes come from `open_layout`, else the T3000.
    """
    mark = item.get_closest_marker("system")
    if mark is not None:
        return mark.args[0]
    if "open_layout" not in getattr(item, "fixturenames", ()):
        return T3000
    callspec = getattr(item, "callspec", None)
    values = () if callspec is None else callspec.params.values()
    return GALAXY if max(map(_chips, values), default=0) > _T3000_CHIPS else T3000


def names_galaxy(test: str) -> bool:
    """Whether a test's id names a layout that takes a Galaxy; good enough to hand tests out, and for nothing else."""
    return max(map(_chips, re.findall(r"\d+x\d+(?:cfg\d)?sp\dtp\d", test)), default=0) > _T3000_CHIPS


def _chips(value: Any) -> int:
    from models.parallel import Layout

    try:
        rows, columns = Layout.parse(value.partition(PLAIN)[0]).mesh_shape
    except (AttributeError, ValueError):
        return 0
    return rows * columns


def place(session: pytest.Session) -> "list[Elsewhere]":
    """Bind this process to the system of its tests; put the others into processes of their own.

    The process keeps to the T3000 if it has tests of both.
    """
    from models.mock.mesh import set_process_system

    forced = session.config.getoption("--system")
    if forced:
        set_process_system(forced)
        return []
    systems = {system_of(item) for item in session.items}
    here = T3000 if T3000 in systems or not systems else systems.pop()
    set_process_system(here)
    foreign: dict[tuple[str, str], list[pytest.Item]] = {}
    several = len({item.path for item in session.items}) > 1
    for item in session.items:
        if system_of(item) != here:
            foreign.setdefault((system_of(item), ""), []).append(item)
        elif several and item.get_closest_marker("alone") is not None:
            foreign.setdefault((here, str(item.path)), []).append(item)
    moved: dict[pytest.Item, pytest.Item] = {}
    made = []
    for (system, _), items in foreign.items():
        made.append(Elsewhere(session.config, system, [item.nodeid for item in items]))
        moved |= {item: ElsewhereItem.standing_for(item, made[-1]) for item in items}
    session.items[:] = [moved.get(item, item) for item in session.items]
    return made


class ElsewhereItem(pytest.Item):
    """A test that runs in another process and has its outcome here."""

    elsewhere: "Elsewhere"

    @classmethod
    def standing_for(cls, item: pytest.Item, elsewhere: "Elsewhere") -> "ElsewhereItem":
        """Make an item of the same name and place as ``item``."""
        assert item.parent is not None
        other = cls.from_parent(item.parent, name=item.name, nodeid=item.nodeid)
        other.elsewhere = elsewhere
        other.own_markers = [mark for mark in item.iter_markers() if mark.name == "timeout"]
        other.location = item.location
        return other

    def runtest(self) -> None:
        """Wait for the outcome and repeat it."""
        row = self.elsewhere.outcome(self.nodeid)
        self.user_properties += map(tuple, row["properties"])
        for title, text in row["sections"]:
            self.add_report_section("call", f"({self.elsewhere.system}) {title}", text)
        if row["outcome"] == "skipped":
            pytest.skip(row["text"])
        if row["outcome"] == "failed":
            raise ElsewhereFailure(row["text"])

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the other process's own words where the failure is its."""
        if isinstance(excinfo.value, ElsewhereFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Name the test's own place."""
        path, line, name = self.location
        return path, line, name


class ElsewhereFailure(Exception):
    """A test failed in the process that ran it."""


class Elsewhere:
    """A pytest of its own, started when the first of its tests is due, and anew when it has had `ENOUGH`."""

    def __init__(self, config: pytest.Config, system: str, tests: Sequence[str]) -> None:
        """Prepare to run ``tests`` on ``system``."""
        self.system = system
        self.peak: float | None = None
        self._config, self._tests = config, tests
        self._rows: dict[str, dict[str, Any]] = {}
        self._reported: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: TextIO | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def outcome(self, test: str) -> dict[str, Any]:
        """Wait until ``test`` has run and return what `Reporter` wrote of it."""
        while test not in self._rows:
            if self._process is None:
                self._start()
            elif not self._read():
                break
        if test in self._rows:
            return self._rows.pop(test)
        assert self._process is not None
        text = f"the process for system {self.system} ended with {self._process.wait()} before it reported {test}:\n"
        return {"outcome": "failed", "text": text + self._log().read_text()[-3000:], "sections": [], "properties": []}

    def close(self) -> None:
        """End the process: by itself if every outcome was asked for, else at once."""
        if self._process is not None and (self._rows or self._left()):
            self._process.terminate()
        while self._read():
            pass
        self._end()

    def _left(self) -> list[str]:
        return [test for test in self._tests if test not in self._reported]

    def _read(self) -> bool:
        """Take the next line; False where none will come."""
        if self._pipe is None:
            return False
        line = self._pipe.readline()
        if not line:
            return False
        row = json.loads(line)
        if "peak" in row:
            self.peak = max(self.peak or 0.0, row["peak"])
            if row["enough"] and self._left():
                self._end()
        else:
            self._rows[row["test"]] = row
            self._reported.add(row["test"])
        return True

    def _end(self) -> None:
        if self._process is None or self._pipe is None or self._folder is None:
            return
        self._process.wait()
        self._pipe.close()
        self._folder.cleanup()
        self._process = self._pipe = self._folder = None

    def _log(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, "log")

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mochi-tt-tests-")
        tests = Path(self._folder.name, "tests")
        tests.write_text("\n".join(self._left()))
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-m", ""]
        for name in ("model", "variant", "precision"):
            value = self._config.getoption(f"--{name}", None)
            command += [] if value is None else [f"--{name}", value]
        command += ["--system", self.system, "--outcomes-to", str(writing), f"@{tests}"]
        with self._log().open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self._config.rootpath, stdout=log, stderr=log, pass_fds=(writing,)
            )
        os.close(writing)
        self._pipe = os.fdopen(reading)


class Reporter:
    """In the other process: writes each test's outcome as a line of JSON, and at the end the peak of memory.

    It ends the run after a test that leaves more than `ENOUGH` memory behind.
    """

    def __init__(self, descriptor: int) -> None:
        """Write to an open file descriptor."""
        os.set_inheritable(descriptor, False)
        self._pipe = os.fdopen(descriptor, "w", buffering=1)
        self._row: dict[str, Any] = {}
        self._session: pytest.Session | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Keep the session, to end it."""
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather a test's three reports."""
        if report.when == "setup":
            self._row = {"test": report.nodeid, "outcome": "passed", "text": ""}
        if report.skipped and isinstance(report.longrepr, tuple):
            self._row |= {"outcome": "skipped", "text": report.longrepr[2].removeprefix("Skipped: ")}
        elif report.failed:
            self._row |= {"outcome": "failed", "text": self._row["text"] + report.longreprtext}
        if report.when == "teardown":
            self._row |= {"sections": report.sections, "properties": report.user_properties}
            print(json.dumps(self._row), file=self._pipe)
            if self._session is not None and resident_gigabytes() > ENOUGH:
                self._session.shouldstop = "enough memory is held"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the peak of memory, and whether the run was ended for it."""
        enough = bool(session.shouldstop)
        print(json.dumps({"peak": peak_gigabytes(), "enough": enough}), file=self._pipe)


def peak_gigabytes() -> float:
    """Largest resident memory of this process so far, 0 where the system does not tell."""
    return _memory("VmHWM:")


def resident_gigabytes() -> float:
    """Resident memory of this process, 0 where the system does not tell."""
    return _memory("VmRSS:")


def _memory(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith(name)), 0.0)
