"""A tokenizer proves itself: on the size of its vocabulary, on its special tokens and on a sentence."""

import io
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from models.machine.errors import InputError
from models.mochi.text.tokenizer import check_files, load_tokenizer
from weight_cache.checkpoints import TINY
from weight_cache.checkpoints.checkpoint import Checkpoint


def refused(function, *arguments) -> None:
    """Call a function that may refuse in one line, and may raise nothing else."""
    line = ""
    try:
        function(*arguments)
    except InputError as error:
        line = str(error)
    assert "\n" not in line


@pytest.fixture
def copy(tmp_path):
    """The tiny checkpoint, of which a test may damage the tokenizer and the text encoder's config."""
    made = tmp_path / "tiny"
    shutil.copytree(TINY, made, ignore=lambda folder, names: [n for n in names if n.endswith(("safetensors", "jsonl"))])
    return made


def pieces_of(copy) -> ModelProto:
    return ModelProto.FromString((copy / "tokenizer" / "spiece.model").read_bytes())


def put(copy, proto: ModelProto, rows: int | None = None) -> Checkpoint:
    (copy / "tokenizer" / "spiece.model").write_bytes(proto.SerializeToString())
    if rows is not None:
        config = copy / "text_encoder" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": rows}))
    return Checkpoint(copy)


def test_that_of_tiny_and_of_a_random_checkpoint_pass(small_checkpoint):
    for checkpoint in (Checkpoint(TINY), Checkpoint(small_checkpoint)):
        check_files(checkpoint)
        assert load_tokenizer(checkpoint)("a red ball").input_ids[-1] == 1


def larger(copy, pieces: int) -> ModelProto:
    proto = pieces_of(copy)
    for index in range(pieces - len(proto.pieces)):
        proto.pieces.add(piece=f"\u2581word{index}", score=-20.0)
    return proto


def test_the_sizes_of_t5_xxl_pass(copy):
    """32000 pieces, 32100 tokens, 32128 rows (google/t5-v1_1-xxl)."""
    check_files(put(copy, larger(copy, 32000), 32128))


@pytest.mark.parametrize(
    ("pieces", "rows"), [(32000, 31999), (32000, 32228), (168, 32128), (32000, 268), (250100, 32128)]
)
def test_another_vocabulary_is_refused(copy, pieces, rows):
    with pytest.raises(InputError, match="they are not of one checkpoint"):
        check_files(put(copy, larger(copy, pieces), rows))


def test_fewer_rows_than_tokens_are_refused_when_it_is_loaded(copy):
    """The files alone do not say how many tokens for spans there are."""
    with pytest.raises(InputError, match="they are not of one checkpoint"):
        load_tokenizer(put(copy, pieces_of(copy), 260))


def test_a_tokenizer_with_other_special_tokens_is_refused(copy):
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a red ball", "the blue square, a ball", "red, green and blue"]),
        model_writer=model,
        vocab_size=168,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    proto = ModelProto.FromString(model.getvalue())
    with pytest.raises(InputError, match="it is damaged or of another model"):
        check_files(put(copy, proto, len(proto.pieces) + 100))


def test_a_tokenizer_without_words_is_refused(copy):
    """With its special tokens alone, every word would be the unknown token."""
    proto = pieces_of(copy)
    del proto.pieces[3:]
    proto.pieces.add(piece="zebra", score=-1.0)
    with pytest.raises(InputError, match=r"makes \[2.*\] of 'a red ball'"):
        check_files(put(copy, proto, 104))


def test_an_empty_tokenizer_is_refused(copy):
    (copy / "tokenizer" / "spiece.model").write_bytes(b"")
    with pytest.raises(InputError, match="tokenizer"):
        check_files(Checkpoint(copy))


@given(st.binary(max_size=300), st.integers(0, 5000))
def test_any_bytes_are_a_tokenizer_or_a_line(tmp_path, data, place):
    made = tmp_path / "tiny"
    if not made.exists():
        shutil.copytree(TINY, made, ignore=lambda folder, names: [n for n in names if n.endswith("safetensors")])
    whole = (TINY / "tokenizer" / "spiece.model").read_bytes()
    for text in (data, whole[:place] + data + whole[place + len(data) :]):
        (made / "tokenizer" / "spiece.model").write_bytes(text)
        refused(check_files, Checkpoint(made))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": {}}', '{"version": "1.0", "model": null}'])
def test_a_damaged_tokenizer_json_is_refused(copy, text):
    (copy / "tokenizer" / "spiece.model").unlink()
    (copy / "tokenizer" / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(Checkpoint(copy))
