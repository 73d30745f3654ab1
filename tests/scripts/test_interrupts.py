"""An interrupt is not lost: not while the process ignores it, and not where somebody drops the exception."""

import os
import signal
import subprocess
import sys

import pytest

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
