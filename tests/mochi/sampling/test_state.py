"""Reading the state between steps: it is the run's, it estimates where the run ends, and it changes nothing."""

import pytest
import torch
import ttnn

from models.mochi.sampling.branches import GuidanceParallel
from models.mochi.sampling.denoise import denoise
from models.mochi.sampling.solver import SOLVERS, estimate_weights, solver_weights
from models.mochi.transformer import MochiTransformer
from models.parallel import Halves, Layout, Replay
from models.reference.metrics import relative_rmse
from tests.support import SMALL, StateDict, config_of, randn, reference

SIGMAS = [1.0, 0.97, 0.75, 0.4, 0.0]
GUIDANCE = [4.5, 4.0, 1.0, 3.0]
PROMPTS = [(randn(1, 9, SMALL["text_embed_dim"], seed=seed), torch.ones(1, 9, dtype=torch.bool)) for seed in (2, 3)]
NOISE = randn(1, 12, 2, 6, 10, seed=1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_on_a_straight_flow_every_estimate_is_the_end(solver):
    """z = (1 - sigma) z0 + sigma eps has the velocity z0 - eps everywhere; so says the solver's own rule."""
    z0, eps = randn(40, seed=1).double(), randn(40, seed=2).double()
    state, kept = eps.clone(), [torch.zeros_like(eps)] * (solver_weights(solver, SIGMAS).shape[1] - 1)
    for rows, weight in zip(
        torch.from_numpy(solver_weights(solver, SIGMAS)), estimate_weights(solver, SIGMAS), strict=True
    ):
        before = state
        moved = [sum(w * x for w, x in zip(row, [z0 - eps, *kept], strict=True)) for row in rows]
        state, kept = state + moved[0], moved[1:]
        source = kept[0] if kept else state - before
        torch.testing.assert_close(state + weight * source, z0, atol=1e-5, rtol=0)
    assert weight == 0


def loaded(mesh):
    model = reference(**SMALL)
    ours = MochiTransformer(config_of(model), mesh)
    ours.load(StateDict(model))
    return ours


def read(model, solver="euler", **more):
    """Run, and return the result, and of every step the latents, the estimate and the noise level."""
    seen, states = [], []

    def on_state(state):
        assert state.steps == len(GUIDANCE)
        for gone in states:
            with pytest.raises(RuntimeError, match=f"after step {gone.step} is gone"):
                gone.latents()
        seen.append((state.latents(), state.estimate(), state.sigma))
        states.append(state)

    arguments = dict(sigmas=SIGMAS, guidance=GUIDANCE, prompt=PROMPTS[0], negative=PROMPTS[1], solver=solver)
    made = denoise(model, NOISE, **arguments, **more, on_state=on_state)
    assert [state.step for state in states] == [1, 2, 3, 4]
    for state in states:
        with pytest.raises(RuntimeError, match=f"after step {state.step} is gone"):
            state.latents()
    return made, seen, denoise(model, NOISE, **arguments, **more)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("mesh", ["1x2sp1tp0"], indirect=True)
def test_what_is_read_is_the_runs_and_changes_nothing(mesh, solver):
    made, seen, unread = read(loaded(mesh), solver)
    assert torch.equal(made, unread)
    latents, estimates, sigmas = zip(*seen, strict=True)
    assert sigmas == tuple(SIGMAS[1:])
    assert torch.equal(latents[-1], made)
    assert torch.equal(estimates[-1], made)
    before = [NOISE, *latents[:-1]]
    for index, (earlier, now, estimate) in enumerate(zip(before, latents, estimates, strict=True)):
        assert not torch.equal(earlier, now)
        if solver == "euler":
            velocity = (now - earlier) / (SIGMAS[index] - SIGMAS[index + 1])
            torch.testing.assert_close(estimate, earlier + SIGMAS[index] * velocity, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mesh", ["1x2sp1tp0"], indirect=True)
def test_a_captured_step_is_the_same_and_is_read_between_replays(mesh, monkeypatch):
    """The mock cannot replay: the recorded Python runs again in its place. Euler's copy is not in the recording."""
    model = loaded(mesh)
    programs, fresh, recording, copies = {}, [], [], []

    def record(self, program):
        recording.append(True)
        result = program()
        recording.pop()
        programs[len(programs)] = program
        fresh.append(len(programs) - 1)
        return len(programs) - 1, result

    def execute(device, trace, *, cq_id, blocking):
        if fresh and fresh[-1] == trace:  # On the mock the recording has run already.
            fresh.clear()
        else:
            programs[trace]()

    original = ttnn.copy
    monkeypatch.setattr(ttnn, "copy", lambda *a: copies.append(bool(recording)) or original(*a))
    monkeypatch.setattr(Replay, "_record", record)
    for name, stand_in in (("execute_trace", execute), ("release_trace", lambda device, trace: None)):
        monkeypatch.setattr(ttnn, name, stand_in)
    monkeypatch.setattr(ttnn, "synchronize_device", lambda device: None)
    made, seen, unread = read(model, capture=True)
    assert torch.equal(made, unread)
    assert torch.equal(seen[-1][1], made)
    assert len(programs) == 2, "of the guided step, with a reader and without"
    assert copies == [False] * len(GUIDANCE)


@pytest.mark.alone
def test_on_halves_the_state_is_the_conditional_halfs(open_layout):
    halves = Halves(open_layout("1x2sp0tp1").device, Layout.parse("1x2cfg1sp0tp1"))
    models = [loaded(half) for half in (halves.conditional, halves.unconditional)]
    made, seen, unread = read(models[0], parallel=GuidanceParallel(halves, models[1]))
    halves.release()
    assert torch.equal(made, unread)
    assert torch.equal(seen[-1][1], made)
    alone, others, _ = read(models[0])
    assert relative_rmse(others[1][1], seen[1][1]) < 1e-4
    assert relative_rmse(alone, made) < 1e-5
