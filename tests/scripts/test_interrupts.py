"""Signals: none is lost, the first cancels, the second ends the process, and nothing stays in the temporary folder."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts import interrupts

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def hang_up_is_heard():
    """Children inherit what is ignored, and the whole suite may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


# Each script runs in a process of its own, with the main thread alone: a signal for the process is then its signal.
BEGIN = '''
import io, os, signal, subprocess, sys, threading, time
from scripts import interrupts
from scripts.progress import LineReporter

def asleep(thread):
    return open(f"/proc/self/task/{thread}/stat").read().rsplit(")", 1)[1].split()[0] == "S"

def interrupt_when_asleep():
    main = threading.get_native_id()

    def send():
        seen = 0
        while seen < 3:
            time.sleep(0.05)
            seen = seen + 1 if asleep(main) else 0
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()

def wait():
    """In short sleeps: a signal just before a long one would be handled after it."""
    while True:
        time.sleep(0.01)

reporter = LineReporter(io.StringIO())
'''

# `system` ignores SIGINT until the program that it started ends, as when tt-metal builds a kernel.
WHILE_IGNORED = """
try:
    with interrupts.remembered():
        os.system("kill -INT $PPID; echo the program ends by itself")
        wait()
except KeyboardInterrupt:
    print("interrupted")
"""

# What a binding does that calls Python and clears its error.
DROPPED = """
try:
    with interrupts.remembered():
        reporter.progress("denoise", 0, 3)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            wait()
        except KeyboardInterrupt:
            print("dropped")
        reporter.progress("denoise", 1, 3)
except KeyboardInterrupt:
    print("interrupted")
reporter.progress("denoise", 2, 3)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
"""

# A wait that only a signal ends. The signal comes when the main thread is in it.
WHILE_WAITING = """
lock = threading.Lock()
lock.acquire()
try:
    with interrupts.remembered():
        interrupt_when_asleep()
        lock.acquire()
except KeyboardInterrupt:
    print("interrupted")
"""

# A shell without job control starts background programs so.
STAYS_IGNORED = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
with interrupts.remembered():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
    interrupts.check()
print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
"""


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        (WHILE_IGNORED, ["the program ends by itself", "interrupted"]),
        (DROPPED, ["dropped", "interrupted"]),
        (WHILE_WAITING, ["interrupted"]),
        (STAYS_IGNORED, ["True"]),
    ],
    ids=["while-ignored", "dropped", "while-waiting", "stays-ignored"],
)
def test_an_interrupt_comes_through(script, printed):
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr, done.returncode) == (printed, "", 0)


# A mutex that is locked twice: no signal ends that wait. `PyDLL` keeps Python's lock meanwhile, as many bindings do.
HANGS = """
import ctypes, os, sys
from models.machine import leftovers
from scripts import cli, interrupts

def hang(library):
    mutex = ctypes.create_string_buffer(64)
    library(None).pthread_mutex_lock(mutex)
    print("hangs", flush=True)
    library(None).pthread_mutex_lock(mutex)

def run(*arguments, **options):
    leftovers.temporary_folder("mochi-tt-mock-").joinpath("log").write_text("")
    hang(getattr(ctypes, sys.argv[1]))

cli.app = run
os._exit(cli.main(["generate"]))
"""


@contextmanager
def ended(process):
    """What a test leaves running does not run on."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def started(script, folder, *arguments, **options):
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    return ended(process)


def wait_until_it_hangs(process):
    assert process.stdout.readline() == "hangs\n"
    time.sleep(0.3)  # It has said so just before.


def is_empty_soon(folder):
    """A process that is killed by another has its folders deleted a moment later."""
    for _ in range(100):
        if not list(folder.iterdir()):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("library", ["CDLL", "PyDLL"])
def test_the_second_signal_ends_a_call_that_never_returns(library, number, tmp_path):
    folder = tmp_path / "temporary"
    with started(HANGS, folder, library) as process:
        wait_until_it_hangs(process)
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.6)
        process.send_signal(number)
        code = process.wait(60)
        shown = process.stderr.read()
    if library == "CDLL":
        assert (code, shown) == (128 + number, "mochi-tt: ended at once\n")
    else:
        assert (code, shown) == (-signal.SIGKILL, ""), "Python's lock is held: only a kill ends it"
    assert is_empty_soon(folder)


def test_a_kill_leaves_nothing_in_the_temporary_folder(tmp_path):
    folder = tmp_path / "temporary"
    with started(HANGS, folder, "PyDLL") as process:
        wait_until_it_hangs(process)
        assert list(folder.iterdir())
        process.kill()
        process.wait(60)
    assert is_empty_soon(folder)


def test_a_signal_that_comes_twice_at_once_is_one(tmp_path):
    """`timeout` sends its signal to the process and to the process's group."""
    script = HANGS.replace("hang(getattr(ctypes, sys.argv[1]))", "print('runs', flush=True)\n    wait()")
    waits = "import time\n\ndef wait():\n    while True:\n        time.sleep(0.01)\n"
    with started(waits + script, tmp_path / "temporary", "") as process:
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert process.stderr.read() == "mochi-tt: terminated, no file is left half-written\n"


def test_a_first_signal_that_is_not_answered_is_explained(tmp_path):
    with started(HANGS, tmp_path / "temporary", "CDLL") as process:
        wait_until_it_hangs(process)
        process.send_signal(signal.SIGINT)
        assert "the same signal again ends at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


PROGRAM = Path(sys.executable).with_name("mochi-tt")
SIZE = ["--mesh", "1x1", "--width", "32", "--height", "32", "--num-frames", "7", "--num-steps", "500"]


def program(folder, *arguments, **options):
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        env=os.environ | {"TMPDIR": str(folder)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    return ended(process)


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [
        ((signal.SIGTERM,), 143, "mochi-tt: terminated, no file is left half-written\n"),
        pytest.param(
            (signal.SIGHUP,), 129, "mochi-tt: hung up, no file is left half-written\n", marks=pytest.mark.full
        ),
    ],
    ids=["SIGTERM", "SIGHUP"],
)
def test_the_program_cancels(small_checkpoint, tmp_path, numbers, code, said):
    folder = tmp_path / "temporary"
    with program(folder, "generate", "x", "--model", str(small_checkpoint), *SIZE) as process:
        if not any(line.startswith("denoise") for line in process.stdout):
            raise AssertionError((process.wait(60), process.stderr.read()))
        assert any(path.name.startswith("mochi-tt-mock-") for path in folder.iterdir())
        for number in numbers:
            process.send_signal(number)
        assert process.wait(60) == code
        # Where a step takes longer than two seconds, the program explains first why it goes on.
        assert process.stderr.read().removeprefix(interrupts._NOTE) == said
    assert [path.name for path in folder.iterdir() if path.name != "outputs"] == []
    assert not list((folder / "outputs").iterdir())


def test_an_interrupt_in_the_first_moments_is_no_traceback(tmp_path):
    """Moments before Python has come to this program are Python's own: those are left out."""
    random.seed(15)
    for moment in (random.uniform(0.08, 0.5) for _ in range(6)):
        with program(tmp_path / "temporary", "layouts", "--system", "galaxy") as process:
            time.sleep(moment)
            process.send_signal(signal.SIGINT)
            shown = process.stderr.read()
        assert process.returncode in (130, -signal.SIGINT)
        if "Traceback" in shown:  # then Python itself was still starting: no file of ours had begun
            assert not [line for line in shown.splitlines() if f'File "{ROOT}/' in line and "/.venv/" not in line], (
                shown
            )
            continue
        # ttnn's import is never broken off: an exception within it would end the process there.
        waits = "mochi-tt: ending when the present call returns; the same signal again ends at once\n"
        assert shown.removeprefix(waits) in ("", "mochi-tt: interrupted, no file is left half-written\n")
    assert is_empty_soon(tmp_path / "temporary")


def test_what_the_caller_ignores_stays_ignored(small_checkpoint, tmp_path):
    """As under nohup, or in a script's background: the signals are dropped, and the video is made."""

    def ignore():
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    command = [PROGRAM, "generate", "x", "--model", str(small_checkpoint), *SIZE[:-1], "3", "--out", "x.mp4"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=ignore) as process:
        for line in process.stdout:
            if line.startswith(("mode", "denoise")):
                process.send_signal(signal.SIGHUP)
                process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    assert (tmp_path / "x.mp4").exists()
