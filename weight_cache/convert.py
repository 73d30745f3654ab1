"""Conversion of a module's weights into an entry of the store, tensor by tensor.

One thread reads, packs, writes and hashes each tensor. As many threads work in parallel as there are cores, within a
limit on the memory that they use together.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

from models.layers.module import Module, Parameter, TensorSource, check_sources
from models.machine.errors import MachineError
from models.machine.files import flush
from weight_cache.digest import ByteProgress
from weight_cache.entry import TEMPORARY, Entry, free_bytes
from weight_cache.key import stored_parameters
from weight_cache.manifest import Manifest, TensorRecord
from weight_cache.plan import data_bytes, disk_bytes
from weight_cache.tensor_file import TensorWriter

# Limit on the memory of all tensors in work. A single larger tensor is converted alone.
WORKING_BYTES = 960 << 20
# Bytes per value while a tensor is in work: source, converted and packed values, and the memory that ttnn needs
# to pack them (measured on ttnn 0.81.1). A conversion that computes works in float32 and needs more.
_MOVED_BYTES, _COMPUTED_BYTES = 9, 16
_SPARE_BYTES = 16 << 20


def convert(
    entry: Entry,
    module: Module,
    source: TensorSource,
    *,
    key: str,
    key_fields: dict[str, Any],
    about: dict[str, Any],
    progress: ByteProgress | None = None,
    check: Callable[[], None] | None = None,
) -> Manifest:
    """Fill `entry` with the converted parameters of `module`. The caller holds the entry's lock.

    Tensors that an earlier run finished are kept if their files are still what was written. The manifest is written
    last, when everything else is on the disk.

    Args:
        entry: entry to write.
        module: declared module with its precision set.
        source: the weights, under canonical names.
        key: key of the entry.
        key_fields: fields that the key is a hash of.
        about: information for people, written to the manifest.
        progress: called as `progress(bytes written, bytes in all)`.
        check: raises ValueError if a file that the weights come from is not the one that `key_fields` were computed
            of. It is called after each tensor was read, before the tensor counts as finished, and before the manifest
            is written.

    Raises:
        ValueError: the weights do not fit the model, or `check` raised it.
        OSError: there is no space, or the directory cannot be written. Finished tensors stay for the next run.
    """
    check_sources(list(module.parameters()), source)
    parameters = stored_parameters(module)
    sizes = {name: disk_bytes(parameter, module.mesh) for name, _, parameter in parameters}
    total = sum(sizes.values())
    done = entry.start(key, None if progress is None else lambda count, _: progress(min(count, total), total))
    done = {name: record for name, record in done.items() if name in sizes}
    start = perf_counter()
    todo = [(name, prefix, parameter) for name, prefix, parameter in parameters if name not in done]
    needed = sum(sizes[name] for name, _, _ in todo) + _SPARE_BYTES
    free = free_bytes(entry.path)
    if todo and needed > free:
        raise MachineError(
            f"no space for the converted weights: {needed / 1e9:.2f} GB are needed in {entry.path.parent} and "
            f"{free / 1e9:.2f} GB are free; make room (mochi-tt cache prune), or choose another --cache-dir"
        )
    written = sum(sizes[name] for name in done)

    def note(record: TensorRecord) -> None:
        nonlocal written
        entry.append(key, record)
        done[record.name] = record
        written += sizes[record.name]
        if progress is not None:
            progress(written, total)

    if progress is not None:
        progress(written, total)
    worker = _Worker(entry, module, source, TensorWriter(module.mesh), key, check)
    with _one_torch_thread_each():
        _work(worker, todo, note)
    about = about | {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(perf_counter() - start, 3),
    }
    manifest = Manifest(key, key_fields, [done[name] for name, _, _ in parameters], about)
    if check is not None:
        check()
    entry.finish(manifest)
    return manifest


@contextmanager
def _one_torch_thread_each() -> Iterator[None]:
    """Run torch with one thread for a block.

    The converting threads share the cores; threads of threads would only wait.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


Item = tuple[str, str, Parameter]


def _work(worker: _Worker, items: list[Item], note: Callable[[TensorRecord], None]) -> None:
    """Convert all items on as many threads as there are cores.

    `note` is called in this thread, once for each finished item.
    """
    waiting = deque(items)
    running: dict[Future[TensorRecord], int] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            while waiting or running:
                while waiting and (not running or sum(running.values()) + _bytes_in_work(waiting[0]) <= WORKING_BYTES):
                    item = waiting.popleft()
                    running[pool.submit(worker.convert, *item)] = _bytes_in_work(item)
                for job in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[job]
                    note(job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            # Tensors that were written completely are worth keeping.
            for job in running:
                if not job.cancelled() and job.exception() is None:
                    worker.entry.append(worker.key, job.result())
            raise


def _bytes_in_work(item: Item) -> int:
    _, _, parameter = item
    return prod(parameter.shape) * (_MOVED_BYTES if parameter.moves_only else _COMPUTED_BYTES)


@dataclass(frozen=True)
class _Worker:
    """Everything that a thread needs to convert any tensor."""

    entry: Entry
    module: Module
    source: TensorSource
    writer: TensorWriter
    key: str
    check: Callable[[], None] | None

    def convert(self, name: str, prefix: str, parameter: Parameter) -> TensorRecord:
        """Read, pack, write and hash one tensor. A rename makes its file visible when it is on the disk."""
        path = self.entry.tensors / f"{name}.tensorbin"
        # Another name for each process: two may work here if somebody deletes the lock.
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
        host = parameter.read(self.source, prefix)
        self.entry.check_inside()
        try:
            try:
                temporary.unlink(missing_ok=True)
                checksum = self.writer.write(temporary, parameter, host)
                size = temporary.stat().st_size
                flush(temporary)
                whole = size >= data_bytes(parameter, self.module.mesh)
                if whole:
                    os.replace(temporary, path)
            except (OSError, RuntimeError) as error:
                raise MachineError(_why_not(temporary, str(error))) from error
            if not whole:
                # A full disk cuts the file short without an error from ttnn.
                raise MachineError(_why_not(temporary, "the file came out short"))
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if self.check is not None:
            self.check()
        return TensorRecord(
            name=name,
            file=path.name,
            shape=parameter.shape,
            dtype=parameter.dtype.name,
            layout=parameter.layout.name,
            sp=parameter.sp,
            tp=parameter.tp,
            bytes=size,
            checksum=checksum,
        )


def _why_not(path: Path, reason: str) -> str:
    first = next((line.strip() for line in reason.splitlines() if line.strip()), "unknown error")
    return (
        f"writing to {path.parent} failed with {free_bytes(path.parent) / 1e6:.0f} MB free ({first}): "
        "make room and run it again, what is finished is kept"
    )
