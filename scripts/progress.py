"""Showing progress: a bar per stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, TextIO

from loguru import logger
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
from rich.text import Text

from scripts import interrupts

# First words of stages whose done and total are bytes.
BYTE_STAGES = ("identify", "convert", "verify")


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

    def render(self, task: Task) -> Text:
        if not _counts_bytes(task.description):
            return self.counted.render(task)
        return Text.assemble(self.size.render(task), " ", self.rate.render(task))


class BarReporter:
    """One bar per stage, with the time spent and the time left."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            _AmountColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> BarReporter:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the bar of `stage`, which appears on the first call."""
        interrupts.check()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def line(self, text: str) -> None:
        """Print above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)


class LineReporter:
    """A line when a stage starts, at most one in every `interval` seconds while it runs, one when it ends."""

    def __init__(self, stream: TextIO | None = None, interval: float = 5.0) -> None:
        self._stream = stream or sys.stdout
        self._interval = interval
        self._started: dict[str, float] = {}
        self._shown = 0.0

    def __enter__(self) -> LineReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Print a line if one is due."""
        interrupts.check()
        now = perf_counter()
        first = stage not in self._started
        start = self._started.setdefault(stage, now)
        if first or done >= total or now - self._shown >= self._interval:
            self._shown = now
            self.line(f"{stage} {_amount(stage, done, total, now - start)}")

    def line(self, text: str) -> None:
        """Print a line at once."""
        print(text, file=self._stream, flush=True)


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
