import json

import pytest

from models.machine.errors import InputError, MissingInputError
from models.machine.profile import Profile, default_file, find, read
from models.machine.ways import Ways
from models.mochi.setup import Request, resolve


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "mochi-tt" / "machine.json"


def test_written_and_read(config):
    assert default_file() == config
    made = Profile(frozenset({"norm", "halo"}), 1, "line", "256x384", False, {"ttnn": "0.81.1"})
    made.write(config)
    assert json.loads(config.read_text())["plain"] == ["halo", "norm"]
    found = read(config)
    assert found.to_json() == made.to_json()
    assert str(found) == "plain halo,norm, links 1, topology line, attention chunks 256x384, capture off"
    assert str(Profile()) == "avoids nothing"
    assert [file.name for file in config.parent.iterdir()] == ["machine.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds JSON of list, not an object: make it with selftest --profile"),
        ("{}", "has version None, not 1: make it anew"),
        ('{"version": 2}', "has version 2, not 1"),
        ('{"version": 1, "plane": []}', "unknown entries plane"),
        ('{"version": 1, "plain": "norm"}', "plain 'norm' must be list or null"),
        ('{"version": 1, "plain": ["conv3d"]}', "plain op 'conv3d' has no alternative"),
        ('{"version": 1, "plain": [[]]}', r"plain \[\] must be the name of an op"),
        ('{"version": true}', "has version True, not 1"),
        ('{"version": 1, "links": 17}', "links 17 must be from 1 to 16"),
        ('{"version": 1, "attention_chunks": "100000000x32"}', "attention_chunks '100000000x32' must be such as"),
        ('{"version": 1, "links": true}', "links True must be int or null"),
        ('{"version": 1, "links": 0}', "links 0 must be from 1 to 16"),
        ('{"version": 1, "topology": "star"}', "topology 'star' must be one of line, ring"),
        ('{"version": 1, "capture": 0}', "capture 0 must be bool or null"),
    ],
)
def test_a_file_that_is_none_says_so_in_one_line(text, words, tmp_path):
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        read(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_which_profile_a_run_takes(config, tmp_path):
    assert find(None, "hardware") is None
    Profile(links=1).write(config)
    assert find(None, "hardware").links == 1
    assert find(None, "golden") is None
    assert find(None, "simulator") is None
    assert find(config, "golden").links == 1
    assert find("none", "hardware") is None
    with pytest.raises(MissingInputError, match="make it with selftest --profile"):
        find(tmp_path / "absent.json", "golden")


def test_explicit_options_win(config):
    Profile(frozenset({"norm"}), 1, "ring", "256x384", False).write(config)
    setup = resolve(Request(mode="golden", profile=config))
    assert setup.ways == Ways(frozenset({"norm"}), 1)
    assert (setup.ring, str(setup.chunks), setup.capture) == (True, "256x384", False)
    setup = resolve(
        Request(
            mode="golden",
            profile=config,
            plain="halo",
            links=2,
            topology="line",
            attention_chunks="32x64",
            capture=True,
        )
    )
    assert setup.ways == Ways(frozenset({"halo"}), 2, lines=True)
    assert (setup.ring, str(setup.chunks), setup.capture) == (False, "32x64", True)
    setup = resolve(Request(mode="golden"))
    assert (setup.ways, setup.ring, setup.chunks, setup.capture, setup.profile) == (Ways(), None, None, True, None)
