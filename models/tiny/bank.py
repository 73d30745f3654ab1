"""The training set: scenes of two sizes that are drawn once, with their latents and their captions as tokens.

Shapes: N scenes, R captions of each, L tokens. Latents are [N, 12, T', H / 8, W / 8].
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from models.tiny.captions import tagged_sentence, tags_of, untagged, written
from models.tiny.scenes import SMALL, WIDE, Drawing, Frame, Scene, random_scene

# Scenes that are made together, from one seed.
CHUNK = 1024
# Captions of a scene, and their longest length in tokens. Fewer than one in a hundred is longer and is cut.
CAPTIONS, TOKENS = 12, 40
LATENT_CHANNELS, TIME_STEP, PIXEL_STEP = 12, 6, 8


@dataclass
class Part:
    """Scenes of one size.

    Attributes:
        frame: the size.
        drawing: the scenes.
        latents: means of the posterior as the VAE gives them, float16.
        spreads: standard deviations of the posterior, float16.
    """

    frame: Frame
    drawing: Drawing
    latents: torch.Tensor
    spreads: torch.Tensor

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return random indices of scenes, [count]."""
        device = self.drawing.shapes.device
        return torch.randint(len(self.drawing.shapes), (count,), generator=generator, device=device)

    def frames(self, chosen: torch.Tensor | slice) -> torch.Tensor:
        """Draw scenes, float32 [B, 3, T, H, W] from -1 to 1."""
        return self.drawing[chosen].frames(self.frame.height, self.frame.width)

    def latent_shape(self, count: int) -> tuple[int, ...]:
        """Return the shape of the latents of `count` scenes."""
        height, width = self.frame.height // PIXEL_STEP, self.frame.width // PIXEL_STEP
        return (count, LATENT_CHANNELS, (self.frame.num_frames - 1) // TIME_STEP + 1, height, width)


@dataclass
class Bank:
    """The scenes of both sizes."""

    wide: Part
    small: Part

    @classmethod
    def drawn(cls, count: int, device: str) -> Bank:
        """Make `count` scenes of the wide size and a third of that of the small one, without latents."""
        none = torch.zeros(0, device=device)
        sizes = (WIDE, count), (SMALL, max(1, count // 3))
        return cls(*(Part(frame, Drawing.of(scenes(frame, n)).to(device), none, none) for frame, n in sizes))

    def parts(self) -> tuple[Part, Part]:
        """Return both parts."""
        return self.wide, self.small


def scenes(frame: Frame, count: int) -> list[Scene]:
    """Return the scenes of one size. They are the same at each call."""
    return [scene for index in range(-(-count // CHUNK)) for scene in _chunk(frame, index)][:count]


def _chunk(frame: Frame, index: int) -> list[Scene]:
    rng = random.Random(f"bank {frame} {index}")
    return [random_scene(rng, frame) for _ in range(CHUNK)]


def tokens(frame: Frame, count: int, tokenizer: Path, captions: int = CAPTIONS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids of random captions of the scenes, int16 [N, R, L], padded with 0, and which thing each names.

    The second, int8 [N, R, L], has 0 for tokens that name none, and 1 or 2 for the scene's things. All cores work on
    it.
    """
    make = partial(_chunk_tokens, frame=frame, tokenizer=tokenizer, captions=captions)
    chunks = range(-(-count // CHUNK))
    workers = min(len(chunks), os.cpu_count() or 1)
    if workers == 1 or count < CHUNK:
        made = [make(index, limit=min(CHUNK, count)) for index in chunks]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(make, chunks))
    ids, named = (torch.cat(parts)[:count] for parts in zip(*made, strict=True))
    return ids, named


def _chunk_tokens(
    index: int, frame: Frame, tokenizer: Path, captions: int, limit: int = CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    rng, loaded = random.Random(f"captions {frame} {index}"), load(tokenizer)
    texts = [
        written(tagged_sentence(scene, rng), rng) for scene in _chunk(frame, index)[:limit] for _ in range(captions)
    ]
    ids, named = encode_tagged(loaded, texts)
    return ids.view(-1, captions, TOKENS), named.view(-1, captions, TOKENS)


def encode_tagged(tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token ids of tagged texts, int16 [N, L], and which thing each token names, int8 [N, L]."""
    ids, named = encode_texts(tokenizer, [untagged(text) for text in texts]), torch.zeros(len(texts), TOKENS).char()
    pieces: dict[str, int] = {}
    for row, text in enumerate(texts):
        spread: list[int] = []
        for word, tag in zip(untagged(text).split(), tags_of(text), strict=True):
            if word not in pieces:  # no piece goes over a space
                pieces[word] = len(tokenizer.tokenize(word))
            spread += [tag] * pieces[word]
        spread = spread[: TOKENS - 1]  # the end of the text is a token
        named[row, : len(spread)] = torch.tensor(spread, dtype=torch.int8)
    return ids, named


def load(tokenizer: Path) -> Any:
    """Load a tokenizer that `write_tokenizer` wrote."""
    from transformers import T5Tokenizer

    return T5Tokenizer.from_pretrained(tokenizer)


def encode_texts(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return the token ids of texts, int16 [N, L], padded with 0."""
    made = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return made.input_ids.short()
