"""Converting a module's weights into an entry of the store, tensor by tensor.

Three kinds of work overlap: reading and rearranging tensors ahead (on several threads), packing with ttnn (on the
calling thread), and writing and hashing the files (on one more).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import ttnn

from models.layers.module import Module, Parameter, TensorSource, check_sources
from weight_cache.digest import ByteProgress, checksum
from weight_cache.entry import TEMPORARY, Entry, free_bytes
from weight_cache.manifest import Manifest, TensorRecord
from weight_cache.plan import data_bytes, disk_bytes

if TYPE_CHECKING:
    import torch

# Tensors read ahead and not yet written may take this much; one larger tensor is let through alone.
AHEAD_BYTES = 896 << 20
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
    forget_pages: Callable[[], None] | None = None,
) -> Manifest:
    """Fill `entry` with the converted parameters of `module`; the caller holds the entry's lock.

    What an earlier run finished is kept. The manifest is written last.

    Args:
        entry: where to write.
        module: declared, with its precision set.
        source: the weights, under canonical names.
        key: of the entry.
        key_fields: what the key is a hash of.
        about: goes into the manifest, for people.
        progress: called as `progress(bytes written, bytes in all)`.
        forget_pages: called now and then so that mapped files do not fill the memory.

    Raises:
        ValueError: the weights do not fit the model.
        OSError: no space, or the directory cannot be written; what was finished stays for the next run.
    """
    parameters = list(module.parameters())
    check_sources(parameters, source)
    done = entry.start()
    start = perf_counter()
    sizes = {name: disk_bytes(parameter, module.mesh) for name, _, parameter in parameters}
    todo = [(name, prefix, parameter) for name, prefix, parameter in parameters if name not in done]
    needed = sum(sizes[name] for name, _, _ in todo) + _SPARE_BYTES
    free = free_bytes(entry.path)
    if todo and needed > free:
        raise OSError(
            f"no space for the converted weights: {needed / 1e9:.2f} GB are needed in {entry.path.parent} and "
            f"{free / 1e9:.2f} GB are free; make room (mochi-tt cache prune), or choose another --cache-dir"
        )
    total, written = sum(sizes.values()), sum(sizes[name] for name in done)
    if progress is not None:
        progress(written, total)

    def noted(job: Future[TensorRecord]) -> None:
        nonlocal written
        record = job.result()
        entry.append(record)
        done[record.name] = record
        written += sizes[record.name]
        if progress is not None:
            progress(written, total)

    writing: deque[Future[TensorRecord]] = deque()
    with (
        _one_torch_thread_each(),
        ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as readers,
        ThreadPoolExecutor(1) as writer,
    ):
        try:
            for (name, _, parameter), host in _read_ahead(readers, todo, source, forget_pages):
                tensor = parameter.distribute(module.mesh, host)
                del host
                writing.append(writer.submit(_write, entry, module, name, parameter, tensor))
                del tensor
                while writing and (writing[0].done() or len(writing) > 2):
                    noted(writing.popleft())
            while writing:
                noted(writing.popleft())
        except BaseException:
            readers.shutdown(cancel_futures=True)
            writer.shutdown(cancel_futures=True)
            # Whatever was written in full is worth keeping.
            for job in writing:
                if not job.cancelled() and job.exception() is None:
                    entry.append(job.result())
            raise
    about = about | {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(perf_counter() - start, 3),
    }
    manifest = Manifest(key, key_fields, [done[name] for name, _, _ in parameters], about)
    entry.finish(manifest)
    return manifest


@contextmanager
def _one_torch_thread_each() -> Iterator[None]:
    """Readers share the cores among them; threads of threads would only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


Item = tuple[str, str, Parameter]


def _read_ahead(
    pool: ThreadPoolExecutor, items: list[Item], source: TensorSource, forget_pages: Callable[[], None] | None
):
    """Yield (item, host tensor) in order, reading further ones meanwhile within `AHEAD_BYTES`."""
    waiting: deque[tuple[Item, int, Future[torch.Tensor]]] = deque()
    ahead, position = 0, 0
    while waiting or position < len(items):
        while position < len(items):
            _, prefix, parameter = items[position]
            # Sources and result may both be there, in float32 at worst.
            size = 8 * prod(parameter.shape)
            if waiting and ahead + size > AHEAD_BYTES:
                break
            waiting.append((items[position], size, pool.submit(parameter.read, source, prefix)))
            ahead += size
            position += 1
        item, size, job = waiting.popleft()
        host = job.result()
        ahead -= size
        if forget_pages is not None:
            forget_pages()
        yield item, host
        del host


def _write(entry: Entry, module: Module, name: str, parameter: Parameter, tensor: ttnn.Tensor) -> TensorRecord:
    """Write a packed tensor under its name, in one step."""
    path = entry.tensors / f"{name}.tensorbin"
    temporary = entry.tensors / f"{TEMPORARY}{path.name}"
    try:
        try:
            ttnn.dump_tensor(temporary, tensor)
        except RuntimeError as error:
            raise OSError(_why_not(temporary, str(error))) from error
        if temporary.stat().st_size < data_bytes(parameter, module.mesh):
            # A full disk cuts the file short without an error from ttnn.
            raise OSError(_why_not(temporary, "the file came out short"))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return _record(path, name, parameter)


def _why_not(path: Path, reason: str) -> str:
    first = next((line.strip() for line in reason.splitlines() if line.strip()), "unknown error")
    return (
        f"writing to {path.parent} failed with {free_bytes(path.parent) / 1e6:.0f} MB free ({first}): "
        "make room and run it again, what is finished is kept"
    )


def _record(path: Path, name: str, parameter: Parameter) -> TensorRecord:
    return TensorRecord(
        name=name,
        file=path.name,
        shape=parameter.shape,
        dtype=parameter.dtype.name,
        layout=parameter.layout.name,
        sp=parameter.sp,
        tp=parameter.tp,
        bytes=path.stat().st_size,
        checksum=checksum(path),
    )
