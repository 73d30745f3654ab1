"""Golden execution: torch values accompany every op that the real ttnn library runs on a mock mesh.

For each op, the real op runs first: validation, program building, allocation, output spec. Then the value of each
device is computed from the input values, rounded to the op's real output dtype and checked against the real output's
spec.
"""

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import ttnn
from ttnn.decorators import FastOperation

from models.machine.ops import add_hook, device_tensors, remove_hook
from models.mock import limits
from models.mock.golden import transfers
from models.mock.golden.compute import run_rule
from models.mock.golden.errors import golden_error
from models.mock.golden.rules import EXECUTION_ARGUMENTS, RULES, Rule, Slot
from models.mock.golden.store import Store, describe

# Wrappers around ops at the Python level. Golden execution follows their inner ops instead.
_TRANSPARENT = frozenset(
    {
        "ttnn.to_torch",
        "ttnn.Tensor.__getitem__",
        "ttnn.unsqueeze_to_4D",
        "ttnn.as_tensor",
        "ttnn.print",
    }
)
# Ops that allocate without defined contents. Reading such a tensor before writing it is an error in the model, and is
# reported as one.
_ALLOCATING = frozenset(
    {
        "ttnn.empty",
        "ttnn.empty_like",
        "ttnn.allocate_tensor_on_device",
        "ttnn.experimental.dit_fused_distributed_rmsnorm_create_stats_buffer",
    }
)


class Engine:
    """The interposer on ttnn's op entry point. There is one per process; see `install`.

    Threads may call ops. Ops on the device take turns. Ops on the host alone (packing weights) run in parallel.
    """

    def __init__(self) -> None:
        self.store = Store()
        self.ops_seen: dict[str, int] = {}
        self._lock = threading.RLock()
        self._thread = threading.local()
        self._attached = False

    @property
    def inside(self) -> bool:
        """Whether this thread is within an op, whose inner ops are not followed."""
        return getattr(self._thread, "inside", False)

    def attach(self) -> None:
        """Attach the interposer to every ttnn op."""
        add_hook(self.run)
        self._attached = True
        transfers.attach(self.store, lambda: self.inside)

    def detach(self) -> None:
        """Detach the interposer and forget all values."""
        if self._attached:
            remove_hook(self.run)
            self._attached = False
            transfers.detach()
        self.store.clear()

    def run(self, call: Callable[..., Any], operation: FastOperation, *args: Any, **kwargs: Any) -> Any:
        """Run one real op through `call` and compute its golden values."""
        name = operation.python_fully_qualified_name
        if self.inside or name in _TRANSPARENT:
            return call(operation, *args, **kwargs)
        self._thread.inside = True
        try:
            if not _touches_device((args, tuple(kwargs.values()))):
                return call(operation, *args, **kwargs)
            # A caller's autocast would compute a golden value in another type than the op's rule.
            with self._lock, _no_autocast():
                self.store.sweep()
                return self._follow(call, operation, name, args, kwargs)
        finally:
            self._thread.inside = False

    def _follow(self, call: Callable[..., Any], operation: FastOperation, name: str, args: tuple, kwargs: dict) -> Any:
        handler = transfers.HANDLERS.get(name)
        if handler is not None:
            return handler(self.store, call, operation, args, kwargs)
        if name in _ALLOCATING:
            result = call(operation, *args, **kwargs)
            self.store.reserve(result, "it was allocated and never written")
            return result
        return self._compute(call, operation, name, args, kwargs)

    def _compute(self, call: Callable[..., Any], operation: FastOperation, name: str, args: tuple, kwargs: dict) -> Any:
        limits.check(name, args, kwargs)  # This comes before the op's golden, which knows less about the reason.
        if not any(map(_has_device_tensor, (args, tuple(kwargs.values())))):
            result = call(operation, *args, **kwargs)
            if not device_tensors(result):
                return result  # Host work only.
            taken = _Call(self.store, name, _rule(operation, name), args, kwargs)
        else:
            taken = _Call(self.store, name, _rule(operation, name), args, kwargs)
            result = call(operation, *args, **kwargs)
        outputs = device_tensors(result)
        if not outputs:
            raise golden_error(name, "it read device tensors and gave none back: golden execution cannot follow that")
        if name == "ttnn.reshape" and outputs[0].buffer_unique_id() == args[0].buffer_unique_id():
            self.store.alias(outputs[0])
            return result  # It is a view: its values are those of the buffer.
        mesh = outputs[0].device()
        self.ops_seen[name] = self.ops_seen.get(name, 0) + 1
        shape = (mesh.shape[0], mesh.shape[1])
        values = run_rule(taken.rule, name, taken.args, taken.kwargs, taken.shards, taken.dtypes, shape, outputs)
        written = set()
        for output, shards in zip(outputs, values, strict=True):
            self.store.put(output, shards)
            written.add(output.buffer_unique_id())
        for buffer in taken.buffers:
            if buffer.buffer_unique_id() in written:
                self.store.alias(buffer)
            else:
                self.store.reserve(buffer, f"{name} left its scratch values there")
        return result


def _no_autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


class _Call:
    """One call in the form that its rule takes: arguments with slots for tensors.

    The values of the tensors are read before the op runs.
    """

    def __init__(self, store: Store, op: str, rule: Rule, args: tuple, kwargs: dict) -> None:
        self.rule = rule
        self.shards: list[list] = []
        self.buffers: list[ttnn.Tensor] = []
        self._store, self._op = store, op
        self.dtypes: list[ttnn.DataType] = []
        named = rule.positional
        if len(args) > len(named):
            raise golden_error(op, f"positional arguments after {named} are not covered by its golden")
        self.args = [self._argument(name, value) for name, value in zip(named, args, strict=False)]
        self.kwargs = {}
        for name, value in kwargs.items():
            if name in rule.names:
                self.kwargs[name] = self._argument(name, value)
            elif name in EXECUTION_ARGUMENTS:
                self.buffers += device_tensors(value)
            elif not _is_nothing(value):
                raise golden_error(op, f"argument {name}={value!r} is not covered by its golden")
        if rule.dtypes:
            self.kwargs["dtypes"] = self.dtypes

    def _argument(self, name: str, value: Any) -> Any:
        if name in self.rule.buffers or name in EXECUTION_ARGUMENTS:
            buffers = device_tensors(value)
            if buffers:
                self.buffers += buffers
                return None
        if name in self.rule.partly_written and isinstance(value, ttnn.Tensor):
            self._store.begin(value)
        return self._bind(value)

    def _bind(self, value: Any) -> Any:
        if isinstance(value, ttnn.Tensor):
            if not ttnn.is_tensor_storage_on_device(value):
                raise golden_error(self._op, f"a host tensor {describe(value)} is an op's input")
            self.shards.append(self._store.get(value, self._op))
            self.dtypes.append(value.dtype)
            return Slot(len(self.shards) - 1)
        if type(value) in (list, tuple):
            return type(value)(self._bind(v) for v in value)
        if isinstance(value, ttnn.Shape):
            return tuple(value)
        return value


def _is_nothing(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (list, tuple)) and not value)


def _has_device_tensor(value: Any) -> bool:
    if isinstance(value, ttnn.Tensor):
        return ttnn.is_tensor_storage_on_device(value)
    return isinstance(value, (list, tuple)) and any(map(_has_device_tensor, value))


def _touches_device(value: Any) -> bool:
    """Return whether a device, or a tensor on one, is among the arguments."""
    if isinstance(value, (list, tuple)):
        return any(map(_touches_device, value))
    return isinstance(value, ttnn.MeshDevice) or _has_device_tensor(value)


def _rule(operation: FastOperation, name: str) -> Rule:
    return RULES.get(name) or _builtin_rule(operation, name)


# Golden functions of ttnn that cannot be called once per device on that device's shards. They are random, take the
# shards of all devices, or write into their inputs.
_NOT_LOCAL = frozenset(
    {
        "ttnn.all_broadcast",
        "ttnn.all_to_all_combine",
        "ttnn.all_to_all_dispatch",
        "ttnn.bernoulli",
        "ttnn.broadcast",
        "ttnn.dram_prefetcher",
        "ttnn.fused_rms_minimal",
        "ttnn.moe",
        "ttnn.moe_expert_token_remap",
        "ttnn.moe_routing_remap",
        "ttnn.point_to_point",
        "ttnn.rand",
        "ttnn.randn",
        "ttnn.reduce_to_root",
        "ttnn.sampling",
        "ttnn.transformer.exp_ring_joint_scaled_dot_product_attention",
        "ttnn.transformer.ring_distributed_scaled_dot_product_attention",
        "ttnn.transformer.ring_mla",
        "ttnn.uniform",
    }
)


@functools.cache
def _builtin_rule(operation: FastOperation, name: str) -> Rule:
    if operation.golden_function is None:
        raise golden_error(name, "the op has no golden function and none of ours")
    if name in _NOT_LOCAL:
        raise golden_error(name, "ttnn's golden function is not one of a single device, and there is none of ours")
    return Rule(operation.golden_function, local=True, source="ttnn's own golden function")
