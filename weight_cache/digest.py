"""Content hashes of large files, and those of checkpoint files remembered until a file changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any

from models.machine.checks import json_object
from models.machine.errors import InputError
from models.machine.files import renamed_when_done
from weight_cache.checkpoints.held import HeldFile
from weight_cache.inside import read_own

_CHUNK = 1 << 22
# Called as progress(bytes done, bytes in all).
ByteProgress = Callable[[int, int], None]
OnBytes = Callable[[int], None]


def sha256(file: HeldFile, on_bytes: OnBytes | None = None) -> str:
    """Return the SHA-256 of an open file's content, for identity. `on_bytes` gets the size of each piece read.

    Raises:
        ValueError: the file was cut short since it was opened, or cannot be read.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    for start in range(0, file.bytes, _CHUNK):
        piece = buffer[: file.bytes - start]
        file.read(start, piece)
        digest.update(piece)
        if on_bytes is not None:
            on_bytes(len(piece))
    return digest.hexdigest()


def checksum(path: str | Path, on_bytes: OnBytes | None = None) -> str:
    """Return the XXH3-128 of a file's content, to detect damage. It is as fast as reading.

    Raises:
        OSError: it cannot be read, or is a symbolic link.
    """
    digest, buffer = new_checksum(), memoryview(bytearray(_CHUNK))
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if on_bytes is not None:
                on_bytes(count)
    return str(digest.hexdigest())


def new_checksum() -> Any:
    """Return a new hash object of the kind that `checksum` uses, with hashlib's interface."""
    import xxhash

    return xxhash.xxh3_128()


def hash_files[Key, File](
    files: Mapping[Key, File], total: int, progress: ByteProgress | None, of: Callable[[File, OnBytes], str]
) -> dict[Key, str]:
    """Return the digests of several files, computed on all cores.

    Args:
        files: by key.
        total: bytes of all of them, for `progress`.
        progress: called as `progress(bytes done, bytes in all)`.
        of: computes one digest.

    Raises:
        OSError: a file cannot be read.
    """
    done, lock = 0, Lock()

    def on_bytes(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress is not None:
                progress(done, total)

    found = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = {pool.submit(of, path, on_bytes): key for key, path in files.items()}
        try:
            for job in as_completed(jobs):
                found[jobs[job]] = job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


class DigestMemory:
    """Digests remembered in a file, by signature of each hashed file (`weight_cache.checkpoints.held.signature`).

    Paths do not matter. A file loses its digest when it is written to, renamed, or given other permissions. Each user
    of a shared store has a memory of their own: whoever could write in it could pass one file off as another.
    """

    def __init__(self, path: Path):
        """Remember digests in `path`, with the user's number before its suffix.

        If that file cannot be read or written, digests are only computed again.
        """
        self.path = path.with_stem(f"{path.stem}-{os.geteuid()}")

    def of(self, files: Sequence[HeldFile], progress: ByteProgress | None = None) -> dict[Path, str]:
        """Return the digests of open files by path, hashing those whose digest is not known.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file changed since it was opened.
        """
        known = self._read()
        unknown = {file.signature: file for file in files if file.signature not in known}
        if unknown:
            known |= hash_files(unknown, sum(file.bytes for file in unknown.values()), progress, sha256)
        for file in files:
            file.check()
        if unknown:
            self._write(known)
        return {file.path: known[file.signature] for file in files}

    def _read(self) -> dict[str, str]:
        """Return what is remembered. Each digest is kept with a hash of it and of its signature."""
        try:
            value = json_object(read_own(self.path), str(self.path))
        except (OSError, InputError):
            return {}
        pairs = {name: (kept[:64], kept[64:]) for name, kept in value.items() if isinstance(kept, str)}
        return {name: digest for name, (digest, check) in pairs.items() if check == _check(name, digest)}

    def _write(self, known: dict[str, str]) -> None:
        value = {name: digest + _check(name, digest) for name, digest in {**self._read(), **known}.items()}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with renamed_when_done(self.path, 0o644) as scratch:
                scratch.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _check(name: str, digest: str) -> str:
    return hashlib.sha256(f"{name} {digest}".encode(errors="replace")).hexdigest()[:16]
