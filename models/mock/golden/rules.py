"""How golden values are computed for an op: the rules, and the table that op modules fill.

A rule of ours is a claim about silicon, so every registration names its source: the kernel in the wheel or the
upstream test its semantics were read from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Shards = list[torch.Tensor]


@dataclass(frozen=True)
class MeshShards:
    """A mesh tensor's values as a mesh rule sees them: one value per device, row-major over ``mesh_shape``."""

    shards: Shards
    mesh_shape: tuple[int, int]

    @property
    def shape(self) -> torch.Size:
        """Shape of one device's value."""
        return self.shards[0].shape

    def groups(self, cluster_axis: int | None) -> list[list[int]]:
        """Device indices that take part in one collective along ``cluster_axis`` (None: the whole mesh)."""
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

    ``local``: ``function`` gets the op's own arguments with each tensor replaced by one device's ``torch.Tensor`` and
    is called per device. Otherwise it is called once, each tensor being a `MeshShards`, and returns for each output
    the list of per-device values.
    """

    function: Callable[..., Any]
    local: bool
    source: str


RULES: dict[str, Rule] = {}

# Arguments that say where and how an op runs and never what it computes.
EXECUTION_ARGUMENTS = frozenset(
    {
        "memory_config",
        "compute_kernel_config",
        "program_config",
        "core_grid",
        "sub_core_grids",
        "config",
        "queue_id",
        "use_multicore",
        "num_links",
        "topology",
        "subdevice_id",
        "multi_device_global_semaphore",
        "barrier_semaphore",
        "persistent_output_buffer",
        "persistent_output_buffers",
        "persistent_output_buffer_k",
        "persistent_output_buffer_v",
        "output_tensor",
        "optional_output_tensor",
        "ccl_core_grid_offset",
        "num_workers_per_link",
        "num_buffers_per_channel",
        "chunks_per_sync",
        "mesh_device",
    }
)


def local_rule(name: str, source: str):
    """Register a per-device golden for op ``name``; ``source`` says where its semantics were read."""
    return _register(name, source, local=True)


def mesh_rule(name: str, source: str):
    """Register a whole-mesh golden (a collective) for op ``name``; ``source`` says where its semantics were read."""
    return _register(name, source, local=False)


def _register(name: str, source: str, *, local: bool):
    def decorator(function):
        if name in RULES:
            raise ValueError(f"{name} has a golden rule already")
        RULES[name] = Rule(function, local, source)
        return function

    return decorator
