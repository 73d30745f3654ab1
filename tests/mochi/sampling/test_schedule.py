from dataclasses import asdict

import numpy as np
import pytest

from models.machine.errors import InputError
from models.mochi.sampling.schedule import (
    check_scheduler,
    check_sigmas,
    guidance_schedule,
    linear_quadratic_schedule,
    model_times,
    resolve_sigmas,
)


@pytest.mark.parametrize(
    ("steps", "threshold", "linear"), [(64, 0.025, None), (8, 0.1, 6), (7, 0.025, None), (2, 0.3, 1), (50, 0.2, 30)]
)
def test_sigmas_are_those_of_diffusers(steps, threshold, linear):
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule as reference

    ours = linear_quadratic_schedule(steps, threshold, linear)
    assert len(ours) == steps + 1
    assert ours[-1] == 0
    np.testing.assert_allclose(ours[:-1], reference(steps, threshold, linear), atol=1e-12)


def test_steps_and_times_are_those_of_the_inverted_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    check_scheduler({**scheduler.config, "_class_name": type(scheduler).__name__})
    ours = linear_quadratic_schedule(20)
    scheduler.set_timesteps(sigmas=np.array(ours[:-1]))
    np.testing.assert_allclose(model_times(ours), scheduler.timesteps, atol=1e-3)
    np.testing.assert_allclose(-np.diff(ours), np.diff(scheduler.sigmas), atol=1e-6)


def test_the_line_and_the_parabola_meet_smoothly():
    sigmas = linear_quadratic_schedule(64, 0.025)
    assert sigmas[32] == pytest.approx(1 - 0.025)
    steps = -np.diff(sigmas)
    np.testing.assert_allclose(steps[:32], 0.025 / 32)
    # Slope continues: the first quadratic step exceeds the line's by one half of its growth.
    assert steps[32] - steps[31] == pytest.approx((steps[33] - steps[32]) / 2)


def test_one_step_goes_all_the_way():
    assert linear_quadratic_schedule(1) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "steps 0"),
        ((2.5,), "steps 2.5"),
        ((8, 0.0), "threshold_noise 0.0 must be between 0 and 1"),
        ((8, float("nan")), "threshold_noise nan"),
        ((8, 0.1, 0), "linear_steps 0 must be from 1 to 7"),
        ((8, 0.1, 8), "linear_steps 8 must be from 1 to 7"),
        ((8, 0.99, 1), "overshoots the end: lower threshold_noise"),
    ],
)
def test_schedules_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_quadratic_schedule(*arguments)


def test_sigmas_of_the_caller():
    assert resolve_sigmas(None, [1, 0.5, 0]) == [1.0, 0.5, 0.0]
    assert resolve_sigmas(2, (1, 0.5, 0)) == [1.0, 0.5, 0.0]
    assert len(resolve_sigmas(None)) == 65
    with pytest.raises(ValueError, match="3 sigmas are 2 steps, not 3"):
        resolve_sigmas(3, [1, 0.5, 0])
    with pytest.raises(ValueError, match="leave them out"):
        resolve_sigmas(None, [1, 0.5, 0], threshold_noise=0.1)
    for sigmas, message in [
        ([0.0], "at least 2"),
        ([1.0, 0.5], "append a 0"),
        ([1.0, 1.0, 0.0], "at step 0"),
        ([1.5, 0.0], r"in \[0, 1\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_sigmas(sigmas)


def test_guidance_is_one_scale_or_one_per_step():
    assert guidance_schedule(4.5, 3) == [4.5, 4.5, 4.5]
    assert guidance_schedule([6, 6, 1], 3) == [6.0, 6.0, 1.0]
    for guidance, message in [([6, 1], "2 guidance scales for 3"), (0.5, "0.5 must be at least 1"), ("6", "'6'")]:
        with pytest.raises(ValueError, match=message):
            guidance_schedule(guidance, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shift", 3.0),
        ("shift", True),
        ("shift", None),
        ("invert_sigmas", False),
        ("invert_sigmas", 1),
        ("use_karras_sigmas", True),
        ("use_dynamic_shifting", "no"),
        ("stochastic_sampling", 0.0),
        ("shift_terminal", 0.1),
        ("num_train_timesteps", "1000"),
        ("time_shift_type", "banana"),
        ("time_shift_type", None),
        ("base_shift", "x"),
        ("max_image_seq_len", True),
        ("_class_name", ["FlowMatchEulerDiscreteScheduler"]),
    ],
)
def test_another_scheduler_is_refused(key, value):
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True, key: value}
    with pytest.raises(ValueError, match=key):
        check_scheduler(config)


def test_what_the_reference_means_the_same_by_passes():
    from diffusers import FlowMatchEulerDiscreteScheduler

    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}
    check_scheduler(config)
    check_scheduler(config | {"shift": 1, "use_karras_sigmas": None, "time_shift_type": "linear", "later": "unknown"})
    check_scheduler(dict(FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config) | config)


def test_defaults_are_genmos():
    """Source: Genmo `demos/cli.py` and `pipelines.py`; Diffusers `MochiPipeline.__call__` has the same threshold."""
    from models.mochi.defaults import Defaults

    assert linear_quadratic_schedule(64) == linear_quadratic_schedule(64, 0.025, 32)
    assert asdict(Defaults()) == {
        "height": 480,
        "width": 848,
        "num_frames": 163,
        "num_steps": 64,
        "guidance_scale": 6.0,
        "threshold_noise": 0.025,
        "seed": 1710977262,
        "fps": 30,
    }


@pytest.mark.parametrize("sigmas", [[1.0, 0.5, 0.7, 0.0], [1.0, 0.5, 0.5, 0.0]], ids=["rise", "stay"])
def test_sigmas_must_fall(sigmas):
    with pytest.raises(ValueError, match="must fall strictly"):
        check_sigmas(sigmas)


@pytest.mark.parametrize(
    ("interval", "steps", "guided"),
    [
        ("0:1", 4, [0, 1, 2, 3]),
        ((0, 1), 1, [0]),
        ("0.25:0.75", 4, [1, 2]),
        ([0.3, 0.7], 10, [3, 4, 5, 6]),
        ("0.1:0.8", 5, [1, 2, 3]),
        (np.array([0.5, 1]), 3, [2]),
    ],
)
def test_guidance_in_an_interval_of_the_steps(interval, steps, guided):
    scales = guidance_schedule(6.0, steps, interval)
    assert [i for i, scale in enumerate(scales) if scale == 6.0] == guided
    assert set(scales) <= {1.0, 6.0}


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ("0.5", "must be A:B"),
        ("a:b", "'a:b' must be A:B"),
        ("0.1:0.2:0.3", "must be A:B"),
        ("0.8:0.2", "0 <= A < B <= 1"),
        ("0.5:0.5", "0 <= A < B <= 1"),
        ("-0.1:0.5", "0 <= A < B <= 1"),
        ("0:1.1", "0 <= A < B <= 1"),
        ("nan:1", "finite"),
        ((0.2, "x"), "must be a number"),
        (0.5, "must be a list of numbers"),
        ("0.4:0.5", "none of the 3 steps"),
        ("", "must be A:B"),
    ],
)
def test_an_interval_that_is_none_is_refused(interval, message):
    with pytest.raises(InputError, match=message):
        guidance_schedule(6.0, 3, interval)


def test_an_interval_is_for_one_scale():
    with pytest.raises(InputError, match="a list says each step's own"):
        guidance_schedule([6, 6, 1], 3, "0:0.5")
