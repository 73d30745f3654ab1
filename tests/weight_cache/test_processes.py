"""Converting processes that are killed at any point, and several at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.weight_cache.helpers import assert_same, declared, from_store, in_memory, only_entry
from weight_cache.checkpoints.component import Component
from weight_cache.store import Store

ROOT = Path(__file__).parents[2]
MESH = "2x4sp0tp1"
# A converter takes 10 s alone, and minutes on a machine with much else to do.
SECONDS = 500
# Ends its own process without warning at the n-th call of one function; half of the file it was to write stays.
CHILD = """
import os, signal, sys
from itertools import count
from models.device import open_mesh, quiet_ttnn
ttnn = quiet_ttnn()
from pathlib import Path
from models.mochi.config import TransformerConfig
from models.mochi.transformer import MochiTransformer
from models.parallel import Layout, Mesh
from weight_cache import convert, entry, manifest, tensor_file
from weight_cache.checkpoints.component import Component
from weight_cache.store import Store

weights, cache, where, number = sys.argv[1:5]
places = {
    "dump": (ttnn, "dump_tensor"), "write": (tensor_file.TensorWriter, "_write_alike"),
    "rename": (convert.os, "replace"), "journal": (entry.Entry, "append"), "read": (convert.Parameter, "read"),
    "hash": (tensor_file, "checksum"), "manifest": (manifest.Manifest, "write"), "finish": (entry.Entry, "finish"),
    "start": (entry.Entry, "start"),
}
if where in places:
    owner, name = places[where]
    original, calls = getattr(owner, name), count(1)

    def deadly(*arguments, **named):
        if next(calls) == int(number):
            path = next((a for a in arguments if isinstance(a, Path) and a.suffix == ".tensorbin"), None)
            if path is not None:
                path.write_bytes(b"half of a tensor")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, name, deadly)
component = Component(weights)
layout = Layout.parse("2x4sp0tp1")
with open_mesh(layout.mesh_shape, "dry-run") as opened:
    model = MochiTransformer(TransformerConfig.from_dict(component.config), Mesh(opened.device, layout))
    print("ready", flush=True)
    if where == "together":
        sys.stdin.readline()
    Store(cache).build(model, component, on_message=lambda line: print(line, flush=True))
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def component(small_checkpoint):
    return Component(small_checkpoint / "transformer")


def start(component, cache, where, number=1):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(component.directory), str(cache), where, str(number)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process) -> tuple[str, str]:
    """What an ended process printed and complained of; one that does not end is killed and shown."""
    try:
        return process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"a converter took more than {SECONDS} s: {process.communicate()}")


def killed_then_rerun(component, cache, points, mesh):
    """Kill a conversion at each of `points` in turn, over one store; then finish and compare."""
    finished = 0
    for where, number in points:
        process = start(component, cache, where, number)
        output, errors = outcome(process)
        assert process.returncode == -signal.SIGKILL, errors
        assert "done" not in output
        entries = Store(cache).entries()
        assert [entry.state for entry in entries] in ([], ["unfinished"], ["complete"])
        if entries and entries[0].state == "unfinished":
            journal = entries[0].path / "journal.jsonl"
            lines = journal.read_text().splitlines() if journal.exists() else []
            assert len(lines) >= finished, "what was finished is kept"
            finished = len(lines)
    assert finished > 0
    model, lines = from_store(mesh, component, cache)
    assert lines == []
    assert_same(model, in_memory(mesh, component))
    entry = only_entry(cache)
    files = sorted(path.name for path in entry.tensors.iterdir())
    assert files == sorted(record.file for record in entry.manifest().tensors), "nothing half-made stays"
    assert list(Store(cache).verify().values()) == [{}]


@pytest.mark.parametrize("mesh", [MESH], indirect=True)
def test_a_killed_conversion_is_resumed(mesh, component, tmp_path):
    killed_then_rerun(component, tmp_path, [("dump", 30), ("manifest", 1)], mesh)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mesh", [MESH], indirect=True)
@pytest.mark.parametrize("where", ["dump", "write", "rename", "journal", "read", "hash", "manifest", "finish", "start"])
def test_a_conversion_killed_at_many_points_is_resumed(mesh, component, tmp_path, where):
    numbers = {"manifest": [1], "finish": [1], "start": [1], "write": [1, 2, 11]}.get(where, [1, 2, 11, 30])
    points = [(where, number) for number in numbers]
    killed_then_rerun(component, tmp_path, [("journal", 5), *points] if where != "journal" else points, mesh)


@pytest.mark.parametrize("mesh", [MESH], indirect=True)
def test_of_two_converters_one_works_and_the_other_adopts(mesh, component, tmp_path):
    processes = [start(component, tmp_path, "together") for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [outcome(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    said = [out for out, _ in outputs]
    assert all(out.endswith("done\n") for out in said)
    assert sum("works on these weights" in out for out in said) <= 1
    assert "damaged" not in "".join(said)
    entry = only_entry(tmp_path)
    made = json.loads(entry.manifest_path.read_text())["about"]["made"]
    model, lines = from_store(mesh, component, tmp_path)
    assert lines == []
    assert json.loads(entry.manifest_path.read_text())["about"]["made"] == made
    assert_same(model, in_memory(mesh, component))


@pytest.mark.parametrize("mesh", [MESH], indirect=True)
def test_a_waiting_converter_adopts_what_the_other_made(mesh, component, tmp_path, monkeypatch):
    """The lock is held while the entry appears: whoever waited must not convert again."""
    from threading import Event, Thread

    from weight_cache import convert

    source, target = tmp_path / "made", tmp_path / "wanted"
    from_store(mesh, component, source)
    name = only_entry(source).path.name
    store = Store(target)
    held, waited_for = Event(), Event()

    (store.root / "locks").mkdir(parents=True)

    def other():
        with store._locks().exclusive(name, print):
            held.set()
            assert waited_for.wait(60)
            (store.root / "entries").mkdir(exist_ok=True)
            only_entry(source).path.rename(store.root / "entries" / name)

    thread = Thread(target=other)
    thread.start()
    assert held.wait(60)
    monkeypatch.setattr(convert, "convert", lambda *_, **__: pytest.fail("converted again"))
    lines = []
    model = declared(mesh, component)
    store.load(model, component, on_message=lambda line: lines.append(line) or waited_for.set())
    thread.join()
    assert lines == [f"process {os.getpid()} works on these weights: waiting for it"]
    assert_same(model, in_memory(mesh, component))
