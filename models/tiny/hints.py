"""What a training says of a scene beside its video: which thing each visual token shows, and which each word names.

Two small heads read shape, colour and motion of that thing from the transformer and from the text encoder while these
are trained, and are then left out. Without them the text encoder hardly learned which colour and motion belong to which
thing: a linear reading of a trained one gave all of both things for a quarter of the prompts for two.

Shapes: B scenes, K = 2 things, T' latent frames, N = T' (H / 16) (W / 16) visual tokens, L text tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.tiny.bank import TIME_STEP
from models.tiny.scenes import COLOURS, MOTIONS, SHAPES, Drawing, Scene, Thing, coverage

# Numbers of classes of shape, colour and motion.
CLASSES = (len(SHAPES), len(COLOURS), len(MOTIONS))
TOKEN = 16
# Least share of a token's pixels that a thing covers there.
LEAST = 0.12


def classes_of(things: Sequence[Thing]) -> list[list[int]]:
    """Return indices of shape, colour and motion of both things, [K, 3]. A single thing is there twice."""
    colours = tuple(COLOURS)
    pair = (*things, things[0])[:2]
    return [[SHAPES.index(a.shape), colours.index(a.colour), MOTIONS.index(a.motion)] for a in pair]


def shown_by_tokens(drawing: Drawing, height: int, width: int) -> torch.Tensor:
    """Return what each visual token shows: 0 for the background, 1 and 2 for a thing, int8 [B, N].

    A latent frame stands for six frames, of which a middle one is looked at; the first stands for one.
    """
    frames, device = drawing.tracks.shape[2], drawing.tracks.device
    middle = [max(0, index - TIME_STEP // 2) for index in range(0, frames, TIME_STEP)]
    rows = (torch.arange(height, device=device) + 0.5).view(1, 1, -1, 1)
    columns = (torch.arange(width, device=device) + 0.5).view(1, 1, 1, -1)
    shares = []
    for index in range(drawing.shapes.shape[1]):
        x, y, radius = drawing.tracks[:, index, middle, None, None].unbind(-1)
        kind, covered = drawing.shapes[:, index, None, None, None], torch.zeros((), device=device)
        for number, shape in enumerate(SHAPES):
            covered = covered + coverage(shape, columns - x, rows - y, radius) * (kind == number)
        covered = covered * drawing.shown[:, index, None, None, None]
        shares.append(torch.nn.functional.avg_pool2d(covered, TOKEN).flatten(1))
    most, which = torch.stack(shares, -1).max(-1)
    return torch.where(most > LEAST, which + 1, 0).to(torch.int8)


class Heads(torch.nn.Module):
    """The two heads."""

    def __init__(self, visual: int, text: int):
        super().__init__()
        self.seen = torch.nn.Sequential(torch.nn.LayerNorm(visual), torch.nn.Linear(visual, 2 + sum(CLASSES)))
        self.told = torch.nn.Linear(text, sum(CLASSES))

    def seen_loss(self, visual_BND: torch.Tensor, shown_BN: torch.Tensor, things_BK3: torch.Tensor) -> torch.Tensor:
        """Return the error, in nats, of naming whether a token shows a thing, and which shape, colour and motion."""
        found = self.seen(visual_BND.float())
        there = torch.nn.functional.cross_entropy(found[..., :2].flatten(0, 1), (shown_BN > 0).long().flatten())
        return there + _named_loss(found[..., 2:], shown_BN, things_BK3)

    def told_loss(self, text_BLD: torch.Tensor, named_BL: torch.Tensor, things_BK3: torch.Tensor) -> torch.Tensor:
        """Return the error, in nats, of saying for each word of a thing which shape, colour and motion that has."""
        return _named_loss(self.told(text_BLD.float()), named_BL, things_BK3)


def _named_loss(scores_BNC: torch.Tensor, which_BN: torch.Tensor, things_BK3: torch.Tensor) -> torch.Tensor:
    """Return the mean error of naming shape, colour and motion, over the tokens that stand for a thing."""
    asked = things_BK3.long().gather(1, (which_BN.long() - 1).clamp(min=0)[..., None].expand(-1, -1, 3))
    there = (which_BN > 0).float()
    loss = torch.zeros((), device=scores_BNC.device)
    for part, want in zip(scores_BNC.split(CLASSES, -1), asked.unbind(-1), strict=True):
        error = torch.nn.functional.cross_entropy(part.flatten(0, 1), want.flatten(), reduction="none")
        loss = loss + (error * there.flatten()).sum()
    return loss / there.sum().clamp(min=1)


def hints_of(scenes: Sequence[Scene], device: str = "cpu", together: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the visual tokens of scenes of one size show, [N, tokens], and their things, [N, K, 3], both int8."""
    frame, drawing = scenes[0].frame, Drawing.of(scenes).to(device)
    parts = [
        shown_by_tokens(drawing[slice(start, start + together)], frame.height, frame.width)
        for start in range(0, len(scenes), together)
    ]
    things = torch.tensor([classes_of(scene.things) for scene in scenes], dtype=torch.int8, device=device)
    return torch.cat(parts), things
