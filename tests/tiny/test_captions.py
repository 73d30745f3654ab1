"""The caption language: what the training shows, and what it never shows."""

import random
import re

from models.mochi.text.words import Words
from models.tiny import language as words
from models.tiny.captions import caption, english, mistyped, phrases, written
from models.tiny.prompts import held_out_prompts, prompts
from models.tiny.scenes import MOTIONS, random_scene

RNG = random.Random(4)
CAPTIONS = [caption(random_scene(RNG), RNG) for _ in range(20000)]
KNOWN = {word for text in CAPTIONS for word in text.replace(",", "").split()}


def test_captions_are_in_the_form_in_which_prompts_are_read():
    for text in CAPTIONS:
        assert Words.plain(text) == text


def test_no_prompt_of_the_evaluation_is_a_caption():
    """Of the third set the videos are new, and its prompts are short captions."""
    seen = set(CAPTIONS)
    for name in ("held-out", "free"):
        texts = [Words.plain(prompt.text) for prompt in prompts(name)]
        assert len(set(texts)) >= 60
        assert not seen.intersection(texts)


def test_the_first_set_has_words_of_the_training_only():
    for prompt in held_out_prompts():
        assert set(prompt.text.split()) <= KNOWN, prompt.text


def test_patterns_and_phrases_are_held_out():
    training = {*words.PATTERNS, *words.PAIRED, *words.TOGETHER, *words.ALIKE, *words.BEFORE, *words.AFTER}
    free = (words.FREE_PATTERNS, words.FREE_PAIRED, words.FREE_TOGETHER, words.FREE_ALIKE, words.FREE_BACKGROUNDS[1:])
    assert not training & {*words.HELD_OUT_PATTERNS, *(pattern for rules in free for pattern in rules)}
    for motion in MOTIONS:
        kept = {third for _, third, _ in phrases(motion, held_out=True)}
        assert kept
        assert not kept & {third for _, third, _ in phrases(motion)}
        # "runs left to right" is another phrase than "runs left".
        rule = re.compile(rf" ({'|'.join(map(re.escape, kept))}) (?!to )")
        assert not [text for text in CAPTIONS if rule.search(f" {text} ")]


def test_typing_errors_are_held_out():
    rng, text = random.Random(1), "the yellow triangle rolls towards the bottom"
    shown = {mistyped(text, rng) for _ in range(2000)}
    kept = {mistyped(text, rng, held_out=True) for _ in range(2000)}
    assert shown
    assert kept
    assert not shown & kept


def test_words_that_say_nothing_are_no_words_of_the_captions():
    assert not set(english()) & KNOWN
    rng = random.Random(1)
    assert any(set(written(text, rng).split()) & set(english()) for text in CAPTIONS[:200])
