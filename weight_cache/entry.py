"""One directory of the store: its files, its journal during conversion, and the checks that it is complete.

manifest.json     written last; without it the entry is not complete
tensors/          one .tensorbin per parameter
journal.jsonl     one line per finished tensor during conversion
used              touched at each use
set-aside/        damaged files, kept until `prune`

A link in any of these places is damage. It is never followed; see `weight_cache.inside`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from time import strftime

from models.machine.errors import InputError, MachineError
from models.machine.files import SCRATCH, flush, renamed_when_done
from weight_cache.checkpoints.held import settle, signature
from weight_cache.digest import ByteProgress, checksum, hash_files
from weight_cache.inside import exists, is_directory, is_file, make_directory, read_bytes, remove
from weight_cache.manifest import Manifest, TensorRecord

TEMPORARY = ".tmp-"


class DamagedFileError(Exception):
    """A stored file is not the one that was written."""


class Entry:
    """The directory of one entry. Every method reads or writes files; nothing is remembered."""

    def __init__(self, path: Path):
        """Refer to the entry at `path`, which need not exist."""
        self.path = path
        self.tensors = path / "tensors"
        self.manifest_path = path / "manifest.json"
        self._journal = path / "journal.jsonl"
        self._set_aside = path / "set-aside"
        self._used = path / "used"

    def file(self, record: TensorRecord) -> Path:
        """Return the path of a tensor's file."""
        return self.tensors / record.file

    def manifest(self) -> Manifest | None:
        """Read the manifest. Return None if the entry is not complete.

        Raises:
            ValueError: the manifest is damaged, unreadable or of another version, or the entry is not a directory.
        """
        if exists(self.path) and not is_directory(self.path):
            raise InputError(f"{self.path} is a link or no directory")
        try:
            return Manifest.read(self.manifest_path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"manifest {self.manifest_path} cannot be read ({error.strerror})") from error

    def wrong_sizes(self, records: Iterable[TensorRecord]) -> dict[str, str]:
        """Return the files that are missing, no plain files or of a wrong size -> the reason."""
        if not is_directory(self.tensors):
            return {record.file: "missing" for record in records}
        wrong = {}
        for record in records:
            path = self.file(record)
            if not exists(path):
                wrong[record.file] = "missing"
            elif not is_file(path):
                wrong[record.file] = "a link or no plain file"
            elif (size := path.lstat().st_size) != record.bytes:
                wrong[record.file] = f"{size} bytes instead of {record.bytes}"
        return wrong

    def wrong_files(self, records: Iterable[TensorRecord], progress: ByteProgress | None = None) -> dict[str, str]:
        """Return the files whose size or content is not what was written -> the reason. All are read."""
        records = list(records)
        wrong = self.wrong_sizes(records)
        whole = [record for record in records if record.file not in wrong]
        files = {record.file: self.file(record) for record in whole}
        hashes = hash_files(files, sum(record.bytes for record in whole), progress, _checksum_or_why)
        return wrong | {
            record.file: "its checksum is wrong" if hashes[record.file][:1] != " " else hashes[record.file].strip()
            for record in whole
            if hashes[record.file] != record.checksum
        }

    def checked(self, record: TensorRecord) -> str:
        """Read a tensor's file, and return its signature, to be compared after its use by `still`.

        Raises:
            DamagedFileError: it is not the file that was written.
        """
        path = self.file(record)
        try:
            before = path.lstat()
            settle(before)
            if self.wrong_sizes([record]) or checksum(path) != record.checksum:
                raise DamagedFileError(record.file)
        except OSError as error:
            raise DamagedFileError(record.file) from error
        return signature(before)

    def still(self, record: TensorRecord, seen: str) -> None:
        """Check that a tensor's file was not written or replaced since `checked` gave `seen`.

        Raises:
            DamagedFileError: it was.
        """
        try:
            now = signature(self.file(record).lstat())
        except OSError as error:
            raise DamagedFileError(record.file) from error
        if now != seen or not is_directory(self.tensors) or not is_directory(self.path):
            raise DamagedFileError(record.file)

    def start(self, key: str, progress: ByteProgress | None = None) -> dict[str, TensorRecord]:
        """Make the directory, and return the tensors that an interrupted run had finished.

        Their files are read and compared with the journal. What is not finished or damaged is deleted.

        Args:
            key: of the entry.
            progress: called while files are read.

        Raises:
            OSError: the directory cannot be written.
        """
        make_directory(self.path)
        make_directory(self.tensors)
        done = {record.name: record for record in self._read_journal(key)}
        wrong = self.wrong_files(done.values(), progress)
        done = {name: record for name, record in done.items() if record.file not in wrong}
        kept = {record.file for record in done.values()}
        for path in self.tensors.iterdir():
            if path.name not in kept:
                remove(path)
        for path in self.path.iterdir():
            if path.name.startswith((TEMPORARY, SCRATCH)):
                remove(path)
        self._write_journal(key, done.values())
        return done

    def check_inside(self) -> None:
        """Check that what is written to the entry is not written elsewhere.

        Raises:
            OSError: the directory of the entry or of its tensors was deleted, or is a link now.
        """
        for path in (self.path, self.tensors):
            if not is_directory(path):
                raise MachineError(f"{path} was deleted or replaced by a link while it was written: run it again")

    def append(self, key: str, record: TensorRecord) -> None:
        """Record a finished tensor in the journal."""
        self.check_inside()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(self._journal, flags, 0o666), "w", encoding="utf-8") as file:
            file.write(record.line(key))

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, when all that it names is on the disk. From here on the entry is complete.

        Raises:
            OSError: files are missing, or the manifest cannot be written.
        """
        self.check_inside()
        if wrong := self.wrong_sizes(manifest.tensors):
            raise MachineError(f"{len(wrong)} files of {self.tensors} were deleted meanwhile: run it again")
        flush(self.tensors)
        remove_unless_file(self.manifest_path)
        manifest.write(self.manifest_path)
        flush(self.path.parent)
        remove(self._journal)

    def set_aside(self, manifest: Manifest, wrong: Iterable[str]) -> None:
        """Move damaged files out of the entry. It becomes an unfinished entry that keeps its good files.

        An interruption is safe: as long as the manifest exists, it names files that are missing.
        """
        wrong = set(wrong)
        aside = self._aside()
        for name in sorted(wrong):
            if is_directory(self.tensors) and exists(self.tensors / name):
                (self.tensors / name).rename(aside / name)
        self._write_journal(manifest.key, (record for record in manifest.tensors if record.file not in wrong))
        self.manifest_path.unlink()

    def set_all_aside(self) -> None:
        """Move everything out of an entry whose manifest cannot be read. If the entry is a link, delete the link."""
        if not is_directory(self.path):
            remove(self.path)
            return
        aside = self._aside()
        for path in sorted(self.path.iterdir()):
            if path not in (self._set_aside, self._used):
                path.rename(aside / path.name)

    def touch(self) -> None:
        """Record that the entry is used now."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._used, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            try:
                os.utime(descriptor)
            finally:
                os.close(descriptor)

    def last_used(self) -> float:
        """Return the time of the last use, or of its creation if it was never used, in seconds since the epoch."""
        for path in (self._used, self.manifest_path, self.path):
            with contextlib.suppress(OSError):
                return path.lstat().st_mtime
        return 0.0

    def size(self) -> int:
        """Return the bytes of everything in the directory. Another process may be writing there."""
        total = 0
        for folder, _, names in os.walk(self.path) if is_directory(self.path) else ():
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def remove(self) -> None:
        """Delete the directory, its manifest first, so that a half-deleted entry never counts as complete."""
        if is_directory(self.path):
            remove(self.manifest_path)
        remove(self.path)

    def remove_set_aside(self) -> None:
        """Delete the damaged files that were set aside."""
        remove(self._set_aside)

    def _aside(self) -> Path:
        """Create a new folder for damaged files."""
        make_directory(self._set_aside)
        stem = strftime("%Y%m%d-%H%M%S")
        number = 0
        while True:
            path = self._set_aside / (stem if number == 0 else f"{stem}-{number}")
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1

    def _read_journal(self, key: str) -> list[TensorRecord]:
        try:
            lines = read_bytes(self._journal).decode("utf-8").splitlines()
        except (OSError, ValueError):
            return []
        records = []
        for line in lines:
            # A killed run leaves half a line, and the next one appends to it.
            with contextlib.suppress(InputError):
                records.append(TensorRecord.from_line(line, key))
        return records

    def _write_journal(self, key: str, records: Iterable[TensorRecord]) -> None:
        remove_unless_file(self._journal)
        with renamed_when_done(self._journal) as scratch:
            scratch.write_text("".join(record.line(key) for record in records), encoding="utf-8")


def remove_unless_file(path: Path) -> None:
    """Make way for a rename onto `path`, which a directory would stop."""
    if not is_file(path):
        remove(path)


def _checksum_or_why(path: str | Path, on_bytes) -> str:
    """A checksum, or a space and why there is none."""
    try:
        return checksum(path, on_bytes)
    except OSError as error:
        return f" cannot be read ({error.strerror})"


def free_bytes(path: Path) -> int:
    """Return the free space on the disk of `path`, which need not exist."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
