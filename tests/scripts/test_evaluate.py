"""The command line of `mochi-tt evaluate`, with a quick evaluation in the place of the model."""

import json

import pytest
import torch

from models.jobs import evaluate as job
from models.mochi.defaults import Defaults
from scripts.cli import main


@pytest.fixture
def asked(monkeypatch):
    found = []

    def evaluate(checkpoint, settings, prompts, mesh, precision, progress, name):
        found.append((name, [prompt.text for prompt in prompts]))
        seen = [job.Verdict(prompt.text, *[prompt.asked] * 3, 40.0) for prompt in prompts]
        return job.Evaluation(name, "golden", mesh, precision, Defaults(), seen, torch.zeros(len(seen), 7, 8, 8, 3))

    monkeypatch.setattr(job, "evaluate", evaluate)
    return found


def test_the_set_is_the_one_that_is_named(asked, tmp_path, capsys):
    files = ["--json", str(tmp_path / "a.json"), "--sheet", str(tmp_path / "a.png")]
    assert main(["evaluate", "--set", "free", "--limit", "96", *files]) == 0
    (name, texts), report = asked[0], json.loads((tmp_path / "a.json").read_text())
    assert name == report["set"] == "free"
    assert len(texts) == report["prompts"] == 96
    assert set(report["accuracy"]) == {"colour", "motion", "shape", "still", "both"}
    assert "96 free prompts" in capsys.readouterr().out
    assert (tmp_path / "a.png").exists()


def test_the_first_set_is_the_default(asked):
    assert main(["evaluate", "--limit", "2"]) == 0
    assert asked[0][0] == "held-out"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--set", "x"], "there is no set of prompts 'x': choose one of held-out, free, edits"),
        (["--set", "free", "--compare-settings"], "--set is of the evaluation without --compare-settings"),
    ],
)
def test_a_wrong_set_is_one_line(asked, given, message, capsys):
    assert main(["evaluate", *given]) == 2
    assert message in capsys.readouterr().err
    assert asked == []
