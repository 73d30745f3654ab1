"""The tiny world: one or two coloured shapes on a plain background, each moving in one of eight ways.

Shapes: B scenes, K things, T frames, H and W pixels. Lengths are pixels. x grows to the right, y downwards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.machine.errors import InputError


@dataclass(frozen=True)
class Frame:
    """Size of a video."""

    num_frames: int = 25
    height: int = 64
    width: int = 96


WIDE = Frame()
# The second size that the model is trained on, so that short tests look right too.
SMALL = Frame(13, 64, 64)
SHAPES = ("ball", "square", "triangle", "cross")
# Colours in sRGB, 0 to 255.
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 225, 50),
    "green": (50, 170, 70),
    "cyan": (60, 205, 225),
    "blue": (50, 90, 225),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
    "pink": (250, 140, 190),
}
BACKGROUNDS = {
    "black": (15, 15, 20),
    "grey": (110, 110, 110),
    "brown": (95, 65, 45),
    "navy": (20, 25, 75),
    "white": (235, 235, 235),
}
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking", "still", "bouncing")
HORIZONTAL, VERTICAL, SCALING = ("left", "right"), ("up", "down", "bouncing"), ("growing", "shrinking")
SPEEDS = ("slow", "normal", "quick")
SIZES = ("small", "normal", "big")
# Smallest and largest radius of each size, and distance of each speed between the first and the last frame.
RADII = {"small": (6.0, 7.0), "normal": (8.5, 10.5), "big": (13.0, 15.0)}
TRAVELS = {"slow": (10.0, 14.0), "normal": (20.0, 27.0), "quick": (34.0, 44.0)}
# Change of the radius of a thing that grows or shrinks, as a share of the radius half-way.
RATES = {"slow": 0.55, "normal": 0.9, "quick": 1.25}
# Reach of the largest shape in units of the radius, and the least room for a motion along a side of its box.
REACH, ROOM = 1.15, 40
TWO_SHARE = 0.5
# Part of the room within its box that a thing's place is drawn from, around the middle.
SPREAD = 0.6


@dataclass(frozen=True)
class Thing:
    """A moving shape: its position and radius half-way through the video, and how it moves.

    Attributes:
        travel: pixels between the first and the last frame, or the height of a bounce.
    """

    shape: str
    colour: str
    motion: str
    x: float
    y: float
    radius: float
    travel: float = 22.0
    speed: str = "normal"
    size: str = "normal"


@dataclass(frozen=True)
class Scene:
    """Content of one video.

    Attributes:
        things: one or two. Of two, the first is the left one if they are side by side, or the upper one.
        background: one of `BACKGROUNDS`.
        stacked: whether the second of two things is below the first.
        frame: size of the video.
    """

    things: tuple[Thing, ...]
    background: str
    stacked: bool = False
    frame: Frame = WIDE


def random_scene(rng: random.Random, frame: Frame = WIDE, two_share: float = TWO_SHARE) -> Scene:
    """Return a random scene in which all things stay within the frame.

    Args:
        rng: source of all choices.
        frame: size of the video.
        two_share: share of scenes with two things.
    """
    background = rng.choice(tuple(BACKGROUNDS))
    colours = [colour for colour in COLOURS if colour != background]
    if rng.random() >= two_share:
        box = (0.0, 0.0, float(frame.width), float(frame.height))
        kind = (rng.choice(SHAPES), rng.choice(colours))
        return Scene((_thing(rng, kind, rng.choice(MOTIONS), *_manner(rng), box),), background, frame=frame)
    stacked = rng.random() < 0.3
    boxes = _halves(frame, stacked)
    possible = [motion for motion in MOTIONS if _fits(motion, boxes[0])]
    motions, manners = [rng.choice(possible) for _ in boxes], [_manner(rng, of_two=True) for _ in boxes]
    kinds = [(rng.choice(SHAPES), colour) for colour in rng.sample(colours, 2)]
    if rng.random() < 0.15:  # two of a kind, which move alike
        kinds, motions, manners = [kinds[0]] * 2, [motions[0]] * 2, [manners[0]] * 2
    elif rng.random() < 0.5:
        motions, manners = [motions[0]] * 2, [(manners[0][0], size) for _, size in manners]
    parts = zip(kinds, motions, manners, boxes, strict=True)
    things = tuple(_thing(rng, kind, motion, *manner, box) for kind, motion, manner, box in parts)
    return Scene(things, background, stacked, frame)


def _manner(rng: random.Random, of_two: bool = False) -> tuple[str, str]:
    """Return a random speed and size. Of two things none is big."""
    sizes = ("small", "normal", "normal", "normal") if of_two else ("small", "big", "normal", "normal", "normal")
    return rng.choice(("slow", "quick", "normal", "normal")), rng.choice(sizes)


def _halves(frame: Frame, stacked: bool) -> list[tuple[float, float, float, float]]:
    """Return left, top, right and bottom of the halves of a frame."""
    width, height = float(frame.width), float(frame.height)
    if stacked:
        return [(0, 0, width, height / 2), (0, height / 2, width, height)]
    return [(0, 0, width / 2, height), (width / 2, 0, width, height)]


def _fits(motion: str, box: tuple[float, float, float, float]) -> bool:
    """Return whether a box has room for a motion."""
    left, top, right, bottom = box
    if motion in HORIZONTAL:
        return right - left >= ROOM
    return motion not in VERTICAL or bottom - top >= ROOM


def _thing(
    rng: random.Random,
    kind: tuple[str, str],
    motion: str,
    speed: str,
    size: str,
    box: tuple[float, float, float, float],
) -> Thing:
    """Return a thing that stays within a box: its radius and its way are cut to what has room."""
    left, top, right, bottom = box
    if motion == "still":
        speed = "normal"
    growth = 1 + RATES[speed] / 2 if motion in SCALING else 1.0
    room = min(right - left, bottom - top) / 2
    radius = min(rng.uniform(*RADII[size]), (room - 1) / (REACH * growth))
    along = right - left if motion in HORIZONTAL else bottom - top
    travel = min(rng.uniform(*TRAVELS[speed]), along - 2 * REACH * radius - 1)
    reach = REACH * radius * growth
    spread_x, spread_y = ((reach + travel / 2 * (motion in group)) for group in (HORIZONTAL, VERTICAL))
    x = _between(rng, left + spread_x, right - spread_x)
    y = _between(rng, top + spread_y, bottom - spread_y)
    return Thing(*kind, motion, x, y, radius, travel, speed, size)


def _between(rng: random.Random, low: float, high: float) -> float:
    """Return a random number around the middle of two, within the part `SPREAD` of their distance."""
    return (low + high + rng.uniform(-SPREAD, SPREAD) * max(0.0, high - low)) / 2


def track(thing: Thing, num_frames: int) -> torch.Tensor:
    """Return centre and radius of a thing in each frame, float32 [T, 3] of x, y, radius."""
    return tracks([thing], num_frames)[0]


def tracks(things: Sequence[Thing], num_frames: int) -> torch.Tensor:
    """Return centre and radius of N things in each frame, float32 [N, T, 3] of x, y, radius."""
    start = torch.tensor([[thing.x, thing.y, thing.radius] for thing in things])
    # Changes over the whole video of x, y and radius in a straight line.
    line = torch.tensor([_line(thing) for thing in things])
    height = torch.tensor([thing.travel * (thing.motion == "bouncing") for thing in things])
    # A quick bounce is two, if there are frames enough to see them.
    double = num_frames >= WIDE.num_frames
    bounces = torch.tensor([2.0 if double and thing.speed == "quick" else 1.0 for thing in things])
    tau = torch.linspace(-0.5, 0.5, num_frames)
    # A bounce falls from the top to the floor and rises again: a parabola that is highest at both ends.
    phase = (tau + 0.5) * bounces[:, None] % 1 - 0.5
    found = start[:, None] + line[:, None] * tau[:, None]
    found[:, :, 1] += height[:, None] * (0.5 - (2 * phase) ** 2)
    return found


def _line(thing: Thing) -> tuple[float, float, float]:
    x = {"left": -1.0, "right": 1.0}.get(thing.motion, 0.0)
    y = {"up": -1.0, "down": 1.0}.get(thing.motion, 0.0)
    growth = {"growing": 1.0, "shrinking": -1.0}.get(thing.motion, 0.0)
    return x * thing.travel, y * thing.travel, growth * RATES[thing.speed] * thing.radius


def coverage(shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Return how much of each pixel a shape covers, 0 to 1, from its distance to the edge. All arguments broadcast.

    Args:
        shape: one of `SHAPES`, which all have about the same area at the same radius.
        x: horizontal distance of the pixel's centre from the shape's.
        y: vertical distance.
        radius: radius of the ball; the other shapes are scaled to match.

    Raises:
        ValueError: there is no such shape.
    """
    if shape == "ball":
        inside = radius - torch.sqrt(x * x + y * y)
    elif shape == "square":
        inside = 0.89 * radius - torch.maximum(x.abs(), y.abs())
    elif shape == "triangle":
        # The triangle is isosceles with its tip up. 0.447 and 0.894 are the normal of its sides (a slope of 2).
        base = 1.0 * radius - y
        inside = torch.minimum(base, (y + 1.35 * radius) * 0.447 - x.abs() * 0.894)
    elif shape == "cross":
        arm, reach = 0.38 * radius, 1.12 * radius
        bars = [torch.minimum(reach - a.abs(), arm - b.abs()) for a, b in ((x, y), (y, x))]
        inside = torch.maximum(*bars)
    else:
        raise InputError(f"shape {shape!r} does not exist: choose one of {', '.join(SHAPES)}")
    return (inside + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Drawing:
    """Scenes of one size as tensors. A thing that a scene has not is invisible.

    Attributes:
        shapes: index into `SHAPES`, int64 [B, K].
        colours: colours of the things, 0 to 255, [B, K, 3].
        tracks: x, y and radius, [B, K, T, 3].
        shown: 1 for a thing, 0 for none, [B, K].
        backgrounds: colours, 0 to 255, [B, 3].
    """

    shapes: torch.Tensor
    colours: torch.Tensor
    tracks: torch.Tensor
    shown: torch.Tensor
    backgrounds: torch.Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Drawing:
        """Make the tensors of scenes that have one size."""
        pairs = [(*scene.things, scene.things[0])[:2] for scene in scenes]
        frames = scenes[0].frame.num_frames
        return cls(
            torch.tensor([[SHAPES.index(thing.shape) for thing in pair] for pair in pairs]),
            torch.tensor([[COLOURS[thing.colour] for thing in pair] for pair in pairs]).float(),
            tracks([thing for pair in pairs for thing in pair], frames).unflatten(0, (-1, 2)),
            torch.tensor([[1.0, float(len(scene.things) > 1)] for scene in scenes]),
            torch.tensor([BACKGROUNDS[scene.background] for scene in scenes]).float(),
        )

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all tensors, in the order in which the class takes them."""
        return self.shapes, self.colours, self.tracks, self.shown, self.backgrounds

    def to(self, device: torch.device | str) -> Drawing:
        """Return the tensors on another device."""
        return Drawing(*(tensor.to(device) for tensor in self.tensors()))

    def __getitem__(self, chosen: torch.Tensor | slice) -> Drawing:
        return Drawing(*(tensor[chosen] for tensor in self.tensors()))

    def frames(self, height: int, width: int) -> torch.Tensor:
        """Draw what an 8-bit camera would record, float32 [B, 3, T, H, W] from -1 to 1."""
        num_frames, device = self.tracks.shape[2], self.tracks.device
        rows = (torch.arange(height, device=device) + 0.5).view(1, 1, -1, 1)
        columns = (torch.arange(width, device=device) + 0.5).view(1, 1, 1, -1)
        picture = self.backgrounds[:, :, None, None, None].expand(-1, -1, num_frames, height, width)
        for index in range(self.shapes.shape[1]):
            x, y, radius = self.tracks[:, index, :, None, None].unbind(-1)
            kind, alpha = self.shapes[:, index, None, None, None], torch.zeros((), device=device)
            for number, shape in enumerate(SHAPES):
                alpha = alpha + coverage(shape, columns - x, rows - y, radius) * (kind == number)
            alpha = (alpha * self.shown[:, index, None, None, None])[:, None]
            picture = picture + alpha * (self.colours[:, index, :, None, None, None] - picture)
        return picture.round() / 127.5 - 1


def render(scenes: Sequence[Scene]) -> torch.Tensor:
    """Draw scenes of one size, float32 [B, 3, T, H, W] from -1 to 1."""
    return Drawing.of(scenes).frames(scenes[0].frame.height, scenes[0].frame.width)
