"""The tokenizer of a checkpoint: read, and proved to be T5's or of its form before any prompt goes through it.

A damaged or foreign vocabulary would make other words of a prompt without a word. T5-XXL has 32000 pieces, 100 tokens
for spans, and 32128 rows of embeddings: the tokens rounded up to a multiple of 128 (google/t5-v1_1-xxl `config.json`).
All sizes of T5 have one `spiece.model`, which is known by its SHA-256; a checkpoint with words of its own declares that
of its file beside them. Of another file is proved what can be: its special pieces, scores, and how it cuts a sentence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.machine.checks import JSON_BYTES, json_file, read_bytes, short, whole
from models.machine.errors import InputError, MissingInputError
from models.machine.paths import is_taken
from models.mochi.text.config import T5Config
from models.mochi.text.words import Words

if TYPE_CHECKING:
    from weight_cache.checkpoints.checkpoint import Checkpoint

PAD, END, UNKNOWN = 0, 1, 2
FILES = ("spiece.model", "tokenizer.json")
# T5's has 0.8 MB.
_LARGEST_BYTES = 64 << 20
# Tokens for spans that are no pieces, and rows that only fill the embeddings up.
_SPANS, _FILLED = 100, 128
# SHA-256 of the `spiece.model` of google/t5-v1_1-xxl and of all T5 with 32000 pieces (its Git LFS pointer).
_T5_PIECES, _T5_DIGEST = 32000, "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
# Least logarithm of a piece's probability: those of T5 lie between -14 and 0.
_LEAST_SCORE = -1000.0
_SPECIAL = {"pad_token": ("<pad>", PAD), "eos_token": ("</s>", END), "unk_token": ("<unk>", UNKNOWN)}
_IDS = dict(_SPECIAL.values())
_SPAN = re.compile(r"<extra_id_\d{1,4}>", re.ASCII)
_INDEX = re.compile("[0-9]{1,9}")
_CLASSES = (None, "T5Tokenizer", "T5TokenizerFast")
_SENTENCE = "a red ball"
# Sentences that the tokenizer must cut as its pieces say; capitals would show one that changes them.
_SENTENCES = (_SENTENCE, "A Red ball, and 2 blue squares.", "The quick brown fox jumps over the lazy dog")
_MEND = "download it again"


def check_files(checkpoint: Checkpoint) -> None:
    """Judge the tokenizer's files without importing `transformers`, which takes seconds.

    Raises:
        MissingInputError: there is neither of `FILES`.
        InputError: one is damaged, has not the vocabulary of the text encoder, or gives a token another meaning than
            T5 gives it.
    """
    directory = checkpoint.tokenizer
    found = [name for name in FILES if is_taken(directory / name)]
    if not found:
        raise MissingInputError(
            f"checkpoint component tokenizer in {directory} has neither spiece.model nor tokenizer.json"
        )
    for path in sorted(directory.glob("*.json")):
        _check_settings(path, json_file(path, "", _MEND))
    for pattern in ("*.jinja", "*/*.jinja"):
        # `transformers` reads these whole.
        for path in directory.glob(pattern):
            read_bytes(path, "", _MEND, JSON_BYTES)
    if "spiece.model" in found:
        _check_pieces(directory, _rows(checkpoint))


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the `tokenizer` component and prove that it belongs to the text encoder.

    Raises:
        MissingInputError: files of the tokenizer are missing.
        InputError: it cannot be read, its vocabulary is not the text encoder's, or it does not do what its files say.
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
    for name, (text, index) in _SPECIAL.items():
        if (getattr(tokenizer, name), tokenizer.convert_tokens_to_ids(text)) != (text, index):
            raise InputError(f"{where} has the {name} {short(getattr(tokenizer, name))}, not {text}: {_MEND}")
    for text, index in tokenizer.get_added_vocab().items():
        _check_token(where, text, index)
    if tokenizer.truncation_side != "right":
        raise InputError(f"{where} cuts long prompts at their beginning (truncation_side): T5 cuts the end")
    file = checkpoint.tokenizer / "spiece.model"
    if is_taken(file):
        _check_agreement(where, tokenizer, _open(file, read_bytes(file, "the tokenizer", _MEND, _LARGEST_BYTES)))
    return tokenizer


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Check what a JSON file of the tokenizer says of its class and of single tokens.

    Raises:
        InputError: it is not what it is in T5.
    """
    if path.name == "tokenizer_config.json":
        kind = settings.get("tokenizer_class")
        if kind not in _CLASSES:
            raise InputError(f"{path} is of a {short(kind)}, not of a T5Tokenizer: {_MEND}")
        whole(f"{path}: extra_ids", settings.get("extra_ids", _SPANS), 0, _SPANS)
    if path.name in ("tokenizer_config.json", "special_tokens_map.json"):
        for name, (wanted, _) in _SPECIAL.items():
            stated = _content(settings.get(name, wanted))
            if stated != wanted:
                raise InputError(f"{path}: {name} is {short(stated)}, but T5's is {wanted}: {_MEND}")
    for text, index in _declared(path, settings):
        _check_token(str(path), text, index)


def _declared(path: Path, settings: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Give the tokens that a JSON file adds to the vocabulary, with their numbers; None where it says no number."""
    if path.name == "added_tokens.json":
        yield from settings.items()
    if path.name == "tokenizer.json":
        entries = settings.get("added_tokens") or []
        for entry in entries if isinstance(entries, list) else [entries]:
            yield _content(entry), entry.get("id") if isinstance(entry, dict) else None
    if path.name in ("tokenizer_config.json", "special_tokens_map.json"):
        entries = settings.get("added_tokens_decoder") or {}
        for index, entry in entries.items() if isinstance(entries, dict) else [(None, entries)]:
            yield _content(entry), int(index) if index and _INDEX.fullmatch(index) else index
        for name in ("additional_special_tokens", "extra_special_tokens"):
            entries = settings.get(name) or []
            if isinstance(entries, dict):
                entries = list(entries.values())
            for entry in entries if isinstance(entries, list) else [entries]:
                yield _content(entry), None


def _content(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def _check_token(where: str, text: Any, index: Any) -> None:
    """Check a token that is no piece: T5 has its special ones and those for spans.

    Raises:
        InputError: it is another, or has a number that is a piece's.
    """
    numbered = isinstance(index, int) and not isinstance(index, bool)
    right = (numbered or index is None) and isinstance(text, str)
    if right and text in _IDS:
        right = index in (None, _IDS[text])
    elif right:
        right = _SPAN.fullmatch(text) is not None and (index is None or index > UNKNOWN)
    if not right:
        raise InputError(f"{where} adds the token {short(text)} with number {short(index)}: it is not T5's; {_MEND}")


def _check_agreement(where: str, tokenizer: Any, pieces: Any) -> None:
    """Check that a tokenizer has the pieces of its `spiece.model`, and cuts sentences as that does.

    Raises:
        InputError: it has others, from another file of its folder.
    """
    size = pieces.get_piece_size()
    names, wanted = tokenizer.convert_ids_to_tokens(list(range(size))), pieces.id_to_piece(list(range(size)))
    for index, (name, piece) in enumerate(zip(names, wanted, strict=True)):
        if name != piece:
            raise InputError(
                f"{where} has {short(name)} as token {index}, its spiece.model {short(piece)}: its files are not of "
                f"one tokenizer; {_MEND}"
            )
    for sentence in _SENTENCES:
        found, expected = tokenizer(sentence).input_ids, [*pieces.encode(sentence), END]
        if found != expected:
            raise InputError(
                f"{where} makes {found[:8]} of {sentence!r}, its spiece.model {expected[:8]}: its files are not of one "
                f"tokenizer; {_MEND}"
            )


def _rows(checkpoint: Checkpoint) -> int:
    return T5Config.from_dict(checkpoint.text_encoder.config).vocab_size


def _check_pieces(directory: Path, rows: int) -> None:
    file = directory / "spiece.model"
    data = read_bytes(file, "the tokenizer", _MEND, _LARGEST_BYTES)
    pieces = _open(file, data)
    size, where = pieces.get_piece_size(), f"the tokenizer in {file}"
    special, found = [pieces.id_to_piece(index) for index in (PAD, END)], pieces.encode(_SENTENCE)
    tokens = size + _SPANS
    if not tokens - _SPANS <= rows < tokens + _FILLED:
        raise InputError(f"{where} has {size} pieces, the text encoder {rows} rows: they are not of one checkpoint")
    if special != ["<pad>", "</s>"] or pieces.unk_id() != UNKNOWN or set(found) <= {UNKNOWN}:
        raise InputError(
            f"{where} begins with {special} and makes {found[:8]} of {_SENTENCE!r}: it is damaged or of another model; "
            f"{_MEND}"
        )
    words = Words.of(directory)
    wanted = _T5_DIGEST if size == _T5_PIECES else words.tokenizer if words is not None else None
    digest = hashlib.sha256(data).hexdigest()
    if wanted is not None and digest != wanted:
        raise InputError(
            f"{where} is not the one of this model (SHA-256 {digest[:12]}..., not {wanted[:12]}...): {_MEND}"
        )
    for index in range(size):
        kind = (pieces.is_control(index), pieces.is_unknown(index))
        plain = not (pieces.is_unused(index) or pieces.is_byte(index))
        score = pieces.get_score(index)
        if kind != (index in (PAD, END), index == UNKNOWN) or not plain or not _LEAST_SCORE <= score <= 0:
            raise InputError(
                f"{where}: piece {index}, {short(pieces.id_to_piece(index))}, has another kind than in T5, or a score "
                f"{score:g} that is no logarithm of a probability: {_MEND}"
            )
    cut = "".join(pieces.encode_as_pieces(f" {_SENTENCE}  {_SENTENCE} "))
    if cut != "".join(f"\u2581{word}" for word in [*_SENTENCE.split(), *_SENTENCE.split()]):
        raise InputError(f"{where} cuts {_SENTENCE!r} into {short(cut)}, which T5 does not: {_MEND}")


def _open(file: Path, data: bytes) -> Any:
    """Return the pieces of a `spiece.model`, which can encode.

    Raises:
        InputError: it is damaged.
    """
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(data)
        pieces.id_to_piece([PAD, END])
        pieces.encode(_SENTENCE)
    except Exception as error:
        # A damaged file may raise any error in the library. The user's remedy is always the same.
        raise InputError(
            f"the tokenizer in {file} ({len(data)} bytes) cannot be read ({_line(error)}): {_MEND}"
        ) from error
    return pieces


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
