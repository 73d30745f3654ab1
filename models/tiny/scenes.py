"""The tiny world: one or two coloured shapes on a plain background, moving in one of seven ways.

Shapes: B scenes, T frames, H and W pixels. Lengths are pixels of a 64 x 64 frame. x grows to the right, y downwards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.machine.errors import InputError

SIZE = 64
NUM_FRAMES = 13
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
}
BACKGROUNDS = {"black": (15, 15, 20), "grey": (110, 110, 110), "brown": (95, 65, 45), "navy": (20, 25, 75)}
MOTIONS = ("left", "right", "up", "down", "growing", "still", "bouncing")
HORIZONTAL = ("left", "right")


@dataclass(frozen=True)
class Thing:
    """A moving shape: its position and radius half-way through the video."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Content of one video. All things share the motion.

    Attributes:
        things: one or two. Of two, the first is the left one, or the upper one if they move sideways.
        motion: one of `MOTIONS`.
        background: one of `BACKGROUNDS`.
        travel: pixels between the first and the last frame, or the height of a bounce.
    """

    things: tuple[Thing, ...]
    motion: str
    background: str
    travel: float


def random_scene(rng: random.Random, two_share: float = 0.12) -> Scene:
    """Return a random scene in which all things stay within the frame.

    Args:
        rng: source of all choices.
        two_share: share of scenes with two things.
    """
    motion, background = rng.choice(MOTIONS), rng.choice(tuple(BACKGROUNDS))
    middle = SIZE / 2
    if rng.random() >= two_share:
        thing = Thing(
            rng.choice(SHAPES),
            rng.choice(tuple(COLOURS)),
            middle + rng.uniform(-6, 6),
            middle + rng.uniform(-6, 6),
            rng.uniform(9, 12),
        )
        return Scene((thing,), motion, background, rng.uniform(20, 26))
    # The two things move in two lanes along the motion, or side by side.
    near, far = middle - 15, middle + 15
    first, second = rng.sample(tuple(COLOURS), 2)
    places = ((middle, near), (middle, far)) if motion in HORIZONTAL else ((near, middle), (far, middle))
    things = tuple(
        Thing(rng.choice(SHAPES), colour, x + rng.uniform(-2, 2), y + rng.uniform(-2, 2), rng.uniform(7.5, 9))
        for colour, (x, y) in zip((first, second), places, strict=True)
    )
    return Scene(things, motion, background, rng.uniform(18, 24))


def track(scene: Scene, thing: Thing, num_frames: int = NUM_FRAMES) -> torch.Tensor:
    """Return centre and radius of a thing in each frame, float32 [T, 3] of x, y, radius."""
    tau = torch.linspace(-0.5, 0.5, num_frames)
    zero = torch.zeros_like(tau)
    # A bounce falls from the top to the floor in mid-video and rises again: a parabola that is highest at both ends.
    path = {
        "left": (-tau, zero),
        "right": (tau, zero),
        "up": (zero, -tau),
        "down": (zero, tau),
        "bouncing": (zero, 0.5 - (2 * tau).abs() ** 2),
    }
    dx, dy = path.get(scene.motion, (zero, zero))
    scale = 1 + (0.9 * tau if scene.motion == "growing" else zero)
    return torch.stack([thing.x + dx * scene.travel, thing.y + dy * scene.travel, thing.radius * scale], dim=-1)


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


def render(
    scenes: Sequence[Scene],
    num_frames: int = NUM_FRAMES,
    size: int = SIZE,
    corners: Sequence[tuple[float, float]] | None = None,
) -> torch.Tensor:
    """Render frames of scenes as an 8-bit camera would record them, float32 [B, 3, T, H, W] from -1 to 1.

    Args:
        scenes: B scenes.
        num_frames: T.
        size: H and W.
        corners: for windows into the scenes, the x and y of each window's upper left corner; (0, 0) by default.
    """
    frames = []
    for scene, (left, top) in zip(scenes, corners or [(0.0, 0.0)] * len(scenes), strict=True):
        grid = torch.arange(size) + 0.5
        picture = _rgb(BACKGROUNDS[scene.background]).expand(-1, num_frames, size, size)
        for thing in scene.things:
            x, y, radius = track(scene, thing, num_frames)[:, :, None, None].unbind(1)
            alpha = coverage(thing.shape, grid[None, None, :] + left - x, grid[None, :, None] + top - y, radius)
            picture = picture + alpha * (_rgb(COLOURS[thing.colour]) - picture)
        frames.append(picture)
    return torch.stack(frames).round() / 127.5 - 1


def window(scene: Scene, rng: random.Random, size: int) -> tuple[float, float]:
    """Return the corner of a window of `size` pixels that shows part of a thing's path."""
    x, y, _ = track(scene, rng.choice(scene.things))[rng.randrange(NUM_FRAMES)].tolist()
    spread, room = size / 3, SIZE - size
    corner = (centre - size / 2 + rng.uniform(-spread, spread) for centre in (x, y))
    left, top = (min(max(math.floor(c), 0), room) for c in corner)
    return float(left), float(top)


def _rgb(colour: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.float32).view(3, 1, 1, 1)
