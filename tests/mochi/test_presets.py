"""Presets: the file, what wins over what, and what a run is told of them."""

import warnings

import pytest

from models.machine.errors import InputError
from models.mochi.defaults import Defaults
from models.mochi.geometry import Scales
from models.mochi.inputs import Run
from models.mochi.precision import Precision
from models.mochi.presets import SETTINGS, Preset, fill, lines, preset, presets
from models.mochi.setup import Request, Video, VideoRequest, resolve

TINY = Defaults(height=64, width=64, num_frames=13, num_steps=16, guidance_scale=3.0)


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("defaults", [Defaults(), TINY])
def test_every_preset_is_a_video(name, defaults):
    video = Video.resolve(VideoRequest(preset=name), defaults, Scales())
    made = preset(name).settings
    assert set(made) <= set(SETTINGS)
    assert video.settings.num_steps == made["num_steps"] == len(video.guidance)
    assert video.solver == made["solver"]
    assert Precision.named(made["precision"])
    assert video.settings.num_frames <= defaults.num_frames


def test_the_distilled_checkpoints_recipe():
    video = Video.resolve(VideoRequest(preset="fast-mochi"), Defaults(), Scales())
    assert video.guidance == [1.5] * 8
    assert video.sigmas[6] == pytest.approx(0.9)
    assert video.sigmas[1] == pytest.approx(1 - 0.1 / 6)


def test_what_is_named_wins_over_the_preset_and_the_preset_over_defaults():
    request = VideoRequest(preset="fast-mochi", guidance_scale=2.0, solver="ab2", guidance_interval="0:0.5")
    video = Video.resolve(request, TINY, Scales())
    assert video.guidance == [2.0] * 4 + [1.0] * 4
    assert (video.solver, video.settings.num_steps, video.settings.height) == ("ab2", 8, 64)


def test_a_size_of_a_preset_is_the_largest():
    given = {"num_frames": None, "height": None}
    assert fill("draft", given, Defaults())["num_frames"] == 37
    assert fill("draft", given, TINY)["num_frames"] == 13
    assert fill("draft", {"num_frames": 61}, TINY)["num_frames"] == 61


def test_a_list_of_scales_wins_over_a_presets_interval():
    made = Preset("own", "", {"guidance_interval": "0:0.5"})
    given = {"guidance_scale": [2.0, 1.0], "guidance_interval": None}
    assert made.fill(given, Defaults())["guidance_interval"] is None
    assert made.fill({**given, "guidance_scale": 2.0}, Defaults())["guidance_interval"] == "0:0.5"


def test_what_does_not_go_with_a_preset_names_it():
    with pytest.raises(InputError, match=r"linear_steps 6 must be from 1 to 3 \(preset fast-mochi: num_steps 8"):
        Video.resolve(VideoRequest(preset="fast-mochi", num_steps=4), Defaults(), Scales())


@pytest.mark.parametrize("name", ["slow", "", 3, ["fast"]])
def test_a_preset_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="must be one of quality, fast, draft, fast-mochi"):
        Video.resolve(VideoRequest(preset=name), Defaults(), Scales())


def test_precision_is_the_users_then_the_presets():
    def of(**arguments):
        name = arguments.pop("preset", None)
        return resolve(Request(mode="golden", mesh="1x2", video=VideoRequest(preset=name), **arguments)).precision.name

    assert of() == "default"
    assert of(preset="draft") == "fast"
    assert of(preset="draft", precision="bf16") == "bf16"


def test_the_table_names_every_preset_and_setting():
    table = "\n".join(lines())
    for made in presets().values():
        assert f" {made.name} " in table
        assert all(str(value) in table for value in made.settings.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(solver="heun"), "solver 'heun' must be one of"),
        (dict(guidance_interval="1:0"), "must be A:B"),
        (dict(guidance_reuse=0), "guidance_reuse 0 must be from 1"),
        (dict(guidance_reuse=2.5), "must be a whole number"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_request(wrong, message):
    with pytest.raises(InputError, match=message):
        Video.resolve(VideoRequest(**wrong), Defaults(), Scales())


def test_a_call_in_python_takes_the_same_settings():
    from models.mochi.inputs import Run

    def run(scale=None, steps=None, size=(None, None, None), **options):
        return Run.of(1, TINY, Scales(), None, size, steps, scale, (None, None), None, seed=1, **options)

    assert run().solver == "euler"
    assert run().policy is None
    fast = run(preset="fast")
    assert (fast.solver, len(fast.guidance), fast.guidance[-1]) == ("unipc", 16, 3.0)
    assert run(preset="fast", steps=4, solver="euler").solver == "euler"
    assert run(preset="fast-mochi", sigmas=[1, 0.5, 0]).guidance == [1.5, 1.5]
    assert run(guidance_interval=(0.5, 1), steps=4).guidance == [1.0, 1.0, 3.0, 3.0]
    assert run(guidance_reuse=2).policy.every == 2
    with pytest.raises(InputError, match="not both"):
        run(guidance_reuse=2, policy=object())
    for wrong in (dict(solver="x"), dict(guidance_reuse="2"), dict(preset="x"), dict(guidance_interval=3)):
        with pytest.raises(InputError):
            run(**wrong)
    with pytest.warns(UserWarning, match="has no effect"):
        run(scale=1, guidance_interval="0:0.5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(scale=1, preset="fast")


@pytest.mark.parametrize(("precision", "warned"), [("default", True), ("fast", False)])
def test_a_presets_precision_that_cannot_apply_is_said(precision, warned):
    """In Python the pipeline is open already: its precision stays."""
    subject = resolve(Request(mesh="1x1", mode="golden", precision=precision)).subject
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        size, noise = (32, 32, 7), (None, None)
        Run.of(1, Defaults(), Scales(), subject, size, None, None, noise, None, preset="draft")
    assert any("this pipeline was opened with default" in str(each.message) for each in said) is warned
