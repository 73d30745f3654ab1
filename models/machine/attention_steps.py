"""Time of one step of attention: a chunk of queries against a chunk of keys, from published times of real cards.

`attention_steps.toml` has the times, each with its source. Between measured shapes of chunks the time is interpolated.
It is never extrapolated: outside, a line through the measured ones stands in, in a wide range.
"""

import functools
import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).with_name("attention_steps.toml")
# Microseconds of a step, of each 32 rows of keys, and of each 32 x 32 tile of scores: least squares of relative error
# through the normal op's times of `attention_steps.toml`, at most 5% off.
_LINE = (8.4, 0.65, 0.377)
# What the line may be off where nobody has measured: the worst measured shape beside it is 1.43 times as slow.
_LINE_RANGE = (0.85, 1.0, 1.5)
_TILE = 32

Range = tuple[float, float, float]
"""Fast, expected and slow."""


@dataclass(frozen=True)
class Step:
    """A measured step, for a head of 128, bfloat16 in HiFi2, streaming kernel, at 1 GHz."""

    q: int
    """Rows of queries."""
    k: int
    """Rows of keys."""
    microseconds: Range
    source: str


@functools.cache
def measured() -> tuple[Step, ...]:
    """Return the steps that were measured."""
    rows = tomllib.loads(DATA.read_text(encoding="utf-8"))["step"]
    return tuple(Step(row["q"], row["k"], tuple(row["microseconds"]), row["source"]) for row in rows)


@functools.cache
def step_microseconds(q: float, k: float) -> Range:
    """Return the time of a step of `q` rows of queries against `k` rows of keys, for a head of 128 at 1 GHz.

    A head of another width is like one of 128 with as many more or fewer keys.
    """
    corners = _around(q, k)
    if corners is not None:
        times = [sum(share * step.microseconds[case] for share, step in corners) for case in range(3)]
        return times[0], times[1], times[2]
    step, keys, tile = _LINE
    line = step + keys * k / _TILE + tile * (q / _TILE) * (k / _TILE)
    return line * _LINE_RANGE[0], line * _LINE_RANGE[1], line * _LINE_RANGE[2]


def is_measured(q: float, k: float) -> bool:
    """Return whether a time of the very shape was published."""
    return any((step.q, step.k) == (q, k) for step in measured())


def is_covered(q: float, k: float) -> bool:
    """Return whether the shape lies between measured ones."""
    return _around(q, k) is not None


def _around(q: float, k: float) -> list[tuple[float, Step]] | None:
    """Return the shares of the measured shapes of the smallest triangle around a shape; None outside of all."""
    found = [(size, shares) for size, shares in _triangles(q, k) if min(share for share, _ in shares) >= -1e-9]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _triangles(q: float, k: float) -> Iterator[tuple[float, list[tuple[float, Step]]]]:
    """Yield for each triangle of measured shapes its longest side, and the barycentric shares of a point."""
    for a, b, c in itertools.combinations(measured(), 3):
        area = (b.q - a.q) * (c.k - a.k) - (c.q - a.q) * (b.k - a.k)
        if area == 0:
            continue
        of_b = ((q - a.q) * (c.k - a.k) - (c.q - a.q) * (k - a.k)) / area
        of_c = ((b.q - a.q) * (k - a.k) - (q - a.q) * (b.k - a.k)) / area
        sides = [(x.q - y.q) ** 2 + (x.k - y.k) ** 2 for x, y in ((a, b), (b, c), (a, c))]
        yield max(sides), [(1 - of_b - of_c, a), (of_b, b), (of_c, c)]
