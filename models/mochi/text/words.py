"""The words of a model that knows few: how a prompt is read by it, and which words of a prompt it does not know.

A checkpoint declares them in a file of its tokenizer's folder. T5's own tokenizers have none: they know any text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from models.machine.checks import json_object
from models.machine.errors import InputError
from models.machine.files import write_json

WORDS_FILE = "words.json"
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Words:
    """All words of a checkpoint, in lower case."""

    known: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Path) -> Words | None:
        """Return the words that a tokenizer's folder declares; None if it declares none.

        Raises:
            InputError: the file does not hold a list of words.
        """
        path = tokenizer / WORDS_FILE
        if not path.is_file():
            return None
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path} has {path.stat().st_size} bytes: a list of words has at most {_LARGEST_FILE}")
        known = json_object(path.read_bytes(), str(path)).get("words")
        if not isinstance(known, list) or not known or not all(isinstance(word, str) and word for word in known):
            raise InputError(f"{path} must hold a list of words under the name words")
        return cls(tuple(known))

    def write(self, tokenizer: Path) -> None:
        """Declare the words in a tokenizer's folder."""
        write_json({"words": list(self.known)}, tokenizer / WORDS_FILE)

    @staticmethod
    def plain(prompt: str) -> str:
        """Return a prompt in the form of the training's captions: lower case, commas, single spaces, no accents."""
        text = unicodedata.normalize("NFKD", prompt).casefold()
        text = "".join(letter for letter in text if not unicodedata.combining(letter))
        text = re.sub(r"[^\w,]+|_+", " ", text)
        return re.sub(r"(\s*,\s*)+", ", ", text).strip(" ,")

    def unknown(self, prompt: str) -> list[str]:
        """Return the words of a prompt that are not known, in their order, each once."""
        found = Words.plain(prompt).replace(",", " ").split()
        return [word for word in dict.fromkeys(found) if word not in self.known]

    def warning(self, prompt: str) -> str | None:
        """Say which words of a prompt are not known; None if all are."""
        unknown = self.unknown(prompt)
        if not unknown:
            return None
        words = f"the word {unknown[0]}" if len(unknown) == 1 else f"the words {', '.join(unknown)}"
        return f"this model does not know {words}: mochi-tt generate --help-words lists those that it knows"
