"""What a user says of the reuse of blocks, and files of calibrated steps."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from models.machine.errors import InputError, MissingInputError
from models.mochi.defaults import Defaults
from models.mochi.geometry import Scales
from models.mochi.reuse import Calibration, Conditions, Weights, parse_reuse
from models.mochi.sampling.reuse import ReuseBelow, ReuseSteps
from models.mochi.setup import Video, VideoRequest

LISTED = ReuseSteps(frozenset({3, 4, 6}))
SIGMAS = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0]
SIZE = (64, 48, 7)
RUN = Conditions(SIGMAS, [3.0] * 8, size=SIZE)


@dataclass(frozen=True)
class Merged:
    """A LoRA that was merged."""

    name: str
    content: str
    strength: float = 1.0

    def identity(self):
        return f"{self.content}:{self.strength}"


def weights(fingerprint="abcd", precision="default", loras=()):
    return Weights(fingerprint and (lambda: fingerprint), precision, loras)


@pytest.mark.parametrize("value", [None, "off"])
def test_off_is_no_policy(value):
    assert parse_reuse(value, RUN) is None


@pytest.mark.parametrize("value", [0.1, "0.1", np.float64(0.1), "1e-1"])
def test_a_number_is_a_threshold(value):
    assert parse_reuse(value, RUN) == ReuseBelow(0.1, frozenset({0, 7}))


@pytest.mark.parametrize("value", ["steps:3,4,6", "steps: 6, 4,3", [3, 4, 6], (4, 3, 6), np.array([3, 4, 6]), LISTED])
def test_a_list_names_steps(value):
    assert parse_reuse(value, RUN) == LISTED


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
        (b"\x02", "reuse b.* must be a threshold, or a list of steps"),
        (bytearray(b"\x02"), "must be a threshold, or a list"),
        (memoryview(b"\x02"), "must be a threshold, or a list"),
        ({2: 3}, "must be a threshold, or a list"),
        ({2: 3}.keys(), "must be a threshold, or a list"),
        ({2: 3}.values(), "must be a threshold, or a list"),
        ({2, 3}, "must be a threshold, or a list"),
        (frozenset({2}), "must be a threshold, or a list"),
        (np.array([[2, 3]]), "must be one number"),
        (type("Policy", (), {"blocks": 5, "threshold": None})(), "must be a number"),
    ],
)
def test_what_is_no_reuse_is_refused(value, said):
    with pytest.raises(InputError, match=said):
        parse_reuse(value, RUN)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "found.json"
    found = Calibration.of(weights(), RUN, 0.1, (3, 4, 6), ("a red ball",), "tiny")
    found.write(path, {"mode": "golden"})
    return path


def test_a_calibrated_list_is_read_back(file):
    found = parse_reuse(f"steps:{file}", RUN, weights())
    assert found == LISTED
    assert found.note is None
    assert Calibration.read(file).prompts == ("a red ball",)


def test_the_longest_run_has_a_list_too(tmp_path):
    steps = 1000
    run = Conditions([1 - index / steps for index in range(steps)] + [0], [1.0] * steps, size=SIZE)
    Calibration.of(weights(), run, 0.1, range(1, steps - 1)).write(tmp_path / "a.json", {})
    assert len(parse_reuse(f"steps:{tmp_path / 'a.json'}", run, weights()).reused) == steps - 2


STYLE = Merged("style.safetensors:0.8", "1234", 0.8)


@pytest.mark.parametrize(
    ("run", "used", "said"),
    [
        (Conditions([*SIGMAS[:-1], 0.1, 0], [3.0] * 9), weights(), "is for 8 steps, not 9"),
        (RUN, weights("other"), "is for another checkpoint .abcd of tiny, not other"),
        (RUN, None, "this pipeline has none"),
        (replace(RUN, solver="unipc"), weights(), "is for solver euler, not unipc: calibrate again"),
        (replace(RUN, sigmas=[*SIGMAS[:3], 0.69, *SIGMAS[4:]]), weights(), "sigmas .0.7 at step 3, not 0.69.: calib"),
        (RUN, weights(loras=[STYLE]), "is for no LoRA, not LoRA style.safetensors:0.8 .1234:0.8.: calibrate again"),
        # Without weights solver, steps and sigmas are checked all the same.
        (Conditions([*SIGMAS[:-1], 0.1, 0], [3.0] * 9), weights(None), "is for 8 steps, not 9"),
        (replace(RUN, solver="unipc"), weights(None), "is for solver euler"),
        (replace(RUN, sigmas=[*SIGMAS[:3], 0.69, *SIGMAS[4:]]), weights(None), "is for other sigmas"),
    ],
)
def test_a_list_for_another_run_is_refused_in_one_line(file, run, used, said):
    with pytest.raises(InputError, match=said) as refused:
        parse_reuse(f"steps:{file}", run, used)
    assert "\n" not in str(refused.value)


def test_where_only_sizes_were_named_a_list_is_taken(file):
    found = parse_reuse(f"steps:{file}", replace(RUN, size=(848, 480, 163), guidance=[6.0] * 8), weights(None))
    assert (found, found.note) == (LISTED, None)


@pytest.mark.parametrize(
    ("run", "precision", "said"),
    [
        (replace(RUN, guidance=[20.0] * 8), "default", "with guidance 3, not guidance 20: other steps"),
        (replace(RUN, guidance=[1.0] + [3.0] * 7), "default", "guidance 3, not guidance 3 in 7 of 8 steps: other"),
        (replace(RUN, guidance_reuse=3), "default", "guidance 3, not guidance 3 and its reuse 3: other"),
        (replace(RUN, size=(848, 480, 163)), "default", "size 64x48 of 7 frames, not size 848x480 of 163 frames: ot"),
        (RUN, "fast", "precision default, not fast: other"),
        (replace(RUN, guidance=[4.0] * 8), "bf16", "guidance 3, not guidance 4; precision default, not bf16: other"),
    ],
)
def test_what_differs_and_is_no_reason_to_refuse_is_noted(file, run, precision, said):
    found = parse_reuse(f"steps:{file}", run, weights(precision=precision))
    assert found == LISTED
    assert said in found.note
    assert "\n" not in found.note


def test_sigmas_of_float32_are_the_same(file):
    assert parse_reuse(f"steps:{file}", replace(RUN, sigmas=np.float32(SIGMAS)), weights()) == LISTED


def test_loras_are_compared_by_content_and_strength(tmp_path):
    path = tmp_path / "found.json"
    made = weights(loras=[STYLE, Merged("b:1", "99"), Merged("off:0", "55", 0.0)])
    Calibration.of(made, RUN, 0.1, (3, 4, 6)).write(path, {})
    moved = [Merged("c:1", "99"), Merged("renamed:0.8", "1234", 0.8)]
    assert parse_reuse(f"steps:{path}", RUN, weights(loras=moved)) == LISTED
    for other in ([], [STYLE], [replace(STYLE, strength=0.7), moved[0]], [replace(STYLE, content="12"), moved[0]]):
        with pytest.raises(InputError, match=r"is for LoRA style.safetensors:0.8 \(1234:0.8\), b:1 \(99:1.0\), not"):
            parse_reuse(f"steps:{path}", RUN, weights(loras=other))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "other"}, "is no list of reused steps"),
        ({"reused_steps": "3"}, "reused_steps"),
        ({"reused_steps": [3, -1]}, "reused_steps"),
        ({"reused_steps": [0]}, "step 0 cannot be reused"),
        ({"reused_steps": [7]}, "step 7 cannot be reused"),
        ({"reused_steps": [3, 3]}, "names a step twice"),
        ({"num_steps": None}, "num_steps"),
        ({"num_steps": 2000}, "num_steps"),
        ({"checkpoint": 5}, "checkpoint"),
        ({"threshold": 2.0}, "threshold"),
        ({"sigmas": [1, 0]}, "sigmas has 2 entries, but must have 9"),
        ({"sigmas": [1, *SIGMAS[:-1]]}, "sigmas must fall strictly"),
        ({"sigmas": "1"}, "sigmas"),
        ({"sigmas": ["a"] * 9}, "sigmas"),
        ({"guidance_schedule": [3.0]}, "guidance_schedule has 1 entries"),
        ({"guidance_schedule": [0.5] * 8}, "guidance_schedule has 0.5"),
        ({"guidance_schedule": [1e6] * 8}, "guidance_schedule"),
        ({"guidance_reuse": "2"}, "guidance_reuse"),
        ({"solver": "heun"}, "solver 'heun' must be one of"),
        ({"size": [64, 48]}, "size has 2 entries"),
        ({"size": [64, 48, -7]}, "size"),
        ({"precision": "best"}, "precision 'best'"),
        ({"loras": ["1:1"]}, "lora_names has 0 entries, but must have 1"),
        ({"loras": "1:1"}, "loras"),
        ({"prompts": [5]}, "prompts"),
    ],
)
def test_a_damaged_list_is_refused(file, change, said):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=said):
        parse_reuse(f"steps:{file}", RUN, weights())


def test_a_list_that_is_not_there_or_no_json_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match="does not exist"):
        parse_reuse(f"steps:{tmp_path / 'none.json'}", RUN)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        parse_reuse(f"steps:{tmp_path / 'bad.json'}", RUN)


def test_a_video_is_checked_with_its_steps():
    defaults = Defaults(num_steps=8)
    assert Video.resolve(VideoRequest(reuse="steps:3,4,6"), defaults, Scales()).reuse == LISTED
    assert Video.resolve(VideoRequest(), defaults, Scales()).reuse is None
    with pytest.raises(InputError, match="step 3 cannot be reused: of 4 steps"):
        Video.resolve(VideoRequest(reuse="steps:3,4,6", num_steps=4), defaults, Scales())
