"""Mesh layouts and the exchange of tensors between chips."""

from models.parallel.collectives import all_reduce, gather, reduce_scatter
from models.parallel.halves import Halves, place
from models.parallel.layout import Layout
from models.parallel.mesh import TILE, Axis, Mesh, round_up
from models.parallel.replay import Replay

__all__ = [
    "TILE",
    "Axis",
    "Halves",
    "Layout",
    "Mesh",
    "Replay",
    "all_reduce",
    "gather",
    "place",
    "reduce_scatter",
    "round_up",
]
