"""Golden rules of 3D convolution, halo exchange and the other ops of a video decoder."""

import math

import torch
import ttnn

from models.mock.golden.fidelity import factors, plus, product
from models.mock.golden.rounding import significant
from models.mock.golden.rules import MeshShards, Shards, local_rule, mesh_rule
from models.mock.golden.sums import exact

_CONV3D = "ttnn/operations/experimental/conv3d/device/kernels"
_NEIGHBOR_PAD = "ttnn/operations/experimental/ccl/neighbor_pad_async/device/kernels"


@local_rule(
    "ttnn.experimental.conv3d",
    source=f"{_CONV3D}/reader_vol2col.cpp (patches ordered kT, kH, kW, channel within a block of input channels; "
    "padding clamps the index or gives zeros), compute.cpp (matmul_blocks, add_block_inplace_math, add_bias_inplace, "
    "untilize); weight order: upstream conv3d/prepare_conv3d_weights.cpp; types between the steps: upstream "
    "conv3d/device/conv3d_program_factory.cpp",
)
def conv3d(
    *,
    input_tensor,
    weight_tensor,
    bias_tensor=None,
    config=None,
    output_channels: int,
    kernel_size,
    stride=(1, 1, 1),
    padding=(0, 0, 0),
    padding_mode: str = "zeros",
    groups: int = 1,
    dtype=None,
    compute_kernel_config=None,
):
    """Convolve [1, T, H, W, C] with a prepared weight [blocks * kT * kH * kW * block, out].

    It is a product of patches (SrcB) and the weight for each block of input channels. The product of a single block is
    rounded to bfloat16 before the bias is added. Those of several blocks are float32, and are added one by one in the
    matrix engine (`fidelity.plus`), then the bias.
    """
    if tuple(stride) != (1, 1, 1) or groups != 1 or config is None or compute_kernel_config is None:
        raise ValueError("strides, groups and calls without configs are not covered by this golden")
    if dtype not in (None, ttnn.bfloat16) or not compute_kernel_config.fp32_dest_acc_en:
        raise ValueError("convolutions in float32 or without fp32_dest_acc_en are not covered by this golden")
    block = config.C_in_block or input_tensor.shape[-1]
    x = _padded(input_tensor, padding, padding_mode)
    inner = math.prod(kernel_size) * block
    parts = []
    for channels, weight in zip(x.split(block, -1), weight_tensor.split(inner), strict=True):
        parts.append(_product(channels, weight, kernel_size, compute_kernel_config))
    total = significant(parts[0], 8) if len(parts) == 1 else parts[0]
    for part in parts[1:]:
        total = plus(total, part)
    if bias_tensor is not None:
        total = plus(total, bias_tensor.reshape(-1))
    sizes = [have - size + 1 for have, size in zip(x.shape[1:4], kernel_size, strict=True)]
    return total.reshape(x.shape[0], *sizes, output_channels)


def _product(x: torch.Tensor, weight: torch.Tensor, kernel_size, config) -> torch.Tensor:
    """Multiply the patches of x by the weight: [positions, out]."""
    if not exact():
        # The same sum without the patches, which take 27 times the memory.
        out = None
        for source_a, source_b in factors(weight, x, config.math_fidelity):
            kernel = source_a.reshape(*kernel_size, -1, weight.shape[-1]).permute(4, 3, 0, 1, 2)
            part = torch.nn.functional.conv3d(source_b.permute(0, 4, 1, 2, 3), kernel).permute(0, 2, 3, 4, 1)
            out = part if out is None else out + part
        assert out is not None
        return out.reshape(-1, weight.shape[-1])
    patches = x
    for dim, size in enumerate(kernel_size, start=1):
        patches = patches.unfold(dim, size, 1)
    # [1, T, H, W, C, kT, kH, kW] -> [positions, kT kH kW C]
    rows = patches.permute(0, 1, 2, 3, 5, 6, 7, 4).reshape(-1, weight.shape[0])
    return product(rows, weight, config)


def _padded(x: torch.Tensor, padding, mode: str) -> torch.Tensor:
    sides = [amount for pad in reversed(tuple(padding)) for amount in (pad, pad)]
    if not any(sides):
        return x
    channels_first = x.permute(0, 4, 1, 2, 3)
    kind = {"zeros": "constant", "replicate": "replicate"}[mode]
    return torch.nn.functional.pad(channels_first, sides, mode=kind).permute(0, 2, 3, 4, 1)


@mesh_rule(
    "ttnn.experimental.neighbor_pad_async",
    source=f"{_NEIGHBOR_PAD}/minimal_default_reader.cpp, minimal_default_writer.cpp (edge chips repeat their outermost "
    "position or write zeros, others send theirs in order), phase2_w_reader.cpp (the second dim's halo includes the "
    "first's), local_copy_writer.cpp (zeros in the first frames, time being the dim before the first padded one)",
)
def neighbor_pad_async(
    input_tensor: MeshShards,
    dim,
    padding_left,
    padding_right,
    padding_mode: str,
    cluster_axis,
    neighbor_semaphore,
    barrier_semaphore,
    *,
    logical_h: int = 0,
    t_front_pad: int = 0,
) -> list[Shards]:
    """Put each chip's shard between the ends of its neighbours along one or two dims, on a line of chips."""
    if logical_h:
        raise ValueError("logical_h is not covered by this golden")
    shards = list(input_tensor.shards)
    if t_front_pad:
        before_dim = dim[0] - 1
        room = torch.zeros_like(torch.cat([shards[0].narrow(before_dim, 0, 1)] * t_front_pad, dim=before_dim))
        shards = [torch.cat([room, shard], dim=before_dim) for shard in shards]
    for d, before, after, axis in zip(dim, padding_left, padding_right, cluster_axis, strict=True):
        padded: Shards = list(shards)
        for group in input_tensor.groups(axis):
            for position, i in enumerate(group):
                left = _end(shards, group, position, d, before, padding_mode, left=True)
                right = _end(shards, group, position, d, after, padding_mode, left=False)
                padded[i] = torch.cat([left, shards[i], right], dim=d)
        shards = padded
    return [shards]


def _end(
    shards: Shards, group: list[int], position: int, dim: int, count: int, mode: str, *, left: bool
) -> torch.Tensor:
    """Return the positions that the chip at `position` of a line receives from its left or right side."""
    size = shards[group[0]].shape[dim]
    neighbor = position - 1 if left else position + 1
    if 0 <= neighbor < len(group):
        return shards[group[neighbor]].narrow(dim, size - count if left else 0, count)
    edge = shards[group[position]].narrow(dim, 0 if left else size - 1, 1)
    repeated = torch.cat([edge] * count, dim=dim) if count else edge.narrow(dim, 0, 0)
    return repeated if mode == "replicate" else torch.zeros_like(repeated)


@local_rule(
    "ttnn.experimental.slice_write",
    source="experimental/slice_write docstring: the input's values between begin and end of the output, in place",
    partly_written=("target",),
)
def slice_write(input_tensor, target, start, end, step):
    """Return the second tensor with the first one's values in `[start, end)`."""
    if any(s != 1 for s in step):
        raise ValueError(f"steps {list(step)} are not covered by this golden")
    out = target.clone()
    out[tuple(slice(a, b) for a, b in zip(start, end, strict=True))] = input_tensor
    return out
