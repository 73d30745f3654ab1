"""On paper: what many boxes on one database wait for, and what limits them.

A simulation of discrete events with the rules of the service: one queue in order, one video at a time a box, leases,
another LoRA means another load. Its times are assumptions or projections, which `Fleet` names; the rates of the
database were measured (`RATES`). Nothing of it has run on cards or on more than one machine.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field, replace
from statistics import quantiles

from models.service.jobs import LEASE_SECONDS, POLL_SECONDS

DAY = 86400.0
RATES = {"looks": 6008.0, "reports": 3928.0, "claims": 479.0, "submissions": 307.0, "rows": 22824.0}
"""A second: looks at a claim, reports of progress, claims with their ends, submissions, rows of the queue that a server
reads. `python -m tests.service.database_cost` measured them: Postgres 15 and four threads of one client together on 2
shared CPU cores, every durable commit on the disk. A machine of its own does more."""


@dataclass(frozen=True)
class Fleet:
    """Boxes, and what is asked of them.

    Attributes:
        boxes: with one mesh each.
        video_seconds: of a full-size video: docs/performance.md, projected, `default` on 2x4.
        steps: that each report their progress.
        load: requests over what all boxes together can make, on the average of a day.
        burst: times the average rate that requests come for the first tenth of each hour; the rest comes evenly.
        between_failures: seconds of a box, on the average; a guess.
        repair_seconds: until a box is back, its weights loaded; a guess.
        loras: number of LoRAs that are named, each as often as every other; 0 for none.
        lora_seconds: that a load of another takes: docs/weights.md, computed, on 2 CPU cores.
        video_megabytes: of a file, which is written once and read once.
        latents_megabytes: that are kept before decoding, 12 channels of 28 x 60 x 106 in float32, and read once.
        recover_seconds: from the end of a lease until a server looks for it, on the average.
        hours: that are simulated.
    """

    boxes: int
    video_seconds: float = 463.0
    steps: int = 50
    load: float = 0.8
    burst: float = 1.0
    between_failures: float = 7 * DAY
    repair_seconds: float = 600.0
    loras: int = 0
    lora_seconds: float = 59.0
    video_megabytes: float = 8.0
    latents_megabytes: float = 8.6
    recover_seconds: float = 5.0
    hours: float = 24.0


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        waits: seconds from submission to the run that made the video, of each.
        asked: videos that came.
        made: videos.
        again: runs that a failure ended.
        loads: of another LoRA.
        busy: seconds of boxes that made videos which were completed.
        longest: most videos that waited.
    """

    waits: list[float] = field(default_factory=list)
    asked: int = 0
    made: int = 0
    again: int = 0
    loads: int = 0
    busy: float = 0.0
    longest: int = 0


def simulate(fleet: Fleet, seed: int = 0) -> Outcome:
    """Run a day of a fleet. The same seed gives the same day."""
    chance, end, out = random.Random(seed), 3600 * fleet.hours, Outcome()
    queue: deque[tuple[float, int]] = deque()  # when it came, and its LoRA
    free, lora = list(range(fleet.boxes)), [0] * fleet.boxes
    events: list[tuple[float, int, str, int, tuple[float, int]]] = []
    number = 0

    def plan(when: float, what: str, box: int = 0, job: tuple[float, int] = (0.0, 0)) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (when, number, what, box, job))

    for when in _arrivals(fleet, chance, end):
        plan(when, "come", job=(when, chance.randrange(fleet.loras) + 1 if fleet.loras else 0))
    while events:
        now, _, what, box, job = heapq.heappop(events)
        if now > end:
            break
        if what == "come":
            out.asked += 1
            queue.append(job)
        elif what == "again":
            queue.appendleft(job)  # its place is by its number
        else:
            free.append(box)
            if what == "made":
                out.made += 1
                out.busy += fleet.video_seconds
        while queue and free:
            taken, job = free.pop(chance.randrange(len(free))), queue.popleft()
            seconds = fleet.video_seconds
            if lora[taken] != job[1]:
                lora[taken], seconds = job[1], seconds + fleet.lora_seconds
                out.loads += 1
            start = now + POLL_SECONDS * chance.random()
            fails = chance.expovariate(1 / fleet.between_failures)
            if fails < seconds:
                out.again += 1
                plan(start + fails + LEASE_SECONDS + fleet.recover_seconds, "again", job=job)
                plan(start + fails + fleet.repair_seconds, "back", taken)
                lora[taken] = 0
            else:
                out.waits.append(start - job[0])
                plan(start + seconds, "made", taken)
        out.longest = max(out.longest, len(queue))
    return out


def _arrivals(fleet: Fleet, chance: random.Random, end: float) -> list[float]:
    """Return the times at which videos are asked for: a Poisson process, denser in the first tenth of each hour."""
    mean = fleet.load * fleet.boxes / fleet.video_seconds
    rest = (1 - 0.1 * fleet.burst) / 0.9
    assert rest >= 0, "burst is 10 at most"
    times, now = [], 0.0
    most = mean * max(fleet.burst, rest)
    while (now := now + chance.expovariate(most)) < end:
        if chance.random() * most < mean * (fleet.burst if now % 3600 < 360 else rest):
            times.append(now)
    return times


def demands(fleet: Fleet, made_per_second: float, longest: int) -> dict[str, float]:
    """Return for each thing that all share which part of it is used: 1 is all of it.

    Args:
        fleet: whose boxes ask.
        made_per_second: videos.
        longest: videos that wait; a server whose clients look at them reads the queue once a second.
    """
    reports = made_per_second * (fleet.steps + 5)
    return {
        "looks": fleet.boxes / POLL_SECONDS / RATES["looks"],
        "reports": (reports + fleet.boxes * 6 / LEASE_SECONDS) / RATES["reports"],
        "submissions": made_per_second / RATES["submissions"],
        "claims": made_per_second / RATES["claims"],
        "rows": (longest + fleet.boxes) / RATES["rows"],
    }


def megabytes(fleet: Fleet, made_per_second: float) -> float:
    """Return the MB a second of the shared folder: latents and videos, written and read once each."""
    return made_per_second * 2 * (fleet.video_megabytes + fleet.latents_megabytes)


def rows() -> list[tuple[str, ...]]:
    """Return the table of docs/service.md, its head first."""
    day = Fleet(1000)
    cases = [
        ("10 boxes", replace(day, boxes=10)),
        ("100 boxes", replace(day, boxes=100)),
        ("1,000 boxes", day),
        ("load 0.95", replace(day, load=0.95)),
        ("bursts of 5 times", replace(day, burst=5.0)),
        ("a failure each 8 hours of a box", replace(day, between_failures=8 * 3600.0)),
        ("each video one of 100 LoRAs", replace(day, loras=100)),
        ("4x8: 113 s a video", replace(day, video_seconds=113.0)),
    ]
    shared = ("looks", "reports", "claims", "submissions", "rows")
    head = ("1,000 boxes, but for", "videos an hour", "wait, median", "wait, 95 %", "made again", "LoRA loads")
    table: list[tuple[str, ...]] = [(*head, *shared, "MB/s of files")]
    for name, fleet in cases:
        out = simulate(fleet)
        cuts = quantiles(out.waits, n=20)
        rate = out.made / (3600 * fleet.hours)
        used = demands(fleet, rate, out.longest)
        shares = (f"{out.again / out.made:.2%}", f"{out.loads / out.made:.0%}")
        parts = (f"{used[what]:.1%}" for what in shared)
        waits = (f"{cuts[9]:.1f} s", f"{cuts[18]:.1f} s")
        table.append((name, f"{3600 * rate:,.0f}", *waits, *shares, *parts, f"{megabytes(fleet, rate):.0f}"))
    return table


def limits() -> list[tuple[str, ...]]:
    """Return a second table: how many boxes use up each thing, at full load and without anybody waiting."""
    table: list[tuple[str, ...]] = [("what is shared", "at most a second", "full with boxes of 463 s", "of 113 s")]
    names = {
        "looks": "looks of workers for a job or at a claim",
        "reports": "reports of progress and renewed leases",
        "claims": "claims and ends of videos",
        "submissions": "submissions",
        "rows": "rows of the queue, read by each server whose clients wait",
    }
    for what, name in names.items():
        full = []
        for seconds in (463.0, 113.0):
            fleet = Fleet(1000, video_seconds=seconds)
            full.append(f"{1000 / demands(fleet, 1000 / seconds, 0)[what]:,.0f}")
        table.append((name, f"{RATES[what]:,.0f}", *full))
    return table
