"""The simulation of many boxes, against what is known of queues."""

from dataclasses import replace

import pytest

from models.service.jobs import POLL_SECONDS
from models.service.simulation import Fleet, _arrivals, demands, simulate

SURE = Fleet(4, between_failures=1e15, hours=200.0)


def erlang_c(servers: int, load: float) -> float:
    """Return the chance to wait in a queue M/M/c, by the recursion of Erlang's B."""
    offered, blocked = servers * load, 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


def test_as_many_wait_as_erlang_says():
    """M/D/c, which waits about half as long as M/M/c (Cosmetatos), and nearly as often."""
    out = simulate(SURE)
    late = sum(wait > POLL_SECONDS for wait in out.waits) / len(out.waits)
    assert late == pytest.approx(erlang_c(4, 0.8), rel=0.15)
    mean = sum(out.waits) / len(out.waits)
    assert mean == pytest.approx(0.5 * erlang_c(4, 0.8) * 463 / (4 * 0.2), rel=0.25)


def test_every_video_is_made_once_whatever_fails():
    out = simulate(replace(SURE, between_failures=3600.0))
    # Boxes that are away or begin anew leave less for the others.
    assert out.again == pytest.approx(out.made * (463 / 3600), rel=0.3)
    assert 0 <= out.asked - out.made <= out.longest + 8
    assert out.busy == out.made * 463


def test_bursts_change_when_and_not_how_many():
    import random

    even = _arrivals(replace(SURE, hours=500), random.Random(1), 500 * 3600.0)
    burst = _arrivals(replace(SURE, hours=500, burst=5.0), random.Random(1), 500 * 3600.0)
    assert len(burst) == pytest.approx(len(even), rel=0.05)
    assert sum(when % 3600 < 360 for when in burst) / len(burst) == pytest.approx(0.5, abs=0.03)


def test_the_same_seed_is_the_same_day():
    assert simulate(Fleet(10, loras=3)) == simulate(Fleet(10, loras=3))
    assert simulate(Fleet(10, loras=3), seed=1) != simulate(Fleet(10, loras=3))
    assert simulate(Fleet(10, loras=3)).loads > 0


def test_more_boxes_ask_more_of_the_database():
    small, large = demands(Fleet(10), 0.02, 0), demands(Fleet(1000), 2.0, 0)
    assert all(large[what] == pytest.approx(100 * small[what]) for what in large)
