"""Golden rules of ops that move values without computing any: slices, views, permutations, copies, layouts."""

import torch

from models.mock.golden.rules import local_rule

_MOVEMENT = "ttnn/operations/data_movement"


@local_rule("ttnn.slice", source=f"{_MOVEMENT}/slice/slice_nanobind.cpp: PyTorch slicing with starts, ends, steps")
def slice_(
    input_tensor,
    slice_start=None,
    slice_end=None,
    slice_step=None,
    *,
    starts=None,
    ends=None,
    steps=None,
):
    """Return `x[start:end:step]` in every dim. Starts and ends are lists of numbers."""
    begin, end, step = slice_start or starts, slice_end or ends, slice_step or steps
    if not isinstance(begin, (list, tuple)) or not isinstance(end, (list, tuple)):
        raise ValueError("begins and ends that are not lists of numbers are not covered by this golden")
    step = step or [1] * len(begin)
    return input_tensor[tuple(slice(int(b), int(e), int(s)) for b, e, s in zip(begin, end, step, strict=True))]


@local_rule("ttnn.concat", source=f"{_MOVEMENT}/concat/concat_nanobind.cpp: torch.concat")
def concat(tensors, dim: int = 0, *, groups: int = 1):
    """Join the tensors along `dim`."""
    if groups != 1:
        raise ValueError(f"groups={groups} is not covered by this golden")
    return torch.cat(list(tensors), dim=dim)


@local_rule("ttnn.reshape", source=f"{_MOVEMENT}/reshape_view/reshape_nanobind.cpp: of the logical shape")
def reshape(input_tensor, shape, padded_shape=None):
    """Return the same values in row-major order with another logical shape.

    A `padded_shape` is only for a view of the same tiles, which the engine follows without a rule.
    """
    if padded_shape is not None:
        raise ValueError(f"a padded shape {list(padded_shape)} that makes a copy is not covered by this golden")
    return input_tensor.reshape(tuple(shape))


@local_rule("ttnn.permute", source=f"{_MOVEMENT}/permute/permute_nanobind.cpp: torch.permute")
def permute(input_tensor, dims):
    """Return the same values with dims reordered."""
    return input_tensor.permute(tuple(dims))


@local_rule("ttnn.to_layout", source="the docstring of ttnn.to_layout: values unchanged")
def to_layout(tensor, layout, dtype=None, memory_config=None, sub_core_grids=None):
    """Return the same values; they may be tiled or not."""
    return tensor


@local_rule("ttnn.to_memory_config", source="the docstring of ttnn.to_memory_config: values unchanged")
def to_memory_config(tensor, memory_config, dtype=None, output_tensor=None):
    """Return the same values, in another memory."""
    return tensor


@local_rule("ttnn.clone", source=f"{_MOVEMENT}/clone/clone_nanobind.cpp: a copy")
def clone(input):
    """Return a copy."""
    return input


@local_rule("ttnn.tilize", "ttnn.untilize", source=f"{_MOVEMENT}/tilize/tilize_nanobind.cpp")
def tilize(input_tensor):
    """Return the same values; they may be tiled or not."""
    return input_tensor


@local_rule("ttnn.copy", source=f"{_MOVEMENT}/copy/copy_nanobind.cpp: a into b", buffers=("input_b",))
def copy(input_a, input_b=None):
    """Copy `input_a`'s values to the second tensor's buffer. The result is the handle of that buffer."""
    return input_a


@local_rule("ttnn.pad", source=f"{_MOVEMENT}/pad/pad_nanobind.cpp: constant padding")
def pad(input_tensor, padding, value):
    """Pad with a constant; `padding` is (before, after) per dim."""
    if padding and not isinstance(padding[0], (list, tuple)):
        raise ValueError("padding to an output shape is not covered by this golden")
    flat = [int(amount) for before_after in reversed(padding) for amount in before_after]
    return torch.nn.functional.pad(input_tensor, flat, value=value)


def _filled(shape, value: float) -> torch.Tensor:
    return torch.full(tuple(shape), float(value))


@local_rule("ttnn.zeros", source="the docstrings of ttnn.zeros, ttnn.ones and ttnn.full")
def zeros(shape):
    """Return zeros."""
    return _filled(shape, 0.0)


@local_rule("ttnn.ones", source="the docstrings of ttnn.zeros, ttnn.ones and ttnn.full")
def ones(shape):
    """Return ones."""
    return _filled(shape, 1.0)


@local_rule("ttnn.full", source="the docstrings of ttnn.zeros, ttnn.ones and ttnn.full")
def full(shape, fill_value):
    """Return a tensor filled with one value."""
    return _filled(shape, fill_value)
