"""What the documents promise: links that exist, commands that parse, a README of one page."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

from scripts.cli import COMMANDS, load
from scripts.docs_tables import documents, tables

ROOT = Path(__file__).parents[1]
PAGES = [*documents(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
README_LINES = 130
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:models|weight_cache|scripts|tests|examples|docs)/[\w./-]+)`")


def blocks(page, *languages):
    """The code blocks of a page in some languages; "" is none named."""
    return [text for language, text in _FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands(page):
    """The arguments of every `mochi-tt` line in the code blocks and table marks of a page."""
    found = []
    for line in "\n".join(blocks(page, "", "sh", "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].removeprefix(".venv/bin/") == "mochi-tt":
            found.append(words[1:])
    return found + [table.arguments for table in tables(page)]


def parse(arguments):
    """Resolve a command line and check its arguments and options, without running it."""
    first, *names = arguments
    if first not in COMMANDS:
        raise typer.BadParameter(f"no command {first!r}")
    command = load(COMMANDS[first])
    while hasattr(command, "commands"):
        name, *names = names or [""]
        if name not in command.commands:
            raise typer.BadParameter(f"no command {name!r}")
        command = command.commands[name]
    command.make_context(command.name, names)
    return command.name


def test_parse_tells_right_from_wrong():
    assert parse(["cache", "list", "--json", "x.json"]) == "list"
    for wrong in (
        ["generate"],
        ["generate", "x", "--stepps", "3"],
        ["cache", "lst"],
        ["generat", "x"],
        ["measure", "--num-steps", "one"],
    ):
        with pytest.raises(typer.TyperException):
            parse(wrong)


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in _LINK.findall(text):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"
    for path in _PATH.findall(text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
def test_every_command_parses(page):
    for arguments in commands(page):
        try:
            parse(arguments)
        except typer.TyperException as error:
            pytest.fail(f"{page.name}: mochi-tt {shlex.join(arguments)}: {error.format_message()}")


def test_there_are_commands():
    assert sum(len(commands(page)) for page in documents()) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


def test_every_page_of_docs_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name


def test_the_readmes_python_is_the_example():
    (shown,) = blocks(ROOT / "README.md", "python")
    example = ast.parse((ROOT / "examples" / "video_to_mp4.py").read_text(encoding="utf-8"))
    assert ast.unparse(ast.parse(shown)) == ast.unparse(ast.Module(example.body[1:], []))


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
def test_python_blocks_are_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)
