"""Two sets of prompts that the training never shows, with what each asks for.

"held-out" has the training's words in sentences that are held out (`models.tiny.captions`). "free" is how people type:
capitals, end marks, typing errors, questions, commands, other orders of words, things that stay still, and two things
that move alike or not. Its rules were fixed once, and their sentences are the file `free_prompts.json`.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from models.machine.errors import InputError
from models.tiny import language as words
from models.tiny.captions import Wording, sentence
from models.tiny.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, SPEEDS, Scene, Thing
from models.tiny.vision import Sight

SETS = ("held-out", "free")


@dataclass(frozen=True)
class Prompt:
    """A prompt, and colour, motion and shape of each of the one or two things that it asks for."""

    text: str
    asked: tuple[Sight, ...]


def prompts(name: str) -> list[Prompt]:
    """Return one of `SETS`.

    Raises:
        InputError: there is no such set.
    """
    if name not in SETS:
        raise InputError(f"there is no set of prompts {name!r}: choose {' or '.join(SETS)}")
    if name == "held-out":
        return held_out_prompts()
    rows = json.loads((Path(__file__).parent / "free_prompts.json").read_text())
    return [Prompt(row["text"], tuple(Sight(*thing) for thing in row["things"])) for row in rows]


def held_out_prompts() -> list[Prompt]:
    """Return 64 prompts for one thing, in lower case, in sentence patterns that training never shows.

    Prompt i has the colours, motions and shapes in turn, so that the first few prompts are already varied.
    """
    rng, found = random.Random(7), []
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
