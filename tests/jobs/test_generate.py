"""What a run says and keeps of its machine."""

from types import SimpleNamespace

import pytest

from models.jobs.generate import about_the_machine
from models.machine.profile import Profile
from models.mochi.setup import Request, resolve


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
