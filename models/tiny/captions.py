"""Sentences for scenes: the caption language of the training, and how people type it.

`models.tiny.language` has the words. Sentence patterns, phrases, pairs of verb and direction, and typing errors are
held out by rule for the evaluation (`models.tiny.prompts`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from models.tiny import language as words
from models.tiny.language import Phrase
from models.tiny.scenes import Scene, Thing

# Share of captions that name a property, such as the size, where it is not the usual one; and the background.
NAMED, BACKGROUND_NAMED = 0.85, 0.5
# Shares of captions with a typing error, with words that say nothing of the scene, and with an end mark.
TYPO, FILLED, ENDED = 0.25, 0.2, 0.2
# Share of captions of a moving thing without its motion, so that such a prompt leaves the motion of a source as it is.
NO_MOTION = 0.12
_PLACES = {
    False: (("on the left", "on the right"), ("on the left side", "on the right side")),
    True: (("at the top", "at the bottom"), ("above", "below")),
}


@dataclass(frozen=True)
class Wording:
    """The rules of a set of sentences; see `models.tiny.language`.

    Attributes:
        held_out: whether phrases are those kept from training.
    """

    patterns: Sequence[str]
    paired: Sequence[str]
    together: Sequence[str]
    alike: Sequence[str]
    backgrounds: Sequence[str]
    held_out: bool = False


# Written after each word that names the first or the second thing of a scene.
TAGS = ("\u2460", "\u2461")
_NO_TAGS = {ord(tag): None for tag in TAGS}
TRAINING = Wording(
    words.PATTERNS, words.PAIRED, words.TOGETHER, words.ALIKE, (*words.BEFORE, *words.AFTER, *words.AFTER)
)


def caption(scene: Scene, rng: random.Random) -> str:
    """Return a random sentence of the training for a scene: lower case, commas, single spaces."""
    return untagged(tagged_sentence(scene, rng, TRAINING, BACKGROUND_NAMED))


def sentence(scene: Scene, rng: random.Random, wording: Wording) -> str:
    """Return a random sentence for a scene by the rules of `wording`, with its background."""
    return untagged(tagged_sentence(scene, rng, wording, 1.0))


def untagged(text: str) -> str:
    """Return a sentence without the tags of its words."""
    return text.translate(_NO_TAGS)


def tags_of(text: str) -> list[int]:
    """Return which thing each word of a tagged sentence names: 0 for none, 1 and 2 for the scene's things."""
    return [next((index + 1 for index, tag in enumerate(TAGS) if tag in word), 0) for word in text.split()]


def tagged_sentence(
    scene: Scene, rng: random.Random, wording: Wording = TRAINING, background: float = BACKGROUND_NAMED
) -> str:
    """Return a random sentence for a scene whose words that name a thing end in one of `TAGS`.

    Args:
        scene: what is described.
        rng: source of all choices.
        wording: the rules.
        background: share of sentences that name the background.
    """
    text = _one(scene.things[0], rng, wording) if len(scene.things) == 1 else _two(scene, rng, wording)
    if rng.random() < background:
        name = _usual(rng, words.BACKGROUND_WORDS[scene.background])
        text = rng.choice(wording.backgrounds).format(x=text, b=name)
    return _tidy(text)


def phrases(motion: str, held_out: bool = False) -> list[Phrase]:
    """Return the phrases for a motion, either those of training or those of the evaluation."""
    return _own_phrases(motion, held_out) + [_joined(*pair) for pair in _pairs(motion, held_out)]


def _own_phrases(motion: str, held_out: bool) -> list[Phrase]:
    """Return the phrases whose verb says the motion itself."""
    kept = words.HELD_OUT_PHRASES.get(motion)
    return [phrase for phrase in words.PHRASES.get(motion, ()) if (phrase[1] == kept) == held_out]


def _pairs(motion: str, held_out: bool) -> list[tuple[Phrase, str]]:
    return _all_pairs(motion)[held_out]


@cache
def _all_pairs(motion: str) -> tuple[list[tuple[Phrase, str]], list[tuple[Phrase, str]]]:
    """Return the pairs of verb and direction of training, and those that are held out: a quarter, spread over both."""
    found: tuple[list[tuple[Phrase, str]], list[tuple[Phrase, str]]] = ([], [])
    for direction in words.DIRECTIONS.get(motion, ()):
        for index, verb in enumerate(words.VERBS):
            found[(index + sum(map(len, direction.split()))) % 4 == 0].append((verb, direction))
    return found


def _joined(verb: Phrase, *rest: str) -> Phrase:
    base, third, participle = (" ".join((form, *rest)) for form in verb)
    return base, third, participle


def _motion(thing: Thing, rng: random.Random, held_out: bool) -> Phrase:
    """Return a phrase for a thing's motion, with its speed if that is named."""
    speed = ""
    if thing.speed in words.SPEED_WORDS and rng.random() < NAMED:
        speed = rng.choice(words.SPEED_WORDS[thing.speed])
    own = _own_phrases(thing.motion, held_out)
    pairs = _pairs(thing.motion, held_out)
    if pairs and (not own or rng.random() < 0.85):
        verb, direction = rng.choice(pairs)
        if not held_out and rng.random() < 0.05:
            return _joined((direction, direction, direction), *filter(None, [speed]))
        if speed and rng.random() < 0.4:
            return _joined(verb, speed, direction)
        verb = _joined(verb, direction)
    else:
        verb = rng.choice(own)
    if speed.endswith("ly") and rng.random() < 0.3:
        base, third, participle = (f"{speed} {form}" for form in verb)
        return base, third, participle
    return _joined(verb, speed) if speed else verb


def _one(thing: Thing, rng: random.Random, wording: Wording) -> str:
    subject = _tagged(_subject(thing, rng), 0)
    if not wording.held_out and rng.random() < (0.2 if thing.motion == "still" else NO_MOTION):
        lead = rng.choice(("{s}", "{s}", "a video of {s}", "show me {s}", "can you show {s}", "there is {s}"))
        return lead.format(s=subject)
    base, third, participle = _motion(thing, rng, wording.held_out)
    return rng.choice(wording.patterns).format(s=subject, v=base, vs=third, ving=participle)


def _two(scene: Scene, rng: random.Random, wording: Wording) -> str:
    first, second = scene.things
    same_motion = (first.motion, first.speed) == (second.motion, second.speed)
    same_size = first.size == second.size
    if same_motion and same_size and first.shape == second.shape:
        alike = first.colour == second.colour
        if alike or rng.random() < 0.5:
            subject = _of_one_shape(first, "" if alike else second.colour, rng)
            subject = _tagged(subject, 0) if alike else subject
            base, third, participle = _motion(first, rng, wording.held_out)
            return rng.choice(wording.alike).format(s=subject, v=base, vs=third, ving=participle)
    order, places = [0, 1], list(rng.choice(_PLACES[scene.stacked]))
    if rng.random() >= 0.25:
        places = ["", ""]
    if rng.random() < 0.5:
        order, places = order[::-1], places[::-1]
    subjects = [
        f"{_tagged(_subject(scene.things[index], rng), index)} {place}"
        for index, place in zip(order, places, strict=True)
    ]
    values = dict(zip(("s", "s2"), subjects, strict=True))
    forms = zip(("v", "vs", "ving"), _motion(scene.things[order[0]], rng, wording.held_out), strict=True)
    values |= dict(forms)
    if same_motion and rng.random() < 0.8:
        if first.motion == "still" and not wording.held_out and rng.random() < 0.2:
            return rng.choice(("{s} and {s2}", "{s} next to {s2}", "a video of {s} and {s2}")).format(**values)
        return rng.choice(wording.together).format(**values)
    forms = zip(("v2", "vs2", "ving2"), _motion(scene.things[order[1]], rng, wording.held_out), strict=True)
    return rng.choice(wording.paired).format(**(values | dict(forms)))


def _subject(thing: Thing, rng: random.Random) -> str:
    """Return a noun phrase, such as "a small red ball"."""
    colour = _usual(rng, words.COLOUR_WORDS[thing.colour])
    noun = _usual(rng, words.NOUNS[thing.shape], 0.6)
    size, article = _size(thing, rng), rng.choice(words.ARTICLES)
    form = rng.random()
    if form < 0.08:
        text = f"{size} {noun} that is {colour}"
    elif form < 0.15:
        text = f"{size} {noun} in {colour}"
    elif form < 0.19:
        text = f"{size} {colour} {rng.choice(('coloured', 'colored'))} {noun}"
    elif form < 0.22:
        text = f"{colour} {size} {noun}"
    else:
        text = f"{size} {colour} {noun}"
    text = text.strip()
    return f"{'an' if article == 'a' and text[0] in 'aeiou' else article} {text}"


def _of_one_shape(thing: Thing, other: str, rng: random.Random) -> str:
    """Return a noun phrase for two things of one shape, and of one colour unless `other` is the second's."""
    noun = rng.choice([noun for noun in words.NOUNS[thing.shape] if " " not in noun])
    plural, size = words.PLURALS.get(noun, f"{noun}s"), _size(thing, rng)
    colour = _usual(rng, words.COLOUR_WORDS[thing.colour])
    article = rng.choice(("two", "two", "two", "the two", "2", "a pair of"))
    if not other:
        return f"{article} {size} {colour} {plural}"
    pair = [_tagged(colour, 0), _tagged(_usual(rng, words.COLOUR_WORDS[other]), 1)]
    rng.shuffle(pair)
    joined = rng.choice((" one {} and one {},", " a {} one and a {} one,", " {} and {},"))
    return f"{article} {size} {plural},{joined.format(*pair)}"


def _tagged(text: str, index: int) -> str:
    return " ".join(word + TAGS[index] for word in text.split())


def _size(thing: Thing, rng: random.Random) -> str:
    named = thing.size in words.SIZE_WORDS and rng.random() < NAMED
    return rng.choice(words.SIZE_WORDS[thing.size]) if named else ""


def _usual(rng: random.Random, choices: Sequence[str], share: float = 0.75) -> str:
    """Return the first of the choices with a probability of `share`, or any."""
    return choices[0] if rng.random() < share else rng.choice(choices)


def _tidy(text: str) -> str:
    return " ".join(text.split()).replace(" ,", ",").replace(",,", ",").strip(" ,")


def written(text: str, rng: random.Random) -> str:
    """Return a sentence as people type it: some with a typing error, with other words, or with an end mark."""
    if rng.random() < TYPO:
        text = mistyped(text, rng)
    if rng.random() < FILLED:
        parts = text.split()
        for _ in range(rng.choice((1, 1, 2, 3))):
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(english()))
        text = " ".join(parts)
    return text + rng.choice(".?!") if rng.random() < ENDED else text


def mistyped(text: str, rng: random.Random, held_out: bool = False) -> str:
    """Return a sentence with one typing error in a word of four letters or more; unchanged if there is none.

    Two letters are swapped, or one is left out or doubled. A fifth of the errors is held out from training.
    """
    parts = text.split(" ")
    found = [
        (index, changed)
        for index, word in enumerate(parts)
        for changed in _errors(word)
        if (sum(map(ord, untagged(changed))) % 5 == 0) == held_out
    ]
    if found:
        index, changed = rng.choice(found)
        parts[index] = changed
    return " ".join(parts)


@cache
def _errors(word: str) -> list[str]:
    """Return all words that one typing error makes of a word; its first letter and its tag stay."""
    if word.endswith(TAGS):
        return [changed + word[-1] for changed in _errors(word[:-1])]
    if len(word) < 4 or not word.isalpha():
        return []
    found = set()
    for at in range(1, len(word)):
        found |= {word[:at] + word[at + 1 :], word[: at + 1] + word[at:]}
        found.add(word[:at] + word[at : at + 2][::-1] + word[at + 2 :])
    return sorted(found - {word})


@cache
def english() -> tuple[str, ...]:
    """Return common English words that say nothing of a scene."""
    return tuple((Path(__file__).parent / "english.txt").read_text().split())
