"""Capture and replay up to the line that a mock mesh draws: which functions of ttnn are called, and when."""

import pytest
import torch
import ttnn

from models.device import cards
from models.mochi.sampling.denoise import denoise
from models.mochi.transformer import MochiTransformer
from models.parallel import Replay
from tests.support import SMALL, StateDict, config_of, randn, reference


class FakeTrace:
    """Stands for ttnn's traces: recording runs the program once, replaying runs it again."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.programs = {}
        for name in ("begin_trace_capture", "end_trace_capture", "execute_trace", "release_trace"):
            monkeypatch.setattr(ttnn, name, getattr(self, name))
        monkeypatch.setattr(ttnn, "synchronize_device", lambda device: self.calls.append("synchronize"))

    def begin_trace_capture(self, device, *, cq_id):
        self.calls.append("begin")
        return len(self.calls)

    def end_trace_capture(self, device, trace, *, cq_id):
        self.calls.append("end")

    def execute_trace(self, device, trace, *, cq_id, blocking):
        self.calls.append("execute")
        assert not blocking, "two halves of a mesh run side by side"

    def release_trace(self, device, trace):
        self.calls.append("release")


def test_the_second_call_is_recorded_and_later_ones_replayed(monkeypatch):
    trace, runs = FakeTrace(monkeypatch), []
    replay = Replay(None, capture=True)
    assert [replay(lambda: runs.append(1) or "result") for _ in range(4)] == ["result"] * 4
    assert len(runs) == 2, "once to compile, once to record"
    replay.finish()
    replay.release()
    replay.release()
    assert trace.calls == ["begin", "end", "execute", "execute", "execute", "synchronize", "release"]


def test_without_capture_every_call_runs_the_program(monkeypatch):
    trace, runs = FakeTrace(monkeypatch), []
    replay = Replay(None, capture=False)
    for _ in range(3):
        replay(lambda: runs.append(1))
    replay.finish()
    replay.release()
    assert (len(runs), trace.calls) == (3, [])


def test_a_program_that_fails_leaves_no_trace(monkeypatch):
    trace = FakeTrace(monkeypatch)
    outcomes = iter([None, RuntimeError("out of memory")])

    def program():
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome

    replay = Replay(None, capture=True)
    replay(program)
    with pytest.raises(RuntimeError, match="out of memory"):
        replay(program)
    assert trace.calls == ["begin", "end", "release"]


def sampling_on(mesh):
    """A loaded model, noise, and the other arguments of `denoise` for four guided steps."""
    model = reference(**SMALL)
    ours = MochiTransformer(config_of(model), mesh)
    ours.load(StateDict(model))
    arguments = {
        "sigmas": [1.0, 0.9, 0.7, 0.4, 0.0],
        "guidance": [4.5, 4.0, 2.0, 3.0],
        "prompt": (randn(1, 9, SMALL["text_embed_dim"], seed=2), torch.ones(1, 9, dtype=torch.bool)),
        "negative": (randn(1, 9, SMALL["text_embed_dim"], seed=3), torch.zeros(1, 9, dtype=torch.bool)),
    }
    return ours, randn(1, 12, 2, 6, 10, seed=1), arguments


@pytest.mark.hardware
@pytest.mark.skipif(not cards(), reason="capture needs a Tenstorrent card's command queues, and there is no card here")
@pytest.mark.parametrize("mesh", ["1x2sp0tp1", "2x4sp1tp0"], indirect=True)
def test_replayed_steps_are_those_that_are_sent(mesh):
    ours, latents, arguments = sampling_on(mesh)
    expected = denoise(ours, latents, **arguments)
    assert torch.equal(denoise(ours, latents, capture=True, **arguments), expected)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_a_step_can_be_replayed(mesh, monkeypatch, solver):
    """The recorded program, run again as it was recorded, makes every later step.

    A replay repeats ops on the addresses of the recording. So here it repeats the recorded Python, and the test fails
    if any number of a step went into it other than by the tensors that `select` fills.
    """
    ours, latents, arguments = sampling_on(mesh)
    arguments["solver"] = solver
    expected = denoise(ours, latents, **arguments)

    trace, original = FakeTrace(monkeypatch), Replay._record
    recorded = {}

    def record(self, program):
        recorded["program"] = program
        return original(self, program)

    def execute(device, trace_id, *, cq_id, blocking):
        trace.calls.append("execute")
        if trace.calls[-2] != "end":  # on the mock the recording itself has run already
            recorded["program"]()

    monkeypatch.setattr(Replay, "_record", record)
    monkeypatch.setattr(ttnn, "execute_trace", execute)
    replayed = denoise(ours, latents, capture=True, **arguments)
    assert trace.calls.count("begin") == 1
    assert trace.calls.count("execute") == 3
    assert trace.calls[-1] == "release"
    assert (expected == replayed).all()
