"""Recognition of a tiny-world video from its frames alone: colour, motion and shape of each thing.

Frames are float32 [T, H, W, 3] from 0 to 1, masks bool [T, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import torch

from models.tiny.scenes import COLOURS, SHAPES, coverage

# Smallest distance of a thing's pixel from the background, in units of the 0-to-1 RGB cube.
THRESHOLD = 0.22
# Smallest number of pixels that the centre of a moving thing travels, and smallest growth of the area of a growing
# thing.
TRAVEL, GROWTH = 7.0, 1.5
# Smallest number of pixels by which a bounce dips. It ends near its start.
BOUNCE = 6.0
# Smallest mean number of a thing's pixels in a frame, and the most things that are looked for.
AREA, MOST = 20, 4


@dataclass(frozen=True)
class Sight:
    """The recognised properties of a thing. A property is None if no thing was found."""

    colour: str | None
    motion: str | None
    shape: str | None


def look(frames_THWC: torch.Tensor) -> Sight:
    """Recognise colour, motion and shape of the thing in the frames."""
    distance = (frames_THWC - background(frames_THWC)).norm(dim=-1)
    mask = distance > THRESHOLD
    if int(mask.sum()) < AREA * len(mask):
        return Sight(None, None, None)
    return _sight(frames_THWC, distance, mask)


def look_for(asked: Sequence[Sight], frames_THWC: torch.Tensor) -> tuple[Sight, ...]:
    """Recognise as many things as are asked for, in the order in which they agree best with those.

    A thing is a region that is connected in space and time; where one is asked for, it is all that is not background. A
    thing that is not there is a `Sight` of nothing.
    """
    if len(asked) == 1:
        return (look(frames_THWC),)
    seen = look_at_all(frames_THWC)
    seen += [Sight(None, None, None)] * (len(asked) - len(seen))
    return max(permutations(seen, len(asked)), key=lambda order: agreement(asked, order))


def agreement(asked: Sequence[Sight], seen: Sequence[Sight]) -> int:
    """Return the number of properties in which things agree, one by one."""
    pairs = zip(asked, seen, strict=True)
    return sum((a.colour == s.colour) + (a.motion == s.motion) + (a.shape == s.shape) for a, s in pairs)


def look_at_all(frames_THWC: torch.Tensor) -> list[Sight]:
    """Recognise each thing in the frames, the largest first. A thing is a region connected in space and time."""
    distance = (frames_THWC - background(frames_THWC)).norm(dim=-1)
    return [_sight(frames_THWC, distance, mask) for mask in _regions(distance > THRESHOLD)]


def _regions(mask: torch.Tensor) -> list[torch.Tensor]:
    """Return the masks of the largest connected regions that are large enough.

    Each voxel has a number of its own, and takes the largest of its neighbours' until nothing changes.
    """
    inside = mask.float()
    label = torch.arange(1, mask.numel() + 1, dtype=torch.float32).view(mask.shape) * inside
    while True:
        spread = torch.nn.functional.max_pool3d(label[None, None], 3, 1, 1)[0, 0] * inside
        if torch.equal(spread, label):
            break
        label = spread
    numbers, counts = label[mask].unique(return_counts=True)
    order = counts.argsort(descending=True)[:MOST]
    return [label == numbers[index] for index in order if counts[index] >= AREA * len(mask)]


def _sight(frames_THWC: torch.Tensor, distance: torch.Tensor, mask: torch.Tensor) -> Sight:
    return Sight(_colour(frames_THWC, distance, mask), _motion(mask), _shape(mask))


def background(frames_THWC: torch.Tensor) -> torch.Tensor:
    """Return the colour [3] of the background: the median over the outermost pixels of all frames."""
    border = [frames_THWC[:, 0], frames_THWC[:, -1], frames_THWC[:, :, 0], frames_THWC[:, :, -1]]
    return torch.cat(border, dim=1).flatten(0, 1).median(dim=0).values


def _colour(frames_THWC: torch.Tensor, distance: torch.Tensor, mask: torch.Tensor) -> str:
    """Return the colour name nearest to the mean colour of the thing.

    The mean is over the half of the thing's pixels that differ most from the background.
    """
    inner = mask & (distance >= distance[mask].median())
    mean = frames_THWC[inner].mean(0)
    return min(COLOURS, key=lambda name: float((torch.tensor(COLOURS[name]) / 255 - mean).norm()))


def _motion(mask: torch.Tensor) -> str:
    centres = torch.tensor([_centre(frame) for frame in mask if frame.any()])
    areas = mask.sum((1, 2)).float()
    (dx, dy) = (centres[-1] - centres[0]).tolist()
    if areas[-3:].mean() > GROWTH * areas[:3].mean() and max(abs(dx), abs(dy)) < 2 * TRAVEL:
        return "growing"
    if max(abs(dx), abs(dy)) >= TRAVEL:
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"
    ends = (centres[0, 1] + centres[-1, 1]) / 2
    return "bouncing" if float(centres[:, 1].max() - ends) >= BOUNCE else "still"


def _shape(mask: torch.Tensor) -> str:
    """Return the shape whose outline, at the thing's place and area, overlaps best (mean over frames)."""
    best = dict.fromkeys(SHAPES, 0.0)
    rows, columns = (torch.arange(size) + 0.5 for size in mask.shape[1:])
    for frame in mask:
        if not frame.any():
            continue
        x, y = _centre(frame)
        for shape in SHAPES:
            side, below = _proportions(shape)
            radius = frame.sum() ** 0.5 / side
            template = coverage(shape, columns[None, :] - x, rows[:, None] - y + below * radius, radius) > 0.5
            best[shape] += float((template & frame).sum() / (template | frame).sum())
    return max(best, key=lambda shape: best[shape])


@cache
def _proportions(shape: str) -> tuple[float, float]:
    """Return the square root of a shape's area, and the distance of its centroid below its origin.

    Both are in units of the shape's radius.
    """
    radius, grid = 16.0, torch.arange(64) - 31.5
    mask = coverage(shape, grid[None, :], grid[:, None], torch.tensor(radius)) > 0.5
    return float(mask.sum()) ** 0.5 / radius, (_centre(mask)[1] - 32) / radius


def _centre(mask_HW: torch.Tensor) -> tuple[float, float]:
    """Return the mean x and y of the mask's pixels."""
    rows, columns = mask_HW.nonzero(as_tuple=True)
    return float(columns.float().mean()) + 0.5, float(rows.float().mean()) + 0.5
