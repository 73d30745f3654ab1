"""Golden values across the host boundary: uploads read them from the real host tensor, downloads pack them back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import ttnn

from models.mock.golden import sockets
from models.mock.golden.errors import golden_error
from models.mock.golden.rounding import host_tensor, is_integer
from models.mock.golden.store import Store, describe, map_shared

HANDLERS: dict[str, Callable[..., Any]] = {sockets.SEND: sockets.send, sockets.RECEIVE: sockets.receive}
_METHODS: dict[str, Any] = {}
_FUNCTIONS: dict[str, Any] = {}
# Tensor methods that would read a device buffer (zeros on a mock mesh), or copy it, without the op entry point.
_READERS = ("to_torch", "to_numpy", "to_list", "item")
_UNSEEN = (
    "to",
    "pad",
    "unpad",
    "pad_to_tile",
    "unpad_from_tile",
    "extract_shard",
    "host_buffer",
    "to_torch_with_padded_shape",
)


def _handler(name: str):
    def decorator(function):
        HANDLERS[name] = function
        return function

    return decorator


def _on_device(value: Any) -> bool:
    return isinstance(value, ttnn.Tensor) and ttnn.is_tensor_storage_on_device(value)


def host_shards(tensor: ttnn.Tensor) -> list[torch.Tensor]:
    """Return the per-device values of a real host tensor, in the form of golden values."""
    seen: dict[tuple, list[torch.Tensor]] = {}
    shards = []
    for part in ttnn.get_device_tensors(tensor):
        value = ttnn.to_torch(part)
        value = value.to(torch.int64 if is_integer(tensor.dtype) else torch.float32)
        # Replicas become one object, so that local ops on replicated data are computed once.
        same = seen.setdefault(tuple(value.shape), [])
        shards.append(next((other for other in same if torch.equal(other, value)), value))
        if shards[-1] is value:
            same.append(value)
    return shards


def _spread(shards: list[torch.Tensor], tensor: ttnn.Tensor, op: str) -> list[torch.Tensor]:
    devices = tensor.device().get_num_devices()
    if len(shards) == 1:
        return shards * devices
    if len(shards) != devices:
        raise golden_error(op, f"{len(shards)} host shards for a mesh of {devices} devices")
    return shards


@_handler("ttnn.from_torch")
def _from_torch(store: Store, call: Callable, operation: Any, args: tuple, kwargs: dict) -> ttnn.Tensor:
    result = call(operation, *args, **kwargs)
    if _on_device(result):
        on_host = {k: v for k, v in kwargs.items() if k not in ("device", "memory_config", "cq_id")}
        on_host["dtype"] = result.dtype
        if result.dtype in (ttnn.bfloat8_b, ttnn.bfloat4_b):
            on_host["layout"] = ttnn.TILE_LAYOUT
        host = call(operation, *args, **on_host)
        store.put(result, _spread(host_shards(host), result, "ttnn.from_torch"))
    return result


@_handler("ttnn.to_device")
@_handler("ttnn.load_tensor")
def _to_device(store: Store, call: Callable, operation: Any, args: tuple, kwargs: dict) -> ttnn.Tensor:
    result = call(operation, *args, **kwargs)
    if _on_device(result):
        source = args[0] if args else next(iter(kwargs.values()))
        if isinstance(source, ttnn.Tensor):
            if _on_device(source):
                store.alias(result)
                return result
        else:
            without = {k: v for k, v in kwargs.items() if k != "device"}
            source = call(operation, *args, **without)
        name = operation.python_fully_qualified_name
        store.put(result, _spread(host_shards(source), result, name))
    return result


@_handler("ttnn.dump_tensor")
def _dump(store: Store, call: Callable, operation: Any, args: tuple, kwargs: dict) -> Any:
    path, tensor = _pair(args, kwargs, "file_name", "tensor")
    if _on_device(tensor):
        tensor = download(store, tensor, "ttnn.dump_tensor")
    return call(operation, path, tensor)


@_handler("ttnn.copy_host_to_device_tensor")
def _copy_to_device(store: Store, call: Callable, operation: Any, args: tuple, kwargs: dict) -> Any:
    result = call(operation, *args, **kwargs)
    host, device = _pair(args, kwargs, "host_tensor", "device_tensor")
    store.put(device, _spread(host_shards(host), device, "ttnn.copy_host_to_device_tensor"))
    return result


@_handler("ttnn.copy_device_to_host_tensor")
@_handler("ttnn.copy_host_to_device_tensor_partial")
def _refused(store: Store, call: Callable, operation: Any, args: tuple, kwargs: dict) -> Any:
    raise golden_error(operation.python_fully_qualified_name, "not covered by golden execution")


@_handler("ttnn.from_device")
def _from_device(store: Store, call: Callable, operation: Any, args: tuple, kwargs: dict) -> ttnn.Tensor:
    # A real read of a dead or foreign tensor ends the process, so golden execution checks the tensor first.
    host = download(store, args[0] if args else kwargs["tensor"], "ttnn.from_device")
    call(operation, *args, **kwargs)
    return host


@_handler("ttnn.deallocate")
def _deallocate(store: Store, call: Callable, operation: Any, args: tuple, kwargs: dict) -> Any:
    tensor = args[0] if args else kwargs["tensor"]
    return _free(store, tensor, lambda: call(operation, *args, **kwargs))


def _free(store: Store, tensor: ttnn.Tensor, free: Callable[[], Any]) -> Any:
    if not _on_device(tensor) or not tensor.is_allocated():
        return free()
    # With force=False a buffer that has other handles stays allocated, and its values must stay too.
    store.trim(tensor)
    key = tensor.buffer_unique_id()
    result = free()
    if not tensor.is_allocated():
        store.drop(key)
    return result


def _pair(args: tuple, kwargs: dict, *names: str) -> list:
    values = list(args)
    return values + [kwargs[name] for name in names[len(values) :]]


def download(store: Store, tensor: ttnn.Tensor, op: str) -> ttnn.Tensor:
    """Build the real host tensor that a read of `tensor` would return on silicon."""
    values = store.get(tensor, op, part=True)
    mesh = tensor.device()
    rows, cols = mesh.shape
    coords = [tuple(c) for c in tensor.device_coords()]
    picked = [values[r * cols + c] for r, c in coords]
    packed = map_shared(lambda value: host_tensor(value, tensor.dtype, tensor.layout), picked)  # type: ignore[arg-type]
    if len(packed) == 1:
        return packed[0]  # type: ignore[return-value]
    if len(packed) != rows * cols:
        raise golden_error(
            op, f"{describe(tensor)} covers {len(packed)} of {rows * cols} devices: read them one by one"
        )
    return ttnn.from_host_shards(packed, mesh.shape)


def attach(store: Store, inside: Callable[[], bool]) -> None:
    """Wrap the tensor methods and functions that reach device memory without the op entry point.

    Args:
        store: of the values.
        inside: whether this thread is within an op, whose inner calls are not followed.
    """
    for name in ("cpu", "reshape", "deallocate", "__repr__", *_READERS, *_UNSEEN):
        _METHODS[name] = getattr(ttnn.Tensor, name)
    _FUNCTIONS["get_device_tensors"] = ttnn.get_device_tensors

    def guarded(name: str, on_device: Callable[..., Any]):
        original = _METHODS[name]

        @functools.wraps(original)
        def method(tensor, *args, **kwargs):
            if (inside() and name != "__repr__") or not ttnn.is_tensor_storage_on_device(tensor):
                return original(tensor, *args, **kwargs)
            return on_device(tensor, original, *args, **kwargs)

        setattr(ttnn.Tensor, name, method)

    def refuse(name: str):
        def method(tensor, _original, *_args, **_kwargs):
            raise golden_error(f"ttnn.Tensor.{name}", f"not seen by golden execution on {describe(tensor)}; use an op")

        return method

    def read(name: str):
        def method(tensor, _original, *args, **kwargs):
            return _METHODS[name](download(store, tensor, f"ttnn.Tensor.{name}"), *args, **kwargs)

        return method

    def reshape(tensor, original, *args, **kwargs):
        values = store.get(tensor, "ttnn.Tensor.reshape")
        result = original(tensor, *args, **kwargs)
        if result.buffer_unique_id() == tensor.buffer_unique_id():
            store.alias(result)
        else:
            store.put(result, map_shared(lambda value: value.reshape(tuple(result.shape)), values))
        return result

    def deallocate(tensor, original, *args, **kwargs):
        return _free(store, tensor, lambda: original(tensor, *args, **kwargs))

    def show(tensor, _original):
        # The real method prints mock memory. An error message must be able to print any tensor.
        return f"ttnn.Tensor({describe(tensor)}, on a mock mesh: use ttnn.to_torch for the values)"

    guarded("cpu", lambda tensor, _original, *_args, **_kwargs: download(store, tensor, "ttnn.Tensor.cpu"))
    guarded("reshape", reshape)
    guarded("deallocate", deallocate)
    guarded("__repr__", show)
    for name in _READERS:
        guarded(name, read(name))
    for name in _UNSEEN:
        guarded(name, refuse(name))

    @functools.wraps(ttnn.get_device_tensors)
    def get_device_tensors(tensor, *args, **kwargs):
        parts = _FUNCTIONS["get_device_tensors"](tensor, *args, **kwargs)
        if _on_device(tensor) and tensor.is_allocated():
            for part in parts:
                store.alias(part, part=len(parts) > 1)
        return parts

    ttnn.get_device_tensors = get_device_tensors
    sockets.attach()


def detach() -> None:
    """Restore the tensor methods and functions."""
    sockets.detach()
    for name, original in _METHODS.items():
        setattr(ttnn.Tensor, name, original)
    for name, original in _FUNCTIONS.items():
        setattr(ttnn, name, original)
    _METHODS.clear()
    _FUNCTIONS.clear()
