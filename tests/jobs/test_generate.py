"""What a run says and keeps of its machine."""

import json
from types import SimpleNamespace

import pytest

from models.jobs.generate import GenerateRequest, about_the_machine, plan, run
from models.machine.profile import Profile
from models.mochi.setup import Request, request_of, resolve


def setup(mode="hardware", profile=None, named=None):
    return SimpleNamespace(mode=mode, profile=profile, request=SimpleNamespace(profile=named))


def test_hardware_without_a_profile_suggests_the_self_test():
    line = about_the_machine(setup())
    assert line is not None
    assert line.startswith("hint: ")
    assert "mochi-tt selftest --profile" in line
    assert "\n" not in line


@pytest.mark.parametrize(("mode", "named"), [("golden", None), ("simulator", None), ("hardware", "none")])
def test_other_runs_do_not(mode, named):
    assert about_the_machine(setup(mode, named=named)) is None


def test_a_profile_is_named_in_a_line(tmp_path):
    file = tmp_path / "machine.json"
    Profile(frozenset({"norm"}), capture=False).write(file)
    found = resolve(Request(mode="golden", profile=file))
    assert about_the_machine(found) == f"machine profile {file}: plain norm, capture off (written by hand)"


SMALL = {"height": 32, "width": 32, "num_frames": 7, "num_steps": 5, "seed": 3}


def made(model, out, told, **asked):
    """Make a video, and return its JSON and its file."""
    job = plan(GenerateRequest("a red ball", request_of(SMALL | asked, model=str(model), mode="golden"), out=str(out)))
    path = run(job, on_message=told.append)
    return json.loads(path.with_suffix(".json").read_text()), path.read_bytes()


@pytest.mark.alone
@pytest.mark.parametrize(
    ("layout", "used", "said"),
    [
        (
            "cfg1sp0tp1",
            None,
            ["guidance_reuse saves nothing", "1 of 5 steps have no guidance", "reuse: step 1 is comp"],
        ),
        ("sp0tp1", 2, ["reuse: step 1 is computed"]),
    ],
)
def test_the_json_says_what_was_used_and_makes_the_video_again(small_checkpoint, tmp_path, layout, used, said):
    """On two halves the reuse of guidance is left out; the arguments keep what was asked."""
    told = []
    asked = {"mesh": "1x2", "layout": layout, "guidance_reuse": 2, "guidance_interval": "0.2:1", "reuse": "steps:1,3"}
    record, video = made(small_checkpoint, tmp_path / "a.mp4", told, **asked)
    assert (record["arguments"]["guidance_reuse"], record["guidance_reuse"]) == (2, used)
    assert len(told) == len(said)
    assert all(line.startswith(start) for line, start in zip(told, said, strict=True)), told
    assert record["forwards"]["reused_steps"] == [3]

    again = request_of(record["arguments"])
    job = plan(
        GenerateRequest("a red ball", again, record["arguments"]["negative_prompt"], out=str(tmp_path / "b.mp4"))
    )
    assert run(job).read_bytes() == video
    other = json.loads((tmp_path / "b.json").read_text())
    for name in ("forwards", "guidance_reuse", "sigmas", "guidance_schedule", "solver"):
        assert other[name] == record[name]
