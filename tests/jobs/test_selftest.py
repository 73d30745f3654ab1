"""The self-test against a device that lies, stalls and crashes: each must end as the right row."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest

from models.jobs.selftest import Report, Row, SelfTest, _error, _scrubbed, resolve_mode, run
from models.machine.errors import InputError
from models.machine.profile import Profile
from models.machine.ways import FUSED, Ways

LIAR = (sys.executable, str(Path(__file__).with_name("liar.py")))
CASES = ("transfer", "multiply", "gelu", "silu", "rsqrt", "embedding", "tanh")


def report_of(monkeypatch: pytest.MonkeyPatch, faults: dict[str, str], **options) -> Report:
    """A report on a device with faults, in mode hardware: golden execution is run beside it."""
    monkeypatch.setenv("LIAR", json.dumps(faults))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    options = {"only": CASES, "timeout": 3.0, "opening": 60.0} | options
    return run(SelfTest("hardware", (1, 1), command=LIAR, **options))


def check_that_nothing_personal_is_in(report: Report) -> None:
    text = json.dumps(report.to_json())
    for word in ("/", "somebody", os.uname().nodename, str(Path.home())):
        assert word not in text
    data = json.loads(text)
    assert (data["version"], data["mode"], data["mesh"], data["layout"]) == (1, "hardware", "1x1", "1x1sp0tp1")
    assert {row["case"] for row in data["rows"]} == set(CASES)


def test_every_fault_is_the_right_row(monkeypatch):
    faults = {
        "ttnn.multiply": "lie",
        "ttnn.gelu": "nan",
        "ttnn.silu": "stall",
        "ttnn.rsqrt": "crash",
        "ttnn.embedding": "refuse",
    }
    report = report_of(monkeypatch, faults)
    rows = {row.case: row for row in report.rows}
    assert {name: row.verdict for name, row in rows.items()} == {
        "transfer": "passed",
        "multiply": "deviates",
        "gelu": "deviates",
        "silu": "hung",
        "rsqrt": "crashed",
        "embedding": "refused",
        "tanh": "passed",
    }
    assert rows["multiply"].exact == pytest.approx(0.1, abs=0.01)
    assert rows["multiply"].golden == pytest.approx(0.1, abs=0.01)
    assert "limit 4.0e-03; rule: rounded once" in rows["multiply"].note
    assert rows["silu"].note == "no answer in 3 s"
    assert rows["rsqrt"].note == "signal SIGSEGV"
    assert rows["embedding"].note == "RuntimeError: the shape of ... is odd"
    assert rows["tanh"].exact < 4e-3 < rows["multiply"].exact
    assert report.counts() == {"passed": 2, "deviates": 2, "hung": 1, "crashed": 1, "refused": 1}
    assert (rows["gelu"].verdict, rows["gelu"].exact) == ("deviates", float("inf")), "what is no number"
    check_that_nothing_personal_is_in(report)
    advice = "\n".join(report.advice())
    for words in ("multiply computes something else", "silu did not end", "rsqrt ended the process", "was refused"):
        assert words in advice


@pytest.mark.parametrize(("fault", "verdict", "note"), [("stall", "hung", "in 4 s"), ("exit", "crashed", "code 3")])
def test_a_mesh_that_does_not_open_ends_the_test(fault, verdict, note, monkeypatch):
    report = report_of(
        monkeypatch, {"open": fault}, only=("transfer", "multiply"), opening=4.0 if fault == "stall" else 60.0
    )
    assert [row.verdict for row in report.rows] == [verdict, "not run"]
    assert note in report.rows[0].note
    assert "while the mesh was opened" in report.rows[0].note
    assert "after transfer a transfer" in report.rows[1].note
    assert "reset the cards (tt-smi -r)" in report.advice()[-1]


def test_what_fails_is_avoided(monkeypatch):
    faults = {"ttnn.experimental.dit_fused_distributed_rmsnorm": "crash"}
    report = report_of(monkeypatch, faults, only=("rotation of heads",))
    assert [row.verdict for row in report.rows] == ["crashed"]
    profile = report.profile()
    assert profile.plain == {"head-norm", "rotation"}
    assert (profile.made_by["report"], profile.made_by["mesh"]) == (report.digest(), "1x1")
    again = report_of(monkeypatch, faults, only=("rotation of heads",), ways=Ways(profile.plain))
    assert [row.verdict for row in again.rows] == ["passed"], "the way around passes"
    assert again.profile().plain == profile.plain


def test_what_the_profile_says_of_links_and_capture():
    def report(*avoid: str) -> Report:
        row = Row("case", "op", "rule", "hung", avoid=avoid)
        return Report("hardware", "1x1", "1x1sp0tp1", FUSED, 64, 1.0, [row])

    assert report("links").profile().links == 1
    assert report("capture").profile().capture is False
    assert (report("sockets").profile().plain, report("norm").profile().links) == (frozenset(), None)
    assert "--links 1" in report("links").advice()[0]
    assert "a layout without cfg" in report("sockets").advice()[0]
    assert len(report("sockets").advice()) == 1, "there is nothing for a profile"


def test_errors_are_of_the_worst_chip_and_output():
    import torch

    one = torch.ones(2, 3)
    infinite = (float("inf"), float("inf"))
    assert _error([one], [one]) == (0, 0)
    assert _error([one], None) is None
    assert _error([one], [None]) is None
    assert _error([torch.stack([one[0], one[1] * 1.5])], [one]) == pytest.approx((0.5, 0.5))
    assert _error([one, one * 2], [one, one]) == pytest.approx((1, 1))
    assert _error([one], [torch.ones(2, 2)]) == infinite
    assert _error([one], [one, one]) == infinite
    assert _error([one * float("nan")], [one]) == infinite
    many = torch.ones(1, 10_000)
    wrong = many.clone()
    wrong[0, 7] = 0
    assert _error([wrong], [many]) == pytest.approx((0.01, 1)), "the norm cannot see what a single value can tell"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("no ~/a/b.cpp:3 in /home/x/tt-metal/y.h\n or C", "no b.cpp:3 in y.h or C"),
        ("cannot open /home/alice", "cannot open ..."),
        ("TT_METAL_HOME=/home/alice", "TT_METAL_HOME=..."),
        ("'/home/alice/'", "'...'"),
        ("/home/John Doe/tt/x.cpp", "... x.cpp"),
        (r"C:\\Users\\alice\\x", "..."),
        ("ssh alice@box.example.com from 10.0.0.5", "ssh ... from ..."),
        ("\x1b[31mred\x1b[0m 1/32 of 0.5", "[31mred [0m 1/32 of 0.5"),
        ("on alicebox by alice, not malice", "on ... by ..., not malice"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_lines_are_scrubbed(said, kept, monkeypatch):
    monkeypatch.setattr("models.jobs.selftest._own_names", lambda: {"alice", "alicebox"})
    assert _scrubbed(said) == kept


def test_ones_own_names_are_known(monkeypatch):
    import os
    from types import SimpleNamespace

    from models.jobs.selftest import _own_names

    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="box7.lab"))
    monkeypatch.setenv("HOME", "/somewhere/carol")
    monkeypatch.setenv("LOGNAME", "dave")
    assert _own_names() >= {"box7.lab", "box7", "carol", "dave"}


CRASHES = {
    "after-done": ("crashed", "signal SIGSEGV before the case began"),
    "no-result": ("crashed", "it ended without a result"),
    "nonsense": ("crashed", "the process said what no case says"),
    "fork": ("crashed", "exit code 7"),
    "rule": ("skipped", "our rule"),
    "dtype": ("deviates", "the result is float32, not bfloat16"),
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[] if name in ("no-result", "fork") else [pytest.mark.full]) for name in CRASHES],
)
def test_a_process_that_misbehaves_is_a_row(fault, monkeypatch):
    """The case after the one that passed has the trouble, and the one behind it is run."""
    verdict, note = CRASHES[fault]
    report = report_of(monkeypatch, {"child": fault}, only=("transfer", "gelu", "tanh"), kinds=("small",))
    rows = {row.case: row for row in report.rows}
    assert rows["transfer"].verdict == rows["tanh"].verdict == "passed"
    assert rows["gelu"].verdict == verdict
    assert note in rows["gelu"].note


def test_a_single_wrong_value_is_seen(tmp_path):
    """Among many right ones, where the norm cannot see it."""
    import torch

    from models.conformance import cases
    from models.jobs.selftest import _Outcome, _row

    case = cases()["gelu"]
    right = torch.randn(1, 1_000_000, generator=torch.Generator().manual_seed(0))
    wrong = right.clone()
    wrong[0, 7] += 1
    for actual, verdict in ((right, "passed"), (wrong, "deviates")):
        torch.save({"actual": [actual], "exact": [right]}, tmp_path / "golden-gelu.pt")
        row = _row(case, _Outcome("done", 1.0), "golden", tmp_path)
        assert row.verdict == verdict
    assert row.exact <= case.limit
    assert "single values are off by 1.0e+00" in row.note


def test_only_stays_within_the_kinds():
    with pytest.raises(InputError, match=r"no case of kind small is called real shape"):
        run(SelfTest("golden", (1, 1), kinds=("small",), only=("real shape",)))


def test_a_profile_keeps_what_it_held():
    before = Profile(frozenset({"halo"}), 2, "line", "256x384", False)
    row = Row("case", "op", "rule", "hung", avoid=("norm",))
    made = Report("hardware", "1x1", "1x1sp0tp1", FUSED, 64, 1.0, [row]).profile(before)
    assert made.plain == {"halo", "norm"}
    assert (made.links, made.topology, made.attention_chunks, made.capture) == (2, "line", "256x384", False)
    assert made.made_by["mode"] == "hardware"
    assert Report("hardware", "1x1", "1x1sp0tp1", FUSED, 64, 1.0, [replace(row, verdict="not run")]).is_empty


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.full), signal.SIGKILL])
def test_no_child_outlives_the_self_test(number, monkeypatch, tmp_path):
    """On a card the next one would meet a busy device."""
    monkeypatch.setenv("LIAR", json.dumps({"open": "stall", "pid": str(tmp_path / "pid")}))
    program = (
        "from models.jobs.selftest import SelfTest, run\n"
        f"run(SelfTest('hardware', (1, 1), command={LIAR!r}, only=('transfer',), kinds=('small',)))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    process.send_signal(number)
    process.wait()
    while is_running(child):
        sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_cannot_be_tested():
    with pytest.raises(InputError, match="computes no numbers"):
        resolve_mode("dry-run", "1x1")
    with pytest.raises(InputError, match="kind small, shape, whole is called waltz: choose from transfer, add"):
        run(SelfTest("golden", (1, 1), only=("waltz",)))
    (row,) = run(SelfTest("golden", (1, 1), only=("all_reduce",))).rows
    assert (row.verdict, row.note) == ("skipped", "needs TP above 1")
