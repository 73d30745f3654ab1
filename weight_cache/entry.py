"""One directory of the store: its files, its journal during conversion, and the checks that it is complete.

manifest.json     written last; without it the entry is not complete
tensors/          one .tensorbin per parameter
journal.jsonl     one line per finished tensor during conversion
verified.json     files whose checksums were correct, by size, time of change, inode and device
used              touched at each use
set-aside/        damaged files, kept until `prune`
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from time import strftime

from models.machine.errors import InputError
from weight_cache.digest import ByteProgress, checksum, hash_files, signature
from weight_cache.manifest import Manifest, TensorRecord, write_atomically

TEMPORARY = ".tmp-"


class Entry:
    """The directory of one entry. Every method reads or writes files; nothing is remembered."""

    def __init__(self, path: Path):
        """Refer to the entry at `path`, which need not exist."""
        self.path = path
        self.tensors = path / "tensors"
        self.manifest_path = path / "manifest.json"
        self._journal = path / "journal.jsonl"
        self._verified = path / "verified.json"

    def file(self, record: TensorRecord) -> Path:
        """Return the path of a tensor's file."""
        return self.tensors / record.file

    def manifest(self) -> Manifest | None:
        """Read the manifest. Return None if the entry is not complete.

        Raises:
            ValueError: the manifest is damaged, of another version, or names files outside the entry.
        """
        try:
            manifest = Manifest.read(self.manifest_path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        for record in manifest.tensors:
            if Path(record.file).name != record.file:
                raise InputError(f"manifest {self.manifest_path} names a file outside its entry: {record.file!r}")
        return manifest

    def wrong_sizes(self, records: Iterable[TensorRecord]) -> dict[str, str]:
        """Return the files that are missing or have a wrong size -> the reason."""
        wrong = {}
        for record in records:
            try:
                size = self.file(record).stat().st_size
            except OSError:
                wrong[record.file] = "missing"
                continue
            if size != record.bytes:
                wrong[record.file] = f"{size} bytes instead of {record.bytes}"
        return wrong

    def wrong_checksums(
        self, records: Iterable[TensorRecord], *, again: bool, progress: ByteProgress | None = None
    ) -> dict[str, str]:
        """Return the files whose content is not the content that was written -> the reason.

        Files with a correct checksum are remembered. They are checked again only with `again`, or after they were
        changed.
        """
        known = {} if again else self._read_verified()
        signatures = {record.file: signature(self.file(record)) for record in records}
        todo = {self.file(r): r for r in records if known.get(r.file) != signatures[r.file]}
        if not todo:
            return {}
        hashes = hash_files(list(todo), progress, checksum)
        wrong = {
            record.file: "its checksum is wrong" for path, record in todo.items() if hashes[path] != record.checksum
        }
        right = {r.file: signatures[r.file] for r in todo.values() if r.file not in wrong}
        # A read-only store is checked at each use.
        with contextlib.suppress(OSError):
            write_atomically(self._verified, json.dumps({**self._read_verified(), **right}) + "\n")
        return wrong

    def start(self) -> dict[str, TensorRecord]:
        """Create the directory, delete unfinished files, and return the tensors that an interrupted run had finished.

        Raises:
            OSError: the directory cannot be written.
        """
        self.tensors.mkdir(parents=True, exist_ok=True)
        done = {record.name: record for record in self._read_journal()}
        for file in self.wrong_sizes(done.values()):
            done = {name: record for name, record in done.items() if record.file != file}
        kept = {record.file for record in done.values()}
        for path in self.tensors.iterdir():
            if path.name not in kept:
                path.unlink()
        for path in self.path.glob(TEMPORARY + "*"):
            path.unlink()
        self._write_journal(done.values())
        return done

    def append(self, record: TensorRecord) -> None:
        """Record a finished tensor in the journal."""
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest. From here on the entry is complete."""
        manifest.write(self.manifest_path)
        self._journal.unlink(missing_ok=True)

    def set_aside(self, manifest: Manifest, wrong: Iterable[str]) -> None:
        """Move damaged files out of the entry. It becomes an unfinished entry that keeps its good files.

        An interruption is safe: as long as the manifest exists, it names files that are missing.
        """
        wrong = set(wrong)
        aside = self._aside()
        for name in sorted(wrong):
            if (self.tensors / name).exists():
                (self.tensors / name).rename(aside / name)
        self._write_journal(record for record in manifest.tensors if record.file not in wrong)
        self.manifest_path.unlink()
        self._verified.unlink(missing_ok=True)

    def set_all_aside(self) -> None:
        """Move everything out of an entry whose manifest cannot be read."""
        aside = self._aside()
        for path in (self.tensors, self._journal, self._verified, self.manifest_path):
            if path.exists():
                path.rename(aside / path.name)

    def touch(self) -> None:
        """Record that the entry is used now."""
        with contextlib.suppress(OSError):
            (self.path / "used").touch()

    def last_used(self) -> float:
        """Return the time of the last use, or of its creation if it was never used, in seconds since the epoch."""
        for path in (self.path / "used", self.manifest_path, self.path):
            if path.exists():
                return path.stat().st_mtime
        return 0.0

    def size(self) -> int:
        """Return the bytes of everything in the directory. Another process may be writing there."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    def remove(self) -> None:
        """Delete the directory, its manifest first, so that a half-deleted entry never counts as complete."""
        self.manifest_path.unlink(missing_ok=True)
        shutil.rmtree(self.path)

    def _aside(self) -> Path:
        """Create a new folder for damaged files."""
        stem = strftime("%Y%m%d-%H%M%S")
        number = 0
        while True:
            path = self.path / "set-aside" / (stem if number == 0 else f"{stem}-{number}")
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:
                number += 1

    def _read_journal(self) -> list[TensorRecord]:
        try:
            lines = self._journal.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        records = []
        for line in lines:
            try:
                records.append(TensorRecord.from_json(json.loads(line)))
            except ValueError:
                # This is the last line of a run that was killed.
                break
        return records

    def _write_journal(self, records: Iterable[TensorRecord]) -> None:
        write_atomically(self._journal, "".join(json.dumps(asdict(record)) + "\n" for record in records))

    def _read_verified(self) -> dict[str, str]:
        try:
            value = json.loads(self._verified.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def free_bytes(path: Path) -> int:
    """Return the free space on the disk of `path`, which need not exist."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
