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
_NOT_REST = ("load", "encode_video", "invert", "denoise")
# Of the stages up to denoising, those that are done before each.
_BEFORE: Mapping[str | None, Sequence[str]] = {
    "encode_video": (),
    "invert": ("encode_video",),
    "encode": ("encode_video", "invert"),
    "denoise": ("encode_video", "invert"),
}


@dataclass(frozen=True)
class Rates:
    """Seconds for a unit of work.

    Attributes:
        denoise: seconds for a forward and a token.
        rest: seconds for a pixel of all frames: encoding of the prompt, decoding and writing.
        source: "measured" or "projection".
        encode_video: seconds for a pixel of all frames of a video or a picture that a job starts from.
    """

    denoise: float
    rest: float
    source: str
    encode_video: float = 0.0

    def stages(self, about: Mapping[str, Any]) -> dict[str, float]:
        """Return the seconds of a job's stages; all that is done after denoising is "rest"."""
        return {
            "encode_video": self.encode_video * _pixels(about) * about.get("is_encoded", False),
            "invert": self.denoise * about.get("inversions", 0) * about["tokens"],
            "denoise": self.denoise * about["forwards"] * about["tokens"],
            "rest": self.rest * _pixels(about),
        }

    def seconds(self, about: Mapping[str, Any]) -> float:
        """Return the seconds of a whole job."""
        return sum(self.stages(about).values())


def _pixels(about: Mapping[str, Any]) -> int:
    return about["width"] * about["height"] * about["num_frames"]


def rates(finished: Sequence[Job], mesh: tuple[int, int] | None = None) -> Rates | None:
    """Return the rates of completed jobs; without any those projected for cards of a mesh, if it has been projected.

    Args:
        finished: completed jobs.
        mesh: of cards; None where none are used.
    """
    denoise = rest = encode = work = pixels = encoded = 0.0
    for job in finished:
        seconds = job.result.get("seconds", {})
        if "denoise" in seconds:
            denoise += seconds["denoise"] + seconds.get("invert", 0.0)
            rest += sum(value for stage, value in seconds.items() if stage not in _NOT_REST)
            forwards = job.result.get("forwards", {}).get("computed", 1) + job.about.get("inversions", 0)
            work += forwards * job.about["tokens"]
            pixels += _pixels(job.about)
            if "encode_video" in seconds:
                encode += seconds["encode_video"]
                encoded += _pixels(job.about)
    if work and pixels:
        # The encoder is much like the decoder, whose share of the rest is the largest.
        return Rates(denoise / work, rest / pixels, "measured", encode / encoded if encoded else rest / pixels)
    if mesh in _PROJECTED:
        return Rates(_PROJECTED[mesh] / _PROJECTED_WORK, 0.0, "projection")
    return None


def left(job: Job, found: Rates) -> float:
    """Return the seconds that a job still needs once it runs; a running one's progress counts, and its age does not.

    Ages come from a clock that may jump; progress does not.
    """
    stages = found.stages(job.about)
    if job.state == QUEUED or job.stage in (None, "load"):
        return sum(stages.values())
    if job.stage not in _BEFORE:
        return stages["rest"] * (0.5 if job.stage == "decode" else 0.1)
    done = sum(stages[each] for each in _BEFORE[job.stage])
    done += stages.get(job.stage, 0.0) * job.step / max(job.steps, 1)
    return sum(stages.values()) - done


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
