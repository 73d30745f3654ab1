"""Progress as it is shown: bars that fit a terminal, and a line when nothing moves."""

import io
import re
import threading

import pytest
from rich.console import Console

from scripts.progress import BarReporter, Heartbeat, LineReporter, label

ENTRY = "transformer-2x4sp0tp1-mixed-4e0e6e317353f53a2c3c1e98"
GB = 10**9
STAGES = [
    ("load", 1, 2),
    ("identify text_encoder", 3 * GB, 9 * GB),
    ("convert transformer", 15_123_000_000, 15_900_000_000),
    (f"verify {ENTRY}", 15_123_000_000, 15_900_000_000),
    ("weights text_encoder", 219, 220),
    ("denoise", 33, 64),
]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_each_bar_is_one_line_that_names_the_component(width):
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None, height=40)
    with BarReporter(console) as reporter:
        for stage, done, total in STAGES:
            reporter.progress(stage, 0, total)
            reporter.progress(stage, done, total)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()[-len(STAGES) :]
    assert max(map(len, last)) <= width
    for line, (stage, _, _) in zip(last, STAGES, strict=True):
        assert line.startswith(label(stage) + " "), last
        assert line.rstrip().count(":") == 4, "time spent and time left are whole"
        assert "…" not in line
    assert "33/64" in last[-1]
    assert "15.1/15.9 GB" in last[2]
    assert (" ? " in last[2]) == (width >= 80), "the rate, which is not known yet"


def test_lines_name_the_component_too(capsys):
    with LineReporter() as reporter:
        reporter.progress(f"verify {ENTRY}", 0, GB)
    assert capsys.readouterr().out.startswith("verify transformer 0.00/1.00 GB")


def test_a_heartbeat_says_where_nothing_moves_and_then_rarely():
    said, three = [], threading.Event()

    def say(line):
        said.append(line)
        if len(said) == 3:
            three.set()

    heart = Heartbeat(say, seconds=0.05)
    heart.moved("denoise", 3, 16)
    heart.start()
    assert three.wait(60)
    heart.stop()
    assert all(re.fullmatch(r"no progress for \d+ s \(denoise 3/16\)", line) for line in said)


def test_progress_begins_the_wait_anew(monkeypatch):
    said, time = [], [0.0]
    heart = Heartbeat(said.append, seconds=30)

    class Moved:
        """Waits by moving the clock on; at 20 s there is progress."""

        def wait(self, seconds):
            if time[0] == 0.0:
                time[0] = 20.0
                return True
            time[0] += seconds
            if time[0] > 200:
                heart._stop.set()
            return False

        def clear(self):
            pass

    monkeypatch.setattr("scripts.progress.perf_counter", lambda: time[0])
    heart._moved = Moved()
    heart._at = "decode 0/1"
    heart._watch()
    assert said[:2] == ["no progress for 30 s (decode 0/1)", "no progress for 60 s (decode 0/1)"]
    assert said[2].startswith("no progress for 120 s"), "at 20 + 30, 20 + 60 and 20 + 120 seconds"


def test_off_a_terminal_the_heartbeat_is_on_standard_error(capsys):
    import time

    with LineReporter(quiet=0.05) as reporter:
        reporter.progress("encode", 0, 2)
        shown = ""
        while "no progress" not in shown:
            time.sleep(0.02)
            shown += capsys.readouterr().err
    assert "(encode 0/2)" in shown
