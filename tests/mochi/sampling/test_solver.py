"""Solvers on the host: their order of convergence, and UniPC against Diffusers' scheduler."""

import numpy as np
import pytest
import torch

from models.machine.errors import InputError
from models.mochi.sampling.schedule import linear_quadratic_schedule
from models.mochi.sampling.solver import SOLVERS, solver_weights


def integrate(weights, sigmas, velocity, state):
    """What a mesh does with the weights, in float64: returns the states after each step."""
    kept, states = [np.zeros_like(state) for _ in weights[0][1:]], []
    for sigma, rows in zip(sigmas, weights, strict=False):
        sources = [velocity(state, sigma), *kept]
        moved = [sum(weight * source for weight, source in zip(row, sources, strict=True)) for row in rows]
        state, kept = state + moved[0], moved[1:]
        states.append(state)
    return states


MEAN, DEVIATION = np.array([0.7, -1.2, 0.1]), np.array([0.5, 0.2, 1.5])


def gaussian(state, sigma):
    """The velocity E[z0 - eps | z] of the flow from a standard normal to the normal of MEAN and DEVIATION."""
    variance = (1 - sigma) ** 2 * DEVIATION**2 + sigma**2
    centred = state - (1 - sigma) * MEAN
    return MEAN + ((1 - sigma) * DEVIATION**2 - sigma) / variance * centred


NOISE = np.array([1.3, -0.4, 0.8])
EXACT = MEAN + DEVIATION * NOISE  # the flow keeps the standardised coordinate


def uneven(steps):
    """Levels with steps that grow smoothly to three times the first, as a schedule's do."""
    u = np.linspace(0, 1, steps + 1)
    return list(1 - u * (1 + u) / 2)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ab2", 2), ("unipc", 2)])
@pytest.mark.parametrize("schedule", [uneven, lambda steps: list(np.linspace(1, 0, steps + 1))])
def test_order_of_convergence(name, order, schedule):
    """Half the step: half the error of a first order, a quarter of a second."""
    errors = []
    for steps in (64, 128, 256):
        sigmas = schedule(steps)
        errors.append(np.linalg.norm(integrate(solver_weights(name, sigmas), sigmas, gaussian, NOISE)[-1] - EXACT))
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.12)
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize("name", ["ab2", "unipc"])
def test_second_order_is_closer_at_few_steps_of_the_schedule(name):
    sigmas = linear_quadratic_schedule(16)
    error = {
        each: np.linalg.norm(integrate(solver_weights(each, sigmas), sigmas, gaussian, NOISE)[-1] - EXACT)
        for each in ("euler", name)
    }
    assert error[name] < error["euler"] / 2


@pytest.mark.parametrize("name", ["ab2", "unipc"])
def test_a_jump_of_the_velocity_does_not_cost_the_order(name):
    """Guidance that is on in the middle third only: a restart keeps what happened before out of it."""

    def velocity(scale):
        return lambda state, sigma: gaussian(state, sigma) + (scale - 1) * (0.3 - 0.2 * state)

    def end(steps, solver, restarts=True):
        sigmas, scales = list(np.linspace(1, 0, steps + 1)), [1.0] * steps
        scales[steps // 3 : 2 * steps // 3] = [4.0] * (steps // 3)
        weights = solver_weights(solver, sigmas, scales if restarts else ())
        left = iter(scales)
        return integrate(weights, sigmas, lambda z, s: velocity(next(left))(z, s), NOISE)[-1]

    exact = end(20000 * 3, "ab2")
    errors = [np.linalg.norm(end(steps, name) - exact) for steps in (48, 96, 192)]
    assert errors[0] / errors[1] > 3.3
    assert errors[1] / errors[2] > 3.3
    assert errors[1] < np.linalg.norm(end(96, name, restarts=False) - exact) / 3


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("first", [1.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_unipc_is_diffusers_step_by_step(steps, first, dtype):
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    sigmas = [first * sigma for sigma in linear_quadratic_schedule(steps)]
    scheduler.set_timesteps(sigmas=np.array(sigmas[:-1]))
    if dtype is torch.float64:  # the same levels but for Diffusers' own 1 - 1e-6
        clamped = [min(sigma, 1 - 1e-6) for sigma in sigmas]
        scheduler.sigmas = torch.tensor(clamped, dtype=dtype)
    used = scheduler.sigmas.double().tolist()
    scheduler.timesteps = torch.arange(steps)  # Diffusers rounds times to whole ones, which then are no longer distinct
    state, expected = torch.from_numpy(NOISE)[None].to(dtype), []
    for index, time in enumerate(scheduler.timesteps):
        velocity = torch.from_numpy(gaussian(state.double().numpy(), used[index])).to(dtype)
        state = scheduler.step(-velocity, time, state).prev_sample
        expected.append(state[0].numpy())
    actual = integrate(solver_weights("unipc", used), used, gaussian, NOISE)
    tolerance = 1e-11 if dtype is torch.float64 else 2e-5
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 64])
def test_weights_are_finite_and_reach_the_end(name, steps):
    """A velocity that does not change is integrated exactly by each."""
    sigmas = linear_quadratic_schedule(steps)
    weights = solver_weights(name, sigmas)
    assert weights.shape[0] == steps
    assert np.isfinite(weights).all()
    end = integrate(weights, sigmas, lambda state, sigma: np.array([2.0, -1.0]), np.array([0.25, 0.5]))[-1]
    np.testing.assert_allclose(end, [2.25, -0.5], atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "sigmas",
    [
        [1, 1 - 1e-9, 1 - 2e-9, 0.5, 0],
        [0.5, 0.5 - 1e-9, 0.5 - 2e-9, 0.5 - 3e-9, 0],
        [1, 0.5, 1e-300, 1e-308, 0],
        linear_quadratic_schedule(1000, 1e-6),
    ],
)
def test_levels_close_together_leave_the_weights_small(name, sigmas):
    weights = solver_weights(name, sigmas)
    assert np.isfinite(weights).all()
    assert np.abs(weights).max() < 16
    end = integrate(weights, sigmas, lambda state, sigma: np.array([1.0]), np.array([0.0]))[-1]
    np.testing.assert_allclose(end, sigmas[0], atol=1e-9)


def test_unipc_of_small_steps_is_the_limit_of_its_formulas():
    from models.mochi.sampling.solver import _unic

    np.testing.assert_allclose(_unic(0.9999e-4, -1.0), _unic(1.0001e-4, -1.0), rtol=1e-5)


@pytest.mark.parametrize("name", ["heun", "", None, ["euler"]])
def test_a_solver_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="must be one of euler, ab2, unipc"):
        solver_weights(name, [1, 0])
