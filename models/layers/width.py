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
    """``groups`` groups of features, each padded with zeros to ``padded_group``.

    Zero weights make the padding exact: padded features stay zero through linear layers, SwiGLU and modulation.
    A mean over the padded group is too small by ``size / padded``, which `eps_factor` and `norm_factor` undo.
    """

    size: int
    groups: int
    padded_group: int

    @classmethod
    def sharded(cls, size: int, tp: int) -> "Width":
        """One group, padded so that each of ``tp`` shards is whole tiles."""
        return cls(size, 1, round_up(size, TILE * tp))

    @classmethod
    def heads(cls, heads: int, head_width: int) -> "Width":
        """One group per attention head, each padded to whole tiles; shards are whole heads."""
        return cls(heads * head_width, heads, round_up(head_width, TILE))

    @classmethod
    def plain(cls, size: int) -> "Width":
        """No padding but the tile padding that ttnn adds by itself; never sharded."""
        return cls(size, 1, size)

    @property
    def padded(self) -> int:
        """Features as stored, over all shards."""
        return self.groups * self.padded_group

    @property
    def is_padded(self) -> bool:
        """Whether there is any padding."""
        return self.padded != self.size

    @property
    def eps_factor(self) -> float:
        """What epsilon must be multiplied by in a root mean square over the padded group."""
        return self.size / self.padded

    @property
    def norm_factor(self) -> float:
        """What the weight of a root-mean-square norm over the padded group must be multiplied by."""
        return sqrt(self.size / self.padded)

    def pad(self, tensor, dim: int):
        """Pad dim ``dim`` of a host tensor from `size` to `padded`, group by group."""
        if not self.is_padded:
            return tensor
        dim %= tensor.ndim
        grouped = tensor.unflatten(dim, (self.groups, -1))
        padded = tensor.new_zeros(*grouped.shape[: dim + 1], self.padded_group, *grouped.shape[dim + 2 :])
        padded.narrow(dim + 1, 0, grouped.shape[dim + 1]).copy_(grouped)
        return padded.flatten(dim, dim + 1)
