"""Golden rules of reductions and norms.

The matrix engine multiplies and adds, and reads every intermediate value as TF32. Golden covers norms with
`fp32_dest_acc_en`. The kernels reduce over whole tiles, so values in the last tile after the logical width count unless
the op masks them. Each docstring says so.
"""

import math

import torch
import ttnn

from models.mock.golden.fidelity import plus, product, times, truncate
from models.mock.golden.rounding import to_tf32
from models.mock.golden.rules import local_rule

HIGHEST = ttnn.MathFidelity.HiFi4
_EXACT = ttnn.WormholeComputeKernelConfig(
    math_fidelity=HIGHEST, math_approx_mode=False, fp32_dest_acc_en=True, packer_l1_acc=True
)
_NORM = "ttnn/operations/normalization"
_REDUCE = (
    "ttnn/operations/reduction/generic/device/kernels/compute/reduce.cpp; fill_implicit_tile_padding before it: "
    "upstream reduction/generic/generic_reductions.cpp; scaler of a mean: ttnn/kernel_lib/reduce_helpers_dataflow.inl, "
    "float_to_scaler_bits"
)
_TILE = 32


def squares(x: torch.Tensor, fidelity: ttnn.MathFidelity) -> torch.Tensor:
    """Return `x * x` in the matrix engine."""
    return times(x, x, fidelity)


def row_sums(x: torch.Tensor) -> torch.Tensor:
    """Sum rows [..., 1] as a reduction does: a product with ones, of TF32 values."""
    return product(x, torch.ones(x.shape[-1], 1), _EXACT)


def inverse_root(mean: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return `1 / sqrt(mean + epsilon)`."""
    return torch.rsqrt(mean + epsilon)


def _require(config) -> ttnn.MathFidelity:
    if config is None or not config.fp32_dest_acc_en:
        raise ValueError("a norm without a compute config, or without fp32_dest_acc_en, is not covered by this golden")
    return config.math_fidelity


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, fidelity) -> torch.Tensor:
    if weight is not None:
        x = times(x, _row(weight, x.shape[-1]), fidelity)
    return x if bias is None else plus(x, _row(bias, x.shape[-1]))


def _row(vector: torch.Tensor, width: int) -> torch.Tensor:
    if vector.numel() != width:
        raise ValueError(f"a weight or bias of {vector.numel()} values for rows of {width}")
    return vector.reshape(-1)


@local_rule("ttnn.sum", source=_REDUCE, dtypes=True)
def sum_(
    input_tensor, dim=None, keepdim: bool = False, *, scalar: float = 1.0, compute_kernel_config=None, dtypes: list
):
    """Sum over `dim` (over all dims if None), times `scalar`. Tile padding counts as zeros."""
    return _reduced(input_tensor, dim, keepdim, scalar, compute_kernel_config, dtypes[0])


@local_rule("ttnn.mean", source=_REDUCE, dtypes=True)
def mean(
    input_tensor, dim=None, keepdim: bool = False, *, scalar: float = 1.0, compute_kernel_config=None, dtypes: list
):
    """Return the mean over `dim`, times `scalar`. Padding rows are zeros, and the divisor is the logical size."""
    if dtypes[0] == ttnn.float32:
        raise ValueError("a mean of float32 is not covered by this golden: use a sum")
    dims = range(input_tensor.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    count = math.prod(input_tensor.shape[d] for d in dims)
    return _reduced(input_tensor, dim, keepdim, scalar / count, compute_kernel_config, dtypes[0])


def _reduced(x: torch.Tensor, dim, keepdim: bool, scale: float, config, dtype: ttnn.DataType) -> torch.Tensor:
    """Reduce one dim in the matrix engine: a product with the scale, which is cut to bfloat16.

    The vector unit sums float32 tensors. Several dims, or none, are summed in float32 here too.
    """
    factor = truncate(torch.tensor(scale, dtype=torch.float32), 7)
    if dtype == ttnn.float32 or not isinstance(dim, int) or x.ndim < 2:
        dims = tuple(range(x.ndim)) if dim is None else dim
        return x.sum(dim=dims, keepdim=keepdim) * factor
    columns = x.movedim(dim, -1).unsqueeze(-1)
    out = product(factor.expand(1, columns.shape[-2]), columns, config or _EXACT).squeeze(-1).movedim(-1, dim)
    return out if keepdim else out.squeeze(dim)


@local_rule("ttnn.rms_norm", source=f"{_NORM}/layernorm/device/kernels/compute/layernorm.cpp")
def rms_norm(input_tensor, *, epsilon: float = 1e-12, weight=None, bias=None, compute_kernel_config=None):
    """Return `x / sqrt(mean(x^2) + epsilon) * weight + bias` over the logical width."""
    fidelity = _require(compute_kernel_config)
    mean_square = to_tf32(row_sums(squares(input_tensor, fidelity)) / input_tensor.shape[-1])
    inverse = inverse_root(plus(mean_square, torch.tensor(epsilon)), 0.0)
    return _affine(times(input_tensor, inverse, fidelity), weight, bias, fidelity)


def _statistics(x: torch.Tensor, *, with_sum: bool, fidelity: ttnn.MathFidelity) -> torch.Tensor:
    stats = x.new_zeros(*x.shape[:-1], _TILE * (2 if with_sum else 1))
    stats[..., :1] = row_sums(squares(x, fidelity))
    if with_sum:
        stats[..., _TILE : _TILE + 1] = row_sums(x)
    return stats


@local_rule(
    "ttnn.rms_norm_pre_all_gather",
    source=f"{_NORM}/rmsnorm_distributed/device/kernels/compute/rmsnorm_pre_allgather.cpp",
)
def rms_norm_pre_all_gather(input_tensor, *, compute_kernel_config=None):
    """Return one tile column per row of tiles: sum(x^2) in column 0, zeros in the others."""
    return _statistics(input_tensor, with_sum=False, fidelity=_require(compute_kernel_config))


@local_rule(
    "ttnn.rms_norm_post_all_gather",
    source=f"{_NORM}/rmsnorm_distributed/device/kernels/compute/rmsnorm_post_allgather.cpp",
)
def rms_norm_post_all_gather(
    input_tensor, stats, *, epsilon: float = 1e-12, weight=None, bias=None, compute_kernel_config=None
):
    """Compute the RMS norm with the gathered sums of all devices. Each device holds as many columns as this one."""
    fidelity = _require(compute_kernel_config)
    devices = stats.shape[-1] // _TILE
    total = row_sums(stats.unflatten(-1, (devices, _TILE))[..., 0])
    mean_square = total / (input_tensor.shape[-1] * devices)
    inverse = inverse_root(plus(mean_square, torch.tensor(epsilon)), 0.0)
    return _affine(times(input_tensor, inverse, fidelity), weight, bias, fidelity)


@local_rule(
    "ttnn.layer_norm_pre_all_gather",
    source=f"{_NORM}/layernorm_distributed/device/kernels/compute/layernorm_pre_allgather.cpp",
)
def layer_norm_pre_all_gather(input_tensor, *, compute_kernel_config=None):
    """Return two tile columns: sum(x^2) in column 0 of the first, sum(x) in column 0 of the second."""
    return _statistics(input_tensor, with_sum=True, fidelity=_require(compute_kernel_config))


@local_rule(
    "ttnn.layer_norm_post_all_gather",
    source=f"{_NORM}/layernorm_distributed/device/kernels/compute/layernorm_post_allgather.cpp",
)
def layer_norm_post_all_gather(
    input_tensor, stats, *, epsilon: float = 1e-12, weight=None, bias=None, compute_kernel_config=None
):
    """Compute the layer norm with the gathered sums.

    The variance is E[x^2] - E[x]^2, which cancels if the mean is large.
    """
    fidelity = _require(compute_kernel_config)
    devices = stats.shape[-1] // (2 * _TILE)
    columns = stats.unflatten(-1, (devices, 2, _TILE))[..., 0]
    total = input_tensor.shape[-1] * devices
    mean_square, mean_ = row_sums(columns[..., 0]) / total, row_sums(columns[..., 1]) / total
    variance = plus(mean_square, -times(mean_, mean_, fidelity))
    inverse = inverse_root(plus(variance, torch.tensor(epsilon)), 0.0)
    return _affine(times(plus(input_tensor, -mean_), inverse, fidelity), weight, bias, fidelity)
