"""The command of the self-test, and the options of generate that its findings lead to."""

import json

import pytest

from models.machine.profile import Profile, read
from scripts.cli import main


def refused(capsys, *arguments):
    assert main([*arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_report_and_profile(tmp_path, capsys):
    report, profile = tmp_path / "report.json", tmp_path / "machine.json"
    arguments = ["--mode", "golden", "--mesh", "1x1", "--only", "transfer", "--only", "reduce_scatter"]
    assert main(["selftest", *arguments, "--json", str(report), "--profile-file", str(profile)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mode golden: ")
    assert lines[2].split()[:2] == ["transfer", "passed"]
    assert lines[3].split(maxsplit=2)[1:] == ["skipped", "needs TP above 1"]
    assert lines[4] == "1 passed, 1 skipped"
    data = json.loads(report.read_text())
    assert data["mode"] == "golden"
    assert [row["verdict"] for row in data["rows"]] == ["passed", "skipped"]
    assert read(profile).plain == frozenset()
    assert lines[-1] == f"wrote {profile}: avoids nothing"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "large"], "--kind 'large' does not exist: choose from small, shape, whole"),
        (["--mode", "dry-run"], "computes no numbers"),
        (["--mode", "simulator"], "TT_METAL_SIMULATOR names no library"),
        (["--plain", "sockets"], "'sockets' has no alternative: halves of a mesh exchange by them"),
        (["--mesh", "2by4"], "is not ROWSxCOLUMNS"),
        (["--json", "report.txt"], "must end with .json"),
        (["--costs", "--system", "p150"], "p150"),
    ],
)
def test_bad_input(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TT_METAL_SIMULATOR", raising=False)
    assert words in refused(capsys, "selftest", *arguments)


def test_generate_keeps_what_it_avoided(tmp_path, small_checkpoint, capsys):
    profile, out = tmp_path / "machine.json", tmp_path / "video.mp4"
    Profile(frozenset({"swiglu", "norm"}), links=1, made_by={"report": "0123"}).write(profile)
    size = ["--width", "32", "--height", "32", "--num-frames", "7", "--num-steps", "1", "--mesh", "1x2"]
    arguments = ["generate", "a ball", "--model", str(small_checkpoint), "--mode", "golden", "--out", str(out), *size]
    assert main([*arguments, "--profile", str(profile), "--plain", "norm,matmul"]) == 0
    assert f"machine profile {profile}: plain norm,swiglu, links 1" in capsys.readouterr().out
    kept = json.loads(out.with_suffix(".json").read_text())["machine"]
    assert kept["plain"] == ["matmul", "norm"], "explicit options win"
    assert (kept["links"], kept["capture"]) == (1, True)
    assert kept["profile"]["plain"] == ["norm", "swiglu"]
    assert kept["profile"]["made_by"] == {"report": "0123"}


def test_a_bad_profile_is_one_line(tmp_path, capsys):
    profile = tmp_path / "machine.json"
    profile.write_text("{}")
    arguments = ["generate", "a ball", "--mode", "golden", "--profile", str(profile)]
    assert "has version None, not 1" in refused(capsys, *arguments)
