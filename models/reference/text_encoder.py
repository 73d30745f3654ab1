"""The text encoder in PyTorch: the reference for `models.mochi.text.encoder.MeshTextEncoder`.

Shapes: L text tokens (padded), D width of the T5 features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from models.mochi.conventions import Conventions, EmptyPrompt, check_empty_prompt
from models.mochi.text.encoder import (
    MAX_SEQUENCE_LENGTH,
    TextEmbeddings,
    check_sequence_length,
    no_tokens,
)
from models.mochi.text.tokenizer import load_tokenizer
from weight_cache.host import load_module

if TYPE_CHECKING:
    from weight_cache.checkpoints.checkpoint import Checkpoint


class HostTextEncoder:
    """T5 in PyTorch, float32, on the host: the reference for `MeshTextEncoder`.

    Weights stored in float32 are used from the mapped file. Others are converted, which takes 19 GB of memory for T5
    XXL.
    """

    def __init__(self, tokenizer: Any, model: torch.nn.Module, empty_prompt: EmptyPrompt = "zeros"):
        """Wrap a `transformers` T5 tokenizer and `T5EncoderModel`; see `MeshTextEncoder` for the arguments."""
        self.tokenizer = tokenizer
        self.model = model
        self.empty_prompt = check_empty_prompt(empty_prompt)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> HostTextEncoder:
        """Load the `tokenizer` and `text_encoder` components, with the checkpoint's convention for an empty prompt.

        Raises:
            ValueError: the tokenizer cannot be read, or weights do not match the configuration.
            FileNotFoundError: a file is missing.
        """
        from transformers import T5Config, T5EncoderModel

        component = checkpoint.text_encoder
        config = T5Config.from_dict(component.config)
        tokenizer = load_tokenizer(checkpoint)
        with torch.device("meta"):
            model = T5EncoderModel(config)
        tied = {
            "encoder.embed_tokens.weight": "shared.weight",
            "shared.weight": "encoder.embed_tokens.weight",
        }
        load_module(model, component, aliases=tied)
        return cls(tokenizer, model, Conventions.of(checkpoint).empty_prompt)

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return int(self.model.config.d_model)  # type: ignore[union-attr, arg-type]

    @torch.no_grad()
    def encode(self, prompt: str, max_sequence_length: int = MAX_SEQUENCE_LENGTH) -> TextEmbeddings:
        """Return the features of one prompt, padded to `max_sequence_length` tokens.

        An empty prompt is one end token. Where the convention is `zeros`, it gives zero features and an all-False mask
        without a T5 pass; see `models.mochi.conventions`.

        Args:
            prompt: any text; tokens beyond the length are cut, and the end token is kept.
            max_sequence_length: L, 1 to 256.

        Returns:
            `embeds` float32 [1, L, D] and `mask` bool [1, L], both padded to L = `max_sequence_length`.

        Raises:
            ValueError: `max_sequence_length` is out of range.
        """
        check_sequence_length(max_sequence_length)
        if prompt == "" and self.empty_prompt == "zeros":
            return no_tokens(max_sequence_length, self.width)
        # `verbose=False` turns off the tokenizer's own warning about lengths.
        whole = self.tokenizer(prompt, verbose=False).input_ids
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=max_sequence_length, truncation=True, return_tensors="pt"
        )
        mask = tokens.attention_mask.bool()
        embeds = self.model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return TextEmbeddings(
            embeds.float(),
            mask,
            num_tokens=int(mask.sum()),
            num_truncated=max(0, len(whole) - max_sequence_length),
        )
