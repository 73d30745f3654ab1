"""Other wordings, taught to the text encoder of a trained checkpoint while its transformer stays as it is.

Videos of prompts for one thing with a clause for the background, after "and", often showed two things: in the captions
of the training "and" nearly always joins two. The encoder, not the transformer, is to know better. So it learns to give
a sentence in a new wording the features that it had for the same sentence in a usual wording, word by word. This needs
no videos, and minutes of a CPU.

The clauses were chosen after that was seen in the free prompts of `models.tiny.prompts`. Those prompts' own ways to say
the background are not among them.

Shapes: B pairs of sentences, L tokens, D features.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from models.tiny.bank import TOKENS
from models.tiny.captions import TRAINING, english, mistyped, tagged_sentence, untagged
from models.tiny.language import BACKGROUND_WORDS
from models.tiny.scenes import random_scene
from models.tiny.training import Batch, Losses, Schedule, Training
from models.tiny.transformer_training import read_text

SCHEDULE = Schedule(steps=3000, rate=5e-4, warmup=50, fall=0.6, ema=0.99)
BATCH = 64
# The usual phrase for a background, and clauses that say the same, with "{n}" for any word of `english`.
USUAL = "on a {b} background"
CLAUSES = (
    *("and the {n} is {b}",) * 4,
    *("and the background is {b}",) * 2,
    "and all else is {b}",
    "and {b} is the {n}",
    "and it has a {b} {n}",
    "and the {n} around it is {b}",
    "and the {n} is all {b}",
    "while the {n} is {b}",
    "where the {n} is {b}",
    "the {n} is {b}",
    "with a {b} {n}",
)
# The same before the sentence.
LEADS = ("the background is {b}", "the {n} is {b}", "a {b} {n}", "with a {b} {n}", "{b} {n}")
# Words that say nothing of a scene wherever they stand, beside those of `english`.
_SMALL = (
    "and also it that this which there here is as we i you me us can could would like want see show let please now so "
    "video clip where how what by the a one in have has"
)
SMALL_WORDS = tuple(_SMALL.split())
# Shares of the pairs: another clause for the background, words put in, and a typing error. The others are one sentence
# twice.
CLAUSED, FILLED, MISTYPED = 0.4, 0.25, 0.15


@dataclass(frozen=True)
class Pair:
    """A sentence in a usual wording, and in a new one.

    Attributes:
        usual: its words.
        new: its words.
        partner: for each new word the index of the usual word whose features it takes; -1 keeps its own.
        comma: the same for a comma that the usual sentence has not.
    """

    usual: tuple[str, ...]
    new: tuple[str, ...]
    partner: tuple[int, ...]
    comma: int = -1


def random_pair(rng: random.Random) -> Pair:
    """Return a random sentence of the training in two wordings."""
    scene, form = random_scene(rng), rng.random()
    claused = form < CLAUSED
    background = 0.0 if claused else 0.5
    words = untagged(tagged_sentence(scene, rng, TRAINING, background)).split()
    if claused:
        return _claused(words, rng.choice(BACKGROUND_WORDS[scene.background]), rng)
    same = tuple(range(len(words)))
    if form < CLAUSED + FILLED:
        new, partner = list(words), list(same)
        for _ in range(rng.choice((1, 2, 3, 4))):
            at = rng.randrange(len(new) + 1)
            new.insert(at, rng.choice(SMALL_WORDS if rng.random() < 0.7 else english()))
            partner.insert(at, -1)
        return Pair(tuple(words), tuple(new), tuple(partner))
    new = mistyped(" ".join(words), rng).split() if form < CLAUSED + FILLED + MISTYPED else words
    return Pair(tuple(words), tuple(new), same)


def _claused(words: list[str], colour: str, rng: random.Random) -> Pair:
    """Return a sentence with the usual phrase for its background, and with another."""
    usual = [*words, *USUAL.format(b=colour).split()]
    start, noun = len(words), len(usual) - 1
    first = rng.random() < 0.25
    added, partner = list[str](), list[int]()
    for word in rng.choice(LEADS if first else CLAUSES).split():
        if word == "{b}":
            added += colour.split()
            partner += range(start + 2, noun)
        else:
            added.append(word.replace("{n}", _noun(rng)))
            partner.append(_partner(word, start, noun))
    kept, comma = range(start), rng.choice((",", ""))
    if first:
        added[-1] += comma
        return Pair(tuple(usual), (*added, *words), (*partner, *kept), noun)
    return Pair(tuple(usual), (*words[:-1], words[-1] + comma, *added), (*kept, *partner), start)


def _noun(rng: random.Random) -> str:
    """Return "background" or another word; "room" is kept for the evaluation."""
    return "background" if rng.random() < 0.2 else rng.choice([word for word in english() if word != "room"])


def _partner(word: str, start: int, noun: int) -> int:
    """Return the word of the usual phrase, which begins at `start` and ends with its noun, for one of a clause."""
    if word in ("a", "the", "is", "it", "has", "all", "around"):
        return start + 1
    return start if word in ("and", "while", "where", "with", "else") else noun


class Tokens:
    """The tokens of pairs, by a tokenizer no piece of which goes over a space."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._pieces = tokenizer, dict[str, tuple[int, ...]]()

    def of(self, pairs: Sequence[Pair]) -> Batch:
        """Return the tokens of both wordings, [B, L], and which usual token each new one follows, [B, L].

        -1 is a token that keeps its own features, -2 padding.

        Raises:
            ValueError: a sentence is longer than `TOKENS`.
        """
        usual, new = (torch.zeros(len(pairs), TOKENS, dtype=torch.long) for _ in range(2))
        follows = torch.full((len(pairs), TOKENS), -2)
        for row, pair in enumerate(pairs):
            if not self.fit(pair):
                raise ValueError(f"{' '.join(pair.new)!r} has more than {TOKENS} tokens in a wording")
            for place, values in zip((usual, new, follows), self._of(pair), strict=True):
                place[row, : len(values)] = torch.tensor(values)
        return usual, new, follows

    def fit(self, pair: Pair) -> bool:
        """Return whether both wordings have at most `TOKENS` tokens."""
        usual, new, _ = self._of(pair)
        return max(len(usual), len(new)) <= TOKENS

    def _of(self, pair: Pair) -> tuple[list[int], list[int], list[int]]:
        usual, new, follows = list[int](), list[int](), list[int]()
        spans = []
        for word in pair.usual:
            pieces = self._of_word(word)
            spans.append(range(len(usual), len(usual) + len(pieces)))
            usual += pieces
        for word, partner in zip(pair.new, pair.partner, strict=True):
            pieces = self._of_word(word)
            new += pieces
            follows += [-1] * len(pieces) if partner < 0 else self._followed(pair, word, partner, pieces, spans)
        end = self._tokenizer.eos_token_id
        return [*usual, end], [*new, end], [*follows, len(usual)]

    def _followed(self, pair: Pair, word: str, partner: int, pieces: Sequence[int], spans: list[range]) -> list[int]:
        """Return the usual token of each piece of a word. Commas follow commas, or what the pair says."""
        places = list(spans[partner])
        comma, had = word.endswith(","), pair.usual[partner].endswith(",")
        inner, count = places[: len(places) - had], len(pieces) - comma
        found = inner if len(inner) == count else [inner[-1]] * count
        if not comma:
            return found
        own = -1 if pair.comma < 0 else spans[pair.comma][-1]
        return [*found, places[-1] if had else own]

    def _of_word(self, word: str) -> tuple[int, ...]:
        if word not in self._pieces:
            self._pieces[word] = tuple(self._tokenizer(word, add_special_tokens=False).input_ids)
        return self._pieces[word]


def teach(
    text_encoder: Any,
    tokenizer: Any,
    folder: Path,
    schedule: Schedule = SCHEDULE,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Any:
    """Train a text encoder to read new wordings as it reads the usual ones, or continue. Return the trained one.

    Args:
        text_encoder: a trained `T5EncoderModel` in float32; it stays as it is.
        tokenizer: its tokenizer.
        folder: folder of the training's state and loss curve.
        schedule: see `Schedule`.
        progress: called as `progress(done, total, text)`.
    """
    teacher, student = (deepcopy(text_encoder) for _ in range(2))
    teacher.eval().requires_grad_(False)
    tokens, device = Tokens(tokenizer), next(student.parameters()).device

    def batch_of(step: int) -> Batch:
        rng = random.Random(f"wording {step}")
        drawn = (random_pair(rng) for _ in count())
        pairs = list(islice(filter(tokens.fit, drawn), BATCH))
        usual, new, follows = (rows.to(device) for rows in tokens.of(pairs))
        return new, new != 0, target_of(teacher, usual, new, follows)

    def losses(new: torch.Tensor, mask: torch.Tensor, target: torch.Tensor) -> Losses:
        error = (read_text(student, new, mask) - target).square().sum(-1)
        return {"loss": error[mask].mean() / target[mask].square().sum(-1).mean()}

    return Training(student, losses, schedule, folder).run(batch_of, progress).eval()


@torch.no_grad()
def target_of(teacher: Any, usual: torch.Tensor, new: torch.Tensor, follows: torch.Tensor) -> torch.Tensor:
    """Return the features that new sentences should have, [B, L, D]."""
    old, own = read_text(teacher, usual, usual != 0), read_text(teacher, new, new != 0)
    taken = old.gather(1, follows.clamp(min=0)[..., None].expand_as(old))
    return torch.where((follows >= 0)[..., None], taken, own)
