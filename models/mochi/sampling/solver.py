"""Solvers of the flow's equation: how a step combines the predictions of the model so far.

Every solver here is one linear rule. A step has m + 1 sources, tensors of one shape: source 0 is the velocity that the
model predicts now, the other m were kept by the step before and are zero at the start. With the weights `W` of the step

    state    += W[0, 0] velocity + W[0, 1] kept[0] + ... + W[0, m] kept[m - 1]
    kept[i]   = W[i + 1, 0] velocity + W[i + 1, 1] kept[0] + ... + W[i + 1, m] kept[m - 1]

where all right sides see the tensors as they were before. The weights are computed on the host, in float64, from the
noise levels alone. So the program of a step is the same in all steps.

Conventions: those of `models.mochi.sampling.schedule`. The state is z = (1 - sigma) z0 + sigma eps, and the velocity v
estimates z0 - eps = -dz / dsigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from models.machine.errors import InputError

if TYPE_CHECKING:
    import numpy as np

EULER = "euler"
_NOISIEST = 1 - 1e-6
"""Where `unipc` takes the logarithm of a signal-to-noise ratio that is 0, as Diffusers does."""
_LARGEST_GROWTH = 16
"""A step that is longer than the one before by more than this factor is of order 1: what two close velocities differ
by is then mostly rounding, which extrapolating would multiply by half of the factor."""


def euler(sigmas: Sequence[float], restarts: frozenset[int] = frozenset()) -> np.ndarray:
    """Weights [n, 1, 1] of Euler's method: ``z += (sigma[i] - sigma[i + 1]) v``. First order; nothing is kept."""
    import numpy as np

    return np.array([[[before - after]] for before, after in pairwise(sigmas)])


def ab2(sigmas: Sequence[float], restarts: frozenset[int] = frozenset()) -> np.ndarray:
    """Weights [n, 2, 2] of the two-step Adams-Bashforth method with variable steps; kept is the velocity before.

    With h the step, h' the step before and r = h / h': ``z += h ((1 + r / 2) v - r / 2 v')``, the integral of the line
    through both velocities. Second order. The first step, those in ``restarts`` and those much longer than the step
    before (`_LARGEST_GROWTH`) are Euler's.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, III.5.
    """
    import numpy as np

    steps = [before - after for before, after in pairwise(sigmas)]
    weights = np.zeros((len(steps), 2, 2))
    for index, step in enumerate(steps):
        growth = 0.0 if index == 0 or index in restarts else step / steps[index - 1]
        half = growth / 2 if growth <= _LARGEST_GROWTH else 0.0
        weights[index] = [[step * (1 + half), -step * half], [1, 0]]
    return weights


def unipc(sigmas: Sequence[float], restarts: frozenset[int] = frozenset()) -> np.ndarray:
    """Weights [n, 3, 3] of UniPC of order 2, variant B2 ("bh2"), that predicts z0, with its corrector.

    Source: Zhao et al., arXiv:2302.04867; Diffusers' ``UniPCMultistepScheduler`` with ``use_flow_sigmas`` and
    ``prediction_type="flow_prediction"``, whose velocity has the other sign.

    With alpha = 1 - sigma, lambda = log(alpha / sigma), rho = sigma[i + 1] / sigma[i] and m = z + sigma v (the
    prediction of z0), exp(-h) of Diffusers' formulas is rho alpha[i] / alpha[i + 1], so that its -alpha expm1(-h) is
    1 - rho, and

        c[i]     = z[i] + g[i] + D[i] (m[i] - z[i])                                            (the corrected state)
        z[i + 1] = rho c[i] + (1 - rho) (m[i] + k (m[i - 1] - m[i]))                            (the predicted one)
        c[i + 1] = rho c[i] + (1 - rho) (m[i] + a (m[i - 1] - m[i]) + d (m[i + 1] - m[i]))

    where k = 1 / (2 r), r = (lambda[i - 1] - lambda[i]) / h, and a r, d solve the two conditions of order of UniC. The
    first step, the last, those in ``restarts`` and those much longer in lambda than the step before
    (`_LARGEST_GROWTH`; Diffusers has no such limit) are of order 1: k = a = 0, d = 1/2. A step in ``restarts`` does not
    correct the state either. Kept are m[i - 1] - z[i], and g[i], which is all of c[i] - z[i] that was known before
    v[i]. Both are relative to the state, because the weights then need no column for it.
    """
    import numpy as np

    count = len(sigmas) - 1
    levels = [math.log1p(-min(s, _NOISIEST)) - math.log(s) if s > 0 else math.inf for s in sigmas]
    weights = np.zeros((count, 3, 3))
    correction = 0.0  # D
    for index, (sigma, after) in enumerate(pairwise(sigmas)):
        velocity, earlier, known = np.eye(3)  # what a row of weights multiplies: v, m[i - 1] - z[i], g[i]
        rho, prediction = after / sigma, sigma * velocity
        if index in restarts:
            known, correction = 0 * known, 0.0
        extrapolated, corrected_earlier, corrected_next = 0.0, 0.0, 0.5
        h = levels[index + 1] - levels[index]
        before = levels[index] - levels[index - 1] if index > 0 and index not in restarts else 0.0
        if 0 < h <= _LARGEST_GROWTH * before and index < count - 1:  # levels at the clamp may be equal
            r = -before / h
            extrapolated = 1 / (2 * r)
            corrected_earlier, corrected_next = _unic(h, r)
        corrected = known + correction * prediction
        step = rho * corrected + (1 - rho) * ((1 - extrapolated) * prediction + extrapolated * earlier)
        weights[index, 0] = step
        if index == count - 1:
            break
        weights[index, 1] = prediction - step
        correction = (1 - rho) * corrected_next
        rest = (1 - corrected_earlier - corrected_next) * prediction + corrected_earlier * earlier
        weights[index, 2] = rho * corrected + (1 - rho) * rest - (1 - correction) * step
    return weights


def _unic(h: float, r: float) -> tuple[float, float]:
    """Return a and d of UniC-2 (B2) for a step h in lambda, the step before being -r h.

    They solve x + d = b1 and r x + d = b2 with x = a r, b1 = phi / expm1(-h), phi = expm1(-h) / -h - 1, and
    b2 = 2 (phi / -h - 1/2) / expm1(-h). For a small h these differences cancel, and the first terms of the series of
    b1 and b2 are taken.
    """
    first, second = 1 / 2 + h / 12, 1 / 3 + h / 12
    if h > 1e-4:
        base = math.expm1(-h)
        phi = base / -h - 1
        first, second = phi / base, 2 * (phi / -h - 0.5) / base
    x = (first - second) / (1 - r)
    return x / r, first - x


SOLVERS: dict[str, Callable[[Sequence[float], frozenset[int]], np.ndarray]] = {
    EULER: euler,
    "ab2": ab2,
    "unipc": unipc,
}


def check_solver(name: str) -> str:
    """Return the name of a solver.

    Raises:
        InputError: there is none of that name.
    """
    if not isinstance(name, str) or name not in SOLVERS:
        raise InputError(f"solver {name!r} must be one of {', '.join(SOLVERS)}")
    return name


def solver_weights(name: str, sigmas: Sequence[float], guidance: Sequence[float] = ()) -> np.ndarray:
    """Return the weights of all steps, float64 [n, m + 1, m + 1].

    Where guidance is switched on or off (its scale becomes 1, or is 1 no longer), the velocity jumps, and what was kept
    says nothing of the new one. The solver begins anew there.

    Args:
        name: of `SOLVERS`.
        sigmas: n + 1 noise levels that fall to 0.
        guidance: n guidance scales; none where they do not matter.

    Raises:
        InputError: there is no such solver.
    """
    jumps = (index for index, (before, now) in enumerate(pairwise(guidance), 1) if (before == 1) != (now == 1))
    return SOLVERS[check_solver(name)](sigmas, frozenset(jumps))


def estimate_weights(name: str, sigmas: Sequence[float]) -> np.ndarray:
    """Return what makes of the state after each step an estimate of z0, float64 [n].

    The estimate after step i is the state plus entry i times a source. For `euler` the source is what the step added to
    the state, so that the estimate is ``z + sigma v`` with the step's v. For `ab2` it is the velocity that the step
    kept, and for `unipc` the m - z that it kept. After the last step the entry is 0: the state is z0 itself.

    Args:
        name: of `SOLVERS`.
        sigmas: n + 1 noise levels that fall to 0.

    Raises:
        InputError: there is no such solver.
    """
    import numpy as np

    before, after = np.asarray(sigmas[:-1], float), np.asarray(sigmas[1:], float)
    if check_solver(name) == EULER:
        return after / (before - after)
    return after if name == "ab2" else (after > 0).astype(float)
