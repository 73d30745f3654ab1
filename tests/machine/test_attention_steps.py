"""Published times of attention's steps: exact where measured, between them in between, a wide range elsewhere."""

import pytest

from models.machine.attention_steps import is_covered, measured, step_microseconds


@pytest.mark.parametrize("step", measured(), ids=lambda step: f"{step.q}x{step.k}")
def test_a_measured_shape_has_its_own_time(step):
    assert step_microseconds(step.q, step.k) == pytest.approx(step.microseconds)
    fast, expected, slow = step.microseconds
    assert fast < expected < slow
    assert step.source


@pytest.mark.parametrize(("q", "k"), [(256, 384), (224, 512), (320, 256), (320, 384), (200, 400), (448, 200)])
def test_between_measured_shapes_the_time_is_between_theirs(q, k):
    assert is_covered(q, k)
    assert 28.8 < step_microseconds(q, k)[1] < 66.8
    nearby = [step.microseconds[1] for step in measured() if step.q >= q and step.k >= k]
    assert all(step_microseconds(q, k)[1] <= larger * 1.001 for larger in nearby)


@pytest.mark.parametrize(("q", "k"), [(32, 32), (64, 512), (320, 512), (384, 384), (512, 512), (128, 128), (256, 1024)])
def test_nothing_is_extrapolated(q, k):
    """Outside of what was measured the range is wide, and the report says so."""
    assert not is_covered(q, k)
    fast, expected, slow = step_microseconds(q, k)
    assert slow / fast > 1.7
    assert fast < expected < slow


def test_the_line_is_near_what_the_normal_op_was_measured_at():
    from models.machine.attention_steps import _LINE

    for step in measured():
        if "exp op on" in step.source:
            continue
        line = _LINE[0] + _LINE[1] * step.k / 32 + _LINE[2] * step.q * step.k / 1024
        assert line == pytest.approx(step.microseconds[1], rel=0.13), step
