"""Deliberate errors against the tests that own them: `make mutants`, or `python -m tests.mutants`.

Each mutant of `mutants.toml` is put into a copy of the tree, never into the tree itself, and its tests are run there.
Caught is a mutant for which a test fails. One that survives is an error that nobody would see: the exit code is then 1.
It is 2 if a mutant could not be tried: its text is not there any more, or its tests are not found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import NoReturn

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".toml")
SECONDS = 600
_OK, _FAILED = 0, 1  # pytest's exit codes; all others mean that no test has judged.


@dataclass(frozen=True)
class Mutant:
    """An error: `new` in place of `old` in a file; `tests` are arguments of pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, tree: Path) -> str:
        """Put the error into a tree, and return the file's text as it was.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        path = tree / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has the text {text.count(self.old)} times, not once: mend mutants.toml")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
        return text


def mutants(path: Path = LIST) -> list[Mutant]:
    """Read the list.

    Raises:
        TypeError: an entry lacks a field, or has an unknown one.
    """
    found = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in found]


def copy_tree(target: Path) -> None:
    """Copy the files of the working tree, committed or not, without what git ignores."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def preload() -> None:
    """Import what takes long and is none of ours; the processes that try a mutant are forks of this one."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # As conftest.py does, for what torch reads when it is loaded.
    from loguru import logger

    logger.disable("ttnn")
    import diffusers  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    import ttnn  # noqa: F401


@dataclass
class Trial:
    """A process that tries a mutant in a tree of its own."""

    mutant: Mutant
    tree: Path
    log: Path
    text: str
    start: float
    process: int

    @classmethod
    def begin(cls, mutant: Mutant, tree: Path) -> Trial:
        """Put the error into the tree, and run its tests there.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        text, log, start = mutant.apply(tree), tree.with_suffix(".log"), perf_counter()
        sys.stdout.flush()
        process = os.fork()
        if not process:
            _run_tests(tree, log, mutant.tests)
        return cls(mutant, tree, log, text, start, process)

    def ended(self) -> tuple[str, str] | None:
        """Return "caught", "survived" or "not tried", and why; None while the tests run."""
        done, status = os.waitpid(self.process, os.WNOHANG)
        late = perf_counter() - self.start > SECONDS
        if not done and not late:
            return None
        if not done:
            os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        (self.tree / self.mutant.file).write_text(self.text, encoding="utf-8")
        if not done:
            return "caught", f"no end in {SECONDS} s"
        code = os.waitstatus_to_exitcode(status)
        if code == _OK:
            return "survived", " ".join(self.mutant.tests)
        lines = [line for line in self.log.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))] or [""]
        return ("caught", lines[-1]) if code == _FAILED else ("not tried", f"pytest ends with {code} {lines[-1]}")


def _run_tests(tree: Path, log: Path, tests: Sequence[str]) -> NoReturn:
    """Become pytest in a tree. Every module of ours is imported from there: none has been imported before."""
    code = _FAILED
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        here = {str(ROOT), ""}
        sys.path[:] = [str(tree), *(entry for entry in sys.path if entry not in here)]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "models", "scripts")]:
            del sys.modules[name]
        import pytest

        code = int(pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]))
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        code = 3
    finally:
        os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all mutants, or some, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("-j", "--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("-k", "--only", default="", help="only those with this text in their name or file")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in mutants() if options.only in mutant.name or options.only in mutant.file]
    if options.list:
        print("\n".join(f"{mutant.file}: {mutant.name}" for mutant in chosen))
        return 0
    counts = dict.fromkeys(("caught", "survived", "not tried"), 0)

    def show(mutant: Mutant, seconds: float, verdict: str, why: str) -> None:
        counts[verdict] += 1
        print(f"{verdict:<9} {seconds:5.0f} s  {mutant.file}: {mutant.name}", flush=True)
        if verdict != "caught":
            print(f"          {why}", flush=True)

    preload()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [Path(folder) / str(index) for index in range(options.jobs)]
        for tree in trees:
            copy_tree(tree)
        waiting, running = list(chosen), list[Trial]()
        while waiting or running:
            while waiting and trees:
                mutant = waiting.pop(0)
                try:
                    running.append(Trial.begin(mutant, trees[-1]))
                    trees.pop()
                except (ValueError, OSError) as error:
                    show(mutant, 0.0, "not tried", str(error))
            for trial in list(running):
                found = trial.ended()
                if found is not None:
                    running.remove(trial)
                    trees.append(trial.tree)
                    show(trial.mutant, perf_counter() - trial.start, *found)
            sleep(0.1)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 2 if counts["not tried"] else 1 if counts["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
