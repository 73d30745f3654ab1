"""An interrupt that somebody dropped is raised again by the next progress."""

import io
import signal

import pytest

from scripts import interrupts
from scripts.progress import LineReporter


@pytest.fixture(autouse=True)
def python_handles_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def dropped():
    """What a binding does that calls Python and clears its error."""
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_dropped_interrupt_comes_back():
    reporter = LineReporter(io.StringIO())
    with interrupts.remembered():
        reporter.progress("denoise", 0, 3)
        dropped()
        with pytest.raises(KeyboardInterrupt):
            reporter.progress("denoise", 1, 3)
    reporter.progress("denoise", 2, 3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored():
    """A shell without job control starts background programs so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.remembered():
        signal.raise_signal(signal.SIGINT)
        interrupts.check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
