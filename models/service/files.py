"""The folders of jobs: where results lie, how they are served, and how they go.

A job's folder has one for each claim, in which that worker alone writes. The row of a completed job names the claim
whose video counts. So a worker that was taken for dead, and still runs, changes no file that is served.

Every path is made of a name that the store made. What a client sends is only ever looked up in the store.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from models.service.inputs import Inputs
from models.service.jobs import CANCELLED, COMPLETED, FAILED, JobStore, is_id

VIDEO, RECORD = "video.mp4", "record.json"
LATENTS = "video.latents.safetensors"
PREVIEW = "preview.png"
PIECE = 1 << 18
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class Files:
    """The folders of all jobs, each by the job's name."""

    def __init__(self, root: Path) -> None:
        """Take the folder that holds them."""
        self.root = root
        self._kept: set[str] = set()

    def folder(self, name: str, claim: str = "") -> Path:
        """Return the folder of a job, or of a claim of it.

        Raises:
            ValueError: the name is none that a store makes, or the claim is none.
        """
        if not is_id(name) or not re.fullmatch(r"[0-9a-f-]*", claim):
            raise ValueError(f"{name!r} and {claim!r} name no job")
        return self.root / name / claim

    def make(self, name: str, claim: str = "") -> Path:
        """Return the folder of a claim, and make it; it begins with the latents that an earlier claim has left.

        Raises:
            OSError: it cannot be made.
        """
        folder = self.folder(name, claim)
        earlier = max(self.folder(name).glob(f"*/{LATENTS}"), key=_age, default=None)
        folder.mkdir(parents=True, exist_ok=True)
        if earlier is not None and earlier.parent != folder:
            for file in (LATENTS, RECORD):  # The record comes second, as it was written.
                with suppress(OSError):  # Another's folder may go; without a record the run begins anew.
                    os.link(earlier.with_name(file), folder / file)
        return folder

    def open(self, name: str, file: str = VIDEO, claim: str | None = None) -> BinaryIO | None:
        """Open a file of a job, or return None; what is open stays readable though it be deleted."""
        try:
            return open(self.folder(name, claim or "") / file, "rb")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove(self, name: str) -> None:
        """Delete all files of a job."""
        shutil.rmtree(self.folder(name), ignore_errors=True)

    def keep(self, name: str, claim: str) -> None:
        """Delete what only an unfinished run needs, and all that other claims have left.

        Raises:
            OSError: something cannot be deleted.
        """
        for other in self.folder(name).iterdir():
            if other.is_dir() and other.name != claim:
                shutil.rmtree(other, ignore_errors=True)
        for file in (LATENTS, RECORD):
            (self.folder(name, claim) / file).unlink(missing_ok=True)
        self._kept.add(name)

    def sweep(self, jobs: JobStore) -> list[str]:
        """Delete the folders that belong to no job that is to keep one; return their names.

        Folders are listed first: a job that comes meanwhile has none yet.
        """
        there = [entry for entry in os.listdir(self.root) if is_id(entry)]
        held = jobs.holds()
        states = {name: held[name][0] if name in held else None for name in there}
        gone = [name for name in there if states[name] in (None, FAILED, CANCELLED)]
        for name in gone:
            self.remove(name)
        self._kept.intersection_update(there)
        for name in there:
            if states[name] == COMPLETED and name not in self._kept:
                with suppress(FileNotFoundError):  # expired meanwhile
                    self.keep(name, held[name][1])
        return gone


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def measured(path: Path) -> tuple[int, str]:
    """Return the size of a file in bytes and its SHA-256.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, digest


class BadRange(Exception):
    """No byte of the file is in the range."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one behind the last of a Range header; None for the whole file.

    What is no single range of bytes is ignored, as RFC 9110 (14.2) allows.

    Raises:
        BadRange: it begins behind the end.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        last = int(match[2])
        if last == 0:
            raise BadRange
        return max(0, size - last), size
    first = int(match[1])
    end = size if not match[2] else min(size, int(match[2]) + 1)
    if match[2] and int(match[2]) < first:
        return None
    if first >= size:
        raise BadRange
    return first, end


def pieces(file: BinaryIO, first: int, end: int) -> Iterator[bytes]:
    """Yield bytes of an open file, and close it."""
    with file:
        file.seek(first)
        left = end - first
        while left > 0:
            read = file.read(min(PIECE, left))
            if not read:
                return
            left -= len(read)
            yield read


class Janitor:
    """Lets results expire, by age and by size, and deletes what nothing refers to."""

    def __init__(
        self,
        jobs: JobStore,
        files: Files,
        inputs: Inputs,
        *,
        keep_seconds: float,
        keep_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        """Take the bounds; `clock` is monotonic."""
        self._jobs, self._files, self._inputs, self._clock = jobs, files, inputs, clock
        self._keep_seconds, self._keep_bytes = keep_seconds, keep_bytes
        self._last = clock()

    def clean(self) -> tuple[list[str], list[str]]:
        """Clean once; return the names of results that expired and of folders that belonged to none.

        Of several servers that share a store one cleans at a time.

        Raises:
            StoreUnavailable: the store is locked.
            OSError: the folder cannot be listed.
        """
        now = self._clock()
        self._jobs.tick(now - self._last)
        self._last = now
        if not self._jobs.may_clean():
            return [], []
        expired = self._jobs.expire(older=self._keep_seconds, most_bytes=self._keep_bytes)
        for name in expired:
            self._files.remove(name)
        swept = self._files.sweep(self._jobs)
        self._inputs.sweep(self._jobs.inputs())
        self._jobs.forget(max(30 * 86400.0, 2 * self._keep_seconds))
        return expired, swept
