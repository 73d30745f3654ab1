import random
from itertools import pairwise

import pytest
import torch

from models.tiny.scenes import COLOURS, MOTIONS, SHAPES, SMALL, WIDE, Scene, Thing, random_scene, render, track
from models.tiny.vision import Sight, look, look_at_all, look_for


def frames_of(*scenes: Scene) -> torch.Tensor:
    return ((render(scenes) + 1) / 2).permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_judge_sees_what_was_drawn(motion):
    rng = random.Random(1)
    for shape in SHAPES:
        colour = rng.choice(tuple(COLOURS))
        scene = Scene((Thing(shape, colour, motion, 48, 32, 10),), "grey")
        assert look(frames_of(scene)[0]) == Sight(colour, motion, shape)


@pytest.mark.parametrize("frame", [WIDE, SMALL])
def test_the_judge_sees_every_thing_of_random_scenes(frame):
    rng = random.Random(2)
    for scene in (random_scene(rng, frame, two_share=0.7) for _ in range(20)):
        asked = tuple(Sight(thing.colour, thing.motion, thing.shape) for thing in scene.things)
        frames = frames_of(scene)[0]
        assert len(look_at_all(frames)) == len(asked)
        assert look_for(asked, frames) == asked
        assert look_for(asked[::-1], frames) == asked[::-1]


def test_the_judge_sees_nothing_where_nothing_is():
    nothing = torch.full((3, 64, 64, 3), 0.4)
    assert look(nothing) == Sight(None, None, None)
    assert look_at_all(nothing) == []
    assert look_for([Sight("red", "up", "ball")] * 2, nothing) == (Sight(None, None, None),) * 2


@pytest.mark.parametrize("frame", [WIDE, SMALL])
def test_things_stay_within_the_frame_and_apart(frame):
    rng = random.Random(3)
    for scene in (random_scene(rng, frame, two_share=0.5) for _ in range(300)):
        ways = [track(thing, frame.num_frames) for thing in scene.things]
        for way in ways:
            x, y, radius = way.unbind(1)
            for position, size in ((x, frame.width), (y, frame.height)):
                assert (position - 0.9 * radius).min() > -2
                assert (position + 0.9 * radius).max() < size + 2
        for first, second in pairwise(ways):
            apart = (first - second)[:, :2].abs().max(1).values
            assert (apart >= 0.8 * (first[:, 2] + second[:, 2])).all()


def test_the_drawing_of_one_scene_is_that_of_many():
    rng = random.Random(4)
    scenes = [random_scene(rng) for _ in range(3)]
    torch.testing.assert_close(render(scenes)[1:2], render(scenes[1:2]))
