"""Chunk sizes of attention: the rows of queries and of keys that one core holds at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from models.machine.attention_steps import measured, step_microseconds
from models.machine.errors import InputError
from models.parallel import TILE, round_up

# Bytes that circular buffers may take of the 1,499,136 bytes of L1 of a Wormhole core. The rest is room for semaphores.
L1_BUDGET = 1_490_000
_TILE_BYTES = 2 * TILE * TILE
_MEASURED_WIDTH = 128
# Chunks for heads and sequences that nobody has measured.
_Q_CHUNKS = (1, 2, 4, 6, 8, 10, 12)
_K_CHUNKS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32)


@dataclass(frozen=True)
class Chunks:
    """Sizes in rows of a chunk of queries and of a chunk of keys."""

    q: int
    k: int

    def __post_init__(self) -> None:
        """Check that the device can use the chunks.

        Raises:
            InputError: a chunk is not a positive number of whole tiles, or their scores alone do not fit L1.
        """
        for rows in (self.q, self.k):
            if rows < TILE or rows % TILE:
                raise InputError(f"attention chunks {self}: {rows} must be a positive multiple of {TILE}")
        if 2 * self.q * self.k > L1_BUDGET:
            raise InputError(
                f"attention chunks {self}: {2 * self.q * self.k} bytes of scores do not fit the {L1_BUDGET} bytes of a "
                "core's L1: write smaller ones, e.g. 256x384"
            )

    def __str__(self) -> str:
        return f"{self.q}x{self.k}"

    @classmethod
    def parse(cls, text: str) -> Chunks:
        """Read chunks from a text such as `256x384`.

        Raises:
            ValueError: the text does not have this form.
        """
        match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text.strip())
        if match is None:
            raise InputError(f"attention chunks {text!r} are not QUERIESxKEYS: write e.g. 256x384")
        return cls(int(match[1]), int(match[2]))


def l1_bytes(chunks: Chunks, width: int, element_bytes: float = 2.0, *, streaming: bool = False) -> int:
    """Return the bytes of L1 that a core's circular buffers take for heads of `width`.

    The buffers are those of upstream `ring_joint_sdpa_program_factory.cpp`: the scores; their mask, which the streaming
    kernel does not have; the queries twice, the running outputs and the statistics; the keys and values twice.
    """
    q_tiles, k_tiles, wide = chunks.q // TILE, chunks.k // TILE, math.ceil(width / TILE)
    operand = element_bytes * TILE * TILE
    scores = (1 if streaming else 2) * q_tiles * k_tiles * _TILE_BYTES
    rows = q_tiles * ((9 + 4 * wide) * _TILE_BYTES + 2 * wide * operand)
    return int(scores + rows + 4 * wide * k_tiles * operand) + 118_208


@lru_cache
def choose_chunks(
    queries: Sequence[int],
    keys: Sequence[int],
    *,
    heads: int,
    width: int,
    cores: int,
    element_bytes: float = 2.0,
    streaming: bool = False,
) -> Chunks:
    """Choose chunks for sequences of `queries` and `keys` rows on one chip. Each sequence is cut on its own.

    The rule, in this order: the chunks fit L1; somebody has measured them (`models.machine.attention_steps`), unless
    the sequences are shorter or the heads of another width; the time of the busiest core is least; the chunks are
    smaller. A core gets whole chunks of queries of one head and processes each of them against every chunk of keys.

    Args:
        queries: rows of each sequence of queries, such as visual and text.
        keys: rows of each sequence of keys, one for each chip of a ring.
        heads: number of heads on the chip.
        width: width of a head.
        cores: number of cores that compute.
        element_bytes: bytes per element of queries, keys and values.
        streaming: whether the streaming kernel is used, which keeps no mask.

    Raises:
        ValueError: even the smallest chunks do not fit L1.
    """

    def time(chunks: Chunks) -> tuple[float, int]:
        units = heads * sum(math.ceil(rows / chunks.q) for rows in queries)
        steps = math.ceil(units / cores) * sum(math.ceil(rows / chunks.k) for rows in keys)
        step = step_microseconds(chunks.q, chunks.k * width / _MEASURED_WIDTH)[1]
        return steps * step, chunks.q * chunks.k

    longest = round_up(max(queries), TILE), round_up(max(keys), TILE)

    def fitting(shapes: Iterable[tuple[int, int]]) -> list[Chunks]:
        return [
            chunks
            for q, k in shapes
            if q < 2 * longest[0] and k < 2 * longest[1]
            for chunks in [Chunks(q, k)]
            if l1_bytes(chunks, width, element_bytes, streaming=streaming) <= L1_BUDGET
        ]

    known = fitting((step.q, step.k) for step in measured()) if width == _MEASURED_WIDTH else []
    found = known or fitting((q * TILE, k * TILE) for q in _Q_CHUNKS for k in _K_CHUNKS)
    if not found:
        raise InputError(f"attention with heads of {width} does not fit the {L1_BUDGET} bytes of L1 in any chunks")
    return min(found, key=time)
