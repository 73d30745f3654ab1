"""Golden rules of reductions and norms.

Statistics are float32 here, as with `fp32_dest_acc_en` on the device. The kernels reduce over whole tiles, so values in
the last tile after the logical width count unless the op masks them. Each docstring says so.
"""

import torch

from models.mock.golden.rules import local_rule

_NORM = "ttnn/operations/normalization"
_REDUCE = (
    "ttnn/operations/reduction/generic/device/kernels/compute/reduce.cpp; fill_implicit_tile_padding before it: "
    "upstream reduction/generic/generic_reductions.cpp"
)
_TILE = 32


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    if weight is not None:
        x = x * _row(weight, x.shape[-1])
    return x if bias is None else x + _row(bias, x.shape[-1])


def _row(vector: torch.Tensor, width: int) -> torch.Tensor:
    if vector.numel() != width:
        raise ValueError(f"a weight or bias of {vector.numel()} values for rows of {width}")
    return vector.reshape(-1)


@local_rule("ttnn.sum", source=_REDUCE)
def sum_(input_tensor, dim=None, keepdim: bool = False, *, scalar: float = 1.0):
    """Sum over `dim` (over all dims if None), times `scalar`. Tile padding counts as zeros."""
    dims = tuple(range(input_tensor.ndim)) if dim is None else dim
    return input_tensor.sum(dim=dims, keepdim=keepdim) * scalar


@local_rule("ttnn.mean", source=_REDUCE)
def mean(input_tensor, dim=None, keepdim: bool = False, *, scalar: float = 1.0):
    """Return the mean over `dim`, times `scalar`. Padding rows are zeros, and the divisor is the logical size."""
    dims = tuple(range(input_tensor.ndim)) if dim is None else dim
    return input_tensor.mean(dim=dims, keepdim=keepdim) * scalar


@local_rule("ttnn.rms_norm", source=f"{_NORM}/layernorm/device/kernels/compute/layernorm.cpp")
def rms_norm(input_tensor, *, epsilon: float = 1e-12, weight=None, bias=None):
    """Return `x / sqrt(mean(x^2) + epsilon) * weight + bias` over the logical width."""
    scale = torch.rsqrt(input_tensor.square().mean(-1, keepdim=True) + epsilon)
    return _affine(input_tensor * scale, weight, bias)


def _statistics(x: torch.Tensor, *, with_sum: bool) -> torch.Tensor:
    stats = x.new_zeros(*x.shape[:-1], _TILE * (2 if with_sum else 1))
    stats[..., 0] = x.square().sum(-1)
    if with_sum:
        stats[..., _TILE] = x.sum(-1)
    return stats


@local_rule(
    "ttnn.rms_norm_pre_all_gather",
    source=f"{_NORM}/rmsnorm_distributed/device/kernels/compute/rmsnorm_pre_allgather.cpp",
)
def rms_norm_pre_all_gather(input_tensor):
    """Return one tile column per row of tiles: sum(x^2) in column 0, zeros in the others."""
    return _statistics(input_tensor, with_sum=False)


@local_rule(
    "ttnn.rms_norm_post_all_gather",
    source=f"{_NORM}/rmsnorm_distributed/device/kernels/compute/rmsnorm_post_allgather.cpp",
)
def rms_norm_post_all_gather(input_tensor, stats, *, epsilon: float = 1e-12, weight=None, bias=None):
    """Compute the RMS norm with the gathered sums of all devices. Each device holds as many columns as this one."""
    devices = stats.shape[-1] // _TILE
    total = stats.unflatten(-1, (devices, _TILE))[..., 0].sum(-1, keepdim=True)
    mean_square = total / (input_tensor.shape[-1] * devices)
    return _affine(input_tensor * torch.rsqrt(mean_square + epsilon), weight, bias)


@local_rule(
    "ttnn.layer_norm_pre_all_gather",
    source=f"{_NORM}/layernorm_distributed/device/kernels/compute/layernorm_pre_allgather.cpp",
)
def layer_norm_pre_all_gather(input_tensor):
    """Return two tile columns: sum(x^2) in column 0 of the first, sum(x) in column 0 of the second."""
    return _statistics(input_tensor, with_sum=True)


@local_rule(
    "ttnn.layer_norm_post_all_gather",
    source=f"{_NORM}/layernorm_distributed/device/kernels/compute/layernorm_post_allgather.cpp",
)
def layer_norm_post_all_gather(input_tensor, stats, *, epsilon: float = 1e-12, weight=None, bias=None):
    """Compute the layer norm with the gathered sums.

    The variance is E[x^2] - E[x]^2, which cancels if the mean is large.
    """
    devices = stats.shape[-1] // (2 * _TILE)
    sums = stats.unflatten(-1, (devices, 2, _TILE))[..., 0].sum(-2) / (input_tensor.shape[-1] * devices)
    mean_square, mean_ = sums[..., :1], sums[..., 1:]
    scale = torch.rsqrt(mean_square - mean_.square() + epsilon)
    return _affine((input_tensor - mean_) * scale, weight, bias)
