"""Norms over features that are fractured over TP. Chips exchange one column of statistics, not activations."""

import ttnn

from models.conversion import HEAD_NORM_WEIGHT, describe_packing
from models.layers import compute
from models.layers.module import Module, Parameter
from models.layers.rotary import RotaryTable
from models.layers.width import Width
from models.parallel import TILE, Mesh, all_reduce, gather

# Tiles that the fused norm processes at a time with float32 accumulation: a destination register holds so many.
_FUSED_BLOCK_TILES = 4
# Largest number of head tiles on a chip for which the fused norm keeps a row of all heads in L1. With more tiles it
# works head by head. Then it reads the wrong rows of the rotation tables, and a head whose own tiles are not whole
# blocks makes it hang (dit_rmsnorm_fused_compute.cpp, lines 566 to 714).
_FUSED_ROW_TILES = 60
# Largest number of features on a chip for which ttnn's layer norm on gathered statistics fits L1. Its circular buffers
# take 26 KB for each tile of a row (ttnn 0.81.1 reports 2,497,888 bytes for 96 tiles, and allows 1,499,136).
_LAYER_NORM_WIDTH = 56 * TILE


def rms_norm(
    x: ttnn.Tensor,
    weight: ttnn.Tensor,
    mesh: Mesh,
    width: Width,
    eps: float,
    dtype: ttnn.DataType = ttnn.bfloat16,
) -> ttnn.Tensor:
    """Compute the root-mean-square norm over features fractured over TP, times `weight`.

    It maps x [1, B, M, width / TP], fractured over TP, and weight [1, 1, 1, width / TP], fractured over TP, to a tensor
    with the shape and placement of x, in `dtype`. The weight must include `Width.norm_factor`. Formula: `x /
    sqrt(mean(x^2) + eps) * weight` (arXiv:1910.07467), with statistics in float32.
    """
    config = compute.accurate()
    if mesh.fuses("norm") and (
        mesh.tp.size == 1 or mesh.tp.size % 2 == 0
    ):  # The fused op adds the chips' sums in pairs.
        return fused_rms_norm(x, weight, mesh, eps * width.eps_factor, dtype)
    stats = ttnn.rms_norm_pre_all_gather(x, dtype=ttnn.float32, compute_kernel_config=config)
    stats = gather(stats, dim=3, over=mesh.tp)
    normed = ttnn.rms_norm_post_all_gather(
        x, stats, epsilon=eps * width.eps_factor, weight=weight, compute_kernel_config=config
    )
    return normed if normed.dtype == dtype else ttnn.typecast(normed, dtype)


def fused_rms_norm(
    x: ttnn.Tensor, weight: ttnn.Tensor, mesh: Mesh, eps: float, dtype: ttnn.DataType = ttnn.bfloat16
) -> ttnn.Tensor:
    """Compute `rms_norm` in one op that also exchanges the statistics. `eps` is already corrected for padding."""
    axis = mesh.tp.index if mesh.tp.size > 1 else None
    links = _norm_links(x, mesh.tp.links)
    stats = None
    if axis is not None:
        stats = mesh.alternating(
            ("rms_norm_stats", tuple(x.shape)),
            lambda: ttnn.experimental.dit_fused_distributed_rmsnorm_create_stats_buffer(
                x, axis, mesh.device, weight=weight, num_links=links
            ),
        )
    return ttnn.experimental.dit_fused_distributed_rmsnorm(
        x,
        axis,
        mesh.device,
        mesh.semaphores("rms_norm", 1),
        topology=mesh.tp.topology,
        epsilon=eps,
        weight=weight,
        persistent_output_buffer=stats,
        num_preferred_links=links,
        dtype=dtype,
        compute_kernel_config=compute.accurate(),
    )


def _norm_links(x: ttnn.Tensor, links: int) -> int:
    """Return the number of links among which the fused norm can share its rows of tiles.

    No link's group of rows is empty.

    The op cuts groups of equal size, rounded up. It does not notice that nothing is left for the last group (5 rows
    over 4 links: 2, 2, 1 and -1). Its kernel then does not compile, as for 129 to 160 tokens on a Galaxy.
    """
    rows = -(-x.shape[2] // TILE) * x.shape[1]
    return max(count for count in range(1, links + 1) if -(-rows // count) * (count - 1) < rows)


def layer_norm(
    x: ttnn.Tensor, weight: ttnn.Tensor, bias: ttnn.Tensor, mesh: Mesh, width: Width, eps: float
) -> ttnn.Tensor:
    """Compute the layer norm over features fractured over TP, times `weight` plus `bias`.

    It maps x [1, B, M, width / TP], fractured over TP, and weight and bias [1, 1, 1, width / TP], fractured over TP, to
    a tensor with the shape and placement of x. The weight must include `Width.norm_factor`.
    """
    config = compute.accurate()
    if width.is_padded or x.shape[3] > _LAYER_NORM_WIDTH:
        # The statistics of the op would count padding as data, and its buffers hold whole rows. Centring x first leaves
        # a root-mean-square norm.
        return ttnn.add(rms_norm(_centred(x, mesh, width), weight, mesh, width, eps), bias, dtype=ttnn.bfloat16)
    stats = ttnn.layer_norm_pre_all_gather(x, dtype=ttnn.float32, compute_kernel_config=config)
    stats = gather(stats, dim=3, over=mesh.tp)
    return ttnn.layer_norm_post_all_gather(
        x, stats, epsilon=eps, weight=weight, bias=bias, compute_kernel_config=config
    )


def _centred(x: ttnn.Tensor, mesh: Mesh, width: Width) -> ttnn.Tensor:
    import torch

    total = ttnn.sum(ttnn.typecast(x, ttnn.float32), dim=-1, keepdim=True)
    mean = ttnn.multiply(all_reduce(total, over=mesh.tp), 1.0 / width.size)
    real = mesh.upload(width.pad(torch.ones(1, 1, 1, width.size), 3), dtype=ttnn.float32, tp=3)
    centred = ttnn.multiply(ttnn.subtract(x, mean, dtype=ttnn.float32), real)
    return ttnn.typecast(centred, ttnn.bfloat16)


class HeadRMSNorm(Module):
    """Split into attention heads and RMS norm of each head with a learned weight, then an optional rotation.

    Everything is local to a chip.
    """

    def __init__(
        self,
        mesh: Mesh,
        name: str,
        heads: int,
        head_width: Width,
        eps: float,
        dtype: ttnn.DataType = ttnn.bfloat16,
    ) -> None:
        """Declare the norm.

        Args:
            mesh: the mesh.
            name: checkpoint module of the weight.
            heads: attention heads over all shards.
            head_width: width of one head.
            eps: value added to the mean square.
            dtype: type of the output.
        """
        super().__init__(mesh)
        self.heads = heads // mesh.tp.size
        self.dtype = dtype
        self.eps = eps * head_width.eps_factor
        # The fused op needs at least two heads. It hangs if the tiles that it takes together are not whole blocks:
        # those of all heads, or of one head where a row of all heads does not fit L1.
        head_tiles = head_width.padded_group // TILE
        self.rotates = self.heads * head_tiles <= _FUSED_ROW_TILES
        together = self.heads * head_tiles if self.rotates else head_tiles
        self.fused = mesh.fuses("head-norm") and self.heads > 1 and together % _FUSED_BLOCK_TILES == 0
        # The fused op needs one copy of the weight for each head of the chip.
        repeats = self.heads if self.fused else 1
        self.weight = Parameter(
            {f"{name}.weight": (head_width.size,)},
            lambda vector: head_width.pad(vector * head_width.norm_factor, 0).repeat(repeats)[None, None, None],
            conversion=HEAD_NORM_WEIGHT,
            packing=describe_packing(f"{repeats} times", head_width.packing),
        )

    def __call__(self, x: ttnn.Tensor, rope: RotaryTable | None = None) -> ttnn.Tensor:
        """Norm x [1, 1, M, H E / TP], fractured over TP, over E and rotate it by `rope`, to [1, H / TP, M, E]."""
        if not self.fused:
            normed = ttnn.rms_norm(
                split_heads(x, self.heads),
                weight=self.weight.tensor,
                epsilon=self.eps,
                compute_kernel_config=compute.accurate(),
            )
            return self._finished(normed, rope)
        rotates = self.rotates and self.mesh.fuses("rotation")
        inside = rope if rotates else None
        behind = None if rotates else rope
        normed = ttnn.experimental.dit_fused_distributed_rmsnorm(
            x,
            None,
            self.mesh.device,
            self.mesh.semaphores("rms_norm", 1),
            epsilon=self.eps,
            weight=self.weight.tensor,
            num_heads_per_device=self.heads,
            per_head_norm=True,
            transformation_mat=inside.rotate if inside else None,
            rope_cos=inside.cos if inside else None,
            rope_sin=inside.sin if inside else None,
            dtype=self.dtype if behind is None else ttnn.bfloat16,
            compute_kernel_config=compute.accurate(),
        )
        return self._finished(normed, behind)

    def _finished(self, x: ttnn.Tensor, rope: RotaryTable | None) -> ttnn.Tensor:
        """Rotate x [1, H / TP, M, E] if there is a table left to apply, and convert it to the type of the output."""
        x = x if rope is None else rope.apply(x)
        return x if x.dtype == self.dtype else ttnn.typecast(x, self.dtype)


def split_heads(x: ttnn.Tensor, heads: int) -> ttnn.Tensor:
    """Reshape [1, 1, M, heads E] to [1, heads, M, E]."""
    split, *_ = ttnn.experimental.nlp_create_qkv_heads(x, num_heads=heads, num_kv_heads=0, transpose_k_heads=False)
    return split
