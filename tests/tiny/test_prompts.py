"""The prompts as people type them: what they ask for exists, and the training never shows them."""

import random

import pytest

from models.mochi.sampling.schedule import first_step
from models.mochi.text.words import Words
from models.tiny.captions import caption
from models.tiny.prompts import EDIT_SIGMAS, EDIT_STRENGTH, prompts
from models.tiny.scenes import COLOURS, MOTIONS, SHAPES, random_scene

FREE = prompts("free")


def test_they_ask_for_what_the_tiny_world_has():
    assert len({prompt.text for prompt in FREE}) == len(FREE) >= 60
    for prompt in FREE:
        assert len(prompt.asked) in (1, 2)
        for thing in prompt.asked:
            assert thing.colour in COLOURS
            assert thing.motion in MOTIONS
            assert thing.shape in SHAPES


def test_they_have_still_things_two_things_questions_and_capitals():
    assert sum(prompt.asked[0].motion == "still" for prompt in FREE if len(prompt.asked) == 1) >= 12
    two = [prompt.asked for prompt in FREE if len(prompt.asked) == 2]
    assert len(two) >= 24
    assert sum(first.motion != second.motion for first, second in two) >= 12
    assert sum(prompt.text.endswith("?") for prompt in FREE) >= 8
    assert sum(prompt.text.isupper() for prompt in FREE) >= 5


def test_the_training_never_shows_them():
    rng = random.Random(6)
    seen = {caption(random_scene(rng), rng) for _ in range(20000)}
    for prompt in FREE:
        plain = Words.plain(prompt.text)
        assert plain not in seen


def test_the_edits_change_the_colour_alone():
    edits = prompts("edits")
    assert {prompt.asked[0].motion for prompt in edits} == set(MOTIONS)
    for prompt in edits:
        assert prompt.source is not None
        (thing,), (asked,) = prompt.source.things, prompt.asked
        assert (thing.motion, thing.shape) == (asked.motion, asked.shape)
        assert thing.colour != asked.colour
        assert prompt.text.split() == ["an" if asked.colour == "orange" else "a", asked.colour, asked.shape]


def test_the_edits_start_from_the_share_that_the_strength_names():
    assert EDIT_SIGMAS[first_step(len(EDIT_SIGMAS) - 1, EDIT_STRENGTH)] == pytest.approx(EDIT_STRENGTH)
