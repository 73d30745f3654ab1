"""Replay of kernel vectors on an open mesh: the same ops on the same inputs.

A file holds cases. A case is calls of ops on named tensors, with arguments as JSON: a dict of one key that starts with
$ stands for what JSON cannot say.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import ttnn
from safetensors import safe_open

VECTORS = Path(__file__).with_name("vectors")


@dataclass(frozen=True)
class Case:
    """One case, and where its tensors are."""

    file: Path
    name: str
    spec: dict[str, Any]

    @property
    def outputs(self) -> dict[str, list[torch.Tensor]]:
        """What the kernels gave: per name the values of each chip."""
        return self._tensors("outputs")

    @property
    def inputs(self) -> dict[str, list[torch.Tensor]]:
        """The values of each chip before they are packed for the device."""
        return self._tensors("inputs")

    def _tensors(self, kind: str) -> dict[str, list[torch.Tensor]]:
        with safe_open(self.file, "pt") as tensors:
            return {
                name: [tensors.get_tensor(key) for key in given.get("tensors", [given.get("tensor")])]
                for name, given in self.spec[kind].items()
            }

    def run(self, mesh: ttnn.MeshDevice) -> dict[str, list[torch.Tensor]]:
        """What the ops give on `mesh`: per name the values of each chip."""
        return run(self.spec, self.inputs, self.spec["outputs"], mesh)


def run(
    spec: dict[str, Any], inputs: dict[str, list[torch.Tensor]], outputs: Iterable[str], mesh: ttnn.MeshDevice
) -> dict[str, list[torch.Tensor]]:
    """Run the calls of `spec` on `mesh` with the values of each chip. Return those of each of `outputs`."""
    known: dict[str, Any] = {}
    for name, shards in inputs.items():
        given = spec["inputs"][name]
        known[name] = uploaded(shards, given["dtype"], given.get("layout", "TILE"), mesh)
    for call in spec["calls"]:
        args = [decoded(value, known, mesh) for value in call["args"]]
        kwargs = {key: decoded(value, known, mesh) for key, value in call["kwargs"].items()}
        result = op(call["op"])(*args, **kwargs)
        results = result if isinstance(result, (list, tuple)) else [result]
        known.update(zip(call["out"], results, strict=False))
    parts = {name: ttnn.get_device_tensors(ttnn.from_device(known[name])) for name in outputs}
    return {name: [ttnn.to_torch(part) for part in shards] for name, shards in parts.items()}


def uploaded(shards: list[torch.Tensor], dtype: str, layout: str, mesh: ttnn.MeshDevice) -> ttnn.Tensor:
    """Upload one value per chip of a line."""
    rows, columns = mesh.shape
    assert rows * columns == len(shards)
    mapper = ttnn.ShardTensor2dMesh(mesh, mesh_shape=(rows, columns), dims=(None, 0))
    return ttnn.from_torch(
        torch.cat(shards),
        dtype=getattr(ttnn, dtype),
        layout=getattr(ttnn, layout + "_LAYOUT"),
        device=mesh,
        mesh_mapper=mapper,
    )


def cases(folder: str) -> Iterator[Case]:
    """All cases of a folder: ``one_chip`` or ``several_chips``."""
    for file in sorted((VECTORS / folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name, spec in json.loads(tensors.metadata()["cases"]).items():
                yield Case(file, name, spec)


def op(name: str) -> Callable[..., Any]:
    """The op of that full name."""
    found: Any = ttnn
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def decoded(value: Any, known: dict[str, Any], mesh: ttnn.MeshDevice) -> Any:
    """An argument from its JSON form."""
    if isinstance(value, list):
        return [decoded(part, known, mesh) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "$tensor":
        return known[inner]
    if kind == "$tuple":
        return tuple(decoded(part, known, mesh) for part in inner)
    return _KINDS[kind](inner, mesh)


def _semaphores(count: int, mesh: ttnn.MeshDevice) -> list[Any]:
    grid = mesh.compute_with_storage_grid_size()
    cores = ttnn.CoreRangeSet([ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(grid.x - 1, grid.y - 1))])
    return [ttnn.create_global_semaphore(mesh, cores, 0) for _ in range(count)]


def _buffer(description: list[Any], mesh: ttnn.MeshDevice) -> ttnn.Tensor:
    shape, dtype, layout = description
    return ttnn.empty(
        shape,
        dtype=getattr(ttnn, dtype),
        layout=getattr(ttnn, layout + "_LAYOUT"),
        device=mesh,
        memory_config=ttnn.DRAM_MEMORY_CONFIG,
    )


def _config(make: Callable[..., Any]) -> Callable[[dict[str, Any], ttnn.MeshDevice], Any]:
    def build(fields: dict[str, Any], mesh: ttnn.MeshDevice) -> Any:
        return make(**{name: _field(name, value) for name, value in fields.items()})

    return build


def _field(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name.endswith("fidelity"):
        return getattr(ttnn.MathFidelity, value)
    if name == "compute_with_storage_grid_size":
        return ttnn.CoreCoord(*value)
    return getattr(ttnn, value) if name in ("weights_dtype", "output_layout") else value


_KINDS: dict[str, Callable[[Any, ttnn.MeshDevice], Any]] = {
    "$dtype": lambda name, _: getattr(ttnn, name),
    "$layout": lambda name, _: getattr(ttnn, name + "_LAYOUT"),
    "$memory": lambda name, _: getattr(ttnn, name),
    "$mesh": lambda _, mesh: mesh,
    "$core": lambda place, _: ttnn.CoreCoord(*place),
    "$buffer": _buffer,
    "$semaphores": _semaphores,
    "$topology": lambda name, _: getattr(ttnn.Topology, name),
    "$gelu": lambda name, _: getattr(ttnn.GeluVariant, name),
    "$unary": lambda name, _: [ttnn.UnaryWithParam(getattr(ttnn.UnaryOpType, name))],
    "$float32": lambda value, _: struct.unpack("f", struct.pack("f", value))[0],
    "$compute": _config(ttnn.WormholeComputeKernelConfig),
    "$minimal_matmul": _config(ttnn.MinimalMatmulConfig),
    "$sdpa": _config(ttnn.SDPAProgramConfig),
    "$conv3d": _config(ttnn.Conv3dConfig),
}
