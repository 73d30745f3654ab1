"""A small SentencePiece tokenizer in T5's arrangement."""

from __future__ import annotations

import io
import string
from collections.abc import Sequence
from pathlib import Path

from models.machine.files import write_json

VOCABULARY = 400


def write_tokenizer(directory: Path, sentences: Sequence[str]) -> None:
    """Train a Unigram tokenizer and write it as transformers' `T5Tokenizer` reads it.

    Pad is 0, end 1, unknown 2; there is no start token. All of printable ASCII can be spelt.

    Args:
        directory: made here.
        sentences: the training text. A word becomes a token of its own where it is followed now by a space and now
            by a comma: SentencePiece considers only what it finds in different surroundings.

    Raises:
        FileExistsError: the directory is there already.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        required_chars="".join(c for c in string.printable if not c.isspace()),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        num_threads=1,
        minloglevel=2,
    )
    directory.mkdir(parents=True)
    (directory / "spiece.model").write_bytes(model.getvalue())
    write_json(
        {
            "tokenizer_class": "T5Tokenizer",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_ids": 100,
            "model_max_length": 256,
        },
        directory / "tokenizer_config.json",
    )
