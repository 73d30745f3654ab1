"""The caption language: many wordings for one scene. Some wordings are held out from training for the evaluation.

Held out are sentence patterns, and pairs of verb and direction. Every single word occurs in training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from models.tiny.scenes import COLOURS, MOTIONS, SHAPES, Scene

NOUNS = {
    "ball": ("ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus"),
}
ARTICLES = ("a", "a", "the", "one")
VERBS = ("rolls", "moves", "slides", "drifts", "glides", "goes", "travels")
DIRECTIONS = {
    "left": ("to the left", "left", "leftwards", "towards the left"),
    "right": ("to the right", "right", "rightwards", "towards the right"),
    "up": ("up", "upwards", "to the top", "towards the top"),
    "down": ("down", "downwards", "to the bottom", "towards the bottom"),
}
PHRASES = {
    "growing": ("grows", "gets bigger", "gets larger", "grows larger", "becomes bigger", "becomes larger"),
    "still": ("stays still", "stands still", "does not move", "rests", "stays in place", "rests in place"),
    "bouncing": ("bounces", "bounces up and down", "hops", "jumps up and down", "hops up and down", "jumps"),
}
# "{s}" is the subject, "{m}" its motion, "{b}" the background.
PATTERNS = (
    "{s} {m}",
    "{s} {m}",
    "{s} {m} on a {b} background",
    "{s} {m} in front of a {b} wall",
    "{s} on a {b} background {m}",
    "a video of {s} that {m}",
    "a video of {s} that {m}, {b} background",
    "we see {s} that {m} in front of a {b} background",
    "on a {b} background {s} {m}",
)
HELD_OUT_PATTERNS = (
    "we see a video of {s} that {m}",
    "in front of a {b} wall {s} {m}",
    "on a {b} wall we see {s} that {m}",
    "a video of {s} on a {b} background that {m}",
)
HELD_OUT_PHRASES = {"growing": "becomes larger", "still": "rests in place", "bouncing": "hops up and down"}


def _held_out(verb: str, direction: str) -> bool:
    """Return whether this pair of verb and direction is held out from training. A quarter is, spread over both."""
    return (VERBS.index(verb) + sum(map(len, direction.split()))) % 4 == 0


def phrases(motion: str, held_out: bool = False) -> list[str]:
    """Return the phrases for a motion, either those of training or those of the evaluation."""
    if motion in PHRASES:
        kept = HELD_OUT_PHRASES[motion]
        return [kept] if held_out else [p for p in PHRASES[motion] if p != kept]
    pairs = [(v, d) for d in DIRECTIONS[motion] for v in VERBS]
    return [f"{v} {d}" for v, d in pairs if _held_out(v, d) == held_out]


def caption(scene: Scene, rng: random.Random) -> str:
    """Return a random wording of the training language for a scene."""
    named = [_named(rng.choice(ARTICLES), thing.colour, rng.choice(NOUNS[thing.shape])) for thing in scene.things]
    pattern, phrase = rng.choice(PATTERNS), rng.choice(phrases(scene.motion))
    return pattern.format(s=" and ".join(named), m=phrase, b=scene.background)


def held_out_prompts() -> list[tuple[str, str, str, str]]:
    """Return 64 prompts in wordings that training never shows, each with its colour, shape and motion.

    Prompt i has colour i mod 8, motion i mod 7 and shape (i + i div 8) mod 4. So every colour occurs with every motion
    and every shape, and the first few prompts are already varied.
    """
    rng, prompts = random.Random(7), []
    backgrounds: Sequence[str] = ("black", "grey", "brown", "navy")
    for index in range(64):
        colour = tuple(COLOURS)[index % len(COLOURS)]
        motion = MOTIONS[index % len(MOTIONS)]
        shape = SHAPES[(index + index // 8) % len(SHAPES)]
        text = HELD_OUT_PATTERNS[index % len(HELD_OUT_PATTERNS)].format(
            s=_named("a", colour, rng.choice(NOUNS[shape])),
            m=rng.choice(phrases(motion, held_out=True)),
            b=rng.choice(backgrounds),
        )
        prompts.append((text, colour, shape, motion))
    return prompts


def _named(article: str, colour: str, noun: str) -> str:
    return f"{'an' if article == 'a' and colour[0] in 'aeiou' else article} {colour} {noun}"
