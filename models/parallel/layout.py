"""Mesh layouts: which mesh axis carries sequence parallelism (SP) and which tensor parallelism (TP).

A layout is written `2x4sp0tp1`: a mesh of 2 rows and 4 columns, SP over axis 0 (2 shards), TP over axis 1 (4 shards).
`4x8cfg1sp1tp0` cuts axis 1 into two halves of 4x4, one for each branch of classifier-free guidance. Each half has SP
over axis 1 (4 shards) and TP over axis 0 (4 shards). `2x4sp1tp0fsdp` shards the weights over SP as well and gathers
each weight before its use (FSDP, arXiv:2304.11277).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from models.machine.errors import InputError

_PATTERN = re.compile(r"(?:([0-9]{1,6})x([0-9]{1,6}))?(?:cfg([01]))?sp([01])tp([01])(fsdp)?")
_FORM = "write it as sp0tp1 or sp1tp0, if need be with mesh and cfg in front and fsdp behind (4x8cfg1sp1tp0fsdp)"


@dataclass(frozen=True)
class Layout:
    """An assignment of the mesh axes: `sp_axis` and `tp_axis` are the two axes of `mesh_shape` in some order.

    `cfg_axis` is the axis that is cut into two halves, one for each branch of guidance; with None the branches run in
    turn. `fsdp` says whether weights are sharded over SP too.
    """

    mesh_shape: tuple[int, int]
    sp_axis: int
    tp_axis: int
    cfg_axis: int | None = None
    fsdp: bool = False

    def __post_init__(self) -> None:
        """Check that the axes fit the mesh.

        Raises:
            ValueError: SP and TP name the same mesh axis, the mesh is empty, or the axis to cut in halves has an odd
                size.
        """
        if {self.sp_axis, self.tp_axis} != {0, 1}:
            raise InputError(f"layout sp{self.sp_axis}tp{self.tp_axis}: SP and TP need different mesh axes; {_FORM}")
        rows, cols = self.mesh_shape
        if min(self.mesh_shape) < 1:
            raise InputError(f"mesh {rows}x{cols}: both sides must be at least 1")
        if self.cfg_axis is not None and self.mesh_shape[self.cfg_axis] % 2:
            raise InputError(
                f"layout cfg{self.cfg_axis}: axis {self.cfg_axis} of mesh {rows}x{cols} has "
                f"{self.mesh_shape[self.cfg_axis]} chips, which do not halve; choose the other axis or another mesh"
            )

    @property
    def branch(self) -> Layout:
        """Layout of the mesh that one branch of guidance runs on: this layout, or one half of it."""
        if self.cfg_axis is None:
            return self
        rows, cols = self.mesh_shape
        half = (rows // 2, cols) if self.cfg_axis == 0 else (rows, cols // 2)
        return replace(self, mesh_shape=half, cfg_axis=None)

    @property
    def sp(self) -> int:
        """Number of sequence shards."""
        return self.branch.mesh_shape[self.sp_axis]

    @property
    def tp(self) -> int:
        """Number of tensor shards."""
        return self.branch.mesh_shape[self.tp_axis]

    def __str__(self) -> str:
        rows, cols = self.mesh_shape
        cfg = "" if self.cfg_axis is None else f"cfg{self.cfg_axis}"
        return f"{rows}x{cols}{cfg}sp{self.sp_axis}tp{self.tp_axis}{'fsdp' if self.fsdp else ''}"

    @classmethod
    def parse(cls, text: str, mesh_shape: tuple[int, int] | None = None) -> Layout:
        """Read a layout such as `sp0tp1` (with `mesh_shape`) or `4x8cfg1sp1tp0fsdp`.

        Raises:
            ValueError: the text is not a layout, names another mesh than `mesh_shape`, or no mesh is given.
        """
        match = _PATTERN.fullmatch(text.strip().lower())
        if match is None:
            raise InputError(f"layout {text!r} is not a layout: {_FORM}")
        rows, cols, cfg_axis, sp_axis, tp_axis, fsdp = match.groups()
        named = (int(rows), int(cols)) if rows is not None else None
        if named is not None and mesh_shape is not None and named != tuple(mesh_shape):
            raise InputError(
                f"layout {text!r} is for mesh {named[0]}x{named[1]}, but the mesh is "
                f"{mesh_shape[0]}x{mesh_shape[1]}: give the same mesh in both"
            )
        shape = named or mesh_shape
        if shape is None:
            raise InputError(f"layout {text!r} names no mesh: {_FORM}")
        cfg = None if cfg_axis is None else int(cfg_axis)
        return cls((shape[0], shape[1]), int(sp_axis), int(tp_axis), cfg, fsdp is not None)

    @classmethod
    def default(cls, mesh_shape: tuple[int, int], heads: int | None = None) -> Layout:
        """Choose a layout: TP over the shorter axis that has more than one chip, SP over the other axis.

        TP exchanges more per block the wider it is. SP exchanges only keys and values, and does so while attention
        computes. TP=1 would put all weights on every chip.

        On the systems of `systems.toml`, `models.performance.layouts` finds this layout to be the fastest that fits and
        needs no sockets. A layout with halves for the branches of guidance may be faster, but no card has run the
        sockets between the halves, so a user must ask for it.

        Args:
            mesh_shape: (rows, columns) of chips.
            heads: number of attention heads; an axis that does not divide it is not used for TP if the other axis does.
        """
        candidates = [cls(mesh_shape, 0, 1), cls(mesh_shape, 1, 0)]
        if heads is not None:
            candidates = [c for c in candidates if heads % c.tp == 0] or candidates
        return min(candidates, key=lambda c: (c.tp == 1, c.tp))

    def check_heads(self, heads: int) -> None:
        """Check that TP divides the attention heads.

        Raises:
            ValueError: TP does not divide them; the message gives both numbers and a layout that works.
        """
        if heads % self.tp:
            rows, cols = self.mesh_shape
            other = Layout(self.mesh_shape, self.tp_axis, self.sp_axis)
            mend = f"layout {other} does" if heads % other.tp == 0 else "choose another mesh"
            raise InputError(
                f"layout {self}: TP={self.tp} does not divide {heads} attention heads on mesh {rows}x{cols}; {mend}"
            )
