"""Showing progress: a bar per stage on a terminal, plain lines elsewhere, and a line when nothing moves."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, TextIO

from loguru import logger
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from scripts import interrupts

# First words of stages whose done and total are bytes.
BYTE_STAGES = ("identify", "convert", "verify")

QUIET_SECONDS = 30.0
"""After so long without progress a line says so; the next ones come after twice the time each."""

# Layout, precision and key of a store entry's name: 40 characters that say nothing of what is going on.
_ENTRY = re.compile(r"-\d+x\d+\S*-[0-9a-f]{16,}$")
_NAME_WIDTH = 22  # Of "weights text_encoder", with room.
_WIDE = 80


class Heartbeat:
    """Says how long nothing has moved, and in which stage: a run that hangs does not look like one that is slow."""

    def __init__(self, say: Callable[[str], None], seconds: float = QUIET_SECONDS) -> None:
        """Create a heartbeat that calls `say` with a line, first after `seconds` without progress."""
        self._say = say
        self._seconds = seconds
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._moved = threading.Event()
        self._at = ""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch, in a thread of its own."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End to watch."""
        self._stop.set()
        self._moved.set()
        if self._thread is not None:
            self._thread.join()

    def moved(self, stage: str, done: int, total: int) -> None:
        """Take note of progress."""
        with self._lock:
            self._at = (
                f"{label(stage)}, {100 * done // max(total, 1)}%"
                if _counts_bytes(stage)
                else (f"{label(stage)} {done}/{total}")
            )
        self._moved.set()

    def _watch(self) -> None:
        since, due = perf_counter(), self._seconds
        while not self._stop.is_set():
            if self._moved.wait(max(0.0, since + due - perf_counter())):
                self._moved.clear()
                since, due = perf_counter(), self._seconds
                continue
            with self._lock:
                at = self._at or "start"
            self._say(f"no progress for {perf_counter() - since:.0f} s ({at})")
            due *= 2


class Reporter(Protocol):
    """Shows stages and lines; a context manager that leaves the terminal clean."""

    def __enter__(self) -> Reporter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show that `stage` is at `done` of `total`; both are bytes where its first word is one of `BYTE_STAGES`."""
        ...

    def line(self, text: str) -> None:
        """Show a line of text above the progress."""
        ...


class _AmountColumn(ProgressColumn):
    """Tensors, steps and frames are counted; bytes also have a rate."""

    counted, size, rate = MofNCompleteColumn(), DownloadColumn(), TransferSpeedColumn()

    def __init__(self, *, with_rate: bool) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.with_rate = with_rate

    def render(self, task: Task) -> Text:
        if not _counts_bytes(task.description):
            return self.counted.render(task)
        if not self.with_rate:
            return self.size.render(task)
        return Text.assemble(self.size.render(task), " ", self.rate.render(task))


class BarReporter:
    """One bar per stage, with the time spent and the time left. Narrow terminals get no rates and a short bar."""

    def __init__(self, console: Console | None = None, quiet: float = QUIET_SECONDS) -> None:
        console = console or Console()
        wide = console.width >= _WIDE
        amount = 24 if wide else 14
        self._bars = Progress(
            TextColumn(f"{{task.description:<{_NAME_WIDTH - 2}}}", table_column=Column(no_wrap=True, min_width=12)),
            # Two times, three gaps, and what the text and the amount take.
            BarColumn(bar_width=max(4, min(40, console.width - _NAME_WIDTH - amount - 2 * 7 - 4))),
            _AmountColumn(with_rate=wide),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            console=console,
        )
        self._tasks: dict[str, Any] = {}
        self._done: dict[str, int] = {}
        self._heart = Heartbeat(self.line, quiet)

    def __enter__(self) -> BarReporter:
        self._bars.start()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heart.stop()
        self._bars.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the bar of `stage`, which appears on the first call."""
        interrupts.check()
        self._heart.moved(stage, done, total)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(label(stage), total=total)
        elif done < self._done[stage]:  # of the next video
            self._bars.reset(self._tasks[stage], total=total)
        self._done[stage] = done
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def line(self, text: str) -> None:
        """Print above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)


class LineReporter:
    """A line when a stage starts, at most one in every `interval` seconds while it runs, one when it ends."""

    def __init__(self, stream: TextIO | None = None, interval: float = 5.0, quiet: float = QUIET_SECONDS) -> None:
        self._stream = stream or sys.stdout
        self._interval = interval
        self._started: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._shown = 0.0
        self._heart = Heartbeat(lambda text: print(text, file=sys.stderr, flush=True), quiet)

    def __enter__(self) -> LineReporter:
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heart.stop()
        self._stream.flush()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Print a line if one is due."""
        interrupts.check()
        self._heart.moved(stage, done, total)
        now = perf_counter()
        first = done < self._done.get(stage, done + 1)  # of the stage, or of the next video's
        self._done[stage] = done
        if first:
            self._started[stage] = now
        start = self._started.setdefault(stage, now)
        if first or done >= total or now - self._shown >= self._interval:
            self._shown = now
            self.line(f"{label(stage)} {_amount(stage, done, total, now - start)}")

    def line(self, text: str) -> None:
        """Print a line at once."""
        print(text, file=self._stream, flush=True)


def label(stage: str) -> str:
    """Return a stage's name as it is shown: with a component's name where it has that of a store entry."""
    return _ENTRY.sub("", stage)


def _counts_bytes(stage: str) -> bool:
    return stage.split()[0] in BYTE_STAGES


def _amount(stage: str, done: int, total: int, seconds: float) -> str:
    if not _counts_bytes(stage):
        return f"{done}/{total} ({seconds:.1f} s)"
    text = f"{done / 1e9:.2f}/{total / 1e9:.2f} GB ({seconds:.1f} s"
    if seconds > 0.5 and 0 < done < total:
        rate = done / seconds
        text += f", {rate / 1e9:.2f} GB/s, {(total - done) / rate:.0f} s left"
    return text + ")"


def make_reporter() -> BarReporter | LineReporter:
    """Bars if standard output is a terminal, lines otherwise."""
    return BarReporter() if sys.stdout.isatty() else LineReporter()


def quiet_libraries() -> None:
    """Keep other libraries' notices and bars out of ours; their errors still show."""
    from transformers.utils import logging as transformers_logging

    logger.disable("models")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
