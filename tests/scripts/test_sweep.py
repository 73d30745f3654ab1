"""`mochi-tt sweep` from the shell: what it prints, and its exit codes."""

import json

import pytest

from models.machine.errors import InputError
from scripts.cli import main
from tests.jobs.test_sweep import _without_a_mesh, row, written


@pytest.fixture
def fails(monkeypatch, tmp_path):
    found: dict[int, Exception] = {}
    _without_a_mesh(monkeypatch.setattr, found)
    monkeypatch.chdir(tmp_path)
    return found


def test_every_bad_line_has_a_line_and_the_code_is_2(small_checkpoint, fails, tmp_path, capsys):
    file = written(tmp_path / "s.jsonl", row(1), row(2, width=33), {"prompt": 5})
    assert main(["sweep", str(file), "--model", str(small_checkpoint), "--mesh", "1x1"]) == 2
    captured = capsys.readouterr()
    _, first, second = captured.out.splitlines()
    assert first.startswith(f"{file}, line 2: width 33")
    assert second.startswith(f"{file}, line 3: prompt 5 must be text")
    [error] = captured.err.splitlines()
    assert error.startswith(f"mochi-tt: error: {file}: nothing was started")
    assert not (tmp_path / "outputs").exists()


def test_exit_codes_tell_done_failed_and_bad(small_checkpoint, fails, tmp_path, capsys):
    file = written(tmp_path / "s.jsonl", row(1), row(2), row(3))
    command = ["sweep", str(file), "--model", str(small_checkpoint), "--mesh", "1x1"]
    fails[2] = InputError("the numbers overflowed")
    assert main([*command, "--limit", "0"]) == 2
    assert "limit 0 must be" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
    assert main([*command, "--limit", "1"]) == 0
    assert "2 wait: the same command goes on with them" in capsys.readouterr().out
    assert main(command) == 2
    assert "the numbers overflowed" in capsys.readouterr().err
    assert main([*command, "--keep-going"]) == 1
    out = capsys.readouterr().out
    assert "warning: line 2 failed: the numbers overflowed" in out
    assert "2 of 3 videos are in outputs/s\n1 failed: results.csv says why" in out
    fails.clear()
    assert main(command) == 0
    assert "3 of 3 videos are in outputs/s" in capsys.readouterr().out
    record = json.loads(next((tmp_path / "outputs" / "s").glob("a-red-ball-2-*.json")).read_text())
    assert record["arguments"]["seed"] == 2
    assert list(record["sweep"]) == ["job"]
