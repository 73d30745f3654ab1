"""Make the tables in the documents anew: `python -m scripts.docs_tables [--list|--check] [--only PATTERN]`.

A document says which command prints a table, and between the two marks stands what it printed:

    <!-- table: mochi-tt measure --validation (8 seconds) -->
    ...
    <!-- end -->

The parenthesis is what the command costs on two CPU cores; it is for the reader and for `--list`, and not run.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = "mochi-tt"
_MARK = re.compile(
    r"^<!-- table: (?P<command>[^\n(]+?)(?: \((?P<cost>[^\n)]*)\))? -->\n(?P<body>.*?)^<!-- end -->$",
    re.MULTILINE | re.DOTALL,
)
_OPENING = re.compile(r"^<!-- table: ", re.MULTILINE)
Runner = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Table:
    """One marked place in a document: the command, and what stands there now."""

    file: Path
    command: str
    cost: str
    body: str

    @property
    def arguments(self) -> list[str]:
        """What the command line hands to `mochi-tt`.

        Raises:
            ValueError: it is another program's.
        """
        program, *arguments = shlex.split(self.command)
        if program != PROGRAM:
            raise ValueError(f"{self.file.name}: table of {self.command!r} must be of a {PROGRAM} command")
        return arguments


def documents(root: Path = ROOT) -> list[Path]:
    """The README and all of `docs/`."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def tables(file: Path) -> list[Table]:
    """The marked places of one document, in order.

    Raises:
        ValueError: a mark is not closed.
    """
    text = file.read_text(encoding="utf-8")
    found = [Table(file, m["command"], m["cost"] or "", m["body"]) for m in _MARK.finditer(text)]
    if len(found) != len(_OPENING.findall(text)):
        raise ValueError(f"{file.name}: a table's mark is not closed by <!-- end -->")
    return found


def tables_in(printed: str) -> str:
    """The Markdown tables among what a command printed, one empty line between two of them.

    Raises:
        ValueError: it printed none.
    """
    blocks: list[list[str]] = []
    before = ""
    for line in printed.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                blocks.append([])
            blocks[-1].append(line.rstrip())
        before = line
    if not blocks:
        raise ValueError("the command printed no Markdown table")
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def run_command(arguments: Sequence[str]) -> str:
    """What `mochi-tt` with these arguments prints; a failing one raises `CalledProcessError`."""
    command = [sys.executable, "-m", "scripts.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def replaced(text: str, fresh: dict[str, str]) -> str:
    """The text of a document with the tables of some commands replaced."""

    def put(match: re.Match[str]) -> str:
        body = fresh.get(match["command"])
        if body is None:
            return match[0]
        start = match.start("body") - match.start()
        return f"{match[0][:start]}{body}<!-- end -->"

    return _MARK.sub(put, text)


def update(files: Iterable[Path], only: str = "", *, check: bool = False, run: Runner = run_command) -> list[Path]:
    """Run the commands of the marked tables and put what they print into the documents.

    Args:
        files: the documents.
        only: part of a command, or a pattern with * that it must match; all by default.
        check: whether to leave the files as they are.
        run: runs one command and returns what it prints.

    Returns:
        The documents that changed, or would.

    Raises:
        ValueError: a mark is not closed, or a command printed no table.
    """
    fresh: dict[str, str] = {}
    changed = []
    for file in files:
        for table in tables(file):
            if table.command not in fresh and chosen(table.command, only):
                print(f"{table.command}{f' ({table.cost})' if table.cost else ''}", flush=True)
                fresh[table.command] = tables_in(run(table.arguments))
        text = file.read_text(encoding="utf-8")
        new = replaced(text, fresh)
        if new != text:
            changed.append(file)
            if not check:
                file.write_text(new, encoding="utf-8")
    return changed


def chosen(command: str, only: str) -> bool:
    """Whether a command is among those asked for."""
    return only in command or fnmatch(command, only)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; with --check the exit code is 1 if a table is not what its command prints."""
    parser = argparse.ArgumentParser(prog="docs_tables", description="Make the tables in the documents anew.")
    parser.add_argument("--only", default="", metavar="PATTERN", help="part of a command, or a pattern with *")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a table is out of date")
    parser.add_argument("--list", action="store_true", help="only say which commands there are and what they cost")
    options = parser.parse_args(arguments)
    files = documents()
    if options.list:
        for table in (table for file in files for table in tables(file) if chosen(table.command, options.only)):
            print(f"{table.file.relative_to(ROOT)}: {table.command} ({table.cost or 'cost not said'})")
        return 0
    changed = update(files, options.only, check=options.check)
    for file in changed:
        print(f"{file.relative_to(ROOT)} {'is out of date' if options.check else 'changed'}")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
