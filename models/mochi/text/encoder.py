"""Encoding of a prompt into T5 features.

`TextEncoder` is the interface that the pipeline needs. `MeshTextEncoder` implements it on the mesh.

Shapes: B batch (1), L text tokens (padded), D width of the T5 features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from models.machine.checks import whole
from models.mochi.conventions import EmptyPrompt, check_empty_prompt
from models.mochi.text.words import Words

if TYPE_CHECKING:
    from models.mochi.text.t5 import T5Encoder

MAX_SEQUENCE_LENGTH = 256


@dataclass(frozen=True)
class TextEmbeddings:
    """Text features that condition the transformer.

    Attributes:
        embeds: float32 [1, L, D].
        mask: bool [1, L], True for the tokens that take part. With an all-False mask (the empty prompt), no text token
            takes part in attention, and the pooled caption is that of a zero vector.
        num_tokens: number of tokens that take part, including the end token.
        num_truncated: number of tokens of the prompt that did not fit and were cut.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    num_tokens: int
    num_truncated: int = 0


class TextEncoder(Protocol):
    """Interface of a text encoder, on whatever device it runs."""

    @property
    def width(self) -> int:
        """D, the width of the features."""
        ...

    @property
    def words(self) -> Words | None:
        """All words that the model knows; None where any text will do."""
        ...

    def encode(self, prompt: str, max_sequence_length: int = MAX_SEQUENCE_LENGTH) -> TextEmbeddings:
        """Return the features of one prompt, padded to `max_sequence_length` tokens."""
        ...


class MeshTextEncoder:
    """T5 on the mesh in TTNN: see `models.mochi.text.t5`."""

    def __init__(
        self, tokenizer: Any, model: T5Encoder, empty_prompt: EmptyPrompt = "zeros", words: Words | None = None
    ):
        """Wrap a `transformers` T5 tokenizer and a loaded encoder.

        Args:
            tokenizer: of the checkpoint.
            model: of the checkpoint, loaded.
            empty_prompt: what an empty prompt means; see `models.mochi.conventions`.
            words: that the checkpoint declares; prompts are then read in their plain form.

        Raises:
            InputError: there is no such convention.
        """
        self.tokenizer = tokenizer
        self.model = model
        self.empty_prompt = check_empty_prompt(empty_prompt)
        self.words = words

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return self.model.config.d_model

    def encode(self, prompt: str, max_sequence_length: int = MAX_SEQUENCE_LENGTH) -> TextEmbeddings:
        """Return the features of one prompt. Padding tokens are not encoded; their features are zeros.

        An empty prompt is one end token. Where the convention is `zeros`, it gives zero features and an all-False mask
        without a T5 pass; Genmo's code (`pipelines.py`, `get_conditioning_for_prompts`) masks all tokens too.

        Raises:
            InputError: `max_sequence_length` is out of range.
        """
        check_sequence_length(max_sequence_length)
        embeddings = no_tokens(max_sequence_length, self.width)
        if self.words is not None:
            prompt = self.words.plain(prompt)
        if prompt == "" and self.empty_prompt == "zeros":
            return embeddings
        # `verbose=False` turns off the tokenizer's own warning about lengths.
        whole = self.tokenizer(prompt, verbose=False).input_ids
        ids = self.tokenizer(prompt, max_length=max_sequence_length, truncation=True).input_ids
        features_1LD = self.model.mesh.download(self.model(ids))[0].float()
        embeddings.embeds[:, : len(ids)] = features_1LD
        embeddings.mask[:, : len(ids)] = True
        cut = max(0, len(whole) - max_sequence_length)
        return TextEmbeddings(embeddings.embeds, embeddings.mask, num_tokens=len(ids), num_truncated=cut)


def no_tokens(length: int, width: int) -> TextEmbeddings:
    """Return the embeddings of an empty prompt whose convention is `zeros`: [1, L, D] and an all-False mask [1, L]."""
    return TextEmbeddings(torch.zeros(1, length, width), torch.zeros(1, length, dtype=torch.bool), 0)


def check_sequence_length(length: Any) -> None:
    """Check that `length` is a whole number from 1 to 256.

    Raises:
        ValueError: it is not.
    """
    whole("max_sequence_length", length, 1, MAX_SEQUENCE_LENGTH)
