"""What a video will compute, known before it runs."""

import dataclasses

import pytest

from models.machine.errors import InputError
from models.mochi.setup import Request, VideoRequest, planned_forwards, resolve


def counts(on_halves=False, **video):
    setup = resolve(Request(mode="dry-run", video=VideoRequest(num_steps=12, **video)))
    made = planned_forwards(setup.video, on_halves=on_halves).to_json()
    return [
        *(made[branch][what] for branch in ("conditional", "unconditional") for what in ("computed", "reused")),
        made["reused_steps"],
    ]


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ({}, [12, 0, 12, 0, []]),
        ({"guidance_scale": 1.0}, [12, 0, 0, 0, []]),
        ({"guidance_interval": "0:0.5"}, [12, 0, 6, 0, []]),
        ({"guidance_reuse": 3}, [12, 0, 8, 0, []]),
        ({"reuse": "steps:3,4,6"}, [9, 3, 9, 3, [3, 4, 6]]),
        ({"reuse": "0.1"}, [12, 0, 12, 0, []]),  # the threshold decides only when it runs
        ({"reuse": "steps:10", "guidance_interval": "0:0.5"}, [11, 1, 6, 0, [10]]),
        # Guided again after a step without guidance: there is nothing fresh, so it is computed.
        ({"reuse": "steps:6,7", "guidance_interval": "0.5:1"}, [11, 1, 5, 1, [7]]),
        ({"reuse": "steps:6,7", "guidance_reuse": 2}, [11, 1, 9, 0, [7]]),
    ],
    ids=str,
)
def test_counts(video, expected):
    assert counts(**video) == expected


def test_halves_compute_both_branches_at_once():
    assert counts(on_halves=True, guidance_reuse=3) == [12, 0, 12, 0, []]


def noted(layout=None, **video):
    return resolve(Request(mesh="1x2", mode="golden", layout=layout, video=VideoRequest(num_steps=12, **video))).notes()


def test_what_is_as_asked_is_not_noted():
    assert noted(reuse="steps:3,4", guidance_interval="0:0.5", guidance_reuse=2) == []
    assert noted(layout="cfg1sp0tp1") == []


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ({"guidance_interval": "0.5:1"}, "reuse: step 6 is computed, because the last computed step before it left"),
        ({"guidance_reuse": 2, "guidance_interval": "0:0.9"}, "reuse: step 6 is computed"),
    ],
)
def test_steps_that_have_nothing_fresh_are_named(video, said):
    (line,) = noted(reuse="steps:6,7", **video)
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ({"guidance_interval": "0.5:1"}, ["6 of 12 steps have no guidance, which saves no time on a layout of two"]),
        ({"guidance_scale": 1.0}, ["12 of 12 steps have no guidance, which saves no time"]),
        ({"guidance_reuse": 3}, ["guidance_reuse saves nothing on a layout of two halves"]),
        (
            {"guidance_reuse": 3, "guidance_interval": "0:0.5", "reuse": "steps:8"},
            ["guidance_reuse saves nothing", "6 of 12 steps have no guidance"],
        ),
    ],
)
def test_what_halves_do_not_save_is_said_with_the_better_layout(video, said):
    lines = noted(layout="cfg1sp0tp1", **video)
    assert len(lines) == len(said)
    for line, start in zip(lines, said, strict=True):
        assert line.startswith(start)
        assert "layout 1x2sp0tp1" in line or "layout 1x2sp1tp0" in line


def test_a_model_of_one_block_is_refused_before_weights_are_read():
    request = Request(model=None, mode="dry-run", video=VideoRequest(num_steps=12, reuse="steps:3"))
    setup = resolve(request)
    with pytest.MonkeyPatch.context() as patch:
        short = dataclasses.replace(setup.configs.transformer, num_layers=1)
        patch.setattr("models.mochi.setup.config_named", lambda name: short)
        with pytest.raises(InputError, match="the model has only one"):
            resolve(request)


def test_a_mesh_that_only_halves_suit_has_no_better_layout_to_name():
    """One head on 2x2 chips: halves of 2x1 without TP hold it, and no other layout does."""
    setup = resolve(Request(mesh="2x2", mode="golden", layout="cfg1sp0tp1"))
    assert setup.subject.whole is not None
    transformer = dataclasses.replace(setup.configs.transformer, num_attention_heads=1)
    subject = dataclasses.replace(setup.subject, configs=dataclasses.replace(setup.configs, transformer=transformer))
    assert subject.whole is None
