"""Feature widths as the device stores them: padded with exact zeros to whole tiles and whole shards.

Legend of the shape suffixes in the model code: B batch (always 1 on the mesh), N visual tokens (padded to whole tiles
per SP shard), L text tokens, D visual width, P text width, H heads, E head width, I values of a latent patch, S
denoising steps, F feed-forward width. `x_1BND` has shape [1, B, N, D]. A dim is "fractured" over a mesh axis if it is
split over it. A tensor is "replicated" over an axis if every chip of the axis holds all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from models.parallel import TILE, round_up


@dataclass(frozen=True)
class Width:
    """A width of `groups` groups of features, padded with zeros.

    Each group is padded to `padded_group` features, and `extra_groups` groups of zeros follow. Zero weights make the
    padding exact: padded features stay zero through linear layers, SwiGLU and modulation. A mean over the padded group
    is too small by the factor `size / padded`. `eps_factor` and `norm_factor` correct this.
    """

    size: int
    groups: int
    padded_group: int
    extra_groups: int = 0

    @classmethod
    def sharded(cls, size: int, tp: int) -> Width:
        """Return one group, padded so that each of `tp` shards is whole tiles."""
        return cls(size, 1, round_up(size, TILE * tp))

    @classmethod
    def heads(cls, heads: int, head_width: int, tp: int = 1) -> Width:
        """Return one group per attention head, each padded to whole tiles. Each of the `tp` shards holds whole heads.

        If `tp` does not divide the heads, heads of zeros are added. They attend to zeros and return zeros.
        """
        return cls(heads * head_width, heads, round_up(head_width, TILE), round_up(heads, tp) - heads)

    @classmethod
    def plain(cls, size: int) -> Width:
        """Return a width without padding, apart from the tile padding that ttnn adds by itself. It is never sharded."""
        return cls(size, 1, size)

    @property
    def padded(self) -> int:
        """Number of features as stored, over all shards."""
        return (self.groups + self.extra_groups) * self.padded_group

    @property
    def is_padded(self) -> bool:
        """Whether the width has padding."""
        return self.padded != self.size

    @property
    def eps_factor(self) -> float:
        """Factor on epsilon in a root mean square over a padded group."""
        return self.size / self.groups / self.padded_group

    @property
    def norm_factor(self) -> float:
        """Factor on the weight of a root-mean-square norm over a padded group."""
        return sqrt(self.eps_factor)

    @property
    def packing(self) -> str:
        """The padding in words, for `Parameter.packing`: "" without, else such as "8 x 20 in 10 x 32"."""
        if not self.is_padded:
            return ""
        groups = self.groups + self.extra_groups
        return f"{self.groups} x {self.size // self.groups} in {groups} x {self.padded_group}"

    def pad(self, tensor, dim: int):
        """Pad dim `dim` of a host tensor from `size` to `padded`, group by group."""
        if not self.is_padded:
            return tensor
        dim %= tensor.ndim
        grouped = tensor.unflatten(dim, (self.groups, -1))
        sides = (self.groups + self.extra_groups, self.padded_group)
        padded = tensor.new_zeros(*grouped.shape[:dim], *sides, *grouped.shape[dim + 2 :])
        padded.narrow(dim, 0, self.groups).narrow(dim + 1, 0, grouped.shape[dim + 1]).copy_(grouped)
        return padded.flatten(dim, dim + 1)
