"""Every case on golden execution: exact results are met, on one chip and on meshes with all that chips exchange."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.conformance import cases
from models.conformance.bench import Bench, Weights
from models.jobs.selftest import _SINGLE, _error
from models.machine.ways import ALTERNATIVES, NO_ALTERNATIVE
from models.parallel import Layout

ROOT = Path(__file__).parents[2]
SMALL = [case.name for case in cases().values() if case.kind == "small"]
SHAPES = [case.name for case in cases().values() if case.kind == "shape"]


def check(error, name):
    """Within the limit of a case as the self-test has it, single values too."""
    whole, single = error
    assert whole <= cases()[name].limit
    assert single <= _SINGLE * cases()[name].limit


def run(mesh, name: str, tokens: int = 200):
    """A case's actual and expected outputs; nothing where the layout cannot run it."""
    case = cases()[name]
    if case.needs(mesh.layout) is not None:
        return None
    bench = Bench(mesh, name, opened=_Opened(), tokens=tokens)
    outputs = case.run(bench)
    return [bench.actual(output) for output in outputs], [bench.expected(output) for output in outputs]


class _Opened:
    can_capture = False


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "2x4sp0tp1", "2x4sp1tp0", "2x4sp0tp1-plain"], indirect=True)
@pytest.mark.parametrize("name", SMALL)
def test_small(mesh, name):
    found = run(mesh, name)
    if found is not None:
        check(_error(*found), name)


@pytest.mark.alone
@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(mesh, name):
    """At few tokens, whose last shard is not full; rows are picked and compared as at the real number."""
    actual, expected = run(mesh, name, tokens=200)
    assert actual[0].shape == expected[0].shape
    check(_error(actual, expected), name)


def test_every_op_and_way_around_has_a_case():
    avoided = {name for case in cases().values() for name in case.avoid}
    assert set(ALTERNATIVES) <= avoided
    assert avoided - set(ALTERNATIVES) == {"links", "capture", "sockets"}
    assert "sockets" in NO_ALTERNATIVE
    used = {op for alternative in ALTERNATIVES.values() for op in alternative.ops}
    assert used <= {case.op for case in cases().values()}


def test_kinds_come_in_order():
    kinds = [case.kind for case in cases().values()]
    assert [kind for kind in ("small", "shape", "whole") for _ in range(kinds.count(kind))] == kinds
    assert next(iter(cases())) == "transfer"


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_inputs_are_the_same_everywhere(mesh):
    from models.layers.conv3d import Conv3d

    def numbers() -> list[torch.Tensor]:
        bench = Bench(mesh, "case", opened=_Opened(), tokens=1)
        return [bench.normal(3, 4), bench.big(2, 2).double(), Weights(Conv3d(mesh, "c", 32, 32)).tensor("c.weight")]

    first, second = numbers(), numbers()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], Bench(mesh, "other", opened=_Opened(), tokens=1).normal(3, 4))


def test_a_child_says_how_far_it_is(tmp_path):
    reading, writing = os.pipe()
    task = {"mode": "golden", "mesh": "1x2", "layout": str(Layout((1, 2), 0, 1)), "tokens": 64, "folder": str(tmp_path)}
    command = [sys.executable, "-m", "models.conformance.child", json.dumps(task | {"cases": ["silu", "all_gather"]})]
    with subprocess.Popen([*command, str(writing)], pass_fds=(writing,), cwd=ROOT):
        os.close(writing)
        with os.fdopen(reading) as pipe:
            events = [json.loads(line) for line in pipe]
    assert [event["event"] for event in events] == ["opened", *["start", "ran", "done"] * 2, "closed"]
    assert [event["case"] for event in events if event["event"] == "done"] == ["silu", "all_gather"]
    kept = torch.load(tmp_path / "golden-all_gather.pt")
    assert kept["actual"][0].shape == (2, 1, 1, 64, 128), "all chips, replicas too"
    assert torch.equal(kept["actual"][0].double(), kept["exact"][0])
