"""Registry of golden values: one entry per live device buffer, shared by every handle on that buffer."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import ttnn

from models.mock.golden.errors import golden_error
from models.mock.golden.rounding import is_integer

# Number of sweeps after which an entry counts as old. Old entries are checked only now and then: weights live as long
# as the model.
_OLD_AFTER = 32
# Each sweep checks one in so many of the old entries, so an old entry outlives its last handle by few ops.
_OLD_SHARE = 16


@dataclass
class Entry:
    """Values of one device buffer: `shards[i]` belongs to device i of the mesh in row-major order.

    Replicated data is stored as the same `torch.Tensor` object for several devices. Values are never written in place,
    so sharing is safe, and local ops are computed once. `shards` is None while golden execution knows no values for the
    buffer; `why` then gives the reason. `parts` are the handles (by `tensor_id`) that refer to one device's part only.
    """

    shards: list[torch.Tensor] | None
    why: str = ""
    handles: dict[int, ttnn.Tensor] = field(default_factory=dict)
    parts: set[int] = field(default_factory=set)
    age: int = 0


class Store:
    """Golden values by buffer.

    A ttnn tensor accepts no attribute and no weak reference, so lifetimes are found by reference counting. A buffer to
    which only the store's own handles refer is dropped at the next sweep, before the next op runs (an old one a few ops
    later). So the device's memory is freed where the program would free it. Explicit deallocation frees at once, as on
    silicon.
    """

    def __init__(self) -> None:
        self._young: dict[int, Entry] = {}
        self._old: dict[int, Entry] = {}
        self._queue: list[int] = []

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, tensor: ttnn.Tensor, op: str, *, part: bool = False) -> list[torch.Tensor]:
        """Return the values of `tensor` on every device of its mesh, viewed in its logical shape.

        Args:
            tensor: a device tensor.
            op: name of the op that reads the tensor, for the error message.
            part: whether the handle may be one device's part of a mesh tensor. The result is the whole tensor in any
                case.

        Raises:
            GoldenError: the tensor is deallocated, was not written yet, or was created in a way that golden execution
                did not see.
        """
        # A view of a freed buffer still says that it is allocated, but has no buffer.
        if not tensor.is_allocated() or tensor.buffer_unique_id() is None:
            raise golden_error(op, f"input {describe(tensor)} has been deallocated")
        entry = self._find(tensor)
        if entry is None:
            raise golden_error(op, f"input {describe(tensor)} has no golden value: it was made by an unseen call")
        if entry.shards is None:
            raise golden_error(op, f"input {describe(tensor)} has no golden value: {entry.why}")
        if not part and tensor.tensor_id in entry.parts:
            raise golden_error(op, f"input {describe(tensor)} is one device's part of a mesh tensor")
        return self._view(tensor, entry.shards, op)

    def put(self, tensor: ttnn.Tensor, shards: list[torch.Tensor]) -> None:
        """Record the values that an op wrote to `tensor`'s buffer. Every other handle on the buffer sees them."""
        self._hold(tensor).shards = shards

    def reserve(self, tensor: ttnn.Tensor, why: str) -> None:
        """Record that `tensor`'s buffer holds no values that may be read; `why` is the reason."""
        entry = self._hold(tensor)
        entry.shards, entry.why = None, why

    def begin(self, tensor: ttnn.Tensor) -> None:
        """Let an op write a part of `tensor`'s buffer. Positions that were never written hold NaN."""
        entry = self._find(tensor)
        if entry is not None and entry.shards is None and not is_integer(tensor.dtype):
            rows, columns = tensor.device().shape
            entry.shards = [torch.full(tuple(tensor.shape), torch.nan)] * (rows * columns)

    def alias(self, tensor: ttnn.Tensor, *, part: bool = False) -> bool:
        """Register one more handle on a known buffer. Return False if the buffer is not known."""
        entry = self._find(tensor)
        if entry is None:
            return False
        entry.handles[id(tensor)] = tensor
        if part:
            entry.parts.add(tensor.tensor_id)
        return True

    def trim(self, tensor: ttnn.Tensor) -> None:
        """Release handles of this buffer that only the store holds, so that ttnn counts its references correctly."""
        entry = self._find(tensor)
        if entry is not None:
            _alive(entry)

    def drop(self, key: int) -> None:
        """Forget the values of a freed buffer, given its `buffer_unique_id`."""
        self._young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        """Forget all values."""
        self._young.clear()
        self._old.clear()
        self._queue.clear()

    def sweep(self, *, everything: bool = False) -> None:
        """Drop entries to which only the store itself refers.

        All young entries are checked, and some of the old ones (all with `everything`).
        """
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
        if everything or not self._queue:
            self._queue = list(self._old)
        count = len(self._queue) if everything else -(-len(self._old) // _OLD_SHARE)
        for _ in range(min(count, len(self._queue))):
            key = self._queue.pop()
            old = self._old.get(key)
            if old is not None and not _alive(old):
                del self._old[key]

    def _find(self, tensor: ttnn.Tensor) -> Entry | None:
        key = tensor.buffer_unique_id()
        return self._young.get(key) or self._old.get(key)

    def _hold(self, tensor: ttnn.Tensor) -> Entry:
        key = tensor.buffer_unique_id()
        entry = self._young.get(key) or self._old.get(key)
        if entry is None:
            entry = self._young[key] = Entry(None)
        entry.handles[id(tensor)] = tensor
        return entry

    def _view(self, tensor: ttnn.Tensor, shards: list[torch.Tensor], op: str) -> list[torch.Tensor]:
        shape, held = tuple(tensor.shape), tuple(shards[0].shape)
        if held == shape:
            return shards
        if _same_tiles(tensor, held):
            return map_shared(lambda shard: _with_rows(shard, shape[-2]), shards)
        if shards[0].numel() != tensor.logical_volume():
            raise golden_error(op, f"{describe(tensor)} views a buffer of shape {tuple(shards[0].shape)}")
        return map_shared(lambda shard: shard.reshape(shape), shards)


def _same_tiles(tensor: ttnn.Tensor, held: tuple[int, ...]) -> bool:
    """Return whether `tensor` and a value of shape `held` differ only in the number of real rows of the last tile."""
    shape = tuple(tensor.shape)
    if tensor.layout != ttnn.TILE_LAYOUT or is_integer(tensor.dtype) or len(held) != len(shape) or len(held) < 2:
        return False
    return shape[:-2] == held[:-2] and shape[-1] == held[-1] and -(-shape[-2] // 32) == -(-held[-2] // 32)


def _with_rows(value: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the first `rows` rows. Rows of a tile after those that an op wrote are NaN."""
    more = rows - value.shape[-2]
    return torch.nn.functional.pad(value, (0, 0, 0, more), value=torch.nan) if more > 0 else value[..., :rows, :]


def map_shared(function: Callable[[torch.Tensor], torch.Tensor], shards: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Apply `function` once per distinct shard object and keep the sharing."""
    done: dict[int, torch.Tensor] = {}
    return [done[id(s)] if id(s) in done else done.setdefault(id(s), function(s)) for s in shards]


def describe(tensor: ttnn.Tensor) -> str:
    """Return shape, dtype and layout of a tensor for an error message."""
    return f"{list(tensor.shape)} {tensor.dtype} {tensor.layout}"


def _alive(entry: Entry) -> bool:
    """Drop handles that nobody else holds, and return whether one is left."""
    handles = entry.handles
    gone = []
    for key in handles:
        # Access is by key, because an iterator over items would hold a reference of its own.
        handle = handles[key]
        # Three references are ours: the dict's, this variable's and that of getrefcount's own argument.
        if sys.getrefcount(handle) <= 3:
            gone.append(key)
    for key in gone:
        del handles[key]
    return bool(handles)
