"""The store: entries found by key, created if missing, checked before use, and sent to the mesh.

The key holds the versions of what decides the bytes (`weight_cache.versions`), so that an entry of another version is
never read: it stays under its own name until `Store.prune`.

<store>/entries/<component>-<layout>-<precision>-<24 digits of the key>/
<store>/locks/<entry>.lock      held by one process that creates, repairs or deletes an entry, or shared by its readers
<store>/digests-<user>.json     hashes of checkpoint files

Every load compares the checksum of each file while another one is sent to the mesh. What is damaged is set aside and
made again. No link within the store is followed.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from models.machine.errors import InputError, MachineError
from weight_cache.checkpoints.held import HeldFile
from weight_cache.checkpoints.lora import LoraRequest, checked_source
from weight_cache.digest import DigestMemory
from weight_cache.entry import DamagedFileError, Entry
from weight_cache.inside import exists, is_directory, is_file
from weight_cache.key import entry_key, key_fields, stored_parameters
from weight_cache.listing import Found, state_of
from weight_cache.location import store_directory
from weight_cache.locks import Busy, Locks
from weight_cache.manifest import Manifest, TensorRecord
from weight_cache.merge import Merge
from weight_cache.precision import set_precision, stored_precision

if TYPE_CHECKING:
    from models.layers import Module
    from models.layers.module import TensorSource
    from weight_cache.checkpoints.component import Component

# Called as progress(stage, done, total). A stage is an action and its object, such as "convert transformer".
# "identify", "convert" and "verify" count bytes. "weights" counts tensors.
Progress = Callable[[str, int, int], None]
Message = Callable[[str], None]
_KEY_DIGITS = 24
_MANIFEST = "manifest.json"
# How often a load begins anew when its entry changes under it.
_ATTEMPTS = 4
# Threads that read and hash files ahead of the transfer, and how far ahead: what they read must stay in memory until
# ttnn reads it again.
_READERS = 4
_READ_AHEAD_BYTES = 1 << 30


class Store:
    """Converted weights in a directory, which `weight_cache.location` determines."""

    def __init__(self, cache_dir: str | Path | None = None):
        """Refer to the store; nothing is read or written yet."""
        self.root = store_directory(cache_dir)

    def load(
        self,
        module: Module,
        component: Component,
        *,
        precision: str = "bf16",
        loras: Sequence[LoraRequest] = (),
        progress: Progress | None = None,
        on_message: Message | None = None,
    ) -> Manifest:
        """Fill a newly declared module on its mesh from the store, after converting the weights if necessary.

        Args:
            module: module declared on an open mesh.
            component: its weights.
            precision: a name of `weight_cache.precision`.
            loras: LoRAs to merge into the weights while loading; the store keeps the weights without them.
            progress: called as `progress(stage, done, total)`.
            on_message: called with a line of information for the user.

        Raises:
            ValueError: precision, LoRA or weights do not fit the model.
            OSError: there is no space, or the store cannot be written.
        """
        tell = on_message or _silent
        merge = Merge(module, component, loras)
        for note in merge.notes:
            tell(note)
        wanted = self._wanted(module, component, precision, progress)
        damaged = False
        for _ in range(_ATTEMPTS):
            if exists(wanted.entry.path):
                with self._reading(wanted.entry, tell):
                    manifest = _sound(wanted)
                    if isinstance(manifest, Manifest):
                        try:
                            _put(wanted, manifest, merge, progress or _silent)
                            wanted.check()
                            wanted.entry.touch()
                            return manifest
                        except DamagedFileError:
                            damaged = True
            self._make(wanted, tell, progress, check=damaged)
        raise MachineError(
            f"stored weights {wanted.entry.path.name} were changed or deleted {_ATTEMPTS} times while "
            "they were loaded: see who writes there, or choose another --cache-dir"
        )

    def build(
        self,
        module: Module,
        component: Component,
        *,
        precision: str = "bf16",
        loras: Sequence[LoraRequest] = (),
        progress: Progress | None = None,
        on_message: Message | None = None,
    ) -> tuple[Manifest, Path]:
        """Create the entry that `load` would read, unless it exists. Return its manifest and directory.

        LoRAs are checked; the entry is that of the weights without them. Of an entry that exists only the manifest and
        the files' sizes are checked. `load` reads the files.
        """
        Merge(module, component, loras)
        wanted = self._wanted(module, component, precision, progress)
        manifest = _sound(wanted)
        if not isinstance(manifest, Manifest):
            manifest = self._make(wanted, on_message or _silent, progress, check=False)
        return manifest, wanted.entry.path

    def entries(self) -> list[Found]:
        """List all entries, by name."""
        return [Found.at(path) for path in self._paths()]

    def verify(self, names: Sequence[str] = (), progress: Progress | None = None) -> dict[str, dict[str, str]]:
        """Read every file of the complete entries whose name contains one of `names` (all by default).

        Outdated and newer entries are never read by this program and are left out.

        Returns:
            For each entry, the damaged files and the reason for each.

        Raises:
            ValueError: no entry has such a name, or one that is named is unfinished, outdated or newer.
        """
        found = {}
        for path in self._selected(names):
            entry = Entry(path)
            state, why = state_of(entry)
            if state in ("unfinished", "outdated", "newer"):
                if names:
                    reason = f" ({why})" if why else ""
                    raise InputError(f"entry {path.name} is {state}{reason}: there is nothing to verify")
                continue
            try:
                manifest = entry.manifest()
            except ValueError as error:
                found[path.name] = {entry.manifest_path.name: str(error)}
                continue
            if manifest is None:
                continue  # Pruned meanwhile.
            if entry_key(manifest.key_fields) != manifest.key:
                found[path.name] = {entry.manifest_path.name: f"manifest {entry.manifest_path} is of another entry"}
                continue
            with self._reading(entry, _silent):
                found[path.name] = entry.wrong_files(manifest.tensors, _stage(progress, "verify", path.name))
        return found

    def prune(
        self,
        names: Sequence[str] = (),
        *,
        older_than_days: float | None = None,
        everything: bool = False,
        on_message: Message | None = None,
    ) -> list[Found]:
        """Delete entries, and return the deleted ones.

        Without arguments: entries that are unfinished, unreadable or outdated, and what was set aside in the others
        (which are returned in the state "set aside"). Entries of a newer program stay unless they are named. Entries
        that another process is working on stay.

        Args:
            names: also delete entries whose name contains one of these, whatever their state.
            older_than_days: also delete complete entries not used for so many days.
            everything: delete all.
            on_message: called with a line for each entry that stays because another process is working on it.

        Raises:
            ValueError: no entry has such a name.
            OSError: a file cannot be deleted.
        """
        if names:
            self._selected(names)
        removed = []
        for path in self._paths():
            try:
                with self._writing():
                    self._folder("locks").mkdir(exist_ok=True)
                with self._writing(), self._locks().exclusive(path.name, None):
                    found = Found.at(path)
                    old = older_than_days is not None and time() - found.last_used > older_than_days * 86400
                    named = any(name in path.name for name in names)
                    if everything or named or (old if found.state == "complete" else found.state != "newer"):
                        Entry(path).remove()
                        removed.append(found)
                    elif found.set_aside_bytes:
                        Entry(path).remove_set_aside()
                        removed.append(replace(found, state="set aside", bytes=found.set_aside_bytes))
            except Busy as busy:
                (on_message or _silent)(f"{path.name} stays: {busy} works on it")
        return removed

    def _wanted(
        self,
        module: Module,
        component: Component,
        precision: str,
        progress: Progress | None,
    ) -> _Wanted:
        """Identify the entry for these weights, from files that stay open."""
        precision = stored_precision(component.name, precision)
        set_precision(module, precision)
        source = checked_source(module, component)
        digests = DigestMemory(self.root / "digests.json")
        fields = key_fields(module, component, precision, digests, _stage(progress, "identify", component.name))
        key = entry_key(fields)
        called = f"{component.name} {module.part}".rstrip()
        name = f"{called.replace(' ', '_')}-{module.mesh.layout}-{precision}-{key[:_KEY_DIGITS]}"
        about = {
            "source": str(component.directory),
            "component": called,
            "layout": str(module.mesh.layout),
            "precision": precision,
        }
        self._folder("entries")
        entry = Entry(self.root / "entries" / name)
        wanted = _Wanted(entry, key, fields, module, source, component.held_files, about)
        wanted.check()
        return wanted

    def _make(self, wanted: _Wanted, tell: Message, progress: Progress | None, *, check: bool) -> Manifest:
        """Create or repair an entry and return its manifest; with `check` all of its files are read first."""
        entry, stage = wanted.entry, wanted.about["component"]
        with self._writing():
            for name in ("entries", "locks"):
                self._folder(name).mkdir(parents=True, exist_ok=True)
            with self._locks().exclusive(entry.path.name, tell):
                # Another process may have created or repaired it in the meantime.
                manifest = _sound(wanted)
                if isinstance(manifest, Manifest) and check:
                    report = _stage(progress, "verify", stage)
                    manifest = entry.wrong_files(manifest.tensors, report) or manifest
                if isinstance(manifest, Manifest):
                    return manifest
                if manifest is not None:
                    self._set_aside(entry, manifest, tell)
                from weight_cache.convert import convert

                return convert(
                    entry,
                    wanted.module,
                    wanted.source,
                    key=wanted.key,
                    key_fields=wanted.fields,
                    about=wanted.about,
                    progress=_stage(progress, "convert", stage),
                    check=wanted.check,
                )

    def _set_aside(self, entry: Entry, wrong: dict[str, str], tell: Message) -> None:
        file, why = next(iter(wrong.items()))
        if file == _MANIFEST:
            tell(f"stored weights {entry.path.name} cannot be used ({why}): set aside, converting again")
            entry.set_all_aside()
            return
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        tell(
            f"stored weights {entry.path.name} are damaged ({file}: {why}{more}): set aside, converting "
            f"{len(wrong)} of them again"
        )
        manifest = entry.manifest()
        assert manifest is not None
        entry.set_aside(manifest, wrong)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Say of what cannot be written that it is in the store."""
        try:
            yield
        except InputError:
            raise
        except OSError as error:
            raise MachineError(
                f"the store of converted weights cannot be written at {self.root} ({error.strerror or error}): "
                "choose another directory with --cache-dir or MOCHI_TT_CACHE_DIR"
            ) from error

    @contextlib.contextmanager
    def _reading(self, entry: Entry, tell: Message) -> Iterator[None]:
        """Share the lock of an entry, so that nobody changes or deletes it meanwhile."""
        with contextlib.suppress(OSError):
            self._folder("locks").mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            with self._writing():
                stack.enter_context(self._locks().shared(entry.path.name, tell))
            yield

    def _locks(self) -> Locks:
        return Locks(self._folder("locks"))

    def _folder(self, name: str) -> Path:
        """Return a folder of the store, which need not exist.

        Raises:
            OSError: it is a link, which would lead out of the store, or not a directory.
        """
        path = self.root / name
        if exists(path) and not is_directory(path):
            raise MachineError(
                f"{path} is a link or no directory, and nothing outside a store is read or written: remove it, or "
                "choose another --cache-dir (which may be a link itself)"
            )
        return path

    def _paths(self) -> list[Path]:
        try:
            # Links are listed, as unreadable.
            found = self._folder("entries").iterdir()
            return sorted(path for path in found if path.is_dir() or not is_file(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _selected(self, names: Sequence[str]) -> list[Path]:
        paths = self._paths()
        for name in names:
            if not any(name in path.name for path in paths):
                raise InputError(f"no entry of {self.root} has {name!r} in its name; see mochi-tt cache list")
        return [path for path in paths if not names or any(name in path.name for name in names)]


@dataclass(frozen=True)
class _Wanted:
    """An entry that is asked for: where it is, what must be in it, and what it is made of."""

    entry: Entry
    key: str
    fields: dict[str, Any]
    module: Module
    source: TensorSource
    held: list[HeldFile]
    about: dict[str, Any]

    def check(self) -> None:
        """Check that no file that it is made of has changed since it was opened.

        Raises:
            ValueError: one has.
        """
        for file in self.held:
            file.check()


def _sound(wanted: _Wanted) -> Manifest | dict[str, str] | None:
    """Return the manifest of an entry with all files, the errors of a damaged one, or None if there is none yet.

    The files' contents are not read.
    """
    entry = wanted.entry
    try:
        manifest = entry.manifest()
    except ValueError as error:
        return {_MANIFEST: str(error)}
    if manifest is None:
        return None
    if manifest.key != wanted.key or manifest.key_fields != wanted.fields:
        return {_MANIFEST: f"manifest {entry.manifest_path} is of another entry"}
    if why := _misfit(manifest, wanted.module):
        return {_MANIFEST: f"manifest {entry.manifest_path} does not fit the model ({why})"}
    return entry.wrong_sizes(manifest.tensors) or manifest


def _misfit(manifest: Manifest, module: Module) -> str:
    """Say what a manifest has that the model does not declare so; "" if nothing."""
    from weight_cache.plan import data_bytes, disk_bytes

    parameters = {name: parameter for name, _, parameter in stored_parameters(module)}
    if [record.name for record in manifest.tensors] != list(parameters):
        return "it has other tensors"
    for record in manifest.tensors:
        parameter = parameters[record.name]
        declared = (parameter.shape, parameter.dtype.name, parameter.layout.name, parameter.sp, parameter.tp)
        stored = (record.shape, record.dtype, record.layout, record.sp, record.tp)
        if stored != declared:
            return f"{record.name} is {stored} instead of {declared}"
        if not data_bytes(parameter, module.mesh) <= record.bytes <= disk_bytes(parameter, module.mesh):
            return f"{record.name} has {record.bytes} bytes"
    return ""


def _put(wanted: _Wanted, manifest: Manifest, merge: Merge, report: Progress) -> None:
    """Send an entry's tensors to the mesh, each after its file was read and its checksum compared.

    What LoRAs change is merged from the checkpoint instead, and its stored file is not read.

    Other threads read ahead, so that checking and the transfer overlap. ttnn opens the file by itself: what it reads
    are the pages that were checked just before, unless the file was written or replaced. That is looked for afterwards.

    Raises:
        DamagedFileError: a file is not the one that was written, or was changed meanwhile.
    """
    import ttnn

    module, entry = wanted.module, wanted.entry
    stage = f"weights {wanted.about['component']}"
    pairs = list(zip(manifest.tensors, stored_parameters(module), strict=True))
    stored = (record for record, (_, prefix, parameter) in pairs if not merge.changes(prefix, parameter))
    todo, ahead = deque(stored), deque[Future[str]]()
    loaded: list[tuple[TensorRecord, str]] = []
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            read = 0  # Bytes read ahead or being read.
            for index, (record, (_, prefix, parameter)) in enumerate(pairs):
                while todo and (not ahead or read + todo[0].bytes <= _READ_AHEAD_BYTES):
                    read += todo[0].bytes
                    ahead.append(pool.submit(entry.checked, todo.popleft()))
                if merge.changes(prefix, parameter):
                    merge.put(prefix, parameter)
                    report(stage, index + 1, len(pairs))
                    continue
                seen = ahead.popleft().result()
                read -= record.bytes
                try:
                    tensor = ttnn.load_tensor(entry.file(record))
                except Exception:  # Whatever ttnn makes of a file that was changed after it was checked.
                    entry.still(record, seen)
                    raise
                parameter.put(module.mesh, tensor)
                entry.still(record, seen)
                loaded.append((record, seen))
                report(stage, index + 1, len(pairs))
            # A mock mesh takes tensors by reference: what is written to a file later is in them.
            for record, seen in loaded:
                entry.still(record, seen)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _stage(progress: Progress | None, act: str, subject: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    report = progress
    return lambda done, total: report(f"{act} {subject}", done, total)


def _silent(*_: Any) -> None:
    pass
