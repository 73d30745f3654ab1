"""Two sets of prompts whose wordings the training never shows, with what each asks for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from models.machine.errors import InputError
from models.tiny import language as words
from models.tiny.captions import Wording, mistyped, sentence
from models.tiny.scenes import BACKGROUNDS, COLOURS, HORIZONTAL, MOTIONS, SHAPES, SIZES, SPEEDS, Scene, Thing
from models.tiny.vision import Sight

SETS = ("held-out", "free")
# What both editions of the model know.
_COLOURS = tuple(colour for colour in COLOURS if colour != "pink")
_MOTIONS = tuple(motion for motion in MOTIONS if motion != "shrinking")
_BACKGROUNDS = tuple(background for background in BACKGROUNDS if background != "white")
_PLAIN = Wording(words.HELD_OUT_PATTERNS, (), (), (), ("{x}",), held_out=True)
_FREE = Wording(
    words.FREE_PATTERNS,
    words.FREE_PAIRED,
    words.FREE_TOGETHER,
    words.FREE_ALIKE,
    words.FREE_BACKGROUNDS,
    held_out=True,
)


@dataclass(frozen=True)
class Prompt:
    """A prompt, and colour, motion and shape of each thing that it asks for."""

    text: str
    asked: tuple[Sight, ...]


def prompts(name: str) -> list[Prompt]:
    """Return one of `SETS`.

    Raises:
        InputError: there is no such set.
    """
    if name not in SETS:
        raise InputError(f"there is no set of prompts {name!r}: choose {' or '.join(SETS)}")
    return held_out_prompts() if name == SETS[0] else free_prompts()


def held_out_prompts() -> list[Prompt]:
    """Return 64 prompts for one thing, in lower case, in sentence patterns that training never shows.

    Prompt i has the colours, motions and shapes in turn, so that the first few prompts are already varied.
    """
    rng, found = random.Random(7), []
    for index, thing in zip(range(64), _things(rng), strict=False):
        background = _background(rng, (thing,))
        pattern = words.HELD_OUT_PATTERNS[index % len(words.HELD_OUT_PATTERNS)].replace("{b}", background)
        wording = Wording((pattern,), (), (), (), ("{x}",), held_out=True)
        found.append(_prompt(Scene((thing,), background), rng, wording))
    return found


def free_prompts() -> list[Prompt]:
    """Return 96 prompts as people type them: capitals, end marks, typing errors, questions, commands, other orders.

    Of them 48 are of one thing in motion, 16 of one that is still, and 32 of two things, which move alike or not.
    """
    rng, found = random.Random(18), []
    single = (thing for thing in _things(rng) if thing.motion != "still")
    for thing in (thing for thing, _ in zip(single, range(48), strict=False)):
        found.append(_typed(Scene((thing,), _background(rng, (thing,))), rng))
    still = (thing for thing in _things(rng) if thing.motion == "still")
    for thing in (thing for thing, _ in zip(still, range(16), strict=False)):
        found.append(_typed(Scene((thing,), _background(rng, (thing,))), rng))
    for index in range(32):
        found.append(_typed(_pair(rng, index), rng))
    return found


def _things(rng: random.Random) -> cycle[Thing]:
    """Return things with all pairs of colour and motion, and the shapes in turn; some small or big, slow or quick."""
    sizes, speeds = (*SIZES, "normal", "normal"), (*SPEEDS, "normal")
    count = len(_COLOURS) * len(_MOTIONS)
    found = []
    for index in range(count):
        motion, colour = _MOTIONS[index % len(_MOTIONS)], _COLOURS[index % len(_COLOURS)]
        shape = SHAPES[(index + index // len(_COLOURS)) % len(SHAPES)]
        speed = "normal" if motion == "still" else rng.choice(speeds)
        found.append(Thing(shape, colour, motion, 0, 0, 0, speed=speed, size=rng.choice(sizes)))
    return cycle(found)


def _pair(rng: random.Random, index: int) -> Scene:
    """Return a scene with two things: of eight three have one motion, one has two of a kind, four have two motions."""
    first, second = rng.sample(_COLOURS, 2)
    shapes, kind = rng.sample(SHAPES, 2), index % 8
    motion = _MOTIONS[index % len(_MOTIONS)]
    other = rng.choice([name for name in _MOTIONS if name != motion])
    if kind < 3:
        shapes, other = ([shapes[0], rng.choice(SHAPES)]), motion
    elif kind == 3:
        shapes, second, other = [shapes[0]] * 2, first, motion
    things = tuple(
        Thing(shape, colour, way, 0, 0, 0)
        for shape, colour, way in zip(shapes, (first, second), (motion, other), strict=True)
    )
    stacked = all(thing.motion in (*HORIZONTAL, "still") for thing in things) and rng.random() < 0.5
    return Scene(things, _background(rng, things), stacked)


def _background(rng: random.Random, things: Sequence[Thing]) -> str:
    taken = {thing.colour for thing in things}
    return rng.choice([name for name in _BACKGROUNDS if name not in taken])


def _prompt(scene: Scene, rng: random.Random, wording: Wording) -> Prompt:
    asked = tuple(Sight(thing.colour, thing.motion, thing.shape) for thing in scene.things)
    return Prompt(sentence(scene, rng, wording), asked)


def _typed(scene: Scene, rng: random.Random) -> Prompt:
    made = _prompt(scene, rng, _FREE)
    text = mistyped(made.text, rng, held_out=True) if rng.random() < 0.3 else made.text
    text += "?" if text.split()[0] in ("could", "is", "what") else rng.choice(("", ".", ".", "!"))
    style = rng.random()
    return Prompt(text.upper() if style < 0.1 else text if style < 0.3 else text[0].upper() + text[1:], made.asked)
