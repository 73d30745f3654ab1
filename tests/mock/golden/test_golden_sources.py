"""Every golden of ours says where its semantics were read, and what it names in the installed package is there."""

import re
from pathlib import Path

import pytest
import ttnn

from models.mock import golden
from models.mock.golden.rules import EXECUTION_ARGUMENTS
from tests.mock.golden.covered_ops import COVERED, uncovered

PACKAGE = Path(ttnn.__file__).parent
ROOTS = {"ttnn/operations/": PACKAGE / "ttnn" / "cpp", "tt_metal/": PACKAGE}


def named_files(source: str) -> list[Path]:
    """Files of the installed package that a source names: those not said to be upstream's."""
    files = []
    for match in re.finditer(r"(?<!upstream )\b((?:ttnn/operations|tt_metal)/[\w/]+\.(?:cpp|hpp|h))", source):
        root = next(root for prefix, root in ROOTS.items() if match[1].startswith(prefix))
        files.append(root / match[1])
    return files


def test_sources(engine):
    for name, rule in golden.RULES.items():
        assert rule.source.strip(), name
        for file in named_files(rule.source):
            assert file.is_file(), f"{name}: {file} is not in the installed ttnn"


def test_some_files_are_named(engine):
    assert sum(bool(named_files(rule.source)) for rule in golden.RULES.values()) > len(golden.RULES) / 2


@pytest.mark.parametrize("name", sorted(COVERED))
def test_covered_ops_exist(engine, name):
    operation = ttnn
    for part in name.split(".")[1:]:
        operation = getattr(operation, part)
    assert operation.python_fully_qualified_name == name


def test_uncovered():
    assert uncovered({"ttnn.add": 3, "ttnn.somersault": 1}) == {"ttnn.somersault"}


def test_no_rule_reads_its_own_output(engine):
    """A parameter with an execution argument's name gets no tensor, so a rule must not need one there."""
    for name, rule in golden.RULES.items():
        tensors = {n for n in rule.names & EXECUTION_ARGUMENTS if "buffer" in n or "output" in n}
        assert all(rule.default_of(n) is None for n in tensors), f"{name}: {tensors}"
