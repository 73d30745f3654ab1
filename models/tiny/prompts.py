"""Three sets of prompts that the training never shows, with what each asks for.

"held-out" has the training's words in sentences that are held out (`models.tiny.captions`). "free" is how people type:
capitals, end marks, typing errors, questions, commands, other orders of words, things that stay still, and two things
that move alike or not. Its rules were fixed once, and their sentences are the file `free_prompts.json`. None of them is
trained on, but those that failed led to the clauses of `models.tiny.wording`: the set is no longer blind.

"edits" starts from videos: each has a clip of one thing, and a prompt for such a thing of another colour, with no word
of its motion.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from models.machine.errors import InputError
from models.tiny import language as words
from models.tiny.captions import Wording, sentence
from models.tiny.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, SPEEDS, Scene, Thing, random_scene
from models.tiny.vision import Sight

SETS = ("held-out", "free", "edits")
# Of the third set: share of the steps that are done, and noise levels in even steps, so that it starts from that share.
EDIT_STRENGTH = 0.7
EDIT_SIGMAS = tuple(1 - step / 20 for step in range(21))


@dataclass(frozen=True)
class Prompt:
    """A prompt, and colour, motion and shape of each of the one or two things that it asks for.

    Attributes:
        source: the scene of the video that the run starts from; None for noise alone.
    """

    text: str
    asked: tuple[Sight, ...]
    source: Scene | None = None


def prompts(name: str) -> list[Prompt]:
    """Return one of `SETS`.

    Raises:
        InputError: there is no such set.
    """
    if name not in SETS:
        raise InputError(f"there is no set of prompts {name!r}: choose one of {', '.join(SETS)}")
    if name == "held-out":
        return held_out_prompts()
    if name == "edits":
        return edits()
    rows = json.loads((Path(__file__).parent / "free_prompts.json").read_text())
    return [Prompt(row["text"], tuple(Sight(*thing) for thing in row["things"])) for row in rows]


def held_out_prompts() -> list[Prompt]:
    """Return 64 prompts for one thing, in lower case, in sentence patterns that training never shows.

    Prompt i has the colours, motions and shapes in turn, so that the first few prompts are already varied.
    """
    rng, found = random.Random(7), list[Prompt]()
    sizes, speeds = (*SIZES, "normal", "normal"), (*SPEEDS, "normal")
    for index in range(64):
        motion, colour = tuple(MOTIONS)[index % len(MOTIONS)], tuple(COLOURS)[index % len(COLOURS)]
        shape = SHAPES[(index + index // len(COLOURS)) % len(SHAPES)]
        speed = "normal" if motion == "still" else rng.choice(speeds)
        thing = Thing(shape, colour, motion, 0, 0, 0, speed=speed, size=rng.choice(sizes))
        background = rng.choice([name for name in BACKGROUNDS if name != colour])
        pattern = words.HELD_OUT_PATTERNS[index % len(words.HELD_OUT_PATTERNS)].replace("{b}", background)
        wording = Wording((pattern,), (), (), (), ("{x}",), held_out=True)
        text = sentence(Scene((thing,), background), rng, wording)
        found.append(Prompt(text, (Sight(colour, motion, shape),)))
    return found


def edits() -> list[Prompt]:
    """Return 18 prompts such as "a blue ball" for clips such as of a red ball: the colour changes, the rest stays."""
    rng, colours, found = random.Random(3), tuple(COLOURS), list[Prompt]()
    while len(found) < 18:
        (thing,) = random_scene(rng, two_share=0.0).things
        index = len(found)
        if thing.motion != MOTIONS[index % len(MOTIONS)] or thing.size == "small":
            continue
        colour = colours[(index + 5) % len(colours)]
        thing = replace(thing, colour=colours[index % len(colours)], shape=SHAPES[(index + index // 4) % len(SHAPES)])
        wanted = Sight(colour, thing.motion, thing.shape)
        found.append(Prompt(f"a {colour} {thing.shape}".replace("a o", "an o"), (wanted,), Scene((thing,), "grey")))
    return found
