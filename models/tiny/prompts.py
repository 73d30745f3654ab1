"""Two sets of prompts that the training never shows, with what each asks for.

"held-out" has the training's words in sentences that are held out (`models.tiny.captions`). "free" is how people type:
capitals, end marks, typing errors, questions, commands, other orders of words, things that stay still, and two things
that move alike or not. Its rules were fixed once, and their sentences are the file `free_prompts.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from models.machine.errors import InputError
from models.tiny.captions import held_out_prompts
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
        return [Prompt(text, (Sight(colour, motion, shape),)) for text, colour, shape, motion in held_out_prompts()]
    rows = json.loads((Path(__file__).parent / "free_prompts.json").read_text())
    return [Prompt(row["text"], tuple(Sight(*thing) for thing in row["things"])) for row in rows]
