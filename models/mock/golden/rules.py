"""Rules that compute an op's golden values, and the table of rules that the op modules fill.

Each of our rules is a claim about silicon. So every registration names its source: the kernel in the wheel or the
upstream test from which the semantics were read.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import ttnn

Shards = list[torch.Tensor]


@dataclass(frozen=True)
class Slot:
    """Placeholder for the n-th input tensor inside the arguments of a call."""

    index: int


@dataclass(frozen=True)
class MeshShards:
    """Values of a mesh tensor in the form that a mesh rule takes: one value per device, row-major over `mesh_shape`."""

    shards: Shards
    mesh_shape: tuple[int, int]
    dtype: ttnn.DataType

    @property
    def shape(self) -> torch.Size:
        """Shape of one device's value."""
        return self.shards[0].shape

    def groups(self, cluster_axis: int | None) -> list[list[int]]:
        """Return the groups of device indices of a collective along `cluster_axis` (None: the whole mesh)."""
        rows, cols = self.mesh_shape
        if cluster_axis is None:
            return [list(range(rows * cols))]
        if cluster_axis in (0, -2):
            return [[r * cols + c for r in range(rows)] for c in range(cols)]
        if cluster_axis in (1, -1):
            return [[r * cols + c for c in range(cols)] for r in range(rows)]
        raise ValueError(f"cluster_axis {cluster_axis} is not an axis of mesh {rows}x{cols}")


@dataclass(frozen=True)
class Rule:
    """A golden rule.

    Attributes:
        function: the golden function.
        local: with True, `function` is called once per device. It gets the op's own arguments, with each tensor
            replaced by the device's `torch.Tensor`. With False it is called once. Each tensor is a `MeshShards`, and it
            returns the list of per-device values for each output.
        source: the place from which the semantics were read.
        dtypes: whether `function` also gets `dtypes`, the ttnn dtypes of the tensor inputs in the order of the call.
        buffers: parameters, besides `EXECUTION_ARGUMENTS`, that the op writes and does not read; `function` gets None
            for them.
        partly_written: parameters of which the op writes a part and leaves the rest unchanged. Values that were never
            written count as NaN.
    """

    function: Callable[..., Any]
    local: bool
    source: str
    dtypes: bool = False
    buffers: frozenset[str] = frozenset()
    partly_written: frozenset[str] = frozenset()

    @functools.cached_property
    def positional(self) -> tuple[str, ...]:
        """Names of the parameters that can be given by position.

        Parameters after them that `*args` would take are not counted. A function that takes only `*args` is a wrapper
        that passes everything on, so its arguments get generated names.
        """
        parameters = inspect.signature(self.function).parameters.values()
        named = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
        if not named and any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return tuple(f"argument_{index}" for index in range(8))
        return named

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Names of the parameters, without those that `*args` and `**kwargs` would take."""
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return frozenset(p.name for p in inspect.signature(self.function).parameters.values() if p.kind not in variable)

    def default_of(self, name: str) -> Any:
        """Return the default of the parameter `name`, or `inspect.Parameter.empty` if it has none."""
        return inspect.signature(self.function).parameters[name].default


RULES: dict[str, Rule] = {}

# Arguments that say where and how an op runs, and never change what it computes. A rule of ours that names one gets it
# nevertheless. Tensors among them are buffers that the op writes; they are never read as inputs.
EXECUTION_ARGUMENTS = frozenset(
    {
        "barrier_semaphore",
        "ccl_core_grid_offset",
        "chunks_per_sync",
        "compute_kernel_config",
        "config",
        "core_grid",
        "cq_id",
        "device",
        "dtype",  # The output's dtype: every result is rounded to the dtype of the real op's output.
        "fast_and_approximate_mode",
        "intermediate_memory_config",
        "layout",
        "memory_config",
        "mesh_device",
        "multi_device_global_semaphore",
        "num_buffers_per_channel",
        "num_links",
        "num_workers_per_link",
        "optional_output_tensor",
        "output_tensor",
        "output_tensors",
        "pad_value",  # Fills tile padding, which no golden value holds.
        "persistent_output_buffer",
        "persistent_output_buffer_joint_k",
        "persistent_output_buffer_joint_v",
        "persistent_output_buffer_k",
        "persistent_output_buffer_v",
        "persistent_output_buffers",
        "persistent_output_tensor",
        "program_config",
        "queue_id",
        "reshape_tile_mode",
        "skip_padding_fill",
        "sub_core_grids",
        "sub_device_id",
        "subdevice_id",
        "topology",
        "use_2d_core_grid",
        "use_l1_small_for_semaphores",
        "use_multicore",
    }
)


def local_rule(
    *names: str, source: str, dtypes: bool = False, buffers: tuple[str, ...] = (), partly_written: tuple[str, ...] = ()
):
    """Register a per-device golden for the ops `names`; `source` is the place from which the semantics were read."""
    return _register(
        names,
        lambda function: Rule(function, True, source, dtypes, frozenset(buffers), frozenset(partly_written)),
    )


def mesh_rule(*names: str, source: str, partly_written: tuple[str, ...] = ()):
    """Register a whole-mesh golden (a collective) for the ops `names`; `source` is the place from which it was read."""
    return _register(names, lambda function: Rule(function, False, source, partly_written=frozenset(partly_written)))


def _register(names: tuple[str, ...], rule: Callable[[Callable[..., Any]], Rule]):
    def decorator(function):
        for name in names:
            if name in RULES:
                raise ValueError(f"{name} has a golden rule already")
            RULES[name] = rule(function)
        return function

    return decorator
