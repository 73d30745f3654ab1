"""Golden rules of 3D convolution, halo exchange and the other ops of a video decoder."""

import torch

from models.mock.golden.rules import MeshShards, Shards, local_rule, mesh_rule

_CONV3D = "ttnn/operations/experimental/conv3d/device/kernels"
_NEIGHBOR_PAD = "ttnn/operations/experimental/ccl/neighbor_pad_async/device/kernels"


@local_rule(
    "ttnn.experimental.conv3d",
    source=f"{_CONV3D}/reader_vol2col.cpp (patches ordered kT, kH, kW, channel within a block of input channels; "
    "padding clamps the index or gives zeros), compute.cpp (patches @ weight + bias, untilized); weight order: "
    "upstream conv3d/prepare_conv3d_weights.cpp",
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
):
    """Convolve [1, T, H, W, C] with a prepared weight [blocks * kT * kH * kW * block, out]. Sums are float32."""
    if tuple(stride) != (1, 1, 1) or groups != 1 or config is None:
        raise ValueError("strides, groups and calls without a config are not covered by this golden")
    channels = input_tensor.shape[-1]
    block = config.C_in_block or channels
    weight = weight_tensor.reshape(channels // block, *kernel_size, block, output_channels)
    weight = weight.permute(5, 0, 4, 1, 2, 3).reshape(output_channels, channels, *kernel_size)
    x = input_tensor.permute(0, 4, 1, 2, 3)
    sides = [amount for pad in reversed(tuple(padding)) for amount in (pad, pad)]
    if any(sides):
        mode = {"zeros": "constant", "replicate": "replicate"}[padding_mode]
        x = torch.nn.functional.pad(x, sides, mode=mode)
    bias = None if bias_tensor is None else bias_tensor.reshape(-1)
    if tuple(kernel_size) == (1, 1, 1):
        out = torch.nn.functional.linear(input_tensor, weight.reshape(output_channels, channels), bias)
        return out if not any(sides) else _refuse_padded_point()
    return torch.nn.functional.conv3d(x, weight, bias).permute(0, 2, 3, 4, 1)


def _refuse_padded_point():
    raise ValueError("padding of a 1x1x1 convolution is not covered by this golden")


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
