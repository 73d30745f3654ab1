"""Application of a rule to the values of the devices, and the checks of its results."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import ttnn

from models.mock.golden.errors import golden_error
from models.mock.golden.rounding import packed
from models.mock.golden.rules import MeshShards, Rule, Shards, Slot
from models.mock.golden.store import describe


def run_rule(
    rule: Rule,
    op: str,
    args: list,
    kwargs: dict,
    inputs: list[Shards],
    dtypes: list[ttnn.DataType],
    mesh_shape: tuple[int, int],
    outputs: Sequence[ttnn.Tensor],
) -> list[Shards]:
    """Return each output's values per device, packed to the output's dtype and checked against its shape.

    Raises:
        GoldenError: the rule fails, writes into its inputs, or returns something else than the real op.
    """
    devices = mesh_shape[0] * mesh_shape[1]
    for shards in inputs:
        if len(shards) != devices:
            raise golden_error(op, f"an input lives on {len(shards)} devices, the output on {devices}")
    before = _versions(inputs)
    with torch.no_grad():
        if rule.local:
            values = _run_local(rule, op, args, kwargs, inputs, devices)
        else:
            tensors = [MeshShards(x, mesh_shape, dtype) for x, dtype in zip(inputs, dtypes, strict=True)]
            values = _run_mesh(rule, op, args, kwargs, tensors)
    if _versions(inputs) != before:
        raise golden_error(op, "its golden function wrote into its inputs")
    if len(values) != len(outputs):
        raise golden_error(op, f"golden has {len(values)} outputs, the op has {len(outputs)}")
    return [_checked(output, shards, op) for output, shards in zip(outputs, values, strict=True)]


def _versions(inputs: list[Shards]) -> list[int]:
    return [shard._version for shards in inputs for shard in shards if not shard.is_inference()]


def _fill(value: Any, of: Callable[[int], Any]) -> Any:
    if isinstance(value, Slot):
        return of(value.index)
    if type(value) in (list, tuple):
        return type(value)(_fill(v, of) for v in value)
    return value


def _run_local(rule: Rule, op: str, args: list, kwargs: dict, inputs: list[Shards], devices: int) -> list[Shards]:
    per_device: list[list[torch.Tensor]] = []
    done: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for device in range(devices):
        key = tuple(id(shards[device]) for shards in inputs)
        if key not in done:

            def of(index: int, device: int = device) -> torch.Tensor:
                return inputs[index][device]

            done[key] = _flatten(_invoke(rule, op, args, kwargs, of), op)
        per_device.append(done[key])
    return [list(output) for output in zip(*per_device, strict=True)]


def _run_mesh(rule: Rule, op: str, args: list, kwargs: dict, tensors: list[MeshShards]) -> list[Shards]:
    result = _invoke(rule, op, args, kwargs, tensors.__getitem__)
    return result if isinstance(result[0], list) else [result]


def _invoke(rule: Rule, op: str, args: list, kwargs: dict, of: Callable[[int], Any]) -> Any:
    filled_args, filled_kwargs = [_fill(a, of) for a in args], {k: _fill(v, of) for k, v in kwargs.items()}
    try:
        return rule.function(*filled_args, **filled_kwargs)
    except Exception as error:
        raise golden_error(op, f"its golden function failed: {type(error).__name__}: {error}") from error


def _flatten(result: Any, op: str) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, (list, tuple)):
        return [tensor for part in result for tensor in _flatten(part, op)]
    raise golden_error(op, f"its golden function gave a {type(result).__name__}")


def _checked(output: ttnn.Tensor, shards: Shards, op: str) -> Shards:
    shape, dtype = tuple(output.shape), output.dtype
    done: dict[int, torch.Tensor] = {}
    checked = []
    for shard in shards:
        if id(shard) not in done:
            if tuple(shard.shape) != shape:
                raise golden_error(op, f"golden shape {tuple(shard.shape)} is not the op's {describe(output)}")
            try:
                done[id(shard)] = packed(shard, dtype)
            except ValueError as error:
                raise golden_error(op, str(error)) from error
        checked.append(done[id(shard)])
    return checked
