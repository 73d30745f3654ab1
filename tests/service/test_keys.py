"""Bearer keys: read, compared, refused."""

import hashlib

import pytest

from models.machine.errors import InputError
from models.service.keys import Keys, is_loopback

ONE, TWO = "a-key-of-one-person", "another-key-of-another"


def read(tmp_path, text, environment=None):
    (tmp_path / "keys").write_text(text)
    return Keys.read(tmp_path / "keys", environment)


def test_lines_and_environment(tmp_path):
    keys = read(tmp_path, f"# who may\n\nann:{ONE}\n", f"bob:{TWO}")
    assert keys.find(f"Bearer {ONE}").name == "ann"
    assert keys.find(f"bearer  {TWO} ").name == "bob"


def test_toml_with_quotas_and_digests(tmp_path):
    digest = hashlib.sha256(TWO.encode()).hexdigest()
    keys = read(
        tmp_path,
        f'[[key]]\nname = "ann"\nkey = "{ONE}"\nqueued = 2\nper_day = 9\n[[key]]\nname = "bob"\nsha256 = "{digest}"\n',
    )
    assert (keys.find(f"Bearer {ONE}").queued, keys.find(f"Bearer {ONE}").per_day) == (2, 9)
    assert keys.find(f"Bearer {TWO}").queued is None


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", ONE, f"Basic {ONE}", f"Bearer {ONE}x", f"Bearer {ONE[:-1]}", "Bearer \udcff"],
)
def test_anything_else_is_nobody(tmp_path, header):
    assert read(tmp_path, f"ann:{ONE}").find(header) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key"),
        ("ann", "no colon"),
        ("ann:short", "16 printable"),
        (f"an n:{ONE}", "name"),
        (f"ann:{ONE}\nann:{TWO}", "name of ann"),
        (f"ann:{ONE}\nbob:{ONE}", "key of bob"),
        ("[[key]\n", "TOML"),
        ('[[key]]\nname = "ann"\n', "either key or sha256"),
        (f'[[key]]\nname = "ann"\nkey = "{ONE}"\nquota = 3\n', "'quota' is not known"),
        (f'[[key]]\nname = "ann"\nkey = "{ONE}"\nqueued = -1\n', "whole number"),
        (f'[[key]]\nname = "ann"\nkey = "{ONE}"\nqueued = true\n', "whole number"),
        ('[[key]]\nname = "ann"\nsha256 = "12"\n', "64 hexadecimal"),
        (f'other = 3\n[[key]]\nname = "ann"\nkey = "{ONE}"\n', "tables only"),
    ],
)
def test_a_bad_file_is_one_line_without_the_key(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as error:
        read(tmp_path, text)
    assert ONE not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_binary_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Keys.read(tmp_path / "none", None)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        Keys.read(tmp_path / "binary", None)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", "", "localhost.example.org")],
)
def test_loopback(host, local):
    assert is_loopback(host) is local
