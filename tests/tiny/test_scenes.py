import random

import pytest
import torch

from models.tiny.captions import HELD_OUT_PATTERNS, PATTERNS, caption, held_out_prompts, phrases
from models.tiny.scenes import COLOURS, MOTIONS, SHAPES, SIZE, Scene, Thing, random_scene, render, track, window
from models.tiny.vision import Sight, look, look_for


def frames_of(*scenes: Scene) -> torch.Tensor:
    return ((render(scenes) + 1) / 2).permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_judge_sees_what_was_drawn(motion):
    rng = random.Random(1)
    for shape in SHAPES:
        colour = rng.choice(tuple(COLOURS))
        scene = Scene((Thing(shape, colour, 32, 32, 10),), motion, "grey", 22)
        assert look(frames_of(scene)[0]) == Sight(colour, motion, shape)


def test_the_judge_sees_two_things_in_any_order():
    rng = random.Random(5)
    for scene in (random_scene(rng, two_share=1) for _ in range(20)):
        sights = tuple(Sight(thing.colour, scene.motion, thing.shape) for thing in scene.things)
        frames = frames_of(scene)[0]
        assert look_for(sights, frames) == sights
        assert look_for(sights[::-1], frames) == sights[::-1]


def test_the_judge_does_not_find_a_second_thing_where_one_is():
    ball = Sight("red", "left", "ball")
    frames = frames_of(Scene((Thing("ball", "red", 32, 32, 10),), "left", "grey", 22))[0]
    assert look_for((ball, ball), frames) == (ball, Sight(None, None, None))


def test_the_judge_sees_nothing_where_nothing_is():
    assert look(torch.full((3, 64, 64, 3), 0.4)) == Sight(None, None, None)


def test_things_stay_within_the_frame():
    rng = random.Random(2)
    for scene in (random_scene(rng, two_share=0.5) for _ in range(200)):
        for thing in scene.things:
            x, y, radius = track(scene, thing).unbind(1)
            for position in (x, y):
                assert (position - 0.9 * radius).min() > -2
                assert (position + 0.9 * radius).max() < SIZE + 2


def test_a_window_is_a_part_of_the_frame():
    rng = random.Random(3)
    scene = random_scene(rng)
    left, top = window(scene, rng, 32)
    part = render([scene], size=32, corners=[(left, top)])
    x, y = int(left), int(top)
    torch.testing.assert_close(part, render([scene])[..., y : y + 32, x : x + 32])


def test_evaluation_uses_words_of_the_training_in_sentences_that_it_never_shows():
    rng = random.Random(4)
    seen = [caption(random_scene(rng), rng) for _ in range(5000)]
    words = {word for text in seen for word in text.replace(",", "").split()}
    prompts = held_out_prompts()
    assert len({text for text, *_ in prompts}) >= 60
    assert {(colour, motion) for _, colour, _, motion in prompts} == {(c, m) for c in COLOURS for m in MOTIONS}
    for text, *_ in prompts:
        assert set(text.split()) <= words, text
        assert text not in seen
    assert not set(PATTERNS) & set(HELD_OUT_PATTERNS)
    for motion in MOTIONS:
        assert phrases(motion, held_out=True)
        assert not set(phrases(motion)) & set(phrases(motion, held_out=True))
