"""The tokenizer of a checkpoint: read, and proved to be T5's or of its form before any prompt goes through it.

A damaged or foreign vocabulary would make other words of a prompt without a word. T5-XXL has 32000 pieces, 100 tokens
for spans, and 32128 rows of embeddings: the tokens rounded up to a multiple of 128 (google/t5-v1_1-xxl `config.json`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.machine.checks import json_file, read_bytes
from models.machine.errors import InputError, MissingInputError
from models.mochi.text.config import T5Config

if TYPE_CHECKING:
    from weight_cache.checkpoints.checkpoint import Checkpoint

PAD, END, UNKNOWN = 0, 1, 2
FILES = ("spiece.model", "tokenizer.json")
# T5's has 0.8 MB.
_LARGEST_BYTES = 64 << 20
# Tokens for spans that are no pieces, and rows that only fill the embeddings up.
_SPANS, _FILLED = 100, 128
_SENTENCE = "a red ball"
_MEND = "download it again"


def check_files(checkpoint: Checkpoint) -> None:
    """Judge the tokenizer's files without importing `transformers`, which takes seconds.

    Raises:
        MissingInputError: there is neither of `FILES`.
        InputError: one is damaged, or has not the vocabulary of the text encoder.
    """
    directory = checkpoint.tokenizer
    found = [name for name in FILES if (directory / name).is_file()]
    if not found:
        raise MissingInputError(
            f"checkpoint component tokenizer in {directory} has neither spiece.model nor tokenizer.json"
        )
    for name in directory.glob("*.json"):
        json_file(name, "", _MEND)
    if "spiece.model" in found:
        _check_pieces(directory / "spiece.model", _rows(checkpoint))


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the `tokenizer` component and prove that it belongs to the text encoder.

    Raises:
        MissingInputError: files of the tokenizer are missing.
        InputError: it cannot be read, or its vocabulary is not the text encoder's.
    """
    check_files(checkpoint)
    tokenizer = _read(checkpoint.tokenizer)
    where = f"the tokenizer in {checkpoint.tokenizer}"
    tokens, rows = len(tokenizer), _rows(checkpoint)
    if not tokens <= rows < tokens + _FILLED:
        raise InputError(
            f"{where} has {tokens} tokens, the text encoder {rows}: they are not of one checkpoint "
            f"({checkpoint.directory})"
        )
    ids = tokenizer(_SENTENCE).input_ids
    if ids[-1] != END or set(ids[:-1]) <= {UNKNOWN} or max(ids) >= rows:
        raise InputError(f"{where} makes {ids[:8]} of {_SENTENCE!r}: it is damaged or of another model; {_MEND}")
    return tokenizer


def _rows(checkpoint: Checkpoint) -> int:
    return T5Config.from_dict(checkpoint.text_encoder.config).vocab_size


def _check_pieces(file: Path, rows: int) -> None:
    import sentencepiece

    data = read_bytes(file, "the tokenizer", _MEND, _LARGEST_BYTES)
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(data)
        special = [pieces.id_to_piece(index) for index in (PAD, END)]
        found = pieces.encode(_SENTENCE)
    except Exception as error:
        # A damaged file may raise any error in the library. The user's remedy is always the same.
        raise InputError(
            f"the tokenizer in {file} ({len(data)} bytes) cannot be read ({_line(error)}): {_MEND}"
        ) from error
    tokens = pieces.get_piece_size() + _SPANS
    if not tokens - _SPANS <= rows < tokens + _FILLED:
        raise InputError(
            f"the tokenizer in {file} has {pieces.get_piece_size()} pieces, the text encoder {rows} rows: they are not "
            "of one checkpoint"
        )
    if special != ["<pad>", "</s>"] or pieces.unk_id() != UNKNOWN or set(found) <= {UNKNOWN}:
        raise InputError(
            f"the tokenizer in {file} begins with {special} and makes {found[:8]} of {_SENTENCE!r}: it is damaged or "
            f"of another model; {_MEND}"
        )


def _read(directory: Path) -> Any:
    from transformers import T5Tokenizer

    try:
        return T5Tokenizer.from_pretrained(directory, local_files_only=True)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # A damaged file may raise any error in the libraries, a panic of Rust included. The remedy is always the same.
        raise InputError(f"the tokenizer in {directory} cannot be read ({_line(error)}): {_MEND}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
