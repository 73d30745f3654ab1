"""A model that knows few words: how it reads a prompt, and what it says of other words."""

import os
import random
import shutil
from types import SimpleNamespace

import pytest
import torch

from models.machine.errors import InputError
from models.mochi.text.encoder import MeshTextEncoder
from models.mochi.text.tokenizer import load_tokenizer
from models.mochi.text.words import WORDS_FILE, Words
from models.tiny.captions import caption
from models.tiny.prompts import held_out_prompts
from models.tiny.scenes import random_scene
from weight_cache.checkpoints import TINY
from weight_cache.checkpoints.checkpoint import Checkpoint

WORDS = Words.of(TINY / "tokenizer")


def captions():
    rng = random.Random(15)
    return [caption(random_scene(rng), rng) for _ in range(2000)] + [prompt.text for prompt in held_out_prompts()]


def test_prompts_of_the_training_are_read_as_they_are():
    for text in captions():
        assert Words.plain(text) == text
        assert WORDS.unknown(text) == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("The red ball rolls to the right.", "the red ball rolls to the right"),
        ("A RED BALL\tMOVES\nLEFT!", "a red ball moves left"),
        ("“a red ball” - rolls…", "a red ball rolls"),
        ("a video of a ball that rolls , black background", "a video of a ball that rolls, black background"),
        ("Réd_ball,, ", "red ball"),
        ("?!", ""),
    ],
)
def test_prompts_are_read_in_lower_case_without_punctuation(written, read):
    assert Words.plain(written) == read
    assert WORDS.unknown(written) == []


def test_unknown_words_are_named_once_in_their_order():
    assert WORDS.unknown("A zebra, an Aardvark and a zebra, 3 bats") == ["zebra", "aardvark", "3", "bats"]
    assert "does not know the word zebra:" in WORDS.warning("a zebra")
    assert "does not know the words zebra, aardvark:" in WORDS.warning("a zebra, aardvark")
    assert WORDS.warning("a red ball") is None


def test_what_follows_an_apostrophe_is_no_word_of_its_own():
    assert WORDS.unknown("It's a ball that doesn't move; the ball\u2019s red") == []
    assert WORDS.unknown("isn't the zebra's ball 'big'?") == ["isn't", "zebra's"]
    assert WORDS.unknown("it\u00b4s, it`s, it\u02bcs a ball that doesn\u02bct move") == []
    assert Words.plain("it doesn\u02bct move") == "it doesn t move"
    assert WORDS.unknown("a red'zebra can't move") == ["red'zebra", "can't"], "no ending hides a word"
    assert "t" not in WORDS.known
    assert "doesn't" in WORDS.known


def test_each_word_is_one_token_but_for_a_few():
    """The words that the captions gained after the tokenizer was trained are some pieces."""
    tokenizer = load_tokenizer(Checkpoint.open("tiny"))
    parts = {word: len(tokenizer(f"a {Words.plain(word)} a").input_ids) - 3 for word in WORDS.known}
    assert {word for word, count in parts.items() if count > 2} == {
        "beside",
        "let",
        "notice",
        "turn",
        "turning",
        "turns",
    }
    assert sum(count == 1 for count in parts.values()) >= len(parts) - 8


class Model:
    """Features that are the token ids."""

    config = SimpleNamespace(d_model=1)
    mesh = SimpleNamespace(download=lambda ids: [torch.tensor(ids)[None, :, None]])

    def __call__(self, ids):
        return ids


def encoder(words):
    return MeshTextEncoder(load_tokenizer(Checkpoint.open("tiny")), Model(), words=words)


def test_the_encoder_reads_the_plain_form_only_where_words_are_declared():
    plain, other = "the red ball rolls to the right", "The red ball rolls to the right."
    with_words, without = encoder(WORDS), encoder(None)
    assert torch.equal(with_words.encode(other).embeds, without.encode(plain).embeds)
    assert not torch.equal(without.encode(other).embeds, without.encode(plain).embeds)
    assert with_words.encode("...").num_tokens == 0, "nothing is left: it is the empty prompt"


def test_other_checkpoints_declare_none(small_checkpoint, tmp_path):
    assert Words.of(small_checkpoint / "tokenizer") is None
    shutil.copy(TINY / "tokenizer" / "spiece.model", tmp_path)
    WORDS.write(tmp_path)
    assert Words.of(tmp_path) == WORDS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"words": []}', '{"words": [1]}', '{"words": "a b"}', "[" * 10**5])
def test_a_damaged_list_is_one_line(tmp_path, text):
    (tmp_path / WORDS_FILE).write_text(text)
    with pytest.raises(InputError, match=r"words\.json"):
        Words.of(tmp_path)


@pytest.mark.parametrize("digest", ["5", '"abc"', "[]", f'"{"A" * 64}"'])
def test_a_digest_is_one_or_a_line(tmp_path, digest):
    (tmp_path / WORDS_FILE).write_text(f'{{"words": ["a"], "tokenizer_sha256": {digest}}}')
    with pytest.raises(InputError, match=r"words\.json: tokenizer_sha256"):
        Words.of(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
        (lambda path: path.mkdir(), "cannot be read"),
        (os.mkfifo, "is no plain file"),
        (lambda path: (path.touch(), os.truncate(path, 3 << 30)), "has more than 1 MB"),
    ],
    ids=["dangling", "folder", "pipe", "huge"],
)
def test_words_that_cannot_be_read_are_not_called_absent(tmp_path, make, message):
    make(tmp_path / WORDS_FILE)
    with pytest.raises(InputError, match=f"words.json {message}"):
        Words.of(tmp_path)


@pytest.mark.parametrize(("words", "length", "cut"), [(255, 256, 0), (256, 256, 1), (300, 256, 45), (300, 20, 281)])
def test_the_encoder_on_the_mesh_counts_what_is_cut(words, length, cut):
    """The end token belongs to the prompt, and stays."""
    found = encoder(None).encode("a " * words, length)
    assert (found.num_tokens, found.num_truncated) == (length, cut)
    assert found.embeds[0, length - 1, 0] == 1
