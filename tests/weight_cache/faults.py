"""Random faults in the files of a checkpoint and of a store, at random moments of building and loading.

`python -m tests.weight_cache.faults --count 1000 --seed 0` prints a table: how often weights were right, were rebuilt,
or were refused in one line; and how often there was a traceback, wrong weights without a word, or a hang. The last
three must be zero.

Each trial takes a copy of a checkpoint of two shards, a LoRA in half of the cases, and a store in one of several
states. It injects one fault, before or while the product works, and loads. What is loaded must be, tensor by tensor
and chip by chip, what the files hold, as plain safetensors code reads them. Then it loads once more without a new
fault: a fault must not leave wrong weights behind. A folder outside the store must be as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import sleep
from typing import Any

import torch
import ttnn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.layers.module import Module, Parameter, check_sources
from models.machine.errors import InputError
from tests.weight_cache.conversions import numbers
from weight_cache import convert, digest, manifest
from weight_cache.checkpoints.component import Component
from weight_cache.checkpoints.lora import LoraRequest
from weight_cache.key import stored_parameters
from weight_cache.precision import set_precision
from weight_cache.store import Store
from weight_cache.tensor_file import TensorWriter

OUTCOMES = ("right", "rebuilt", "refused", "traceback", "silent", "hung")
LAYOUT = "1x2sp0tp1"
NAMES = [f"blocks.{index}.proj.weight" for index in range(6)]
NOBODY = 65534
SECONDS = 60
# What one shard holds; the rest is in the other.
FIRST = 3
STRENGTH = 0.5


class Small(Module):
    """Six matrices and two other parameters, in several dtypes and placements."""

    def __init__(self, mesh) -> None:
        super().__init__(mesh)
        placements = ({"tp": 1}, {"tp": 0}, {"tp": 1}, {}, {"tp": 1}, {"tp": 0, "dtype": ttnn.bfloat8_b})
        for name, placement in zip(NAMES, placements, strict=True):
            parameter = Parameter({name: (64, 64)}, moves_only="dtype" not in placement, **placement)
            setattr(self, name.replace(".", "_"), parameter)
        self.bias = Parameter({"bias": (1, 64)}, dtype=ttnn.float32)
        self.table = Parameter({"table": (32, 64)}, layout=ttnn.ROW_MAJOR_LAYOUT, moves_only=True)


def weights(seed: str) -> dict[str, torch.Tensor]:
    shapes = {name: (64, 64) for name in NAMES} | {"bias": (1, 64), "table": (32, 64)}
    return {name: numbers(shape, f"{seed} {name}").bfloat16() for name, shape in shapes.items()}


def write_checkpoint(folder: Path, seed: str) -> None:
    folder.mkdir()
    tensors = weights(seed)
    shards = {"model-1.safetensors": list(tensors)[:FIRST], "model-2.safetensors": list(tensors)[FIRST:]}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    places = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"num_layers": 6, "depth": 2}))


def write_lora(path: Path, seed: str) -> None:
    tensors = {}
    for name in (NAMES[0], NAMES[4]):
        module = name.removesuffix(".weight")
        tensors[f"transformer.{module}.lora_A.weight"] = numbers((2, 64), f"{seed} A {name}", 5)
        tensors[f"transformer.{module}.lora_B.weight"] = numbers((64, 2), f"{seed} B {name}", 5)
    save_file(tensors, path)


class Refused(Exception):
    """The files hold no weights for this model."""


class Plain:
    """The weights in a folder as plain code reads them, with a LoRA merged in."""

    def __init__(self, folder: Path, lora: Path | None):
        try:
            if not all(path.is_file() for path in (*folder.iterdir(), *([lora] if lora else []))):
                raise Refused
            if json.loads((folder / "config.json").read_text())["num_layers"] != 6:
                raise Refused
            places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
            held = {file: load_file(folder / file) for file in sorted(set(places.values()))}
            self.tensors = {name: held[file][name] for name, file in places.items()}
            for name, value in (load_file(lora) if lora else {}).items():
                if match := re.fullmatch(r"transformer\.(.+)\.lora_A\.weight", name):
                    up = load_file(lora)[name.replace("lora_A", "lora_B")]
                    target = f"{match[1]}.weight"
                    delta = up.float() @ value.float() * STRENGTH
                    self.tensors[target] = self.tensors[target].float() + delta
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise Refused from error

    def keys(self):
        return self.tensors.keys()

    def shape(self, key):
        return tuple(self.tensors[key].shape)

    def tensor(self, key):
        return self.tensors[key]


def truth(mesh, folder: Path, lora: Path | None) -> dict[str, list[bytes]] | None:
    """What every chip must hold, or None if the files hold no weights for this model."""
    module = Small(mesh)
    set_precision(module, "bf16")
    try:
        source = Plain(folder, lora)
        check_sources(list(module.parameters()), source)
    except (Refused, InputError, ValueError):
        return None
    return {
        name: _parts(parameter.distribute(mesh, parameter.read(source, prefix)))
        for name, prefix, parameter in stored_parameters(module)
    }


def _parts(tensor) -> list[bytes]:
    return [
        ttnn.to_torch(part).contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for part in ttnn.get_device_tensors(tensor)
    ]


# --- faults -------------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """One fault: what is changed, how and when, and everything that is needed to do it."""

    root: Path
    mesh: Any
    draw: random.Random
    with_lora: bool
    target: str = ""
    kind: str = ""
    moment: str = ""
    number: int = 0  # Of the file among several.
    happened: bool = False
    lines: list[str] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.root / "transformer"

    @property
    def lora(self) -> Path | None:
        return self.root / "lora.safetensors" if self.with_lora else None

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def outside(self) -> Path:
        """Another checkpoint, LoRA and store, of the same names and sizes and with other values."""
        return self.root / "outside"

    def entry(self) -> Path | None:
        folder = Store(self.cache).root / "entries"
        return next(iter(sorted(folder.iterdir())), None) if folder.is_dir() else None

    def path(self) -> Path | None:
        """The file that the fault hits; None if it is not there yet."""
        entry, store = self.entry(), Store(self.cache).root
        names = {
            "shard": self.checkpoint / f"model-{1 + self.number % 2}.safetensors",
            "index": self.checkpoint / "model.safetensors.index.json",
            "config": self.checkpoint / "config.json",
            "lora": self.lora,
            "manifest": entry and entry / "manifest.json",
            "journal": entry and entry / "journal.jsonl",
            "used": entry and entry / "used",
            "entry": entry,
            "tensors": entry and entry / "tensors",
            "set-aside": entry and entry / "set-aside",
            "digests": next(iter(store.glob("digests*")), None),
            "lock": next(iter(store.glob("locks/*.lock")), None),
            "locks": store / "locks",
            "entries": store / "entries",
        }
        if self.target == "tensor":
            folder = entry and entry / "tensors"
            # Of files that are being written the checksum is not known yet.
            found = sorted(folder.glob("[!.]*")) if folder and folder.is_dir() else []
            return found[self.number % len(found)] if found else None
        return names[self.target]

    def other(self, path: Path) -> Path | None:
        """The same file outside."""
        name = path.relative_to(self.root)
        if name.parts[:3] == ("cache", "mochi-weights", "entries") and len(name.parts) > 3:
            entries = self.outside / Path(*name.parts[:3])
            name = Path(*name.parts[:3], next(iter(sorted(entries.iterdir()))).name, *name.parts[4:])
        elif "digests" in name.name:
            return next(iter((self.outside / name).parent.glob("digests*")), None)
        elif "lock" in name.name and name.suffix:
            return next(iter((self.outside / name).parent.glob("*.lock")), None)
        return self.outside / name

    def inject(self) -> None:
        """Do it. What cannot be done, because there is no such file yet, is left."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            path = self.path() if self.target != "store" else self.root
            self.happened |= path is not None and (path.exists() or self.kind == "link")
            _KINDS[self.kind](self)


def _content(trial: Trial, change: Callable[[bytearray], None]) -> None:
    path = trial.path()
    if path is None or not path.is_file():
        return
    stat = path.stat()
    content = bytearray(path.read_bytes())
    if not content:
        return
    change(content)
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    if trial.draw.random() < 0.5:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _flip(trial: Trial) -> None:
    def change(content: bytearray) -> None:
        content[trial.draw.randrange(len(content))] ^= 1 << trial.draw.randrange(8)

    _content(trial, change)


def _zero(trial: Trial) -> None:
    def change(content: bytearray) -> None:
        start = trial.draw.randrange(len(content))
        content[start:] = bytes(len(content) - start)

    _content(trial, change)


def _truncate(trial: Trial) -> None:
    def change(content: bytearray) -> None:
        del content[trial.draw.randrange(len(content)) :]

    _content(trial, change)


def _edit(trial: Trial) -> None:
    """Change a number in a text."""

    def change(content: bytearray) -> None:
        found = list(re.finditer(rb"\d+", content))
        if found:
            match = trial.draw.choice(found)
            number = trial.draw.choice([b"0", b"7", b"-1", b"1e999", b"9" * 5000, b"true", b'"x"'])
            content[match.start() : match.end()] = number

    _content(trial, change)


def _swap(trial: Trial) -> None:
    """Exchange two strings of a text, such as the names of two records or two checksums."""

    def change(content: bytearray) -> None:
        found = sorted(set(re.findall(rb'"[^"]{3,}"', content)))
        if len(found) > 1:
            a, b = trial.draw.sample(found, 2)
            parts = [part.replace(b, a) for part in bytes(content).split(a)]
            content[:] = b.join(parts)

    _content(trial, change)


def _nest(trial: Trial) -> None:
    def change(content: bytearray) -> None:
        content[:] = b'{"a":' * 100_000

    _content(trial, change)


def _in_place(trial: Trial) -> None:
    path = trial.path()
    other = path and trial.other(path)
    if other and other.is_file():
        _content(trial, lambda content: content.__setitem__(slice(None), other.read_bytes()))


def _replace(trial: Trial) -> None:
    path = trial.path()
    other = path and trial.other(path)
    if path and other and other.is_file() and path.is_file():
        stat = path.stat()
        new = trial.root / "new"
        shutil.copy(other, new)
        os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        os.replace(new, path)


def _exchange(trial: Trial) -> None:
    """Exchange two files of one folder."""
    path = trial.path()
    if path is None or not path.is_file():
        return
    others = [p for p in sorted(path.parent.glob("[!.]*")) if p.suffix == path.suffix and p != path and p.is_file()]
    if others:
        other, between = trial.draw.choice(others), trial.root / "between"
        path.rename(between)
        other.rename(path)
        between.rename(other)


def _delete(trial: Trial) -> None:
    path = trial.path()
    if path is not None and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path is not None:
        path.unlink(missing_ok=True)


def _link(trial: Trial) -> None:
    """Put a link to the same file outside in its place, or where it would be."""
    path = trial.path()
    other = path and trial.other(path)
    if path is None or other is None or not path.parent.is_dir():
        return
    with contextlib.suppress(OSError):
        _delete(trial) if trial.target != "tensor" else path.unlink()
        path.symlink_to(other)


def _directory(trial: Trial) -> None:
    path = trial.path()
    if path is not None and path.parent.is_dir() and not path.is_dir():
        path.unlink(missing_ok=True)
        path.mkdir()
        (path / "something").write_text("")


def _pipe(trial: Trial) -> None:
    path = trial.path()
    if path is not None and path.is_file():
        path.unlink()
        os.mkfifo(path)


def _forbid(trial: Trial) -> None:
    path = trial.path()
    if path is not None and path.exists():
        path.chmod(0)


def _forbid_writing(trial: Trial) -> None:
    path = trial.path()
    if path is not None and path.exists():
        path.chmod(0o555 if path.is_dir() else 0o444)


def _prune(trial: Trial) -> None:
    Store(trial.cache).prune(everything=True)


_KINDS: dict[str, Callable[[Trial], None]] = {
    "flip": _flip,
    "zero": _zero,
    "truncate": _truncate,
    "edit": _edit,
    "swap": _swap,
    "nest": _nest,
    "in place": _in_place,
    "replace": _replace,
    "exchange": _exchange,
    "delete": _delete,
    "link": _link,
    "directory": _directory,
    "pipe": _pipe,
    "forbid": _forbid,
    "forbid writing": _forbid_writing,
    "prune": _prune,
    "full disk": lambda trial: None,
    "failing disk": lambda trial: None,
}
_TEXTS = ("manifest", "journal", "digests", "index", "config")
_FILES = ("shard", "lora", "tensor", *_TEXTS)
_FOLDERS = ("entry", "tensors", "set-aside", "locks", "entries")
TARGETS = {
    **dict.fromkeys(("flip", "zero", "truncate", "in place", "replace", "exchange", "directory"), _FILES),
    **dict.fromkeys(("edit", "swap", "nest"), _TEXTS),
    "delete": (*_FILES, *_FOLDERS, "lock", "used"),
    "link": (*_FILES, *_FOLDERS, "lock", "used"),
    "pipe": (*_FILES, "lock", "used"),
    "forbid": (*_FILES, *_FOLDERS, "lock", "used"),
    "forbid writing": (*_FILES, *_FOLDERS, "lock", "used"),
    **dict.fromkeys(("prune", "full disk", "failing disk"), ("store",)),
}
_WHILE_MADE = ("hashing", "reading", "writing", "publishing")
_LATER = ("loaded before", "transferring")
# When a file of each kind is there to be hit.
MOMENTS = {
    **dict.fromkeys(("shard", "index", "config", "lora"), ("loaded before", *_WHILE_MADE, "resuming", "transferring")),
    **dict.fromkeys(("manifest", "used"), (*_LATER, "publishing")),
    "tensor": (*_LATER, "writing", "publishing", "resuming"),
    "tensors": (*_LATER, "reading", "resuming"),
    # Between a look at a folder and a write into it there is a moment in which it may become a link.
    **dict.fromkeys(("entry", "set-aside", "entries", "locks"), (*_LATER, "reading", "resuming")),
    "journal": ("writing", "publishing", "resuming"),
    "digests": (*_LATER, "reading", "writing", "publishing", "resuming"),
    "lock": (*_LATER, "reading", "writing", "publishing", "resuming"),
    "store": ("loaded before", *_WHILE_MADE, "resuming", "transferring"),
}


# --- moments ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def at_call(number: int, act: Callable[[], None], *, after: bool = False) -> Callable[[Any], Any]:
    """Make a function that does `act` once, before or after its n-th call."""
    lock, state = Lock(), {"calls": 0}

    def make(original):
        def calling(*arguments, **named):
            with lock:
                state["calls"] += 1
                due = state["calls"] == number
                if due and not after:
                    act()
            result = original(*arguments, **named)
            if due and after:
                act()
            return result

        return calling

    return make


class Hung(BaseException):
    """It took too long."""


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def ring(*_):
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def as_nobody(folder: Path, wanted: bool) -> Iterator[None]:
    """Root may read and write everything; nobody feels permissions."""
    if not wanted or os.geteuid() != 0:
        yield
        return
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(path) / name, NOBODY, NOBODY, follow_symlinks=False)
    os.chown(folder, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Files beyond this size fail as on a full disk. What ttnn prints may go to such a file, and is thrown away."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
        for descriptor in (*kept, nowhere):
            os.close(descriptor)


def fail() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def at_the_moment(trial: Trial) -> Iterator[None]:
    """Let the fault happen while the block runs."""
    draw = trial.draw
    with contextlib.ExitStack() as stack:

        def patch(owner, name, number, act=trial.inject, after=False):
            stack.enter_context(patched(owner, name, at_call(number, act, after=after)))

        if trial.kind == "full disk":
            stack.enter_context(small_files(draw.choice([0, 100, 1000, 5000, 9000, 13000])))
        elif trial.kind == "failing disk":
            owner, name = draw.choice(
                [
                    (os, "fsync"),
                    (os, "replace"),
                    (Path, "replace"),
                    (Path, "rename"),
                    (Path, "mkdir"),
                    (Path, "unlink"),
                    (TensorWriter, "write"),
                    (Path, "write_text"),
                ]
            )
            patch(owner, name, draw.randint(1, 9), fail)
        elif trial.moment in ("loaded before", "resuming"):
            trial.inject()
        elif trial.moment == "hashing":
            patch(digest, "sha256", draw.randint(1, 3), after=draw.random() < 0.5)
        elif trial.moment == "reading":
            patch(convert.Parameter, "read", draw.randint(1, 8), after=draw.random() < 0.5)
        elif trial.moment == "writing":
            patch(TensorWriter, "write", draw.randint(1, 8), after=draw.random() < 0.5)
        elif trial.moment == "publishing":
            patch(manifest.Manifest, "write", 1, after=draw.random() < 0.5)
        elif trial.moment == "transferring":
            patch(ttnn, "load_tensor", draw.randint(1, 8), after=draw.random() < 0.5)
        yield


# --- trials -------------------------------------------------------------------------------------------------------


def load(trial: Trial) -> dict[str, list[bytes]]:
    """Load through the product, and read back what every chip holds."""
    module = Small(trial.mesh)
    loras = [LoraRequest(trial.lora, STRENGTH)] if trial.lora else []
    component = Component(trial.checkpoint)
    if component.config.get("num_layers") != 6:  # As a model's configuration is checked before it is declared.
        raise InputError("config.json is of another model")
    try:
        Store(trial.cache).load(module, component, loras=loras, on_message=trial.lines.append)
        return {name: _parts(parameter.tensor.cpu()) for name, _, parameter in stored_parameters(module)}
    finally:
        module.release()


def attempt(trial: Trial, step: Callable[[Trial], Any]) -> tuple[str, Any]:
    """Return the outcome, and what was loaded or why not."""
    trial.lines.clear()
    try:
        with no_longer_than(SECONDS):
            value = step(trial)
    except Hung:
        return "hung", "took too long"
    except InputError as error:
        one = len(str(error).splitlines()) == 1
        return ("refused" if one else "traceback"), str(error)
    except BaseException as error:
        import traceback

        return "traceback", "".join(traceback.format_exception(error))
    if any(len(line.splitlines()) != 1 for line in trial.lines):
        return "traceback", str(trial.lines)
    return ("rebuilt" if trial.lines else "right"), value


def snapshot(folder: Path) -> dict[str, bytes]:
    """Contents of a folder; what the product never writes there."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


class Faults:
    """Runs trials over copies of one prepared folder."""

    def __init__(self, mesh, folder: Path):
        """Prepare checkpoint, LoRA and stores of two sets of weights in `folder`."""
        self.mesh, self.folder = mesh, folder
        self.made: dict[bool, Path] = {}
        for with_lora in (False, True):
            root = folder / f"made-{with_lora}"
            for seed, place in (("one", root), ("two", root / "outside")):
                place.mkdir(parents=True)
                write_checkpoint(place / "transformer", seed)
                write_lora(place / "lora.safetensors", seed)
                load(Trial(place, mesh, random.Random(0), with_lora))
            self.made[with_lora] = root

    def kill(self, draw: random.Random) -> tuple[str, Trial, str]:
        """Kill up to four processes that fill one store, each at a random moment, and load."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            root = Path(name) / "trial"
            trial = Trial(root, self.mesh, draw, draw.random() < 0.5, "process", "kill", "building")
            shutil.copytree(self.made[trial.with_lora], root, symlinks=True)
            shutil.rmtree(trial.cache)
            writers = [_fork(trial) for _ in range(draw.randint(1, 4))]
            for writer in draw.sample(writers, len(writers)):
                sleep(draw.uniform(0, 0.15))
                os.kill(writer, signal.SIGKILL)
            for writer in writers:
                os.waitpid(writer, 0)
            trial.happened = True
            outcome, value = attempt(trial, load)
            if outcome in ("right", "rebuilt") and value != truth(self.mesh, trial.checkpoint, trial.lora):
                return "silent", trial, _difference(value, {})
            return outcome, trial, value if isinstance(value, str) else ""

    def draw(self, draw: random.Random, root: Path) -> Trial:
        """Draw a fault."""
        trial = Trial(root, self.mesh, draw, draw.random() < 0.5)
        trial.kind = draw.choice(sorted(TARGETS))
        trial.target = draw.choice(TARGETS[trial.kind])
        if trial.target == "lora":
            trial.with_lora = True
        trial.number = draw.randrange(1000)
        trial.moment = draw.choice(MOMENTS[trial.target])
        return trial

    def run(self, draw: random.Random) -> tuple[str, Trial, str]:
        """Run one trial; returns its outcome, the fault and the details."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            root = Path(name) / "trial"
            trial = self.draw(draw, root)
            shutil.copytree(self.made[trial.with_lora], root, symlinks=True)
            os.chmod(name, 0o755)
            try:
                return self._run(trial)
            finally:
                for path, folders, _ in os.walk(name):
                    for folder in folders:
                        if not (Path(path) / folder).is_symlink():
                            os.chmod(Path(path) / folder, 0o755)

    def _run(self, trial: Trial) -> tuple[str, Trial, str]:
        before = truth(self.mesh, trial.checkpoint, trial.lora)
        if trial.moment in (*_WHILE_MADE, "resuming") or trial.kind.endswith("disk"):
            shutil.rmtree(trial.cache)
        if trial.moment == "resuming":
            _interrupt(trial)
        kept = snapshot(trial.outside)
        with as_nobody(trial.root, trial.kind.startswith("forbid")):
            with at_the_moment(trial):
                outcome, value = attempt(trial, load)
            after = truth(self.mesh, trial.checkpoint, trial.lora)
            if outcome in ("right", "rebuilt") and value not in (before, after):
                return "silent", trial, _difference(value, after or before)
            first = outcome, value
            if outcome in ("right", "rebuilt", "refused"):
                outcome, value = attempt(trial, load)
                if outcome in ("right", "rebuilt") and value != after:
                    return "silent", trial, "left behind: " + _difference(value, after or {})
        if snapshot(trial.outside) != kept:
            return "silent", trial, "something outside the store was changed"
        if outcome in OUTCOMES[:3]:
            outcome, value = first
        return outcome, trial, value if isinstance(value, str) else ""


def _fork(trial: Trial) -> int:
    """Build in a process of its own, which needs no mesh; returns its number."""
    loras = [LoraRequest(trial.lora, STRENGTH)] if trial.lora else []
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            Store(trial.cache).build(Small(trial.mesh), Component(trial.checkpoint), loras=loras)
        os._exit(0)
    return child


def _interrupt(trial: Trial) -> None:
    def progress(stage, done, total):
        if stage.startswith("convert") and done > total / 2:
            raise KeyboardInterrupt

    loras = [LoraRequest(trial.lora, STRENGTH)] if trial.lora else []
    with contextlib.suppress(KeyboardInterrupt):
        Store(trial.cache).build(Small(trial.mesh), Component(trial.checkpoint), loras=loras, progress=progress)


def _difference(ours: dict[str, list[bytes]], theirs: dict[str, list[bytes]]) -> str:
    wrong = [name for name in ours if ours[name] != theirs.get(name)]
    return f"{len(wrong)} of {len(ours)} tensors differ: {', '.join(wrong[:3])}"


def run(mesh, folder: Path, count: int, seed: int, show: Callable[[str], None]) -> Counter[tuple[str, str]]:
    """Run `count` trials and return how often each (kind, outcome) was seen; bad ones are shown."""
    faults, found = Faults(mesh, folder), Counter[tuple[str, str]]()
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        outcome, trial, why = faults.kill(draw) if number % 10 == 9 else faults.run(draw)
        found[trial.kind, outcome] += 1
        found[trial.kind, "happened"] += trial.happened or trial.kind.endswith("disk")
        if outcome in OUTCOMES[3:]:
            place = f"{trial.kind} of {trial.target}, {trial.moment}, {'with' if trial.with_lora else 'without'} LoRA"
            show(f"{seed} {number}: {outcome}: {place}: {why}")
    return found


def table(found: Counter[tuple[str, str]]) -> str:
    columns = ("happened", *OUTCOMES)
    kinds = sorted({kind for kind, _ in found})
    rows = [[kind, *(str(found[kind, outcome]) for outcome in columns)] for kind in kinds]
    rows.append(["all", *(str(sum(found[kind, outcome] for kind in kinds)) for outcome in columns)])
    return "\n".join("".join(f"{cell:>15}" for cell in row) for row in [["fault", *columns], *rows])


def main() -> int:
    from models.device import open_mesh, quiet_ttnn
    from models.parallel import Layout, Mesh

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run one trial by its number")
    arguments = parser.parse_args()
    quiet_ttnn()
    layout = Layout.parse(LAYOUT)
    with tempfile.TemporaryDirectory() as folder, open_mesh(layout.mesh_shape, "golden") as opened:
        os.chmod(folder, 0o755)
        mesh = Mesh(opened.device, layout)
        if arguments.only is not None:
            outcome, trial, why = Faults(mesh, Path(folder)).run(random.Random(f"{arguments.seed} {arguments.only}"))
            print(outcome, trial.kind, trial.target, trial.moment, why)
            return 0
        found = run(mesh, Path(folder), arguments.count, arguments.seed, print)
    print(table(found))
    return int(any(found[key] for key in found if key[1] in OUTCOMES[3:]))


if __name__ == "__main__":
    raise SystemExit(main())
