"""The store: entries found by key, created if missing, checked before use, and sent to the mesh.

The key holds the versions of what decides the bytes (`weight_cache.versions`), so that an entry of another version is
never read: it stays under its own name until `Store.prune`.

<store>/entries/<component>-<layout>-<precision>-<24 digits of the key>/
<store>/locks/<entry>.lock      held while an entry is created or repaired; freed by the system if its holder dies
<store>/digests.json            hashes of checkpoint files
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from models.machine.errors import InputError, MachineError
from weight_cache.checkpoints.lora import LoraRequest, checked_source
from weight_cache.digest import DigestMemory
from weight_cache.entry import Entry
from weight_cache.key import entry_key, key_fields, stored_parameters
from weight_cache.listing import Found, state_of
from weight_cache.location import store_directory
from weight_cache.manifest import Manifest
from weight_cache.merge import Merge
from weight_cache.precision import set_precision, stored_precision

if TYPE_CHECKING:
    from models.layers import Module
    from weight_cache.checkpoints.component import Component

# Called as progress(stage, done, total). A stage is an action and its object, such as "convert transformer".
# "identify", "convert" and "verify" count bytes. "weights" counts tensors.
Progress = Callable[[str, int, int], None]
Message = Callable[[str], None]
_KEY_DIGITS = 24


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
        import ttnn

        merge = Merge(module, component, loras)
        for note in merge.notes:
            (on_message or _unheard)(note)
        manifest, entry = self._ready(module, component, precision, progress, on_message, check=True)
        report = progress or _silent
        records = {record.name: record for record in manifest.tensors}
        parameters = stored_parameters(module)
        for index, (name, prefix, parameter) in enumerate(parameters):
            if merge.changes(prefix, parameter):
                merge.put(prefix, parameter)
            else:
                parameter.put(module.mesh, ttnn.load_tensor(entry.file(records[name])))
            report(f"weights {component.name}", index + 1, len(parameters))
        entry.touch()
        return manifest

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

        LoRAs are checked; the entry is that of the weights without them.
        """
        Merge(module, component, loras)
        manifest, entry = self._ready(module, component, precision, progress, on_message, check=False)
        return manifest, entry.path

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
            wrong = entry.wrong_sizes(manifest.tensors)
            whole = [record for record in manifest.tensors if record.file not in wrong]
            found[path.name] = wrong | entry.wrong_checksums(
                whole, again=True, progress=_stage(progress, "verify", path.name)
            )
        return found

    def prune(
        self, names: Sequence[str] = (), *, older_than_days: float | None = None, everything: bool = False
    ) -> list[Found]:
        """Delete entries, and return the deleted ones.

        Without arguments: entries that are unfinished, unreadable or outdated, and what was set aside in the others
        (which are returned in the state "set aside"). Entries of a newer program stay unless they are named. Entries
        that another process is working on stay.

        Args:
            names: also delete entries whose name contains one of these, whatever their state.
            older_than_days: also delete complete entries not used for so many days.
            everything: delete all.

        Raises:
            ValueError: no entry has such a name.
            OSError: a file cannot be deleted.
        """
        if names:
            self._selected(names)
        removed = []
        for path in self._paths():
            found = Found.at(path)
            old = older_than_days is not None and time() - found.last_used > older_than_days * 86400
            named = any(name in path.name for name in names)
            with contextlib.suppress(Timeout), self._lock(path.name).acquire(timeout=0):
                if everything or named or (old if found.state == "complete" else found.state != "newer"):
                    Entry(path).remove()
                    removed.append(found)
                elif found.set_aside_bytes:
                    Entry(path / "set-aside").remove()
                    removed.append(replace(found, state="set aside", bytes=found.set_aside_bytes))
        return removed

    def _ready(
        self,
        module: Module,
        component: Component,
        precision: str,
        progress: Progress | None,
        on_message: Message | None,
        *,
        check: bool,
    ) -> tuple[Manifest, Entry]:
        """Return the complete entry for these weights, after creating or repairing it if necessary."""
        precision = stored_precision(component.name, precision)
        set_precision(module, precision)
        tell = on_message or (lambda line: None)
        source = checked_source(module, component)
        digests = DigestMemory(self.root / "digests.json")
        fields = key_fields(module, component, precision, digests, _stage(progress, "identify", component.name))
        key = entry_key(fields)
        name = f"{component.name}-{module.mesh.layout}-{precision}-{key[:_KEY_DIGITS]}"
        entry = Entry(self.root / "entries" / name)
        manifest = self._sound(entry, key, fields, check, progress)
        if isinstance(manifest, Manifest):
            return manifest, entry
        with self._locked(name, tell):
            # Another process may have created or repaired it in the meantime.
            manifest = self._sound(entry, key, fields, check, progress)
            if isinstance(manifest, Manifest):
                return manifest, entry
            if manifest is not None:
                self._set_aside(entry, manifest, tell)
            from weight_cache.convert import convert

            about = {
                "source": str(component.directory),
                "component": component.name,
                "layout": str(module.mesh.layout),
                "precision": precision,
            }
            made = convert(
                entry,
                module,
                source,
                key=key,
                key_fields=fields,
                about=about,
                progress=_stage(progress, "convert", component.name),
                forget_pages=component.forget_pages,
            )
            return made, entry

    def _sound(
        self, entry: Entry, key: str, fields: dict[str, Any], check: bool, progress: Progress | None
    ) -> Manifest | dict[str, str] | None:
        """Return the manifest of an undamaged entry, the errors of a damaged one, or None if there is no entry yet."""
        try:
            manifest = entry.manifest()
        except ValueError as error:
            return {"manifest.json": str(error)}
        if manifest is None:
            return None
        if manifest.key != key or manifest.key_fields != fields:
            return {"manifest.json": f"manifest {entry.manifest_path} is of another entry"}
        wrong = entry.wrong_sizes(manifest.tensors)
        if not wrong and check:
            wrong = entry.wrong_checksums(
                manifest.tensors, again=False, progress=_stage(progress, "verify", entry.path.name)
            )
        return wrong or manifest

    def _set_aside(self, entry: Entry, wrong: dict[str, str], tell: Message) -> None:
        file, why = next(iter(wrong.items()))
        if file == "manifest.json":
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
    def _locked(self, name: str, tell: Message) -> Iterator[None]:
        try:
            lock = self._lock(name)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                tell("another process is converting these weights: waiting for it")
                lock.acquire(poll_interval=0.2)
        except OSError as error:
            raise MachineError(
                f"the store of converted weights cannot be written at {self.root} ({error.strerror or error}): "
                "choose another directory with --cache-dir or MOCHI_TT_CACHE_DIR"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _lock(self, name: str) -> FileLock:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")

    def _paths(self) -> list[Path]:
        try:
            return sorted(path for path in (self.root / "entries").iterdir() if path.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _selected(self, names: Sequence[str]) -> list[Path]:
        paths = self._paths()
        for name in names:
            if not any(name in path.name for path in paths):
                raise InputError(f"no entry of {self.root} has {name!r} in its name; see mochi-tt cache list")
        return [path for path in paths if not names or any(name in path.name for name in names)]


def _stage(progress: Progress | None, act: str, subject: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    report = progress
    return lambda done, total: report(f"{act} {subject}", done, total)


def _unheard(line: str) -> None:
    pass


def _silent(stage: str, done: int, total: int) -> None:
    pass
