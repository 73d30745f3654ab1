"""The guarded readers of what others wrote: each gives a value, or refuses in one line. Nothing else comes out."""

import json
import os
import random
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from models.jobs.latents import FORMAT, load_latents
from models.machine import profile
from models.machine.checks import JSON_BYTES, JSON_DEPTH, json_file, json_object
from models.machine.errors import InputError
from models.machine.headers import HEADER_BYTES, read_header
from models.performance import compare
from weight_cache.checkpoints.component import read_json

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def refused(function, *arguments) -> str | None:
    """The one line of a refusal, or None where there was none. Any other error comes through."""
    try:
        function(*arguments)
    except InputError as error:
        line = str(error)
        assert line
        assert "\n" not in line
        assert len(line) < 1000
        return line
    return None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe{", "is not valid JSON"),
        (b"[]", "holds JSON of list, not an object"),
        (b'{"a": ' * 100_000, "is not valid JSON"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, f"nested more than {JSON_DEPTH} levels deep"),
        (b'{"a":' + b"[" * 80 + b"]" * 80 + b"}", f"nested more than {JSON_DEPTH} levels deep"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is no number of JSON"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": "\\ud800"}', "no UTF-8"),
        (b"{" + b" " * JSON_BYTES + b"}", "MB are read at most"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:20],
)
def test_json_that_is_refused(text, words):
    line = refused(json_object, text, "file x", "download it again")
    assert line is not None
    assert words in line
    assert line.startswith("file x")
    assert line.endswith("download it again") or "UTF-8" in line


@given(JSON)
def test_any_json_is_a_value_or_a_line(value):
    text = json.dumps(value)
    if refused(json_object, text, "x") is None:
        assert json_object(text, "x") == value
    else:
        assert not isinstance(value, dict) or "NaN" in text or "Infinity" in text or "\\u" in text


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_line(tmp_path, data):
    file = tmp_path / "x"
    file.write_bytes(data)
    for reader in (read_json, read_header, profile.read, compare.read, load_latents):
        refused(reader, file)


def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none", "a\0b", "/dev/zero"):
        for reader in (read_json, read_header, load_latents, compare.read):
            assert refused(reader, path) is not None, (reader, path)


def header_file(path, header: bytes, data: bytes = b"", length: int | None = None):
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(offsets=(0, 8), shape=(2,))}, "its tensors have 8 bytes, the file has 4"),
        ({"a": entry(), "b": entry()}, "begins at byte 0 of the data, not at 4"),
        ({"a": entry(offsets=(4, 8))}, "begins at byte 4 of the data, not at 0"),
        ({"a": entry(shape=(2,))}, "does not fill its 4 bytes"),
        ({"a": entry(shape=(2**62, 2**62))}, "does not fill its 4 bytes"),
        ({"a": entry(shape=(-1, -1))}, "no shape of whole numbers"),
        ({"a": entry(shape=(True,))}, "no shape of whole numbers"),
        ({"a": entry(shape=(1,) * 100)}, "at most 8"),
        ({"a": entry(offsets=(4, 0))}, "does not fill its -4 bytes"),
        ({"a": entry(offsets=(0, 4, 8))}, "no two data_offsets"),
        ({"a": entry(dtype="F4")}, "of a type that is not read"),
        ({"a": entry(dtype=["F32"])}, "of a type that is not read"),
        ({"a": None}, "has not a dtype, a shape and data_offsets"),
        ({"a": entry() | {"more": 1}}, "has not a dtype"),
        ({"a": entry(), "__metadata__": {"x": 1}}, "its metadata is no table of texts"),
        ({"a": entry(), "__metadata__": [1]}, "its metadata is no table of texts"),
    ],
)
def test_headers_that_are_refused(tmp_path, header, words):
    line = refused(read_header, header_file(tmp_path / "x", json.dumps(header).encode(), b"1234"))
    assert line is not None
    assert "is truncated or not a safetensors file" in line
    assert words in line


def test_a_header_is_judged_by_its_length_before_it_is_read(tmp_path):
    file = tmp_path / "x"
    with file.open("wb") as out:
        out.write((4 << 30).to_bytes(8, "little"))
        out.truncate(5 << 30)  # sparse: no bytes on the disk
    tracemalloc.start()
    line = refused(read_header, file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert line is not None
    assert f"{HEADER_BYTES} are read at most" in line
    assert peak < 1 << 20


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.float8_e4m3fn, torch.int64)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)),
        min_size=1,  # safetensors 0.8 writes a header of no tensors and empty metadata wrongly
        max_size=4,
    ),
    st.none() | st.dictionaries(st.text(), st.text(), max_size=2),
)
def test_what_safetensors_writes_is_read(tmp_path, tensors, metadata):
    data = save({name: torch.zeros(shape).to(dtype) for name, (dtype, shape) in tensors.items()}, metadata)
    (tmp_path / "x").write_bytes(data)
    header = read_header(tmp_path / "x")
    assert {name: list(found.shape) for name, found in header.tensors.items()} == {
        name: shape for name, (_, shape) in tensors.items()
    }
    assert header.metadata == (metadata or {})


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_mangled_files_are_read_alike_or_refused(tmp_path, seed, edits):
    """What passes the header's check also opens in safetensors, and reads."""
    draw = random.Random(seed)
    about = {"format": FORMAT, "about": json.dumps({"fps": 24})}
    data = bytearray(save({"latents": torch.zeros(1, 12, 1, 2, 2)}, about))
    for _ in range(edits):
        place = draw.randrange(min(len(data), 220))
        kind = draw.randrange(3)
        if kind == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[place : place + draw.randrange(1, 9)]
        else:
            data[place:place] = bytes(draw.choice(b'{}[]",:019-eE') for _ in range(draw.randrange(1, 4)))
    file = tmp_path / "x"
    file.write_bytes(data)
    refused(load_latents, file)
    if refused(read_header, file) is None:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                opened.get_tensor(name)


RECORD = {"expected": 1.0, "low": 0.5, "high": 2.0}
REPORT = dict(system="quietbox", layout="2x4sp0tp1", precision="default", height=480, width=848, num_frames=163)
COUNTS = dict.fromkeys(compare.COUNTED, 1.0)


@given(st.sampled_from(["counts", "seconds", "by_kind", "system", "height"]), JSON, st.integers(0, 2))
def test_any_report_compares_or_is_refused(tmp_path, name, value, depth):
    good = REPORT | {"counts": {"denoise": COUNTS}, "seconds": {"total": RECORD}, "by_kind": {"total": {"x": RECORD}}}
    for _ in range(depth):
        value = {"total": value, "denoise": value}
    (tmp_path / "x").write_text(json.dumps(good | {name: value}))

    def both():
        report = compare.read(tmp_path / "x")
        compare.regressions(compare.ratios(report, good))
        compare.regressions(compare.ratios(good, report))

    refused(both)


@given(st.sampled_from(sorted(profile._KEYS)), JSON)
def test_any_profile_is_read_or_refused(tmp_path, name, value):
    (tmp_path / "x").write_text(json.dumps({"version": profile.VERSION} | {name: value}))
    refused(profile.read, tmp_path / "x")


def test_a_json_file_of_a_true_checkpoint_is_read(small_checkpoint):
    for file in small_checkpoint.rglob("*.json"):
        assert json_file(file, "checkpoint file", "download it again")
