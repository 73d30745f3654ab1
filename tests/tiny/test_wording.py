import json
import random
from collections import Counter

import pytest
import torch

from models.tiny import wording
from models.tiny.bank import TOKENS, load
from models.tiny.captions import english
from models.tiny.language import BACKGROUND_WORDS, FREE_BACKGROUNDS
from models.tiny.training import CURVE, Schedule
from models.tiny.transformer_training import TextToVelocity, read_text
from models.tiny.wording import Pair, Tokens, random_pair, target_of, teach
from weight_cache.checkpoints import TINY

CLAUSE_WORDS = ("and", "the", "is", "all", "else", "it", "has", "a", "around", "while", "where", "with")


@pytest.fixture(scope="module")
def tokenizer():
    return load(TINY / "tokenizer")


@pytest.fixture(scope="module")
def text_encoder():
    from transformers import T5EncoderModel

    return T5EncoderModel.from_pretrained(TINY / "text_encoder", torch_dtype=torch.float32).eval()


def pairs(count):
    rng = random.Random(0)
    return [random_pair(rng) for _ in range(count)]


def test_each_word_of_a_new_wording_that_names_something_follows_that_word():
    """Words that follow others are those of a clause, or differ by a typing error or a comma."""
    clause = {*english(), "background", *CLAUSE_WORDS}
    for pair in pairs(500):
        assert len(pair.new) == len(pair.partner)
        assert max(pair.partner) < len(pair.usual)
        differing = 0
        for word, partner in zip(pair.new, pair.partner, strict=True):
            usual = "" if partner < 0 else pair.usual[partner].strip(",")
            if word.strip(",") != usual and word.strip(",") not in clause and partner >= 0:
                differing += 1
        assert differing <= 1, pair
        followed = Counter(partner for partner in pair.partner if partner >= 0)
        named = [index for index, word in enumerate(pair.usual) if word.strip(",") not in clause | {"on"}]
        assert all(followed[index] == 1 for index in named), pair


def test_backgrounds_of_the_evaluation_are_not_taught():
    """Its ways to say the background stay kept from training."""
    taught = [" ".join(pair.new).replace(",", "") for pair in pairs(3000)]
    colours = [colour for these in BACKGROUND_WORDS.values() for colour in these]
    for kept in FREE_BACKGROUNDS:
        phrase = kept.replace("{x}", "").strip(" ,")
        for colour in colours if phrase else ():
            said, first = phrase.format(b=colour), not kept.startswith("{x}")
            assert not any(text.startswith(said) if first else said in text for text in taught), phrase


def test_tokens_of_pairs_are_those_of_their_sentences(tokenizer):
    tokens = Tokens(tokenizer)
    made = list(filter(tokens.fit, pairs(300)))
    usual, new, follows = tokens.of(made)
    for row, pair in enumerate(made):
        for words, ids in ((pair.usual, usual), (pair.new, new)):
            expected = tokenizer(" ".join(words)).input_ids[:TOKENS]
            assert ids[row, : len(expected)].tolist() == expected
            assert not ids[row, len(expected) :].any()
        assert ((follows[row] == -2) == (new[row] == 0)).all()


def test_a_sentence_that_is_too_long_is_refused(tokenizer):
    tokens, pair = Tokens(tokenizer), Pair(("ball",) * TOKENS, ("ball",), (0,))
    assert not tokens.fit(pair)
    with pytest.raises(ValueError, match=f"more than {TOKENS} tokens"):
        tokens.of([pair])


def test_a_comma_of_a_clause_follows_the_phrase_for_the_background(tokenizer):
    pair = Pair(("a", "ball", "on", "a", "grey", "background"), ("a", "ball,", "and", "grey"), (0, 1, 2, 4), 2)
    usual, new, follows = (rows[0].tolist() for rows in Tokens(tokenizer).of([pair]))
    at = tokenizer.convert_ids_to_tokens(new).index(",")
    assert tokenizer.convert_ids_to_tokens(usual)[follows[at]] == "\u2581on"


def test_a_piece_follows_its_piece_and_a_comma_a_comma(tokenizer):
    pair = Pair(("a", "ball,", "pyramids"), ("a", "ball,", "and", "pyrmids,"), (0, 1, -1, 2))
    usual, new, follows = (rows[0].tolist() for rows in Tokens(tokenizer).of([pair]))
    old, words = tokenizer.convert_ids_to_tokens(usual), tokenizer.convert_ids_to_tokens(new)
    found = [
        (piece, old[at] if at >= 0 else None) for piece, at in zip(words, follows, strict=True) if piece != "<pad>"
    ]
    assert found[:4] == [("\u2581a", "\u2581a"), ("\u2581ball", "\u2581ball"), (",", ","), ("\u2581and", None)]
    assert found[-2:] == [(",", None), ("</s>", "</s>")]
    assert {target for _, target in found[4:-2]} == {"\u2581pyramids"}


def test_targets_are_features_of_the_usual_sentence(tokenizer, text_encoder):
    pair = Pair(("a", "red", "ball"), ("so", "a", "red", "ball"), (-1, 0, 1, 2))
    usual, new, follows = Tokens(tokenizer).of([pair])
    (target,) = target_of(text_encoder, usual, new, follows)
    with torch.no_grad():
        (old,), (own,) = (read_text(text_encoder, ids, ids != 0) for ids in (usual, new))
    torch.testing.assert_close(target[1:5], old[:4])
    torch.testing.assert_close(target[0], own[0])
    assert not target[5:].any()


def test_a_few_steps_bring_new_wordings_nearer(tokenizer, tmp_path):
    text_encoder = TextToVelocity(len(tokenizer)).text_encoder.eval()  # the trained one knows them already
    before = {name: value.clone() for name, value in text_encoder.state_dict().items()}
    taught = teach(text_encoder, tokenizer, tmp_path, Schedule(steps=40, rate=1e-3, warmup=1, ema=0.5))
    assert all(torch.equal(value, before[name]) for name, value in text_encoder.state_dict().items())
    tokens, rng = Tokens(tokenizer), random.Random("other")
    usual, new, follows = tokens.of(list(filter(tokens.fit, [random_pair(rng) for _ in range(wording.BATCH)])))
    target = target_of(text_encoder, usual, new, follows)
    with torch.no_grad():
        old, now = ((read_text(one, new, new != 0) - target).square().mean() for one in (text_encoder, taught))
    assert now < 0.8 * old
    assert [json.loads(line)["step"] for line in (tmp_path / CURVE).read_text().splitlines()] == [10, 20, 30, 40]
