"""Feature widths as the device stores them: padded to whole tiles and whole shards, with exact zeros.

Legend of shape suffixes used throughout the model code: B batch (always 1 on the mesh), N visual tokens (padded to
whole tiles per SP shard), L text tokens, D visual width, P text width, H heads, E head width, I values of a latent
patch, S denoising steps, F feed-forward width. ``x_1BND`` has shape [1, B, N, D]. "Fractured" names a dim that is
split over a mesh axis, "replicated" a tensor that every chip of the axis holds whole.
"""

from dataclasses import dataclass
from math import sqrt

from models.parallel import TILE, round_up


@dataclass(frozen=True)
class Width:
    """``groups`` groups of features, each padded with zeros to ``padded_group``, and ``extra_groups`` of zeros.

    Zero weights make the padding exact: padded features stay zero through linear layers, SwiGLU and modulation.
    A mean over the padded group is too small by ``size / padded``, which `eps_factor` and `norm_factor` undo.
    """

    size: int
    groups: int
    padded_group: int
    extra_groups: int = 0

    @classmethod
    def sharded(cls, size: int, tp: int) -> "Width":
        """One group, padded so that each of ``tp`` shards is whole tiles."""
        return cls(size, 1, round_up(size, TILE * tp))

    @classmethod
    def heads(cls, heads: int, head_width: int, tp: int = 1) -> "Width":
        """One group per attention head, each padded to whole tiles; shards are whole heads, ``tp`` of them.

        Where the shards do not divide the heads there are heads of zeros, which attend to zeros and yield zeros.
        """
        return cls(heads * head_width, heads, round_up(head_width, TILE), round_up(heads, tp) - heads)

    @classmethod
    def plain(cls, size: int) -> "Width":
        """No padding but the tile padding that ttnn adds by itself; never sharded."""
        return cls(size, 1, size)

    @property
    def padded(self) -> int:
        """Features as stored, over all shards."""
        return (self.groups + self.extra_groups) * self.padded_group

    @property
    def is_padded(self) -> bool:
        """Whether there is any padding."""
        return self.padded != self.size

    @property
    def eps_factor(self) -> float:
        """What epsilon must be multiplied by in a root mean square over a padded group."""
        return self.size / self.groups / self.padded_group

    @property
    def norm_factor(self) -> float:
        """What the weight of a root-mean-square norm over a padded group must be multiplied by."""
        return sqrt(self.eps_factor)

    @property
    def packing(self) -> str:
        """The padding in words, for `Parameter.packing`: "" without, else such as "8 x 20 in 10 x 32"."""
        if not self.is_padded:
            return ""
        groups = self.groups + self.extra_groups
        return f"{self.groups} x {self.size // self.groups} in {groups} x {self.padded_group}"

    def pad(self, tensor, dim: int):
        """Pad dim ``dim`` of a host tensor from `size` to `padded`, group by group."""
        if not self.is_padded:
            return tensor
        dim %= tensor.ndim
        grouped = tensor.unflatten(dim, (self.groups, -1))
        sides = (self.groups + self.extra_groups, self.padded_group)
        padded = tensor.new_zeros(*grouped.shape[:dim], *sides, *grouped.shape[dim + 2 :])
        padded.narrow(dim, 0, self.groups).narrow(dim + 1, 0, grouped.shape[dim + 1]).copy_(grouped)
        return padded.flatten(dim, dim + 1)
