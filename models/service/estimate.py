"""How long a video will take: from what this service has measured, else from the published projection of its system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from models.service.jobs import QUEUED, Job

LATEST = 20
"""Completed jobs that count."""
# docs/performance.md: seconds of 848x480, 163 frames, 50 guided steps (100 forwards of 44,520 tokens), precision
# default; projected, no card was used.
_PROJECTED = {(2, 4): 463.0, (4, 8): 113.0}
_PROJECTED_WORK = 100 * 44_520


@dataclass(frozen=True)
class Rates:
    """Seconds for a unit of work.

    Attributes:
        denoise: seconds for a forward and a token.
        rest: seconds for a pixel of all frames: encoding, decoding and writing.
        source: "measured" or "projection".
    """

    denoise: float
    rest: float
    source: str

    def seconds(self, about: Mapping[str, Any]) -> float:
        """Return the seconds of a whole job."""
        return self.denoise * about["forwards"] * about["tokens"] + self.rest * _pixels(about)


def _pixels(about: Mapping[str, Any]) -> int:
    return about["width"] * about["height"] * about["num_frames"]


def rates(finished: Sequence[Job], mesh: tuple[int, int] | None = None) -> Rates | None:
    """Return the rates of completed jobs; without any those projected for cards of a mesh, if it has been projected.

    Args:
        finished: completed jobs.
        mesh: of cards; None where none are used.
    """
    denoise = rest = work = pixels = 0.0
    for job in finished:
        seconds = job.result.get("seconds", {})
        if "denoise" in seconds:
            denoise += seconds["denoise"]
            rest += sum(value for stage, value in seconds.items() if stage not in ("denoise", "load"))
            work += max(job.result.get("forwards", {}).get("computed", 0), 1) * job.about["tokens"]
            pixels += _pixels(job.about)
    if work and pixels:
        return Rates(denoise / work, rest / pixels, "measured")
    if mesh in _PROJECTED:
        return Rates(_PROJECTED[mesh] / _PROJECTED_WORK, 0.0, "projection")
    return None


def left(job: Job, found: Rates) -> float:
    """Return the seconds that a job still needs once it runs; a running one's progress counts, and its age does not.

    Ages come from a clock that may jump; progress does not.
    """
    total = found.seconds(job.about)
    if job.state == QUEUED:
        return total
    denoise = found.denoise * job.about["forwards"] * job.about["tokens"]
    if job.stage in (None, "load", "encode"):
        return total
    if job.stage == "denoise":
        return total - denoise * job.step / max(job.steps, 1)
    share = 0.5 if job.stage == "decode" else 0.1
    return (total - denoise) * share


def places(waiting: Sequence[Job], found: Rates | None) -> dict[str, tuple[int, float | None]]:
    """Return for every job that waits or runs its position and the seconds until it is done.

    As many workers count as there are jobs that run; one at least.
    """
    made: dict[str, tuple[int, float | None]] = {}
    free = [0.0] * max(1, sum(job.state != QUEUED for job in waiting))  # seconds until each worker is
    queued = 0
    for job in waiting:
        queued += job.state == QUEUED
        position = queued if job.state == QUEUED else 0
        if found is None:
            made[job.id] = (position, None)
            continue
        seconds = heappop(free) + left(job, found)
        heappush(free, seconds)
        made[job.id] = (position, round(seconds, 1))
    return made
