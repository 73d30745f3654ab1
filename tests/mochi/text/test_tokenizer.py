"""A tokenizer proves itself: on the size of its vocabulary, on its special tokens and on a sentence."""

import hashlib
import io
import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from models.machine.errors import InputError
from models.mochi.text import tokenizer as tokenizer_module
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


def exchanged(proto, first="\u2581red", second="\u2581blue"):
    pieces = {piece.piece: piece for piece in proto.pieces}
    pieces[first].piece, pieces[second].piece = second, first


def scored(value, piece="\u2581square"):
    def change(proto):
        next(p for p in proto.pieces if p.piece == piece).score = value

    return change


def kind(value, piece="\u2581square"):
    def change(proto):
        next(p for p in proto.pieces if p.piece == piece).type = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        exchanged,
        lambda proto: setattr(next(p for p in proto.pieces if p.piece == "\u2581blue"), "piece", "\u2581blse"),
        scored(-1e30),
        scored(-3.0),
    ],
    ids=["exchanged", "renamed", "scored", "scored-a-little"],
)
def test_a_changed_piece_is_seen_by_the_digest(copy, change):
    proto = pieces_of(copy)
    change(proto)
    with pytest.raises(InputError, match="is not the one of this model"):
        check_files(put(copy, proto))


def no_prefix(proto):
    proto.normalizer_spec.add_dummy_prefix = False


def keep_spaces(proto):
    proto.normalizer_spec.remove_extra_whitespaces = False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[(scored(value), "another kind than in T5, or a score") for value in (-1e30, 5.0, 1e38)],
        (scored(float("nan")), "score is NaN"),
        *[(kind(value), "another kind than in T5") for value in (3, 5)],
        (kind(1, "</s>"), "another kind than in T5"),
        (no_prefix, "which T5 does not"),
        (keep_spaces, "which T5 does not"),
    ],
)
def test_pieces_that_t5_cannot_have_are_refused(copy, change, message):
    """Where no digest is known."""
    (copy / "tokenizer" / "words.json").unlink()
    proto = pieces_of(copy)
    change(proto)
    with pytest.raises(InputError, match=message):
        check_files(put(copy, proto))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"unk_token": "a"}),
        ("tokenizer_config.json", {"eos_token": {"content": "<s>"}}),
        ("tokenizer_config.json", {"pad_token": None}),
        ("tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"}),
        ("tokenizer_config.json", {"extra_ids": 10**9}),
        ("tokenizer_config.json", {"extra_ids": -1}),
        ("tokenizer_config.json", {"additional_special_tokens": ["red"]}),
        ("tokenizer_config.json", {"additional_special_tokens": 5}),
        ("tokenizer_config.json", {"extra_special_tokens": {"x": "ball"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"content": "red", "special": True}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<extra_id_0>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "<extra_id_0>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "<pad>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "<extra_id_0>"}}}),
        ("special_tokens_map.json", {"unk_token": "ball"}),
        ("special_tokens_map.json", {"additional_special_tokens": [{"content": "red"}]}),
        ("added_tokens.json", {"red": 40}),
        ("added_tokens.json", {"<extra_id_0>": True}),
        ("tokenizer.json", {"added_tokens": [{"id": 30, "content": "ball"}]}),
    ],
)
def test_tokens_that_are_not_t5s_are_refused(copy, file, changes):
    path = copy / "tokenizer" / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))
    with pytest.raises(InputError, match=file.replace(".", r"\.")) as caught:
        check_files(Checkpoint(copy))
    assert "\n" not in str(caught.value)


def test_t5s_own_settings_pass(copy):
    """As transformers writes them: for each token its number, and the class of either kind."""
    path = copy / "tokenizer" / "tokenizer_config.json"
    decoder = {str(267 - n): {"content": f"<extra_id_{n}>", "special": True} for n in range(100)}
    decoder |= {str(n): {"content": text} for n, text in enumerate(("<pad>", "</s>", "<unk>"))}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": decoder}))
    special = {"additional_special_tokens": [f"<extra_id_{n}>" for n in range(100)], "unk_token": {"content": "<unk>"}}
    (copy / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special))
    (copy / "tokenizer" / "added_tokens.json").write_text(json.dumps({f"<extra_id_{n}>": 267 - n for n in range(100)}))
    load_tokenizer(Checkpoint(copy))
    load_tokenizer(Checkpoint.open("tiny")).save_pretrained(copy / "tokenizer")
    load_tokenizer(Checkpoint(copy))


def test_files_of_two_tokenizers_are_refused(copy):
    """What is read is `tokenizer.json`, where there is one."""
    load_tokenizer(Checkpoint.open("tiny")).save_pretrained(copy / "tokenizer")
    path = copy / "tokenizer" / "tokenizer.json"
    whole = json.loads(path.read_text())
    vocabulary = whole["model"]["vocab"]
    vocabulary[30][0], vocabulary[34][0] = vocabulary[34][0], vocabulary[30][0]
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match="its files are not of one tokenizer"):
        load_tokenizer(Checkpoint(copy))
    vocabulary[30][0], vocabulary[34][0] = vocabulary[34][0], vocabulary[30][0]
    red = next(index for index, (piece, _) in enumerate(vocabulary) if piece == "\u2581red")
    vocabulary[red][1] = -500.0
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match=r"of 'a red ball', its spiece\.model .* not of one tokenizer"):
        load_tokenizer(Checkpoint(copy))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: (path.touch(), os.truncate(path, 3 << 30))])
@pytest.mark.parametrize("name", ["chat_template.jinja", "added_tokens.json", "spiece.model"])
def test_files_without_an_end_are_refused(copy, name, make):
    path = copy / "tokenizer" / name
    path.unlink(missing_ok=True)
    make(path)
    with pytest.raises(InputError, match=f"{name} (is no plain file|has more than)"):
        check_files(Checkpoint(copy))


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


def test_the_sizes_of_t5_xxl_pass_with_its_file_alone(copy, monkeypatch):
    """32000 pieces, 32100 tokens, 32128 rows (google/t5-v1_1-xxl)."""
    proto = larger(copy, 32000)
    checkpoint = put(copy, proto, 32128)
    with pytest.raises(InputError, match="not the one of this model"):
        check_files(checkpoint)
    monkeypatch.setattr(
        tokenizer_module, "_T5_DIGEST", hashlib.sha256(proto.SerializeToString()).hexdigest(), raising=True
    )
    check_files(checkpoint)


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
