"""Schedules that a user writes down: as text, in a file, as Genmo names them, and beside presets."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.machine.errors import InputError, MissingInputError
from models.mochi.defaults import Defaults
from models.mochi.geometry import Scales
from models.mochi.schedules import schedule_of, steps_of
from models.mochi.setup import Video, VideoRequest, plain, request_of

SIZE = {"height": 32, "width": 32, "num_frames": 7}


@pytest.mark.parametrize("text", ["1,0.8,.4,0", "[1, 8e-1, 0.4, 0]", "1 0.8\n0.4\t0", "(1;0.8;0.4;0)\n"])
def test_a_text_and_a_file_of_it_are_a_list(tmp_path, text):
    file = tmp_path / "levels.txt"
    file.write_text(text)
    for given_so in (text, str(file), file, [1, 0.8, 0.4, 0]):
        assert schedule_of("sigmas", given_so) == [1.0, 0.8, 0.4, 0.0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1,x", "sigmas has 'x', which is no number"),
        ("steps.txt", "sigmas steps.txt does not exist: give numbers"),
        ("", "sigmas has no numbers"),
        (",", "sigmas has no numbers"),
        ("1,1e999", "sigmas inf must be finite"),
        ("1..2", "has '1..2', which is no number"),
        (5, "sigmas 5 must be a list of numbers"),
        ({"a": 1}, "must be a list of numbers"),
        ([1, "x"], "sigmas 'x' must be a number"),
    ],
)
def test_what_is_no_schedule_is_refused(text, why):
    with pytest.raises(InputError) as refused:
        schedule_of("sigmas", text)
    assert why in str(refused.value)


@given(st.text(max_size=20))
def test_any_text_is_numbers_or_a_line(text):
    with suppress(InputError):
        assert all(isinstance(value, float) for value in schedule_of("sigmas", text))


def test_a_steps_file_has_genmos_names(tmp_path):
    file = tmp_path / "steps.json"
    file.write_text('{"sigma_schedule": [1, 0.5, 0], "cfg_schedule": [4.5, 1]}')
    assert steps_of(file) == {"sigmas": [1.0, 0.5, 0.0], "cfg_schedule": [4.5, 1.0]}
    for content, why in [
        ("{}", "is empty"),
        ('{"sigmas": [1, 0]}', "has 'sigmas', which is no schedule"),
        ('{"sigma_schedule": 5}', "sigma_schedule of .* 5 must be a list of numbers"),
        ("[1, 0]", "holds JSON of list"),
    ]:
        file.write_text(content)
        with pytest.raises(InputError, match=why):
            steps_of(file)
    with pytest.raises(MissingInputError, match=r"steps file .* does not exist"):
        steps_of(tmp_path / "none.json")


def resolved(defaults=None, **asked) -> Video:
    return Video.resolve(VideoRequest(**SIZE, **asked), defaults or Defaults(), Scales())


def test_schedules_are_used_as_they_are():
    video = resolved(sigmas="1,0.9,0.3,0", cfg_schedule=[6, 3, 1])
    assert video.sigmas == [1.0, 0.9, 0.3, 0.0]
    assert video.guidance == [6.0, 3.0, 1.0]
    assert video.settings.num_steps == 3
    assert resolved(sigmas=[1, 0.5, 0]).guidance == [6.0, 6.0]
    scales_alone = resolved(cfg_schedule=[2.0] * 64)
    assert scales_alone.sigmas == resolved().sigmas
    assert scales_alone.guidance == [2.0] * 64


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"sigmas": "1,0", "threshold_noise": 0.1}, "sigmas takes the place of threshold_noise"),
        ({"sigmas": "1,0", "linear_steps": 1}, "sigmas takes the place of linear_steps"),
        ({"sigmas": "1,0.5,0", "num_steps": 3}, "3 sigmas are 2 steps, not 3"),
        ({"sigmas": "0.5,1,0"}, "must fall strictly"),
        ({"sigmas": "1,0.5"}, "must be 0"),
        ({"cfg_schedule": "3,3", "guidance_scale": 3.0}, "cfg_schedule takes the place of guidance_scale"),
        ({"cfg_schedule": "3,3", "guidance_interval": "0:1"}, "cfg_schedule takes the place of guidance_interval"),
        ({"cfg_schedule": "3,3"}, "2 guidance scales for 64 steps"),
        ({"cfg_schedule": "0,3", "num_steps": 2}, "guidance scale 0 must be at least 1"),
    ],
)
def test_what_excludes_each_other_is_refused(asked, why):
    with pytest.raises(InputError, match=why):
        resolved(**asked)


def test_a_schedule_wins_over_a_presets():
    """fast-mochi has steps, a scale and the shape of a schedule."""
    video = resolved(preset="fast-mochi", sigmas="1,0.4,0", cfg_schedule="2,1")
    assert (video.sigmas, video.guidance) == ([1.0, 0.4, 0.0], [2.0, 1.0])
    only_scales = resolved(preset="fast-mochi", cfg_schedule=[2.0] * 8)
    assert only_scales.sigmas == resolved(preset="fast-mochi").sigmas
    assert resolved(preset="fast-mochi", sigmas="1,0.4,0").guidance == [1.5, 1.5]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"sigmas": "1,0.4,0"},
        {"cfg_schedule": "2,1", "num_steps": 2},
        {"preset": "fast-mochi", "sigmas": "1,0.4,0", "cfg_schedule": "2,1"},
        {"preset": "fast", "guidance_interval": "0:0.5"},
    ],
)
def test_what_is_recorded_makes_the_same_video(asked):
    video = resolved(**asked)
    recorded = json.loads(json.dumps(plain(video.as_arguments())))
    request = request_of(recorded).video
    again = Video.resolve(request, Defaults(), Scales())
    assert (again.sigmas, again.guidance, again.settings) == (video.sigmas, video.guidance, video.settings)
