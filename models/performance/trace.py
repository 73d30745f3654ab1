"""Trace of the ops that a program runs: the cost of each on a chip, and the DRAM in use around it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ttnn

from models.machine.ops import device_tensors, watching
from models.performance.counts import SEND, Call, Cost, cost
from models.performance.settings import Settings

# Work on the host: building or reading tensors outside the device's queue.
HOST_OPS = frozenset(
    {
        "ttnn.from_torch",
        "ttnn.to_torch",
        "ttnn.to_device",
        "ttnn.from_device",
        "ttnn.as_tensor",
        "ttnn.load_tensor",
        "ttnn.dump_tensor",
        "ttnn.deallocate",
        "ttnn.copy_host_to_device_tensor",
        "ttnn.allocate_tensor_on_device",
        "ttnn.experimental.dit_fused_distributed_rmsnorm_create_stats_buffer",
    }
)
# Scratch buffers that the caller gives are not operands.
_SCRATCH = ("persistent", "semaphore")


@dataclass(frozen=True)
class Record:
    """One device call: its name, the shapes of its outputs on one chip, its cost and its settings."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    cost: Cost
    settings: Settings


@dataclass
class Trace:
    """All device calls of a part of the program, per chip.

    `dram_peak_bytes` is the most DRAM allocated after any op of the part. Memory that a composite op allocates and
    frees inside one call is not seen.
    """

    records: list[Record] = field(default_factory=list)
    dram_peak_bytes: int = 0
    host_seconds: float = 0.0  # of the program itself, without the time that tracing takes
    seconds: list[float] = field(default_factory=list)  # of each call until its result was there, if it was waited for

    def part(self, start: int, end: int | None = None) -> "Trace":
        """Return some of the calls, with the peak of all."""
        return Trace(self.records[start:end], self.dram_peak_bytes, seconds=self.seconds[start:end])

    @property
    def device_calls(self) -> int:
        """Number of ops sent to the device."""
        return len(self.records)

    def total(self, what: str) -> float:
        """Return the sum of one field of `Cost`, such as `flops`."""
        return sum(getattr(record.cost, what) for record in self.records)

    def counts(self) -> dict[str, float]:
        """Return exact totals under the names that reports use. They are the same on every host."""
        return {
            "device_calls": self.device_calls,
            "flops": self.total("flops"),
            "dram_bytes": self.total("dram_bytes"),
            "l1_bytes": self.total("l1_bytes"),
            "link_bytes": self.total("link_bytes"),
            "exposed_link_bytes": self.total("exposed_link_bytes"),
            "dram_peak_bytes": self.dram_peak_bytes,
        }

    def summary(self) -> dict[str, float]:
        """Return `counts` and the time that the host took for the calls."""
        return {**self.counts(), "host_dispatch_seconds": round(self.host_seconds, 4)}

    def by_op(self) -> dict[str, dict[str, float]]:
        """Return calls and costs per op name, most called first."""
        table: dict[str, dict[str, float]] = {}
        for record in self.records:
            row = table.setdefault(record.name, {"calls": 0, "flops": 0.0, "dram_bytes": 0.0, "link_bytes": 0.0})
            row["calls"] += 1
            for what in ("flops", "dram_bytes", "link_bytes"):
                row[what] += getattr(record.cost, what)
        return dict(sorted(table.items(), key=lambda item: -item[1]["calls"]))


def dram_allocated(device: ttnn.MeshDevice) -> int:
    """Return the DRAM bytes allocated on one chip of the mesh."""
    view = ttnn.get_memory_view(device, ttnn.BufferType.DRAM)
    return view.total_bytes_allocated_per_bank * view.num_banks


class _DramPeak:
    """The most DRAM allocated on one chip after any op.

    To ask ttnn takes milliseconds, since it walks over all blocks of all banks. So it is asked only where the answer
    can be a new peak: when what was allocated at the last answer and the outputs since exceed the peak.
    """

    def __init__(self, device: ttnn.MeshDevice) -> None:
        self._device = device
        self._banks = ttnn.get_memory_view(device, ttnn.BufferType.DRAM).num_banks
        self.bytes = self._at_most = dram_allocated(device)

    def after(self, result: Any) -> None:
        """Take an op's outputs into account."""
        self._at_most += sum(map(self._size, device_tensors(result)))
        if self._at_most > self.bytes:
            self._at_most = dram_allocated(self._device)
            self.bytes = max(self.bytes, self._at_most)

    def _size(self, tensor: ttnn.Tensor) -> int:
        """Return the bytes that the tensor takes in all banks, each as full as the fullest."""
        if not tensor.is_allocated() or tensor.memory_config().buffer_type != ttnn.BufferType.DRAM:
            return 0
        pages = -(-tensor.buffer_num_pages() // self._banks) * self._banks
        return pages * tensor.buffer_aligned_page_size()


@contextmanager
def trace(device: ttnn.MeshDevice, *, timed: bool = False) -> Iterator[Trace]:
    """Record the outermost ops of this process on `device` while the block runs. It is not re-entrant.

    Args:
        device: the mesh.
        timed: wait for each call, and keep the seconds since the one before it was there. Nothing may be captured.
    """
    peak = _DramPeak(device)
    made = Trace(dram_peak_bytes=peak.bytes)
    tracing = before = 0.0

    def record(name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        nonlocal tracing, before
        if timed:
            ttnn.synchronize_device(device)
        start = time.perf_counter()
        peak.after(result)
        made.dram_peak_bytes = peak.bytes
        made_record = _record(device, name, args, kwargs, result)
        if made_record is not None:
            made.records.append(made_record)
            if timed:
                made.seconds.append(start - before)
        before = time.perf_counter()
        tracing += before - start

    start = before = time.perf_counter()
    try:
        with watching(record):
            yield made
    finally:
        made.host_seconds = time.perf_counter() - start - tracing


def _record(device: ttnn.MeshDevice, name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> Record | None:
    outputs = device_tensors(result)
    if name == SEND:
        outputs = device_tensors(args)  # It returns nothing, so the sent tensor counts as its output.
    if name in HOST_OPS or not outputs or outputs[0].device().id() != device.id():
        return None
    operands = {k: v for k, v in kwargs.items() if not any(word in k for word in _SCRATCH)}
    inputs = [t for t in device_tensors([*args, *operands.values()]) if t.is_allocated()]
    buffers = {t.buffer_unique_id() for t in inputs}
    if name == "ttnn.reshape" and outputs[0].buffer_unique_id() in buffers:
        return None  # It is a view: nothing runs.
    shapes = tuple(tuple(t.shape) for t in outputs)
    call = Call(name, args, kwargs, inputs, outputs)
    return Record(name, shapes, cost(call), Settings.of(call))
