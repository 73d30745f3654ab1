"""What a training says of a scene beside its video: which thing each visual token shows, and which things there are.

Two small heads read them from the transformer and from the text encoder while these are trained, and are then left out.

Shapes: B scenes, K = 2 things, T' latent frames, N = T' (H / 16) (W / 16) visual tokens, L text tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.tiny.scenes import COLOURS, MOTIONS, SHAPES, Drawing, Scene, coverage

# Numbers of classes of shape, colour and motion.
CLASSES = (len(SHAPES), len(COLOURS), len(MOTIONS))
TIME_STEP, TOKEN = 6, 16
# Least share of a token's pixels that a thing covers there.
LEAST = 0.12


def things_of(scenes: Sequence[Scene]) -> torch.Tensor:
    """Return indices of shape, colour and motion of both things, int8 [B, K, 3]. A single thing is there twice."""
    pairs = [(*scene.things, scene.things[0])[:2] for scene in scenes]
    colours = tuple(COLOURS)
    rows = [
        [[SHAPES.index(a.shape), colours.index(a.colour), MOTIONS.index(a.motion)] for a in pair] for pair in pairs
    ]
    return torch.tensor(rows, dtype=torch.int8)


def shown_by_tokens(drawing: Drawing, height: int, width: int) -> torch.Tensor:
    """Return what each visual token shows: 0 for the background, 1 and 2 for a thing, int8 [B, N].

    A latent frame stands for six frames, of which a middle one is looked at; the first stands for one.
    """
    frames = drawing.tracks.shape[2]
    middle = [max(0, index - TIME_STEP // 2) for index in range(0, frames, TIME_STEP)]
    rows = (torch.arange(height) + 0.5).view(1, 1, -1, 1)
    columns = (torch.arange(width) + 0.5).view(1, 1, 1, -1)
    shares = []
    for index in range(drawing.shapes.shape[1]):
        x, y, radius = drawing.tracks[:, index, middle, None, None].unbind(-1)
        kind, covered = drawing.shapes[:, index, None, None, None], torch.zeros(())
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
        self.seen = torch.nn.Sequential(
            torch.nn.LayerNorm(visual), torch.nn.Linear(visual, 2 + sum(CLASSES))
        )
        self.slots = torch.nn.Parameter(torch.randn(2, text) * text**-0.5)
        self.key, self.value = torch.nn.Linear(text, text), torch.nn.Linear(text, text)
        self.told = torch.nn.Linear(text, sum(CLASSES))

    def seen_loss(self, visual_BND: torch.Tensor, shown_BN: torch.Tensor, things_BK3: torch.Tensor) -> torch.Tensor:
        """Return the error, in nats, of naming whether a token shows a thing, and which shape, colour and motion."""
        found = self.seen(visual_BND.float())
        there = shown_BN > 0
        loss = torch.nn.functional.cross_entropy(found[..., :2].flatten(0, 1), there.long().flatten())
        asked = things_BK3.long().gather(1, (shown_BN.long() - 1).clamp(min=0)[..., None].expand(-1, -1, 3))
        weight = there.float() / there.sum().clamp(min=1)
        for part, want in zip(found[..., 2:].split(CLASSES, -1), asked.unbind(-1), strict=True):
            error = torch.nn.functional.cross_entropy(part.flatten(0, 1), want.flatten(), reduction="none")
            loss = loss + (error * weight.flatten()).sum()
        return loss

    def told_loss(self, text_BLD: torch.Tensor, mask_BL: torch.Tensor, things_BK3: torch.Tensor) -> torch.Tensor:
        """Return the error, in nats, of naming both things of the captions, in the order that fits better."""
        found = self.told_logits(text_BLD.float(), mask_BL)
        orders = []
        for order in (things_BK3, things_BK3.flip(1)):
            parts = zip(found.split(CLASSES, -1), order.long().unbind(-1), strict=True)
            orders.append(
                sum(torch.nn.functional.cross_entropy(a.transpose(1, 2), b, reduction="none").sum(1) for a, b in parts)
            )
        weight = mask_BL.any(1).float()
        return (torch.minimum(*orders) * weight).sum() / weight.sum().clamp(min=1)

    def told_logits(self, text_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Return the scores of the classes of both things, [B, K, classes]."""
        scores = self.slots @ self.key(text_BLD).transpose(1, 2)
        seen = mask_BL | ~mask_BL.any(1, keepdim=True)
        shares = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        return self.told(shares @ self.value(text_BLD))
