"""Search for device tensors, used by golden execution and op traces."""

from typing import Any

import ttnn


def device_tensors(value: Any) -> list[ttnn.Tensor]:
    """Return all tensors on a device in a value, or in lists and tuples of values, in order."""
    if isinstance(value, ttnn.Tensor):
        return [value] if ttnn.is_tensor_storage_on_device(value) else []
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in device_tensors(part)]
    return []
