"""Genmo's linear-quadratic noise schedule and the guidance schedule.

Conventions: sigma is the share of noise, 1 at the start and 0 at the end. The model's time is `(1 - sigma) * 1000`. The
model's prediction estimates `z0 - eps`, so one Euler step is `z += (sigma[i] - sigma[i + 1]) * prediction`.

Sources: Genmo `pipelines.py`, `linear_quadratic_schedule` and `sample_model` (github genmoai/mochi). Diffusers'
`FlowMatchEulerDiscreteScheduler(invert_sigmas=True)` keeps `1 - sigma` and appends 1, which gives the same steps and
times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from models.machine.checks import number, numbers, short, whole
from models.machine.errors import InputError

THRESHOLD_NOISE = 0.025
TIMESTEPS = 1000
NUM_STEPS = 64
_CORRECT = "correct scheduler/scheduler_config.json"
MOST_GUIDANCE = 100.0
"""Larger scales are mistakes: Mochi is sampled with about 4 to 8, and numbers overflow at some thousands."""
MOST_STEPS = TIMESTEPS
"""More steps than the model has times to tell apart are refused."""


def linear_quadratic_schedule(
    num_steps: int, threshold_noise: float = THRESHOLD_NOISE, linear_steps: int | None = None
) -> list[float]:
    """Return the `num_steps + 1` sigmas from 1 to 0.

    With u = 1 - sigma and L = `linear_steps`: for i <= L, u is the line `i * threshold_noise / L`. From L on, u is the
    parabola that continues the line with the same slope and reaches 1 at `num_steps`.

    Args:
        num_steps: number of denoising steps, n >= 1.
        threshold_noise: u at step L, in (0, 1).
        linear_steps: L, 1 <= L <= n - 1; `n // 2` by default. With n = 1 there is no room for two parts: the single
            step goes from 1 to 0.

    Raises:
        ValueError: an argument is out of range, or the line is so steep that the parabola overshoots 1.
    """
    _check_steps(num_steps)
    if not 0 < number("threshold_noise", threshold_noise) < 1:
        raise InputError(f"threshold_noise {threshold_noise} must be between 0 and 1 (Genmo's is 0.025)")
    if num_steps == 1 and linear_steps is None:
        return [1.0, 0.0]
    if num_steps == 1:
        raise InputError("one step has no linear part: leave linear_steps out, or take more steps")
    name = f"with {num_steps} steps, linear_steps"
    length = num_steps // 2 if linear_steps is None else whole(name, linear_steps, 1, num_steps - 1)
    slope = threshold_noise / length
    rest = num_steps - length
    # u(L + x) = threshold + slope x + curve x^2, with u(n) = 1.
    curve = (1 - threshold_noise - slope * rest) / rest**2
    if slope + 2 * curve * rest <= 0:
        raise InputError(
            f"threshold_noise {threshold_noise} after {length} of {num_steps} steps overshoots the end: lower "
            "threshold_noise or use more linear_steps"
        )
    removed = [slope * i for i in range(length)]
    removed += [threshold_noise + slope * x + curve * x * x for x in range(rest)]
    return [1.0 - u for u in removed] + [0.0]


def resolve_sigmas(
    num_steps: int | None,
    sigmas: Sequence[float] | None = None,
    threshold_noise: float | None = None,
    linear_steps: int | None = None,
) -> list[float]:
    """Return the n + 1 sigmas: the given ones, or those of the linear-quadratic schedule.

    Raises:
        ValueError: an argument is out of range, or `sigmas` is given together with arguments of the schedule.
    """
    if sigmas is None:
        steps = NUM_STEPS if num_steps is None else num_steps
        threshold = THRESHOLD_NOISE if threshold_noise is None else threshold_noise
        return linear_quadratic_schedule(steps, threshold, linear_steps)
    if threshold_noise is not None or linear_steps is not None:
        raise InputError("threshold_noise and linear_steps belong to the schedule that sigmas replaces: leave them out")
    values = check_sigmas(sigmas)
    if num_steps not in (None, len(values) - 1):
        raise InputError(f"{len(values)} sigmas are {len(values) - 1} steps, not {num_steps}: leave the number out")
    return values


def check_strength(strength: Any) -> float:
    """Return the share of the steps that a run from a video does, from 0 to 1.

    Raises:
        InputError: it is none.
    """
    made = number("strength", strength)
    if not 0 <= made <= 1:
        raise InputError(f"strength {made:g} must be from 0 (the video as it is) to 1 (noise alone)")
    return made


def first_step(num_steps: int, strength: float) -> int:
    """Return the first step that a run of a strength does, of a schedule of n steps.

    Source: Diffusers' `get_timesteps` of its image- and video-to-video pipelines: `min(int(n strength), n)` steps are
    done, the last ones.
    """
    return num_steps - min(int(num_steps * strength), num_steps)


def check_sigmas(sigmas: Sequence[float]) -> list[float]:
    """Return `sigmas` as a list of floats, after checking that they fall strictly from at most 1 to 0.

    Raises:
        ValueError: there are fewer than two sigmas, they do not fall strictly, lie outside [0, 1], or do not end with
            0.
    """
    values = numbers("sigmas", sigmas)
    if len(values) < 2:
        raise InputError(f"sigmas must have at least 2 values (steps + 1), not {len(values)}")
    if not all(0 <= s <= 1 for s in values):
        raise InputError(f"sigmas must lie in [0, 1], not from {min(values)} to {max(values)}")
    for i, (now, after) in enumerate(pairwise(values)):
        if after >= now:
            raise InputError(f"sigmas must fall strictly, but go from {now:.6g} to {after:.6g} at step {i}")
    if values[-1] != 0:
        raise InputError(f"the last sigma must be 0, the end of denoising, not {values[-1]}: append a 0")
    return values


def model_times(sigmas: Sequence[float]) -> list[float]:
    """Return the model's time at each step, `(1 - sigma) * 1000`, for the n steps of n + 1 sigmas."""
    return [(1.0 - s) * TIMESTEPS for s in sigmas[:-1]]


def guidance_schedule(
    guidance: float | Sequence[float], num_steps: int, interval: str | Sequence[float] | None = None
) -> list[float]:
    """Return one guidance scale per step. A scale of 1 means that the unconditional pass is not needed.

    Args:
        guidance: one scale for all steps, or one for each.
        num_steps: number of denoising steps, n.
        interval: A and B, see `check_interval`: step i (from 0) has the scale if A <= i / n < B, else 1. All steps by
            default. Source: Kynkaanniemi et al., arXiv:2404.07724, whose interval is one of noise levels; here it is
            one of steps, so that it says what it saves.

    Raises:
        InputError: the number of scales is wrong, or a scale is below 1, above `MOST_GUIDANCE` or not finite.
            (Diffusers takes every scale up to 1 as "no guidance". Here 1 means that.) Or the interval is none, has no
            step in it, or comes with a list of scales.
    """
    _check_steps(num_steps)
    many = hasattr(guidance, "__iter__") and getattr(guidance, "ndim", 1) == 1 and not isinstance(guidance, str)
    scales = numbers("guidance scale", guidance) if many else [number("guidance scale", guidance)] * num_steps
    if len(scales) != num_steps:
        raise InputError(f"{len(scales)} guidance scales for {num_steps} steps: give one, or one per step")
    for scale in scales:
        if not 1 <= scale <= MOST_GUIDANCE:
            raise InputError(
                f"guidance scale {scale:g} must be at least 1 (1 turns guidance off) and at most {MOST_GUIDANCE:g}"
            )
    if interval is None:
        return scales
    if many:
        raise InputError(
            "guidance_interval belongs to one guidance scale; a list says each step's own: put 1 where none is wanted"
        )
    start, end = check_interval(interval)
    inside = [start <= index / num_steps < end for index in range(num_steps)]
    if not any(inside):
        raise InputError(f"guidance_interval {start:g}:{end:g} has none of the {num_steps} steps in it: make it wider")
    return [scale if guides else 1.0 for scale, guides in zip(scales, inside, strict=True)]


def check_interval(interval: str | Sequence[float]) -> tuple[float, float]:
    """Return A and B of a guidance interval: shares of the steps, 0 <= A < B <= 1.

    Args:
        interval: text "A:B", or two numbers.

    Raises:
        InputError: it is none of these, or the numbers break the rule.
    """
    rule = "must be A:B, shares of the steps with 0 <= A < B <= 1, such as 0.1:0.8"
    parts: Any = interval
    if isinstance(interval, str):
        try:
            parts = [float(part) for part in interval.split(":")]
        except ValueError:
            raise InputError(f"guidance_interval {interval!r} {rule}") from None
    ends = numbers("guidance_interval", parts)
    if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 1:
        raise InputError(f"guidance_interval {interval!r} {rule}")
    return ends[0], ends[1]


def check_reuse(every: int) -> int:
    """Return K, where in every K-th guided step the unconditional branch is computed.

    Raises:
        InputError: K is no whole number from 1 (which reuses nothing) to `MOST_STEPS`.
    """
    return whole("guidance_reuse", every, 1, MOST_STEPS)


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Check that a scheduler configuration has the sigmas that this schedule computes.

    Raises:
        ValueError: the scheduler class, the shift, the spacing or the convention is not Mochi's, or a setting has a
            value that its class does not know.
    """
    required = {
        "_class_name": ("FlowMatchEulerDiscreteScheduler", None),
        "num_train_timesteps": (TIMESTEPS, TIMESTEPS),
        "shift": (1.0, 1.0),
        "invert_sigmas": (True, False),
        "use_dynamic_shifting": (False, False),
        "shift_terminal": (None, None),
        "use_karras_sigmas": (False, False),
        "use_exponential_sigmas": (False, False),
        "use_beta_sigmas": (False, False),
        "stochastic_sampling": (False, False),
    }
    for name, (wanted, default) in required.items():
        value = config.get(name, default)
        # Null counts as false, as in the reference's code. True is no number.
        empty = not wanted and value is None
        if not empty and (isinstance(value, bool) != isinstance(wanted, bool) or value != wanted):
            raise InputError(
                f"the checkpoint's scheduler has {name}={short(value)}, but Mochi is sampled with {wanted!r}: "
                f"{_CORRECT}"
            )
    kind = config.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise InputError(
            f"the checkpoint's scheduler has time_shift_type={short(kind)}, but it is exponential or linear: {_CORRECT}"
        )
    # Of dynamic shifting, which Mochi does without: only their types matter.
    for name in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        if config.get(name) is not None:
            number(f"the checkpoint's scheduler: {name}", config[name])


def _check_steps(num_steps: int) -> None:
    whole("the number of steps", num_steps, 1, MOST_STEPS)
