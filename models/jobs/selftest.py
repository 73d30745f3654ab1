"""The job behind `mochi-tt selftest`: every case in a process that may hang or crash, and what to do about each.

A process runs one case after the other and says how far it is. Where it hangs, crashes or refuses a case, a new one
first tries a transfer, and goes on with the next case only if that works. What a process leaves and says is not
trusted: it comes from the device that is tested.
"""

from __future__ import annotations

import contextlib
import getpass
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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
# Times the limit of a small case. A tiny video compiles dozens of programs in one case.
PATIENCE = {"small": 1, "shape": 2, "whole": 10}
# How much larger than a case's limit the error of a single value may be, in root mean squares of the result.
_SINGLE = 30
# A path tells who ran the program. The names of source files stay: they say where an error is from.
_END = r"\s'\"`=,;()<>\[\]{}|"
_PATH = re.compile(rf"[^{_END}]*[/\\][^{_END}]*|~\w*")
_SOURCE = re.compile(r"([\w+-]+\.(?:cpp|hpp|cc|c|h|inl|py|so)(?::\d+)*)[:.]*$")
_NUMBERS = re.compile(r"[\d/.]+")
_ADDRESS = re.compile(
    r"\S*@\S+|\b\d{1,3}(?:\.\d{1,3}){3}\b|\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b"
    r"|\b[\w-]+(?:\.[\w-]+)*\.(?:com|net|org|local|lan|internal)\b",
    re.IGNORECASE,
)
_LOOK = 1.0  # Seconds between two looks at whether a silent process is still there.
_LONGEST = 1 << 20  # Bytes of an event.
_MEANS = {
    "deviates": "computes something else than it should",
    "hung": "did not end",
    "refused": "was refused",
    "crashed": "ended the process",
}


@dataclass(frozen=True)
class SelfTest:
    """What is tested.

    Attributes:
        mode: `hardware`, `simulator` or `golden`.
        mesh: (rows, columns) of chips.
        layout: such as `sp0tp1`, by the mesh if None.
        topology: `line` or `ring`; by the system if None.
        chunks: of attention, such as `256x384`; by rule if None.
        ways: around ops, as a run with `--plain` has them.
        kinds: some of `KINDS`.
        only: parts of names of cases; all cases if empty.
        tokens: visual tokens of the video whose shapes are the real ones.
        timeout: seconds of a small case; others get `PATIENCE` times as many.
        opening: seconds of opening the mesh.
        command: starts the process that runs cases.
    """

    mode: str
    mesh: tuple[int, int]
    layout: str | None = None
    ways: Ways = FUSED
    topology: str | None = None
    chunks: str | None = None
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
        limit: that the first of the two that there is may reach. A single value may be off by `_SINGLE` times as much
            of the result's root mean square.
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
    topology: str | None = None
    chunks: str | None = None
    interrupted: bool = False

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
            "topology": self.topology,
            "attention_chunks": self.chunks,
            "visual_tokens": self.tokens,
            "interrupted": self.interrupted,
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

    def profile(self, before: Profile | None = None) -> Profile:
        """Return what a machine with these rows should avoid, beside what `before` says.

        What passes now does not take an entry back: it may have been another mesh, or not all cases.
        """
        before = before or Profile()
        wanted = {name for row in self.failed for name in row.avoid}
        single = any("links" in row.avoid for row in self.failed)
        return Profile(
            plain=frozenset(wanted & set(ALTERNATIVES)) | self.ways.plain | before.plain,
            links=1 if single else self.ways.links or before.links,
            topology=self.topology or before.topology,
            attention_chunks=self.chunks or before.attention_chunks,
            capture=False if "capture" in wanted else before.capture,
            made_by={
                "report": self.digest(),
                "mode": self.mode,
                "mesh": self.mesh,
                "layout": self.layout,
                "ttnn": self.versions.get("ttnn", "unknown"),
            },
        )

    @property
    def is_empty(self) -> bool:
        """Whether no case came to its end, as where the mesh did not open."""
        return not any(row.verdict in ("passed", "deviates", "refused") for row in self.rows)

    def _retry(self) -> str:
        made = self.profile()
        options = [f"--plain {','.join(sorted(made.plain))}"] if made.plain else []
        options += [f"--links {made.links}"] if made.links else []
        return " ".join([f"selftest --mesh {self.mesh}", *options])

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
            lines.append(f"a profile (--profile) would say: {self.profile()}; then try it: {self._retry()}")
        return lines


def run(test: SelfTest, on_row: Callable[[Row], None] | None = None) -> Report:
    """Run the cases and return the report.

    Args:
        test: what is tested.
        on_row: called with each row when it is there.

    An interrupt ends the cases: the report is of those before it, and `interrupted`.

    Raises:
        InputError: there is no such layout or case.
    """
    quiet_ttnn()
    from models.conformance import cases
    from models.parallel import Layout

    layout = Layout.parse(test.layout, test.mesh) if test.layout else Layout.default(test.mesh, 24)
    known = cases()
    of_kinds = [c for c in known.values() if c.kind in test.kinds]
    chosen = [c for c in of_kinds if not test.only or any(part in c.name for part in test.only)]
    if not chosen:
        raise InputError(
            f"no case of kind {', '.join(test.kinds)} is called {' or '.join(test.only)}: choose from "
            f"{', '.join(c.name for c in of_kinds)}"
        )
    skipped = {c.name: reason for c in chosen if (reason := _skipped(c, test, layout)) is not None}
    names = [c.name for c in chosen if c.name not in skipped]
    rows: dict[str, Row] = {}
    interrupted = False

    def done(row: Row) -> None:
        rows[row.case] = row
        if on_row is not None:
            on_row(row)

    limits = {c.name: test.timeout * PATIENCE[c.kind] for c in known.values()}
    try:
        with tempfile.TemporaryDirectory(prefix="mochi-tt-selftest-") as folder:
            task = _task(test, str(layout), folder)
            if test.mode in REAL:
                beside = [name for name in names if known[name].kind != "shape"]
                golden = replace(test, mode="golden", command=_CHILD)
                for _ in _outcomes(golden, task | {"mode": "golden"}, beside, dict.fromkeys(known, 600.0)):
                    pass
            for name, outcome in _outcomes(test, task, names, limits):
                done(_row(known[name], outcome, test.mode, Path(folder)))
    except KeyboardInterrupt:
        interrupted = True
        skipped |= {name: "interrupted" for name in names if name not in rows}
    for name, reason in skipped.items():
        done(_bare(known[name], "skipped", note=reason))
    versions = {package: version_of(package) for package in PACKAGES} | {"python": platform.python_version()}
    ordered = [rows[c.name] for c in chosen]
    mesh = "x".join(map(str, test.mesh))
    return Report(
        test.mode,
        mesh,
        str(layout),
        test.ways,
        test.tokens,
        test.timeout,
        ordered,
        versions,
        test.topology,
        test.chunks,
        interrupted,
    )


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
        "topology": test.topology,
        "chunks": test.chunks,
        "parent": os.getpid(),
        "tokens": test.tokens,
        "folder": folder,
    }


@dataclass(frozen=True)
class _Outcome:
    """How a case ended: `done`, `hung`, `refused`, `skipped`, `crashed` or `not run`."""

    event: str
    seconds: float | None = None
    note: str = ""


def _outcomes(
    test: SelfTest, task: dict[str, Any], names: Sequence[str], limits: Mapping[str, float]
) -> Iterator[tuple[str, _Outcome]]:
    """Run cases in processes, a new one after each that did not end well, and give each case's end.

    A new process tries a transfer first. If even that fails, the other cases are not run.
    """
    left, before = list(names), ""
    while left:
        probing, trouble = bool(before), ""
        for name, outcome in _process(test, task, ((PROBE,) if probing else ()) + tuple(left), limits):
            if probing and outcome.event != "done":
                note = f"after {before} a transfer {_MEANS[outcome.event]}: {outcome.note}"
                yield from ((name, _Outcome("not run", note=_scrubbed(note))) for name in left)
                return
            if probing:
                probing = False
                continue
            yield name, outcome
            left.remove(name)
            if outcome.event not in ("done", "skipped"):
                trouble = name
                break
        before = trouble or "the end of a process"


def _process(
    test: SelfTest, task: dict[str, Any], names: Sequence[str], limits: Mapping[str, float]
) -> Iterator[tuple[str, _Outcome]]:
    """Run cases in one process and give their ends. The process is gone when this ends, whatever happened."""
    reading, writing = os.pipe()
    command = [*test.command, json.dumps(task | {"cases": list(names)}), str(writing)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, pass_fds=(writing,), stdout=log, stderr=log, start_new_session=True, cwd=_root()
        )
        os.close(writing)
        try:
            yield from _watched(process, reading, test, names, limits)
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _watched(
    process: subprocess.Popen[bytes],
    reading: int,
    test: SelfTest,
    names: Sequence[str],
    limits: Mapping[str, float],
) -> Iterator[tuple[str, _Outcome]]:
    """Give the ends of cases until the process ends, hangs or refuses one.

    What happens between two cases is the trouble of the next one.
    """
    left, seconds, limit = list(names), None, [test.opening]
    where = "while the mesh was opened"
    try:
        for event in _events(process, reading, limit):
            if event is None:
                yield left[0], _Outcome("hung", note=f"no answer in {limit[0]:g} s {where}".rstrip())
                return
            kind = event["event"]
            if kind == "opened":
                limit[0], where = limits[left[0]], "before the case began"
                continue
            if event.get("case") != left[0]:
                raise ValueError(kind)
            if kind == "start":
                where, seconds, limit[0] = "", None, limits[left[0]]
            elif kind == "ran":
                seconds, limit[0], where = float(event["seconds"]), 3600.0, "while the host computed the exact result"
            elif kind in ("refused", "skipped"):
                yield left.pop(0), _Outcome(kind, float(event["seconds"]), _scrubbed(str(event["error"])))
                if kind == "refused":
                    return
            elif kind == "done":
                yield left.pop(0), _Outcome("done", seconds)
            else:
                raise ValueError(kind)
            if not left:
                # What may still go wrong is the closing, which no case is to blame for.
                _end(process, reading, test.timeout)
                return
            if kind in ("skipped", "done"):
                where, limit[0] = "before the case began", limits[left[0]]
    except (ValueError, KeyError, TypeError):
        yield left[0], _Outcome("crashed", note=f"the process said what no case says {where}".rstrip())
        return
    code = process.wait()
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    yield left[0], _Outcome("crashed", note=f"{how} {where}".rstrip())


def _end(process: subprocess.Popen[bytes], reading: int, timeout: float) -> None:
    with contextlib.suppress(ValueError):
        for event in _events(process, reading, [timeout]):
            if event is None or event["event"] == "closed":
                break
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=timeout)


def _events(process: subprocess.Popen[bytes], reading: int, limit: list[float]) -> Iterator[dict[str, Any] | None]:
    """Give what the process says as it comes; None where nothing came in time, and nothing more after its end.

    The caller may change the seconds in `limit` between two events. The pipe may stay open when the process is gone,
    since what it started has the pipe too.

    Raises:
        ValueError: a line is no event.
    """
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            deadline = monotonic() + limit[0]
            while b"\n" not in buffer:
                gone = process.poll() is not None
                if not selector.select(0 if gone else min(max(deadline - monotonic(), 0), _LOOK)):
                    if gone:
                        return
                    if monotonic() >= deadline:
                        yield None
                        return
                    continue
                read = os.read(reading, 65536)
                if not read:
                    return
                buffer += read
                if len(buffer) > _LONGEST:
                    raise ValueError("a line without an end")
            line, _, buffer = buffer.partition(b"\n")
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                raise ValueError("no event")
            yield event


def _row(case: Case, outcome: _Outcome, mode: str, folder: Path) -> Row:
    if outcome.event != "done":
        return _bare(case, outcome.event, outcome.seconds, outcome.note)
    made = _result(folder / f"{mode}-{case.name}.pt")
    if made is None:
        return _bare(case, "crashed", outcome.seconds, "it ended without a result")
    golden = _result(folder / f"golden-{case.name}.pt") if mode in REAL else None
    exact = made["exact"] if made["exact"] is not None else golden["exact"] if golden is not None else None
    to_exact = _error(made["actual"], exact)
    to_golden = _error(made["actual"], golden["actual"]) if golden is not None else None
    row = _bare(case, "passed", outcome.seconds)
    row = replace(row, exact=to_exact and to_exact[0], golden=to_golden and to_golden[0])
    error = to_exact or to_golden
    if golden is not None and (other := _other_type(made["actual"], golden["actual"])) is not None:
        return replace(row, verdict="deviates", note=other)
    if error is None:
        return (
            replace(row, note="nothing to compare with")
            if mode == "golden"
            else replace(row, verdict="deviates", note="golden execution has no result")
        )
    if not error[0] <= case.limit:
        return replace(row, verdict="deviates", note=f"limit {case.limit:.1e}; rule: {case.rule}")
    if not error[1] <= _SINGLE * case.limit:
        note = f"single values are off by {error[1]:.1e} of the root mean square; rule: {case.rule}"
        return replace(row, verdict="deviates", note=note)
    return row


def _result(file: Path) -> dict[str, Any] | None:
    """Return what a process left, or None where it left nothing that can be read."""
    import torch

    try:
        made = torch.load(file, weights_only=True)
    except Exception:  # what a failing device leaves may be anything
        return None
    return made if isinstance(made, dict) and {"actual", "exact"} <= set(made) else None


def _other_type(actual: Sequence[Any], golden: Sequence[Any]) -> str | None:
    """Say which type a result has if golden execution gives another one."""
    for ours, theirs in zip(actual, golden, strict=False):
        if ours.dtype != theirs.dtype:
            names = [str(x.dtype).removeprefix("torch.") for x in (ours, theirs)]
            return f"the result is {names[0]}, not {names[1]}"
    return None


def _bare(case: Case, verdict: str, seconds: float | None = None, note: str = "") -> Row:
    seconds = None if seconds is None else round(seconds, 3)
    return Row(case.name, case.op, case.rule, verdict, seconds, limit=case.limit, avoid=case.avoid, note=note)


def _error(actual: Sequence[Any], expected: Sequence[Any] | None) -> tuple[float, float] | None:
    """Return how far results are off: the largest over outputs and chips; infinity for what is no number or no shape.

    The first figure is the L2 norm of the difference relative to that of what is expected. The second is the largest
    difference of a single value, relative to the root mean square of what is expected.
    """
    if expected is None:
        return None
    if len(actual) != len(expected):
        return math.inf, math.inf
    whole, single = [], []
    for ours, theirs in zip(actual, expected, strict=True):
        if theirs is None:
            continue
        if ours.shape != theirs.shape:
            return math.inf, math.inf
        for chip, wanted in zip(ours.double(), theirs.double(), strict=True):
            size, off = wanted.norm().item() or 1.0, chip - wanted
            whole.append(off.norm().item() / size)
            single.append(off.abs().max().item() / (size / math.sqrt(wanted.numel())))
    if not whole:
        return None
    errors = [max(x if math.isfinite(x) else math.inf for x in found) for found in (whole, single)]
    return errors[0], errors[1]


def _scrubbed(text: str) -> str:
    """Return one line that tells nothing of the user and the machine, and is not too long.

    Of paths only the names of source files stay. Names of the user, the home and the machine, and addresses go.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = _ADDRESS.sub("...", _PATH.sub(_kept, line))
    for name in sorted(_own_names(), key=len, reverse=True):
        line = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", line, flags=re.IGNORECASE)
    return line[:300]


def _kept(path: re.Match[str]) -> str:
    source = _SOURCE.search(path[0])
    if source is not None:
        return source[1]
    return path[0] if _NUMBERS.fullmatch(path[0]) else "..."


def _own_names() -> set[str]:
    node = os.uname().nodename
    names = {node, node.partition(".")[0], Path.home().name}
    with contextlib.suppress(OSError, KeyError):
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name != "root"}


def _root() -> Path:
    return Path(__file__).resolve().parents[2]
