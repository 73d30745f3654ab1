"""The registry of golden values: one entry per live device buffer, shared by every handle on that buffer."""

import sys
from dataclasses import dataclass, field

import torch
import ttnn

from models.mock.golden.errors import golden_error

# An entry that survived this many sweeps is looked at only once in a while: weights live as long as the model.
_OLD_AFTER = 32
_OLD_EVERY = 256


@dataclass
class Entry:
    """Values of one device buffer: ``shards[i]`` belongs to device i of the mesh in row-major order.

    Replicated data is stored as the same ``torch.Tensor`` object for several devices; values are never written in
    place, so sharing is safe and lets local ops be computed once.
    """

    shards: list[torch.Tensor]
    handles: list[ttnn.Tensor] = field(default_factory=list)
    age: int = 0


class Store:
    """Golden values by buffer.

    A ttnn tensor accepts no attribute and no weak reference, so lifetime is found by reference counting: a buffer to
    which only the store's own handles refer is dropped at the next sweep, before the next op runs, so that the
    device's memory is freed where the program would free it. Explicit deallocation frees at once, as on silicon.
    """

    def __init__(self) -> None:
        self._young: dict[int, Entry] = {}
        self._old: dict[int, Entry] = {}
        self._sweeps = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, tensor: ttnn.Tensor, op: str) -> list[torch.Tensor]:
        """Return the per-device values of ``tensor``, viewed in its logical shape.

        Raises:
            GoldenError: the tensor is deallocated, or came to be in a way that golden execution did not see.
        """
        if not tensor.is_allocated():
            raise golden_error(op, f"input {describe(tensor)} has been deallocated")
        entry = self._find(tensor)
        if entry is None:
            raise golden_error(op, f"input {describe(tensor)} has no golden value; it was made by an unseen call")
        return self._view(tensor, entry, op)

    def get_buffer(self, tensor: ttnn.Tensor, op: str) -> list[torch.Tensor]:
        """Like `get`, for a handle that may cover only some devices of its mesh: all devices' values."""
        if not tensor.is_allocated():
            raise golden_error(op, f"{describe(tensor)} has been deallocated")
        entry = self._find(tensor)
        if entry is None:
            raise golden_error(op, f"{describe(tensor)} has no golden value; it was never written")
        return map_shared(lambda shard: shard.reshape(tuple(tensor.shape)), entry.shards)

    def put(self, tensor: ttnn.Tensor, shards: list[torch.Tensor]) -> None:
        """Record the values that an op left in ``tensor``'s buffer; every other handle on the buffer sees them."""
        key = tensor.buffer_unique_id()
        entry = self._young.get(key) or self._old.get(key)
        if entry is None:
            entry = self._young[key] = Entry(shards)
        else:
            entry.shards = shards
        entry.handles.append(tensor)

    def alias(self, tensor: ttnn.Tensor) -> bool:
        """Register one more handle on a known buffer; False when the buffer is not known."""
        entry = self._find(tensor)
        if entry is None:
            return False
        entry.handles.append(tensor)
        return True

    def holds(self, tensor: ttnn.Tensor) -> bool:
        """Tell whether the tensor's buffer has a golden value."""
        return self._find(tensor) is not None

    def clear(self) -> None:
        """Forget everything."""
        self._young.clear()
        self._old.clear()

    def sweep(self) -> None:
        """Drop the entries that only the store itself still refers to, and those already deallocated."""
        self._sweeps += 1
        dead = []
        for key, entry in self._young.items():
            if not _alive(entry):
                dead.append(key)
            elif entry.age >= _OLD_AFTER:
                dead.append(key)
                self._old[key] = entry
            else:
                entry.age += 1
        for key in dead:
            del self._young[key]
        if self._sweeps % _OLD_EVERY == 0:
            for key in [key for key, entry in self._old.items() if not _alive(entry)]:
                del self._old[key]

    def _find(self, tensor: ttnn.Tensor) -> Entry | None:
        key = tensor.buffer_unique_id()
        return self._young.get(key) or self._old.get(key)

    def _view(self, tensor: ttnn.Tensor, entry: Entry, op: str) -> list[torch.Tensor]:
        shape = tuple(tensor.shape)
        shards = entry.shards
        mesh_size = tensor.device().get_num_devices()
        if len(shards) != mesh_size:
            raise golden_error(op, f"input {describe(tensor)} is one device's part of a mesh tensor")
        if tuple(shards[0].shape) == shape:
            return shards
        if shards[0].numel() != tensor.logical_volume():
            raise golden_error(op, f"{describe(tensor)} views a buffer of shape {tuple(shards[0].shape)}")
        return map_shared(lambda shard: shard.reshape(shape), shards)


def map_shared(function, shards: list[torch.Tensor]) -> list[torch.Tensor]:
    """Apply ``function`` once per distinct shard object and keep the sharing."""
    done: dict[int, torch.Tensor] = {}
    return [done[id(s)] if id(s) in done else done.setdefault(id(s), function(s)) for s in shards]


def describe(tensor: ttnn.Tensor) -> str:
    """Shape, dtype and layout of a tensor for an error message."""
    return f"{list(tensor.shape)} {tensor.dtype} {tensor.layout}"


def _alive(entry: Entry) -> bool:
    """Keep only handles that somebody else still holds; tell whether one is left and its buffer allocated."""
    handles = entry.handles
    # Two references are ours at this point: the list's and getrefcount's own argument.
    kept = [i for i in range(len(handles)) if sys.getrefcount(handles[i]) > 2]
    if len(kept) != len(handles):
        entry.handles = handles = [handles[i] for i in kept]
    return bool(handles) and handles[0].is_allocated()
