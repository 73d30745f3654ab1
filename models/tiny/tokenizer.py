"""A small SentencePiece tokenizer in the form of T5's. It folds capitals."""

from __future__ import annotations

import io
import string
from collections.abc import Sequence
from pathlib import Path

from models.machine.files import write_json

VOCABULARY = 1000


def write_tokenizer(directory: Path, sentences: Sequence[str]) -> None:
    """Train a Unigram tokenizer and write it in the form that transformers' `T5Tokenizer` reads.

    Pad is 0, end 1, unknown 2. There is no start token. All of printable ASCII can be encoded. The rule `nmt_nfkc_cf`
    is in the model file, and `T5Tokenizer` applies it: capitals are read as small letters.

    Args:
        directory: directory to create.
        sentences: the training text. A word becomes a token of its own if it is sometimes followed by a space and
            sometimes by a comma, because SentencePiece considers only strings that occur in different contexts.

    Raises:
        FileExistsError: the directory exists already.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        required_chars="".join(c for c in string.printable if not c.isspace() and not c.isupper()),
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
