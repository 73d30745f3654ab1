"""Deliberate errors against the tests that own them: `make mutants`, or `python -m tests.mutants`.

Each mutant of `mutants.toml` is put into a copy of the tree, never into the tree itself, and its tests are run there.
Caught is a mutant for which a test fails. One that survives is an error that nobody would see: the exit code is then 1.
It is 2 if a mutant could not be tried: its text is not there any more, or its tests are not found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter

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


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests in a tree; return pytest's exit code, and its last line. Tests that do not end have failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
    variables = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return _FAILED, f"no end in {SECONDS} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))] or [""]
    return done.returncode, lines[-1]


def judge(mutant: Mutant, tree: Path) -> tuple[str, str]:
    """Try a mutant in a tree; return "caught", "survived" or "not tried", and why."""
    try:
        text = mutant.apply(tree)
    except (ValueError, OSError) as error:
        return "not tried", str(error)
    try:
        code, line = run_tests(tree, mutant.tests)
    finally:
        (tree / mutant.file).write_text(text, encoding="utf-8")
    if code == _OK:
        return "survived", " ".join(mutant.tests)
    return ("caught", line) if code == _FAILED else ("not tried", f"pytest ends with {code} {line}")


def healthy(chosen: Sequence[Mutant], tree: Path) -> bool:
    """Whether all tests pass without an error in the tree: else a failure would say nothing."""
    each = dict.fromkeys(mutant.tests for mutant in chosen)
    return all(run_tests(tree, tests)[0] == _OK for tests in each)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all mutants, or some, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("-j", "--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("-k", "--only", default="", help="only those with this text in their name or file")
    parser.add_argument("--check", action="store_true", help="first see that all tests pass without an error")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in mutants() if options.only in mutant.name or options.only in mutant.file]
    if options.list:
        print("\n".join(f"{mutant.file}: {mutant.name}" for mutant in chosen))
        return 0
    counts = dict.fromkeys(("caught", "survived", "not tried"), 0)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for index in range(options.jobs):
            tree = Path(folder) / str(index)
            copy_tree(tree)
            trees.put(tree)

        def work(mutant: Mutant) -> tuple[Mutant, str, str, float]:
            tree, start = trees.get(), perf_counter()
            try:
                return mutant, *judge(mutant, tree), perf_counter() - start
            finally:
                trees.put(tree)

        if options.check and not healthy(chosen, Path(folder) / "0"):
            print("a test fails without any error in the tree", file=sys.stderr)
            return 2
        with ThreadPoolExecutor(options.jobs) as pool:
            for mutant, verdict, why, seconds in pool.map(work, chosen):
                counts[verdict] += 1
                print(f"{verdict:<9} {seconds:5.0f} s  {mutant.file}: {mutant.name}", flush=True)
                if verdict != "caught":
                    print(f"          {why}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 2 if counts["not tried"] else 1 if counts["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
