"""What a user says of the reuse of blocks, and files of calibrated steps."""

import json

import numpy as np
import pytest

from models.machine.errors import InputError, MissingInputError
from models.mochi.defaults import Defaults
from models.mochi.geometry import Scales
from models.mochi.reuse import Calibration, parse_reuse
from models.mochi.sampling.reuse import ReuseBelow, ReuseSteps
from models.mochi.setup import Video, VideoRequest

LISTED = ReuseSteps(frozenset({3, 4, 6}))


@pytest.mark.parametrize("value", [None, "off"])
def test_off_is_no_policy(value):
    assert parse_reuse(value, 8) is None


@pytest.mark.parametrize("value", [0.1, "0.1", np.float64(0.1), "1e-1"])
def test_a_number_is_a_threshold(value):
    assert parse_reuse(value, 8) == ReuseBelow(0.1, frozenset({0, 7}))


@pytest.mark.parametrize("value", ["steps:3,4,6", "steps: 6, 4,3", [3, 4, 6], (4, 3, 6), np.array([3, 4, 6]), LISTED])
def test_a_list_names_steps(value):
    assert parse_reuse(value, 8) == LISTED


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("on", "is not known: write off, a threshold"),
        ("", "is not known"),
        ("steps:", "is not known"),
        ("steps", "is not known"),
        ("steps:3,,4", "whole numbers with commas"),
        ("steps:3-6", "whole numbers with commas"),
        ("steps:-1", "whole numbers with commas"),
        ("steps:0,3", "step 0 cannot be reused"),
        ("steps:7", "step 7 cannot be reused: of 8 steps, 0 to 7"),
        ("steps:99999", "must be from 0 to"),
        ("nan", "must be above 0 and at most 1"),
        ("-0.1", "must be above 0 and at most 1"),
        ("0", "off turns reuse off"),
        (0, "off turns reuse off"),
        (5, "must be above 0 and at most 1"),
        (True, "must be a number"),
        (float("nan"), "must be finite"),
        ([1.5], "whole number"),
        (["a"], "whole number"),
        (object(), "must be a number"),
    ],
)
def test_what_is_no_reuse_is_refused(value, said):
    with pytest.raises(InputError, match=said):
        parse_reuse(value, 8)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "found.json"
    Calibration("abcd", 8, 0.1, (3, 4, 6), ("a red ball",), "tiny").write(path, {"mode": "golden"})
    return path


def test_a_calibrated_list_is_read_back(file):
    assert parse_reuse(f"steps:{file}", 8, lambda: "abcd") == LISTED
    assert Calibration.read(file).prompts == ("a red ball",)


@pytest.mark.parametrize(
    ("steps", "fingerprint", "said"),
    [
        (9, "abcd", "is for 8 steps, not 9"),
        (8, "other", "is for another checkpoint .abcd of tiny, not other"),
        (8, None, "this pipeline has none"),
    ],
)
def test_a_list_for_another_run_is_refused(file, steps, fingerprint, said):
    with pytest.raises(InputError, match=said):
        parse_reuse(f"steps:{file}", steps, fingerprint and (lambda: fingerprint))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "other"}, "is no list of reused steps"),
        ({"reused_steps": "3"}, "reused_steps"),
        ({"reused_steps": [3, -1]}, "reused_steps"),
        ({"reused_steps": [0]}, "step 0 cannot be reused"),
        ({"reused_steps": [7]}, "step 7 cannot be reused"),
        ({"num_steps": None}, "num_steps"),
        ({"checkpoint": 5}, "checkpoint"),
    ],
)
def test_a_damaged_list_is_refused(file, change, said):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=said):
        parse_reuse(f"steps:{file}", 8, lambda: "abcd")


def test_a_list_that_is_not_there_or_no_json_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match="does not exist"):
        parse_reuse(f"steps:{tmp_path / 'none.json'}", 8)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        parse_reuse(f"steps:{tmp_path / 'bad.json'}", 8)


def test_a_video_is_checked_with_its_steps():
    defaults = Defaults(num_steps=8)
    assert Video.resolve(VideoRequest(reuse="steps:3,4,6"), defaults, Scales()).reuse == LISTED
    assert Video.resolve(VideoRequest(), defaults, Scales()).reuse is None
    with pytest.raises(InputError, match="step 3 cannot be reused: of 4 steps"):
        Video.resolve(VideoRequest(reuse="steps:3,4,6", num_steps=4), defaults, Scales())
