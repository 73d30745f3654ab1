"""The job behind `mochi-tt cache benchmark`: what conversion and loading cost, on a synthetic checkpoint.

Rates are given as ratios to plainly copying and reading the same bytes in the same state: files lie in the page cache,
what was written before is on the disk, and copies and conversions take turns, so that both see the same machine.
Making, converting and loading run in processes of their own, so that each peak of memory is its own.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from models.machine.errors import MachineError
from models.machine.processes import fresh_processes

_MIB = 1 << 20


def run_benchmark(
    gigabytes: float, mesh: str, precision: str, rounds: int, folder: Path | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Make a checkpoint of Mochi's own widths and as many blocks as make `gigabytes`, convert it, and load it.

    Args:
        gigabytes: least size of the checkpoint, in bfloat16.
        mesh: shape such as "2x4"; a mock mesh is opened, nothing runs on silicon.
        precision: how matrices are stored; see `weight_cache.precision`.
        rounds: how often to copy and to convert; ratios are medians.
        folder: scratch space for twice `gigabytes`; removed afterwards.
        tell: called with each line of the report.

    Raises:
        ValueError: mesh or precision are wrong.
        OSError: no space.
    """
    from models.device import parse_mesh
    from weight_cache.precision import check_precision

    parse_mesh(mesh)
    check_precision(precision)
    with tempfile.TemporaryDirectory(prefix="mochi-tt-benchmark-", dir=folder) as name:
        scratch = Path(name)
        made = _apart(_make_checkpoint, scratch, gigabytes)
        size = made["bytes"]
        tell(f"machine:    load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
        tell(f"checkpoint: {size / 1e9:.2f} GB, {made['blocks']} blocks, made in {made['seconds']:.1f} s")
        converted = _apart(_convert, scratch, mesh, precision, rounds)
        copy, convert = converted["copy"], converted["convert"]
        ratio = median(a["seconds"] / b["seconds"] for a, b in zip(copy, convert, strict=True))
        seconds = median(step["seconds"] for step in convert)
        limit = 3 * converted["largest_bytes"] + 1024 * _MIB
        tell(
            f"identify:   {converted['identify_seconds']:.2f} s to hash the checkpoint, once per file\n"
            f"plain copy: {_spread(copy, size)}\n"
            f"convert:    {_spread(convert, size)}; {converted['stored_bytes'] / 1e9:.2f} GB stored\n"
            f"ratio:      conversion runs at {ratio:.2f} of the copy's rate (median of {rounds} rounds)\n"
            f"memory:     {converted['extra_bytes'] / _MIB:.0f} MiB over the {converted['base_bytes'] / _MIB:.0f} MiB "
            f"of the idle process, peak RSS {converted['peak_bytes'] / _MIB:.0f} MiB (limit of the extra: "
            f"{limit / _MIB:.0f} MiB, three times the largest parameter, {converted['largest_bytes'] / _MIB:.0f} MiB, "
            "and 1 GiB)"
        )
        loaded = _apart(_load, scratch, mesh, precision, rounds)
        reads, checks, loads = (loaded[name] for name in ("read_seconds", "check_seconds", "load_seconds"))
        read, checked, load = median(reads), median(checks), median(loads)
        tell(
            f"plain read: {_seconds(reads)}, one file after the other\n"
            f"checking:   {_seconds(checks)} to read all files and compare their checksums, on all cores, "
            f"{read / checked:.2f} of the read's rate\n"
            f"load:       {_seconds(loads)} with all checksums; a mock mesh takes files by reference, so this leaves "
            f"out the transfer, during which the next files are checked; {seconds / load:.1f} times faster than "
            "converting"
        )
    return {
        "mesh": mesh,
        "precision": precision,
        "checkpoint": made,
        "convert": converted | {"limit_bytes": limit, "seconds": seconds, "ratio_to_copy": ratio},
        "load": loaded | {"ratio_to_read": read / load, "times_faster": seconds / load},
    }


def _spread(steps: list[dict[str, float]], size: int) -> str:
    seconds = sorted(step["seconds"] for step in steps)
    return (
        f"{median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}), {size / median(seconds) / 1e9:.2f} GB/s, "
        f"{median(step['cpu_seconds'] for step in steps):.2f} s of CPU time"
    )


def _seconds(values: list[float]) -> str:
    return f"{median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def _apart(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with fresh_processes() as pool:
        return pool.submit(step, *arguments).result()


def _make_checkpoint(scratch: Path, gigabytes: float) -> dict[str, Any]:
    """Write a component `transformer` of pseudo-random bfloat16 values, one shard per block."""
    import torch
    from safetensors.torch import save_file

    from models.mochi.config import TransformerConfig
    from models.mochi.transformer import MochiTransformer
    from models.parallel import Layout
    from weight_cache.plan import NamedMesh

    def sources(blocks: int) -> dict[str, tuple[int, ...]]:
        model = MochiTransformer(replace(TransformerConfig(), num_layers=blocks), NamedMesh(Layout((1, 1), 0, 1)))
        return {prefix + n: shape for _, prefix, p in model.parameters() for n, shape in p.sources.items()}

    start = perf_counter()
    blocks = 1
    while 2 * sum(map(prod, sources(blocks).values())) < gigabytes * 1e9:
        blocks += 1
    shapes = sources(blocks)
    folder = scratch / "transformer"
    folder.mkdir()
    noise = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        groups.setdefault(name.split(".")[1] if name.startswith("transformer_blocks.") else "rest", {})[name] = shape
    weight_map = {}
    for index, group in enumerate(groups.values()):
        file = f"diffusion_pytorch_model-{index:05}.safetensors"
        tensors = {}
        for name, shape in group.items():
            count = prod(shape)
            repeats = -(-count // noise.numel())
            # Another rotation for each tensor, so that no two are alike.
            turned = noise.roll(1 + hash(name) % 9973) if count > 4096 else noise
            tensors[name] = turned.repeat(repeats)[:count].reshape(shape).contiguous()
            weight_map[name] = file
        save_file(tensors, folder / file)
    config = {"_class_name": "MochiTransformer3DModel", "num_layers": blocks}
    (folder / "config.json").write_text(json.dumps(config))
    index_file = folder / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    total = sum(path.stat().st_size for path in folder.iterdir())
    return {"bytes": total, "blocks": blocks, "seconds": round(perf_counter() - start, 3)}


def _convert(scratch: Path, mesh: str, precision: str, rounds: int) -> dict[str, Any]:
    """Copy the checkpoint and convert it, in turns; every copy and every entry but the last is deleted."""
    model, component, store, opened = _prepare(scratch, mesh)
    copies, conversions, identified, peaks = [], [], [], []
    with opened:
        base = _reset_peak()
        for _ in range(rounds):
            store.prune(everything=True)
            copies.append(_copy(scratch / "transformer", scratch / "copy"))
            os.sync()
            _reset_peak()
            clock = _ConversionClock()
            begin = perf_counter()
            manifest, _ = store.build(model, component, precision=precision, progress=clock)
            conversions.append(clock.since_start())
            identified.append(round(clock.start - begin, 3))
            peaks.append(_status("VmHWM"))
    return {
        "identify_seconds": identified[0],
        "copy": copies,
        "convert": conversions,
        "stored_bytes": manifest.bytes,
        "largest_bytes": max(2 * prod(record.shape) for record in manifest.tensors),
        "base_bytes": base,
        "peak_bytes": max(peaks),
        "extra_bytes": max(peaks) - base,
    }


class _ConversionClock:
    """A store's progress that notes when converting begins, after the checkpoint is identified."""

    start = cpu = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage.startswith("convert") and done == 0:
            self.start, self.cpu = perf_counter(), process_time()

    def since_start(self) -> dict[str, float]:
        return _since(self.start, self.cpu)


def _copy(source: Path, target: Path) -> dict[str, float]:
    os.sync()
    start, cpu = perf_counter(), process_time()
    shutil.copytree(source, target)
    seconds = _since(start, cpu)
    shutil.rmtree(target)
    return seconds


def _since(start: float, cpu: float) -> dict[str, float]:
    return {"seconds": round(perf_counter() - start, 3), "cpu_seconds": round(process_time() - cpu, 3)}


def _load(scratch: Path, mesh: str, precision: str, rounds: int) -> dict[str, list[float]]:
    """Read all files plainly, compare their checksums, and load them, in turns."""
    model, component, store, opened = _prepare(scratch, mesh)
    reads, checks, loads = [], [], []
    with opened:
        entry = store.entries()[0].path
        for _ in range(rounds):
            reads.append(_read_all(entry))
            start = perf_counter()
            store.verify()
            checks.append(perf_counter() - start)
            start = perf_counter()
            store.load(model, component, precision=precision)
            loads.append(perf_counter() - start)
            model.release()
    found = {"read_seconds": reads, "check_seconds": checks, "load_seconds": loads}
    return {name: [round(value, 3) for value in values] for name, values in found.items()}


def _prepare(scratch: Path, mesh: str):
    from models.device import open_mesh, parse_mesh
    from models.mochi.config import TransformerConfig
    from models.mochi.transformer import MochiTransformer
    from models.parallel import Layout, Mesh
    from weight_cache.checkpoints.component import Component
    from weight_cache.store import Store

    component = Component(scratch / "transformer")
    config = TransformerConfig.from_dict(component.config)
    opened = open_mesh(mesh, "dry-run")
    layout = Layout.default(parse_mesh(mesh), config.num_attention_heads)
    return MochiTransformer(config, Mesh(opened.device, layout)), component, Store(scratch / "cache"), opened


def _read_all(entry: Path) -> float:
    buffer = bytearray(4 * _MIB)
    start = perf_counter()
    for path in sorted((entry / "tensors").iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return perf_counter() - start


def _reset_peak() -> int:
    """Make the kernel forget this process's peak memory; returns what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise MachineError(f"/proc/self/status has no {field}: the benchmark needs Linux")
