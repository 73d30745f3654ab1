"""The split of a video over the mesh for decoding: which mesh axis shards time, rows or columns.

A split is written `t0h1`: time over mesh axis 0, rows over mesh axis 1. It shares only the mesh with the transformer's
SP and TP.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from models.machine.errors import InputError
from models.parallel import Axis, Mesh
from models.parallel.halo import HEIGHT, TIME, WIDTH, Extent, ShardedDim

_NAMES = {"t": TIME, "h": HEIGHT, "w": WIDTH}
_FORM = "write it as t0h1: t (time), h (rows) or w (columns), each with the mesh axis that splits it, or none"
# Number of frames that a causal convolution looks back. They must come from one neighbour.
_PAST = 2
# Splits that store up to this factor more than the least count as equal in memory. Work grows with what is stored: at
# full size on 2x4, 2% less of it outweighs a fifth more link bytes.
_TOLERANCE = 1.01


@dataclass(frozen=True)
class Split:
    """The dim of x_BTHWC that each mesh axis splits, by axis index; None for an axis that splits nothing."""

    dims: tuple[int | None, int | None]

    def __post_init__(self) -> None:
        """Check that the axes split different dims.

        Raises:
            ValueError: both axes split the same dim.
        """
        if self.dims[0] is not None and self.dims[0] == self.dims[1]:
            raise InputError(f"split {self}: both mesh axes split the same dim; {_FORM}")

    def __str__(self) -> str:
        names = {dim: name for name, dim in _NAMES.items()}
        return "".join(f"{names[dim]}{axis}" for axis, dim in enumerate(self.dims) if dim is not None) or "none"

    @classmethod
    def parse(cls, text: str) -> Split:
        """Read a split such as `t0h1`, `w1` or `none`.

        Raises:
            ValueError: the text is not a split.
        """
        wanted = text.strip().lower()
        parts = re.findall(r"([thw])([01])", wanted)
        dims: list[int | None] = [None, None]
        for name, axis in parts:
            dims[int(axis)] = _NAMES[name]
        axes = [axis for _, axis in parts]
        if (
            (wanted != "none" and "".join(a + b for a, b in parts) != wanted)
            or len(set(axes)) != len(axes)
            or not wanted
        ):
            raise InputError(f"split {text!r} is not a split: {_FORM}")
        return cls((dims[0], dims[1]))

    def extent(self, mesh: Mesh, frames: int, rows: int, columns: int) -> Extent:
        """Return the sizes and shards of latents of `frames x rows x columns`.

        Each shard of time has at least the two frames that the next shard looks back to. If frames, rows or columns do
        not divide, the last shards hold padding.
        """
        axes: dict[int, Axis] = {}
        for axis in (mesh.sp, mesh.tp):
            dim = self.dims[axis.index]
            if dim is not None:
                axes[dim] = axis
        return Extent(
            ShardedDim.split(frames, axes.get(TIME), minimum=_PAST),
            ShardedDim.split(rows, axes.get(HEIGHT)),
            ShardedDim.split(columns, axes.get(WIDTH)),
        )


def choose_split(
    mesh: Mesh, frames: int, rows: int, columns: int, *, whole_time: bool = False, over_time: bool = True
) -> Split:
    """Choose the split of latents of `frames x rows x columns`.

    The rule: memory first, then link bytes. It considers all splits that use every mesh axis. Of these it keeps those
    that store at most 1% more positions per chip than the best. Of those it takes the one whose convolutions send the
    fewest positions over a link.

    With `whole_time`, splits that leave time whole come before link bytes: the decoder then drops surplus frames early,
    and need not carry them along. Without `over_time` there are no splits of time at all, as the encoder's attention
    needs it.
    """
    splits = [split for split in _splits(mesh) if over_time or TIME not in split.dims]
    stored = {split: _stored(split.extent(mesh, frames, rows, columns)) for split in splits}
    least = min(stored.values())
    near = [split for split in splits if stored[split] <= _TOLERANCE * least]

    def rank(split: Split) -> tuple[bool, int, int]:
        sent = _sent(split.extent(mesh, frames, rows, columns))
        return whole_time and TIME in split.dims, sent, stored[split]

    return min(near, key=rank)


def _splits(mesh: Mesh) -> Iterator[Split]:
    rows, columns = mesh.layout.mesh_shape
    for first in _NAMES.values() if rows > 1 else [None]:
        for second in _NAMES.values() if columns > 1 else [None]:
            if first is None or first != second:
                yield Split((first, second))


def _stored(extent: Extent) -> int:
    return extent.time.local * extent.height.local * extent.width.local


def _sent(extent: Extent) -> int:
    """Return the positions of one convolution's halos that go over a link in one direction, at the latent's size."""
    time, rows, columns = extent.time.local, extent.height.local, extent.width.local
    sent = _PAST * rows * columns if extent.time.shards > 1 else 0
    sent += time * columns if extent.height.shards > 1 else 0
    return sent + (time * rows if extent.width.shards > 1 else 0)
