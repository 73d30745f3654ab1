"""The one hook on ttnn's ops, and a search for device tensors.

The limits of kernels, golden execution and op traces all need to see every op. They attach here, so that one place
changes ttnn and any of them may leave first.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ttnn
from ttnn.decorators import FastOperation

Around = Callable[..., Any]
"""A function ``around(call, operation, *args, **kwargs)`` that runs in place of an op.

``call(operation, *args, **kwargs)`` goes on to the older hooks and then to the op.
"""

_original: Around = FastOperation.__call__
_hooks: list[Around] = []


def add_hook(around: Around) -> None:
    """Run `around` in place of every ttnn op of this process. The newest hook is the outermost.

    An op that ttnn builds from other ops passes the hooks for each of them.

    Raises:
        ValueError: `around` is a hook already.
    """
    if around in _hooks:
        raise ValueError(f"{around} is a hook already")
    _hooks.append(around)
    _rebuild()


def remove_hook(around: Around) -> None:
    """Take one hook away. With the last one, ttnn is as it was.

    Raises:
        ValueError: `around` is not a hook.
    """
    _hooks.remove(around)
    _rebuild()


@contextmanager
def watching(after: Callable[[str, tuple, dict[str, Any], Any], None]) -> Iterator[None]:
    """Call `after(name, args, kwargs, result)` after each outermost ttnn op of this process while the block runs."""
    inside = False

    def around(call, operation, *args, **kwargs):
        nonlocal inside
        if inside:
            return call(operation, *args, **kwargs)
        inside = True
        try:
            result = call(operation, *args, **kwargs)
        finally:
            inside = False
        after(operation.python_fully_qualified_name, args, kwargs, result)
        return result

    add_hook(around)
    try:
        yield
    finally:
        remove_hook(around)


def _rebuild() -> None:
    call = _original
    for around in _hooks:
        call = functools.partial(around, call)

    @functools.wraps(_original)
    def entry(operation, *args, **kwargs):
        return call(operation, *args, **kwargs)

    FastOperation.__call__ = entry if _hooks else _original


def device_tensors(value: Any) -> list[ttnn.Tensor]:
    """Return all tensors on a device in a value, or in lists and tuples of values, in order."""
    if isinstance(value, ttnn.Tensor):
        return [value] if ttnn.is_tensor_storage_on_device(value) else []
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in device_tensors(part)]
    return []
