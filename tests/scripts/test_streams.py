"""Standard streams that are closed, left by their reader or full: no traceback, and the work is done if it can be."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import os, sys
{before}
from scripts import cli
from scripts.cli import _Command, main
import typer

def work():
    for index in range(20000):
        print("line", index)
    open(sys.argv[1], "w").write("done")

sys.modules["work"] = type(sys)("work")
sys.modules["work"].work = work
cli.COMMANDS["work"] = _Command("work", "work", "Works.")
sys.exit(main(["work"]))
"""


def run(tmp_path, shell: str, before: str = ""):
    """Run a command that writes much and then a file, in a shell's line with `$RUN` in it."""
    (tmp_path / "code.py").write_text(CODE.format(before=before))
    run = f"PYTHONPATH={ROOT} {sys.executable} {tmp_path}/code.py {tmp_path}/made"
    done = subprocess.run(
        ["bash", "-c", shell.replace("$RUN", run)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    return done, (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "shell",
    ["$RUN | true; exit ${PIPESTATUS[0]}", "$RUN | head -1; exit ${PIPESTATUS[0]}", "$RUN >&- 2>&-", "$RUN <&- >&-"],
)
def test_the_work_is_done_though_nobody_reads(tmp_path, shell):
    done, made = run(tmp_path, shell)
    assert (done.returncode, done.stderr, made) == (0, "", True)


def test_a_full_output_is_named(tmp_path):
    done, _ = run(tmp_path, "$RUN > /dev/full")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "mochi-tt: error: standard output cannot be written (No space left on device): free some space there, or send "
        "it elsewhere"
    ]


def test_files_of_ours_do_not_get_the_numbers_of_closed_streams(tmp_path):
    before = "import atexit; atexit.register(lambda: open(sys.argv[1], 'a').write(os.readlink('/proc/self/fd/1')))"
    done, made = run(tmp_path, "$RUN >&- 2>&-", before)
    assert (done.returncode, made) == (0, True)
    assert (tmp_path / "made").read_text() == "done/dev/null"


def test_a_working_folder_that_is_gone_is_a_line(tmp_path):
    done, made = run(tmp_path, "mkdir gone; cd gone; rmdir ../gone; $RUN")
    assert (done.returncode, made) == (2, False)
    assert done.stderr.startswith("mochi-tt: error: the working folder is gone")
