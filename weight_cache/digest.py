"""Content hashes of large files. Each is computed once and remembered until the file changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any

from models.machine.errors import MachineError
from weight_cache.manifest import write_atomically

_CHUNK = 1 << 22
# Called as progress(bytes done, bytes in all).
ByteProgress = Callable[[int, int], None]
OnBytes = Callable[[int], None]


def signature(path: Path) -> str:
    """Return size, time of change, inode and device of a file. They change whenever it is written or replaced."""
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}:{stat.st_dev}"


def sha256(path: Path, on_bytes: OnBytes | None = None) -> str:
    """Return the SHA-256 of a file's content, for identity. `on_bytes` is called with the size of each piece read."""
    return _digest(path, hashlib.sha256(), on_bytes)


def checksum(path: Path, on_bytes: OnBytes | None = None) -> str:
    """Return the XXH3-128 of a file's content, to detect damage. It is as fast as reading."""
    return _digest(path, new_checksum(), on_bytes)


def new_checksum() -> Any:
    """Return a new hash object of the kind that `checksum` uses, with hashlib's interface."""
    import xxhash

    return xxhash.xxh3_128()


def _digest(path: Path, digest: Any, on_bytes: OnBytes | None) -> str:
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if on_bytes is not None:
                on_bytes(count)
    return str(digest.hexdigest())


def hash_files(
    paths: Sequence[Path], progress: ByteProgress | None = None, of: Callable[[Path, OnBytes], str] | None = None
) -> dict[Path, str]:
    """Return the digests of several files, computed on all cores, by `of` or by `sha256` if None.

    Raises:
        OSError: a file cannot be read.
    """
    total = sum(path.stat().st_size for path in paths)
    done, lock = 0, Lock()

    def on_bytes(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress is not None:
                progress(done, total)

    found = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = {pool.submit(of or sha256, path, on_bytes): path for path in paths}
        try:
            for job in as_completed(jobs):
                found[jobs[job]] = job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


class DigestMemory:
    """Digests remembered in a file, by size, time of change, inode and device of each hashed file.

    Paths do not matter: a file moved within its disk keeps its digest, and a file that was written to loses it.
    """

    def __init__(self, path: Path):
        """Remember digests in `path`. If that file cannot be read or written, digests are only computed again."""
        self.path = path

    def of(self, paths: Sequence[Path], progress: ByteProgress | None = None) -> dict[Path, str]:
        """Return the digests of `paths`, hashing files whose digest is not known.

        Raises:
            OSError: a file cannot be read.
        """
        known = self._read()
        signatures = {path: signature(path) for path in paths}
        unknown = [path for path in paths if signatures[path] not in known]
        if unknown:
            for path, digest in hash_files(unknown, progress).items():
                # A file that changed while it was read must be hashed again the next time.
                if signature(path) == signatures[path]:
                    known[signatures[path]] = digest
                else:
                    raise MachineError(f"{path} changed while it was read: wait until it is written")
            self._write(known)
        return {path: known[signatures[path]] for path in paths}

    def _read(self) -> dict[str, str]:
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _write(self, known: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps({**self._read(), **known}, indent=1) + "\n")
