"""The job behind `mochi-tt selftest`: every case in a process that may hang or crash, and what to do about each.

A process runs one case after the other and says how far it is. Where it hangs, crashes or refuses a case, a new one
first tries a transfer, and goes on with the next case only if that works.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from models.device import MODES, REAL, choose_mode, parse_mesh
from models.jobs.generate import PACKAGES, version_of
from models.machine.errors import InputError
from models.machine.host import quiet_ttnn
from models.machine.profile import Profile
from models.machine.ways import ALTERNATIVES, FUSED, NO_ALTERNATIVE, Ways

if TYPE_CHECKING:
    from models.conformance.bench import Case

REPORT_VERSION = 1
PROBE = "transfer"
KINDS = ("small", "shape", "whole")
NOT_PASSED = ("deviates", "hung", "refused", "crashed")
_CHILD = (sys.executable, "-m", "models.conformance.child")
# A path tells who ran the program.
_PATH = re.compile(r"~?/?(?:[\w.+@-]+/)+([\w.+@-]+)")
_MEANS = {
    "deviates": "computes something else than it should",
    "hung": "did not end",
    "refused": "was refused by ttnn",
    "crashed": "ended the process",
}


@dataclass(frozen=True)
class SelfTest:
    """What is tested.

    Attributes:
        mode: `hardware`, `simulator` or `golden`.
        mesh: (rows, columns) of chips.
        layout: such as `sp0tp1`, by the mesh if None.
        ways: around ops, as a run with `--plain` has them.
        kinds: some of `KINDS`.
        only: parts of names of cases; all cases if empty.
        tokens: visual tokens of the video whose shapes are the real ones.
        timeout: seconds of a case.
        opening: seconds of opening the mesh.
        command: starts the process that runs cases.
    """

    mode: str
    mesh: tuple[int, int]
    layout: str | None = None
    ways: Ways = FUSED
    kinds: tuple[str, ...] = KINDS
    only: tuple[str, ...] = ()
    tokens: int = 44_520
    timeout: float = 120.0
    opening: float = 600.0
    command: tuple[str, ...] = _CHILD


@dataclass(frozen=True)
class Row:
    """The outcome of a case.

    Attributes:
        case: its name.
        op: ttnn's name of what it exercises.
        rule: what golden execution assumes there.
        verdict: `passed`, `deviates`, `hung`, `refused`, `crashed`, `skipped` or `not run`.
        seconds: of the case; the first run compiles its kernels.
        exact: largest error relative to the exact result, over chips and outputs; None where there is no exact result.
        golden: the same relative to golden execution.
        limit: that the first of the two that there is may reach.
        avoid: what would avoid the op.
        note: what else there is to say.
    """

    case: str
    op: str
    rule: str
    verdict: str
    seconds: float | None = None
    exact: float | None = None
    golden: float | None = None
    limit: float = 0.0
    avoid: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        figures = [f"{value:8.1e}" if value is not None else " " * 8 for value in (self.exact, self.golden)]
        seconds = f"{self.seconds:6.1f} s" if self.seconds is not None else " " * 8
        return f"{self.case:<32} {self.verdict:<9} {' '.join(figures)} {seconds}  {self.note}".rstrip()


HEADING = f"{'case':<32} {'verdict':<9} {'exact':>8} {'golden':>8} {'time':>8}"


@dataclass(frozen=True)
class Report:
    """All rows, and on what they were found."""

    mode: str
    mesh: str
    layout: str
    ways: Ways
    tokens: int
    timeout: float
    rows: list[Row]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Row]:
        """Rows that did not pass, of the cases that were run."""
        return [row for row in self.rows if row.verdict in NOT_PASSED]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data. It holds no name, no path and no address."""
        return {
            "version": REPORT_VERSION,
            "mode": self.mode,
            "mode_means": MODES[self.mode],
            "mesh": self.mesh,
            "layout": self.layout,
            "plain": sorted(self.ways.plain),
            "links": self.ways.links,
            "lines": self.ways.lines,
            "visual_tokens": self.tokens,
            "timeout_seconds": self.timeout,
            "versions": self.versions,
            "summary": self.counts(),
            "rows": [asdict(row) for row in self.rows],
        }

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each verdict."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.verdict] = found.get(row.verdict, 0) + 1
        return found

    def digest(self) -> str:
        """Return the first 16 digits of the SHA-256 of the report."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def profile(self) -> Profile:
        """Return what a machine with these rows should avoid."""
        wanted = {name for row in self.failed for name in row.avoid}
        single = any("links" in row.avoid for row in self.failed)
        return Profile(
            plain=frozenset(wanted & set(ALTERNATIVES)) | self.ways.plain,
            links=1 if single else self.ways.links,
            topology="line" if self.ways.lines else None,
            capture=False if "capture" in wanted else None,
            made_by={
                "report": self.digest(),
                "mode": self.mode,
                "mesh": self.mesh,
                "layout": self.layout,
                "ttnn": self.versions.get("ttnn", "unknown"),
            },
        )

    def advice(self) -> list[str]:
        """Say line by line what to do."""
        lines = []
        for row in self.failed:
            around = [f"--plain {name}" for name in row.avoid if name in ALTERNATIVES]
            around += ["--links 1"] * ("links" in row.avoid) + ["--no-capture"] * ("capture" in row.avoid)
            around += [f"none: {NO_ALTERNATIVE[name]}" for name in row.avoid if name in NO_ALTERNATIVE]
            way = " or ".join(around) if around else "none: please send the report (--json)"
            lines.append(f"{row.case} {_MEANS[row.verdict]}; way around: {way}")
        if any(row.verdict == "not run" for row in self.rows):
            lines.append("the cases that were not run: reset the cards (tt-smi -r), then run them with --only")
        if self.failed and self.profile().to_json() != Profile(made_by=self.profile().made_by).to_json():
            lines.append(f"a profile (--profile) would say: {self.profile()}; then try it: selftest --plain ...")
        return lines


def run(test: SelfTest, on_row: Callable[[Row], None] | None = None) -> Report:
    """Run the cases and return the report.

    Args:
        test: what is tested.
        on_row: called with each row when it is there.

    Raises:
        InputError: there is no such layout or case.
    """
    quiet_ttnn()
    from models.conformance import cases
    from models.parallel import Layout

    layout = Layout.parse(test.layout, test.mesh) if test.layout else Layout.default(test.mesh, 24)
    known = cases()
    chosen = [c for c in known.values() if c.kind in test.kinds]
    if test.only:
        chosen = [c for c in known.values() if any(part in c.name for part in test.only)]
    if not chosen:
        raise InputError(f"no case is called {' or '.join(test.only)}: choose from {', '.join(known)}")
    skipped = {c.name: reason for c in chosen if (reason := _skipped(c, test, layout)) is not None}
    names = [c.name for c in chosen if c.name not in skipped]
    rows: dict[str, Row] = {}

    def done(row: Row) -> None:
        rows[row.case] = row
        if on_row is not None:
            on_row(row)

    with tempfile.TemporaryDirectory(prefix="mochi-tt-selftest-") as folder:
        task = _task(test, str(layout), folder)
        if test.mode in REAL:
            beside = [name for name in names if known[name].kind != "shape"]
            golden = replace(test, mode="golden", command=_CHILD, timeout=600.0)
            for _ in _outcomes(golden, task | {"mode": "golden"}, beside):
                pass
        for name, outcome in _outcomes(test, task, names):
            done(_row(known[name], outcome, test.mode, Path(folder)))
    for name, reason in skipped.items():
        done(_bare(known[name], "skipped", note=reason))
    versions = {package: version_of(package) for package in PACKAGES} | {"python": platform.python_version()}
    ordered = [rows[c.name] for c in chosen]
    mesh = "x".join(map(str, test.mesh))
    return Report(test.mode, mesh, str(layout), test.ways, test.tokens, test.timeout, ordered, versions)


def resolve_mode(mode: str, mesh: str) -> tuple[str, tuple[int, int]]:
    """Return the mode and the mesh of a self-test.

    Raises:
        InputError: there is no such mode or mesh, or the mode computes no numbers.
        MachineError: the mode is not possible on this machine.
    """
    shape = parse_mesh(mesh)
    chosen = choose_mode(mode)  # type: ignore[arg-type]
    if chosen not in MODES:
        raise InputError(f"mode {mode!r} computes no numbers: use auto, {', '.join(MODES)}")
    return chosen, shape


def _skipped(case: Case, test: SelfTest, layout: Any) -> str | None:
    reason = case.needs(layout)
    if reason is None and case.kind == "shape" and test.mode == "golden":
        return "golden execution would take hours"
    return reason


def _task(test: SelfTest, layout: str, folder: str) -> dict[str, Any]:
    return {
        "mode": test.mode,
        "mesh": "x".join(map(str, test.mesh)),
        "layout": layout,
        "plain": sorted(test.ways.plain),
        "links": test.ways.links,
        "lines": test.ways.lines,
        "tokens": test.tokens,
        "folder": folder,
    }


@dataclass(frozen=True)
class _Outcome:
    """How a case ended: `done`, `hung`, `refused`, `crashed` or `not run`."""

    event: str
    seconds: float | None = None
    note: str = ""


def _outcomes(test: SelfTest, task: dict[str, Any], names: Sequence[str]) -> Iterator[tuple[str, _Outcome]]:
    """Run cases in processes, a new one after each that did not end well, and give each case's end.

    A new process tries a transfer first. If even that fails, the other cases are not run.
    """
    left, before = list(names), ""
    while left:
        probing, trouble = bool(before), ""
        for name, outcome in _process(test, task, ((PROBE,) if probing else ()) + tuple(left)):
            if probing and outcome.event != "done":
                note = f"after {before} a transfer {_MEANS[outcome.event]}: {outcome.note}"
                yield from ((name, _Outcome("not run", note=_scrubbed(note))) for name in left)
                return
            if probing:
                probing = False
                continue
            yield name, outcome
            left.remove(name)
            if outcome.event != "done":
                trouble = name
                break
        before = trouble or "the end of a process"


def _process(test: SelfTest, task: dict[str, Any], names: Sequence[str]) -> Iterator[tuple[str, _Outcome]]:
    """Run cases in one process and give their ends. The process is gone when this ends, whatever happened."""
    reading, writing = os.pipe()
    command = [*test.command, json.dumps(task | {"cases": list(names)}), str(writing)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, pass_fds=(writing,), stdout=log, stderr=log, start_new_session=True, cwd=_root()
        )
        os.close(writing)
        try:
            yield from _watched(process, reading, test, names)
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _watched(
    process: subprocess.Popen[bytes], reading: int, test: SelfTest, names: Sequence[str]
) -> Iterator[tuple[str, _Outcome]]:
    at, seconds, limit = names[0], None, [test.opening]
    where = "while the mesh was opened"
    for event in _events(reading, limit):
        if event is None:
            yield at, _Outcome("hung", note=f"no answer in {limit[0]:g} s {where}".rstrip())
            return
        kind = event["event"]
        if kind == "start":
            at, where, seconds, limit[0] = event["case"], "", None, test.timeout
        elif kind == "ran":
            seconds, limit[0], where = event["seconds"], 3600.0, "while the host computed the exact result"
        elif kind == "refused":
            yield at, _Outcome("refused", event["seconds"], _scrubbed(event["error"]))
            return
        elif kind == "done":
            yield at, _Outcome("done", seconds)
            if at == names[-1]:
                # What may still go wrong is the closing, which no case is to blame for.
                _end(process, reading, test.timeout)
                return
        elif kind == "opened":
            limit[0] = test.timeout
    code = process.wait()
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    yield at, _Outcome("crashed", note=f"{how} {where}".rstrip())


def _end(process: subprocess.Popen[bytes], reading: int, timeout: float) -> None:
    for event in _events(reading, [timeout]):
        if event is None or event["event"] == "closed":
            break
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=timeout)


def _events(reading: int, limit: list[float]) -> Iterator[dict[str, Any] | None]:
    """Give the lines of a pipe as they come; None where none came in time, and nothing more after the end.

    The caller may change the seconds in `limit` between two lines.
    """
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            deadline = monotonic() + limit[0]
            while b"\n" not in buffer:
                if not selector.select(max(deadline - monotonic(), 0)):
                    yield None
                    return
                read = os.read(reading, 65536)
                if not read:
                    return
                buffer += read
            line, _, buffer = buffer.partition(b"\n")
            yield json.loads(line)


def _row(case: Case, outcome: _Outcome, mode: str, folder: Path) -> Row:
    if outcome.event != "done":
        return _bare(case, outcome.event, outcome.seconds, outcome.note)
    import torch

    made = torch.load(folder / f"{mode}-{case.name}.pt")
    beside = folder / f"golden-{case.name}.pt"
    golden = torch.load(beside) if mode in REAL and beside.exists() else None
    exact = made["exact"] if made["exact"] is not None else golden["exact"] if golden is not None else None
    to_exact = _error(made["actual"], exact)
    to_golden = _error(made["actual"], golden["actual"]) if golden is not None else None
    error = to_exact if to_exact is not None else to_golden
    row = _bare(case, "passed", outcome.seconds)
    row = replace(row, exact=to_exact, golden=to_golden)
    if error is None:
        return (
            replace(row, note="nothing to compare with")
            if mode == "golden"
            else replace(row, verdict="deviates", note="golden execution has no result")
        )
    if not error <= case.limit:
        return replace(row, verdict="deviates", note=f"limit {case.limit:.1e}; rule: {case.rule}")
    return row


def _bare(case: Case, verdict: str, seconds: float | None = None, note: str = "") -> Row:
    seconds = None if seconds is None else round(seconds, 3)
    return Row(case.name, case.op, case.rule, verdict, seconds, limit=case.limit, avoid=case.avoid, note=note)


def _error(actual: Sequence[Any], expected: Sequence[Any] | None) -> float | None:
    """Return the largest relative error over outputs and chips; infinity for what is no number or of another shape."""
    if expected is None:
        return None
    errors = []
    for ours, theirs in zip(actual, expected, strict=True):
        if theirs is None:
            continue
        if ours.shape != theirs.shape:
            return math.inf
        for chip, wanted in zip(ours.double(), theirs.double(), strict=True):
            size = wanted.norm().item()
            error = (chip - wanted).norm().item() / (size or 1.0)
            errors.append(error if math.isfinite(error) else math.inf)
    return max(errors) if errors else None


def _scrubbed(text: str) -> str:
    """Return a line without the folders of paths, and not too long."""
    return _PATH.sub(r"\1", " ".join(text.split()))[:300]


def _root() -> Path:
    return Path(__file__).resolve().parents[2]
