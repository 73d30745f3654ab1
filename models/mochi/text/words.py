"""The words of a model that knows few: how a prompt is read by it, and which words of a prompt it does not know.

A checkpoint declares them in a file of its tokenizer's folder. T5's own tokenizers have none: they know any text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from models.machine.checks import json_object, read_bytes, short
from models.machine.errors import InputError
from models.machine.files import write_json
from models.machine.paths import is_taken

WORDS_FILE = "words.json"
_LARGEST_FILE = 1 << 20
# What keyboards and word processors have for an apostrophe; the acute accent would become a space.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u00b4`\u2018\u2019\u201b\u2032\u02bc", "'"))
_ENDING = re.compile("'(s|re|ll|m|d|ve)$")
_MEND = "make it readable, or download it again"


@dataclass(frozen=True)
class Words:
    """All words of a checkpoint, in lower case; the tokenizer reads an apostrophe, as in "doesn't", as a space.

    `tokenizer` is the SHA-256 of the `spiece.model` that makes one token of each; None if none is stated.
    """

    known: tuple[str, ...]
    tokenizer: str | None = None

    @classmethod
    def of(cls, tokenizer: Path) -> Words | None:
        """Return the words that a tokenizer's folder declares; None if it declares none.

        Raises:
            InputError: the file cannot be read, or does not hold a list of words.
        """
        path = tokenizer / WORDS_FILE
        if not is_taken(path):
            return None
        stated = json_object(read_bytes(path, "", _MEND, _LARGEST_FILE), str(path))
        known, digest = stated.get("words"), stated.get("tokenizer_sha256")
        if not isinstance(known, list) or not known or not all(isinstance(word, str) and word for word in known):
            raise InputError(f"{path} must hold a list of words under the name words")
        if digest is not None and not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
            raise InputError(f"{path}: tokenizer_sha256 {short(digest)} must be 64 hex digits in lower case")
        return cls(tuple(known), digest)

    def write(self, tokenizer: Path) -> None:
        """Declare the words in a tokenizer's folder, with the digest of its `spiece.model`."""
        digest = hashlib.sha256((tokenizer / "spiece.model").read_bytes()).hexdigest()
        write_json({"words": list(self.known), "tokenizer_sha256": digest}, tokenizer / WORDS_FILE)

    @staticmethod
    def plain(prompt: str) -> str:
        """Return a prompt in the form of the training's captions: lower case, commas, single spaces, no accents."""
        text = re.sub(r"[^\w,]+|_+", " ", _plain_letters(prompt))
        return re.sub(r"(\s*,\s*)+", ", ", text).strip(" ,")

    def unknown(self, prompt: str) -> list[str]:
        """Return the words of a prompt that are not known, in their order, each once, in lower case.

        A short ending after an apostrophe is not looked for: "it's" is known where "it" is.
        """
        known = {*self.known, *(piece for word in self.known for piece in word.split("'"))}
        found = dict.fromkeys(re.findall(r"[^\W_]+(?:'[^\W_]+)*", _plain_letters(prompt)))
        return [word for word in found if word not in known and _ENDING.sub("", word) not in known]

    def warning(
        self, prompt: str, known: str = "mochi-tt generate --help-words lists those that it knows"
    ) -> str | None:
        """Say which words of a prompt are not known; None if all are. `known` says where those are that it knows."""
        unknown = self.unknown(prompt)
        if not unknown:
            return None
        words = f"the word {unknown[0]}" if len(unknown) == 1 else f"the words {', '.join(unknown)}"
        return f"this model does not know {words}: {known}"


def _plain_letters(text: str) -> str:
    """Return a text in lower case, without accents, and with one kind of apostrophe."""
    text = text.translate(_APOSTROPHES)
    text = unicodedata.normalize("NFKD", text).casefold()
    return "".join(letter for letter in text if not unicodedata.combining(letter))
