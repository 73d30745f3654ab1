"""Golden execution: torch values ride along with every op that the real ttnn library runs on a mock mesh.

For each op: the real op runs first (validation, program building, allocation, output spec), then each device's value
is computed from the input values, rounded to the op's real output dtype and checked against the real output's spec.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import ttnn
from ttnn.decorators import FastOperation

from models.mock.golden import transfers
from models.mock.golden.errors import golden_error
from models.mock.golden.rounding import round_to
from models.mock.golden.rules import EXECUTION_ARGUMENTS, RULES, MeshShards, Rule
from models.mock.golden.store import Store, describe

# Python-level wrappers around ops: their inner ops are the ones to follow.
_TRANSPARENT = frozenset(
    {
        "ttnn.to_torch",
        "ttnn.Tensor.__getitem__",
        "ttnn.unsqueeze_to_4D",
        "ttnn.as_tensor",
        "ttnn.dump_tensor",
        "ttnn.print",
    }
)
# Ops that allocate and promise no contents. Reading one before writing it is an error in the model, found as such.
_ALLOCATING = frozenset({"ttnn.empty", "ttnn.empty_like", "ttnn.allocate_tensor_on_device"})


class Engine:
    """The interposer on ttnn's op entry point. One per process; see `install`."""

    def __init__(self) -> None:
        self.store = Store()
        self.ops_seen: dict[str, int] = {}
        self.inside = False
        self._original_call: Callable[..., Any] | None = None

    def attach(self) -> None:
        """Put the interposer in front of every ttnn op."""
        engine, original = self, FastOperation.__call__
        self._original_call = original

        @functools.wraps(original)
        def call(operation, *args, **kwargs):
            return engine.run(operation, args, kwargs)

        FastOperation.__call__ = call
        transfers.attach(self)

    def detach(self) -> None:
        """Take the interposer away and forget all values."""
        if self._original_call is not None:
            FastOperation.__call__ = self._original_call
            self._original_call = None
            transfers.detach()
        self.store.clear()

    def run(self, operation: FastOperation, args: tuple, kwargs: dict) -> Any:
        """Run one op for real and carry its golden values."""
        assert self._original_call is not None
        name = operation.python_fully_qualified_name
        if self.inside or name in _TRANSPARENT:
            return self._original_call(operation, *args, **kwargs)
        self.store.sweep()
        self.inside = True
        try:
            handler = transfers.HANDLERS.get(name)
            if handler is not None:
                return handler(self, self._original_call, operation, args, kwargs)
            if name in _ALLOCATING:
                return self._original_call(operation, *args, **kwargs)
            return self._compute(operation, name, args, kwargs)
        finally:
            self.inside = False

    def _compute(self, operation: FastOperation, name: str, args: tuple, kwargs: dict) -> Any:
        inputs = _Inputs(self.store, name)
        bound_args = [inputs.bind(a) for a in args]
        bound_kwargs = {k: inputs.bind(v) for k, v in kwargs.items() if k not in EXECUTION_ARGUMENTS}
        assert self._original_call is not None
        result = self._original_call(operation, *args, **kwargs)
        outputs = _device_tensors(result)
        if not outputs:
            return result
        self.ops_seen[name] = self.ops_seen.get(name, 0) + 1
        rule = RULES.get(name) or _builtin_rule(operation, name)
        mesh = outputs[0].device()
        mesh_shape = (mesh.shape[0], mesh.shape[1])
        if rule.local:
            values = _run_local(rule, inputs, bound_args, bound_kwargs, mesh.get_num_devices(), name)
        else:
            values = _run_mesh(rule, inputs, bound_args, bound_kwargs, mesh_shape, name)
        if len(values) != len(outputs):
            raise golden_error(name, f"golden has {len(values)} outputs, the op has {len(outputs)}")
        for output, shards in zip(outputs, values, strict=True):
            self.store.put(output, _checked(output, shards, name))
        return result


class _Slot:
    """Stands for the n-th input tensor inside an argument structure."""

    def __init__(self, index: int) -> None:
        self.index = index


class _Inputs:
    """Input tensors of one call: their values, taken before the op may overwrite or free them."""

    def __init__(self, store: Store, op: str) -> None:
        self.shards: list[list[torch.Tensor]] = []
        self._store = store
        self._op = op

    def bind(self, value: Any) -> Any:
        """Replace device tensors in an argument by slots."""
        if isinstance(value, ttnn.Tensor):
            if not ttnn.is_tensor_storage_on_device(value):
                raise golden_error(self._op, f"a host tensor {describe(value)} is an op's input")
            self.shards.append(self._store.get(value, self._op))
            return _Slot(len(self.shards) - 1)
        if isinstance(value, (list, tuple)):
            return type(value)(self.bind(v) for v in value) if type(value) in (list, tuple) else value
        if isinstance(value, ttnn.Shape):
            return tuple(value)
        return value


def _fill(value: Any, of: Callable[[int], Any]) -> Any:
    if isinstance(value, _Slot):
        return of(value.index)
    if type(value) in (list, tuple):
        return type(value)(_fill(v, of) for v in value)
    return value


def _run_local(rule: Rule, inputs: _Inputs, args: list, kwargs: dict, devices: int, op: str) -> list:
    per_device: list[list[torch.Tensor]] = []
    done: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for device in range(devices):
        key = tuple(id(shards[device]) for shards in inputs.shards)
        if key not in done:

            def of(index: int, device: int = device) -> torch.Tensor:
                return inputs.shards[index][device]

            done[key] = _call(rule, [_fill(a, of) for a in args], {k: _fill(v, of) for k, v in kwargs.items()}, op)
        per_device.append(done[key])
    return [list(output) for output in zip(*per_device, strict=True)]


def _run_mesh(rule: Rule, inputs: _Inputs, args: list, kwargs: dict, mesh_shape: tuple[int, int], op: str) -> list:
    def of(index: int) -> MeshShards:
        return MeshShards(inputs.shards[index], mesh_shape)

    result = _invoke(rule, [_fill(a, of) for a in args], {k: _fill(v, of) for k, v in kwargs.items()}, op)
    return result if result and isinstance(result[0], list) else [result]


def _call(rule: Rule, args: list, kwargs: dict, op: str) -> list[torch.Tensor]:
    return _flatten(_invoke(rule, args, kwargs, op))


def _invoke(rule: Rule, args: list, kwargs: dict, op: str) -> Any:
    try:
        return rule.function(*args, **kwargs)
    except Exception as error:
        raise golden_error(op, f"its golden function failed: {type(error).__name__}: {error}") from error


def _flatten(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in _flatten(part)]


def _device_tensors(result: Any) -> list[ttnn.Tensor]:
    if isinstance(result, ttnn.Tensor):
        return [result] if ttnn.is_tensor_storage_on_device(result) else []
    if isinstance(result, (list, tuple)):
        return [tensor for part in result for tensor in _device_tensors(part)]
    return []


def _checked(output: ttnn.Tensor, shards: list[torch.Tensor], op: str) -> list[torch.Tensor]:
    shape, dtype = tuple(output.shape), output.dtype
    done: dict[int, torch.Tensor] = {}
    checked = []
    for shard in shards:
        if id(shard) not in done:
            if tuple(shard.shape) != shape:
                raise golden_error(op, f"golden shape {tuple(shard.shape)} is not the op's {describe(output)}")
            try:
                done[id(shard)] = round_to(shard, dtype)
            except ValueError as error:
                raise golden_error(op, str(error)) from error
        checked.append(done[id(shard)])
    return checked


@functools.cache
def _builtin_rule(operation: FastOperation, name: str) -> Rule:
    if operation.golden_function is None:
        raise golden_error(name, "the op has no golden function and none of ours")
    return Rule(operation.golden_function, local=True, source="ttnn's own golden function")
