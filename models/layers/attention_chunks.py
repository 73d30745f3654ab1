"""How attention is cut: chunks of queries and of keys that one core holds at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from models.parallel import TILE, round_up

# What circular buffers may take of a Wormhole core's 1,499,136 bytes of L1, with room for semaphores.
L1_BUDGET = 1_490_000
_TILE_BYTES = 2 * TILE * TILE
# A step (a chunk of queries against a chunk of keys) costs as much as so many 32 x 32 scores besides its own, and each
# of its tiles of keys as so many more: 8.38, 0.651 and 0.377 us for heads of 128, fitted to tt-metal
# models/tt_dit/models/minimax_h3_wormhole/sdpa.md (models/performance/cost_model.toml).
_STEP_TILES, _KEY_TILES = 22, 1.7
_Q_CHUNKS = (1, 2, 4, 6, 8, 10, 12)
_K_CHUNKS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32)


@dataclass(frozen=True)
class Chunks:
    """Rows of a chunk of queries and of a chunk of keys."""

    q: int
    k: int

    def __post_init__(self) -> None:
        """Check that the device can take them.

        Raises:
            ValueError: they are not whole tiles.
        """
        for rows in (self.q, self.k):
            if rows < TILE or rows % TILE:
                raise ValueError(f"attention chunks {self}: {rows} must be a positive multiple of {TILE}")

    def __str__(self) -> str:
        return f"{self.q}x{self.k}"

    @classmethod
    def parse(cls, text: str) -> Chunks:
        """Read chunks such as `256x384`.

        Raises:
            ValueError: the text is not that.
        """
        match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
        if match is None:
            raise ValueError(f"attention chunks {text!r} are not QUERIESxKEYS: write e.g. 256x384")
        return cls(int(match[1]), int(match[2]))


def l1_bytes(chunks: Chunks, width: int, element_bytes: float = 2.0, *, streaming: bool = False) -> int:
    """L1 that a core's circular buffers take for heads of `width` (upstream `ring_joint_sdpa_program_factory.cpp`).

    Scores, and without streaming their mask; per row of queries the queries twice, running outputs and statistics;
    keys and values twice.
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
    """Choose chunks for stretches of `queries` and `keys` rows on one chip; stretches are cut one by one.

    The rule: fit L1; then the least time of the busiest core, which gets whole chunks of queries of one head and takes
    them against every chunk of keys; then the smaller chunks.

    Args:
        queries: rows of each stretch of queries, such as visual and text.
        keys: rows of each stretch of keys, one for each chip of a ring.
        heads: heads of the chip.
        width: of a head.
        cores: that compute.
        element_bytes: of queries, keys and values.
        streaming: for the streaming kernel, which keeps no mask.

    Raises:
        ValueError: not even the smallest chunks fit L1.
    """

    def time(chunks: Chunks) -> tuple[float, int]:
        units = heads * sum(math.ceil(rows / chunks.q) for rows in queries)
        steps = math.ceil(units / cores) * sum(math.ceil(rows / chunks.k) for rows in keys)
        tiles = (chunks.q // TILE) * (chunks.k // TILE)
        return steps * (_STEP_TILES + (tiles + _KEY_TILES * chunks.k / TILE) * width / 128), tiles

    longest = round_up(max(queries), TILE), round_up(max(keys), TILE)
    fitting = [
        chunks
        for q in _Q_CHUNKS
        for k in _K_CHUNKS
        for chunks in [Chunks(q * TILE, k * TILE)]
        if chunks.q < 2 * longest[0] and chunks.k < 2 * longest[1]
        if l1_bytes(chunks, width, element_bytes, streaming=streaming) <= L1_BUDGET
    ]
    if not fitting:
        raise ValueError(f"attention with heads of {width} does not fit the {L1_BUDGET} bytes of L1 in any chunks")
    return min(fitting, key=time)
