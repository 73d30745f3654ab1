"""The store end to end: what it gives back is what was put in, whatever happened to its files meanwhile."""

import json
import os
import resource
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import ttnn

from tests.support import randn
from tests.weight_cache.helpers import assert_same, copy_store, declared, from_store, in_memory, only_entry
from weight_cache import convert as conversion
from weight_cache.checkpoints.component import Component
from weight_cache.entry import TEMPORARY
from weight_cache.key import entry_key
from weight_cache.manifest import FORMAT_VERSION, content_hash
from weight_cache.store import Store
from weight_cache.tensor_file import TensorWriter
from weight_cache.versions import ttnn_version, versions

MESH = "2x4sp0tp1"
SMALL = pytest.mark.parametrize("mesh", [MESH], indirect=True)


@pytest.fixture(scope="module")
def component(small_checkpoint):
    return Component(small_checkpoint / "transformer")


@pytest.fixture(scope="module")
def filled(tmp_path_factory, open_layout, component):
    """A store with one sound entry; do not write in it."""
    cache = tmp_path_factory.mktemp("filled")
    Store(cache).build(declared(open_layout(MESH), component), component)
    return cache


@pytest.fixture
def expected(open_layout, component):
    return in_memory(open_layout(MESH), component)


def note_written(monkeypatch, names):
    """Add the name of every parameter that is converted from here on to `names`."""
    write = TensorWriter.write

    def noting(self, path, parameter, host):
        names.append(path.name.removeprefix(f"{TEMPORARY}{os.getpid()}-").removesuffix(".tensorbin"))
        return write(self, path, parameter, host)

    monkeypatch.setattr(TensorWriter, "write", noting)


def signed(value):
    """A manifest's text with the right hash of itself."""
    value.pop("sha256", None)
    return json.dumps({"sha256": content_hash(value), **value})


def predict(model):
    """One forward of the whole model."""
    from models.mochi.sampling.packing import pack_latents

    grid = model.grid(2, 3, 5)
    prompt = model.prepare(randn(7, model.config.text_embed_dim, seed=2), [300.0])
    state = model.upload_patches(pack_latents(randn(1, 12, 2, 6, 10, seed=1), 2))
    return model.download_patches(model(state, prompt, grid), grid.tokens)


@pytest.mark.parametrize(
    ("mesh", "precision"),
    [
        ("2x4sp0tp1", "bf16"),
        ("2x4sp0tp1", "mixed"),
        ("2x4sp0tp1", "bf8"),
        pytest.param("4x8sp1tp0", "bf16", marks=pytest.mark.full),
        ("4x8sp1tp0", "mixed"),
        pytest.param("4x8sp1tp0", "bf8", marks=pytest.mark.full),
    ],
    indirect=["mesh"],
)
def test_loaded_is_bit_equal_to_converted_in_memory(mesh, component, tmp_path, precision):
    direct = in_memory(mesh, component, precision)
    loaded, _ = from_store(mesh, component, tmp_path, precision=precision)
    assert_same(loaded, direct)
    again, lines = from_store(mesh, component, tmp_path, precision=precision)
    assert lines == []
    assert_same(again, direct)
    assert (predict(again) == predict(direct)).all()
    packed = {name for name, _, p in again.parameters() if p.tensor.dtype == ttnn.bfloat8_b}
    kinds = {kind for kind in ("attention", "feed_forward") for name in packed if kind in name}
    assert kinds == {"bf16": set(), "mixed": {"feed_forward"}, "bf8": {"attention", "feed_forward"}}[precision]
    assert all("attention" in name or "feed_forward" in name for name in packed)


@SMALL
def test_what_is_there_is_not_converted_again(mesh, component, filled, tmp_path, monkeypatch):
    filled = copy_store(filled, tmp_path / "store")
    monkeypatch.setattr(conversion, "convert", lambda *_, **__: pytest.fail("converted again"))
    model, _ = from_store(mesh, component, filled)
    assert_same(model, in_memory(mesh, component))


@SMALL
@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted", "emptied"])
def test_damaged_files_are_set_aside_and_made_again(mesh, component, filled, expected, tmp_path, damage, monkeypatch):
    cache = copy_store(filled, tmp_path / "store")
    from_store(mesh, component, cache)  # Its checksums are known from here on.
    entry = only_entry(cache)
    victim = sorted(entry.tensors.iterdir())[17]
    content = victim.read_bytes()
    if damage == "deleted":
        victim.unlink()
    elif damage == "flipped":
        victim.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    else:
        victim.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    written = []
    note_written(monkeypatch, written)
    model, lines = from_store(mesh, component, cache)
    assert len(lines) == 1
    assert victim.name in lines[0]
    assert "set aside" in lines[0]
    assert written == [victim.name.removesuffix(".tensorbin")], "only what was damaged is converted"
    assert victim.read_bytes() == content
    assert len(list((entry.path / "set-aside").glob(f"*/{victim.name}"))) == (damage != "deleted")
    assert_same(model, expected)


@SMALL
def test_damage_that_hides_its_time_is_found_on_demand_and_on_first_use(mesh, component, filled, expected, tmp_path):
    cache = copy_store(filled, tmp_path / "store")
    entry = only_entry(cache)
    victim = sorted(entry.tensors.iterdir())[3]
    stat = victim.stat()
    content = bytearray(victim.read_bytes())
    content[-40] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (wrong,) = Store(cache).verify().values()
    assert wrong == {victim.name: "its checksum is wrong"}
    model, lines = from_store(mesh, component, cache)
    assert "checksum" in lines[0]
    assert_same(model, expected)
    assert list(Store(cache).verify().values()) == [{}]


@SMALL
@pytest.mark.parametrize("damage", ["version", "garbage", "foreign", "escape", "fields", "key"])
def test_a_manifest_that_cannot_be_trusted_is_not(mesh, component, filled, expected, tmp_path, damage):
    cache = copy_store(filled, tmp_path / "store")
    path = only_entry(cache).manifest_path
    value = json.loads(path.read_text())
    if damage == "version":
        value["format"] = "two"
    elif damage == "foreign":
        value["key_fields"]["layout"] = "2x4sp1tp0"
    elif damage == "escape":
        value["tensors"][0]["file"] = "../../../../etc/passwd"
    elif damage == "fields":
        del value["tensors"][0]["checksum"]
    elif damage == "key":
        value["key_fields"] = []
    path.write_text("{" if damage == "garbage" else signed(value))
    ((file, why),) = Store(cache).verify()[path.parent.name].items()
    assert (file, why.startswith(f"manifest {path} ")) == ("manifest.json", True)
    model, lines = from_store(mesh, component, cache)
    assert len(lines) == 1
    assert "cannot be used" in lines[0]
    assert_same(model, expected)
    assert json.loads(path.read_text())["format"] == FORMAT_VERSION


@SMALL
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_no_debris_and_is_resumed(mesh, component, expected, tmp_path, stop, monkeypatch):
    def progress(stage, done, total):
        if stage == "convert transformer" and done > total / 2:
            raise stop

    with pytest.raises(stop):
        Store(tmp_path).load(declared(mesh, component), component, progress=progress)
    entry = only_entry(tmp_path)
    assert entry.manifest() is None
    left = {path.name for path in entry.path.rglob("*") if path.is_file()}
    assert not [name for name in left if name.startswith(".tmp-")]
    written = []
    note_written(monkeypatch, written)
    model, _ = from_store(mesh, component, tmp_path)
    assert 0 < len(written) < len(list(expected.parameters()))
    assert_same(model, expected)


@SMALL
def test_a_full_disk_is_said_and_what_was_finished_is_kept(mesh, component, expected, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files beyond this size fail as on a full disk (EFBIG instead of ENOSPC).
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="make room and run it again"):
            from_store(mesh, component, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    entry = only_entry(tmp_path)
    assert entry.manifest() is None
    assert not list(entry.tensors.glob(".tmp-*"))
    model, _ = from_store(mesh, component, tmp_path)
    assert_same(model, expected)


@SMALL
def test_a_small_file_system_fills_up(mesh, component, expected, tmp_path, monkeypatch):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    cache = tmp_path / "small"
    cache.mkdir()
    if libc.mount(b"tmpfs", str(cache).encode(), b"tmpfs", 0, b"size=6m"):
        pytest.skip("mounting a tmpfs needs privileges")
    try:
        with pytest.raises(OSError, match=r"no space .* 0\.03 GB are needed"):
            from_store(mesh, component, cache)
        assert not any(path.is_file() for path in only_entry(cache).tensors.iterdir())
        monkeypatch.setattr(conversion, "free_bytes", lambda path: 10**12)
        with pytest.raises(OSError, match="make room and run it again"):
            from_store(mesh, component, cache)
        assert only_entry(cache).manifest() is None
        assert libc.mount(b"tmpfs", str(cache).encode(), b"tmpfs", 32, b"size=64m") == 0
        model, _ = from_store(mesh, component, cache)
        assert_same(model, expected)
    finally:
        libc.umount2(str(cache).encode(), 2)


@SMALL
def test_space_is_checked_before_anything_is_written(mesh, component, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "free_bytes", lambda path: 20_000_000)
    monkeypatch.setattr(ttnn, "dump_tensor", lambda *_: pytest.fail("written"))
    with pytest.raises(OSError, match=r"0\.03 GB are needed .* 0\.02 GB are free"):
        from_store(mesh, component, tmp_path)


class Unprivileged:
    """For a block, this process may write nowhere."""

    def __enter__(self):
        os.seteuid(65534)

    def __exit__(self, *_):
        os.seteuid(0)


@pytest.fixture
def read_only(filled, component):
    """A sound store that cannot be written, and its weights, both where everyone may read."""
    with tempfile.TemporaryDirectory() as folder:
        cache = copy_store(filled, Path(folder) / "store")
        weights = Path(shutil.copytree(component.directory, Path(folder) / "transformer"))
        os.chmod(folder, 0o755)
        for path, _, files in os.walk(folder):
            os.chmod(path, 0o555)
            for file in files:
                os.chmod(Path(path) / file, 0o444)
        yield cache, Component(weights)
        for path, _, _ in os.walk(folder):
            os.chmod(path, 0o755)


@SMALL
@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's privileges for a while")
def test_a_read_only_store_can_be_read_but_not_filled(mesh, expected, read_only):
    cache, component = read_only
    with Unprivileged():
        model, lines = from_store(mesh, component, cache)
        with pytest.raises(OSError, match=r"cannot be written .* MOCHI_TT_CACHE_DIR"):
            from_store(mesh, component, cache, precision="bf8")
    assert lines == []
    assert_same(model, expected)
    assert len(Store(cache).entries()) == 1


@SMALL
def test_weights_that_do_not_fit_are_refused_before_the_store_is_touched(mesh, component, tmp_path):
    model = declared(mesh, component)
    other = Component(component.directory)
    other.config["num_layers"] = 5
    with pytest.raises(ValueError, match=r"missing \(transformer_blocks\.3\.attn1\.to_add_out"):
        Store(tmp_path).load(declared(mesh, other), other)
    with pytest.raises(ValueError, match="precision 'int4' does not exist"):
        Store(tmp_path).load(model, component, precision="int4")
    assert not (tmp_path / "mochi-weights").exists()


@SMALL
def test_list_and_prune(mesh, component, filled, tmp_path):
    cache = copy_store(filled, tmp_path / "store")
    store = Store(cache)
    (sound,) = store.entries()
    assert (sound.state, sound.about["layout"], sound.about["precision"]) == ("complete", MESH, "bf16")
    assert sound.bytes == sum(p.stat().st_size for p in sound.path.rglob("*") if p.is_file())
    assert store.prune() == []

    victim = next((sound.path / "tensors").iterdir())
    os.truncate(victim, 10)
    store.build(declared(mesh, component), component)
    assert [(e.name, e.state, e.bytes) for e in store.prune()] == [(sound.name, "set aside", 10)]
    assert store.prune() == []

    store.build(declared(mesh, component), component, precision="bf8")
    unfinished = next(e for e in store.entries() if "bf8" in e.name)
    (unfinished.path / "manifest.json").unlink()
    assert [e.state for e in store.entries()] == ["complete", "unfinished"]
    with store._locks().shared(unfinished.name, print):
        said = []
        assert store.prune(on_message=said.append) == [], "another process is working on it"
        assert said == [f"{unfinished.name} stays: process {os.getpid()} works on it"]
    assert [e.name for e in store.prune()] == [unfinished.name]
    assert [e.name for e in store.entries()] == [sound.name]

    assert store.prune(older_than_days=1) == []
    os.utime(sound.path / "manifest.json", (0, 0))
    with pytest.raises(ValueError, match="no entry"):
        store.prune(["nothing-like-it"])
    assert [e.name for e in store.prune(older_than_days=1)] == [sound.name]
    assert store.entries() == []


def first_format(value):
    """Roughly as the first version of the store wrote it."""
    value["format"] = 1
    value["key_fields"]["code"] = value["key_fields"].pop("conversions")
    for record in value["tensors"]:
        record["name"] = "blocks.0.attention.to_qkv.weight"


def set_version(kind, version):
    def change(value):
        assert kind in value["key_fields"]["conversions"]
        value["key_fields"]["conversions"][kind] = version

    return change


def set_field(name, content):
    return lambda value: value["key_fields"].update({name: content})


KIND = "column-parallel-weight"
OUTDATED = {
    "format": (first_format, f"format version 1, this program has {FORMAT_VERSION}"),
    "schema": (set_field("conversions", "0123"), "its key has no versions of conversions"),
    "kind": (set_version(KIND, 0), f"{KIND} version 0, this program has {versions()[KIND]}"),
    "form": (set_version("form-diffusers", 0), "form-diffusers version 0, this program has 1"),
    "ttnn": (set_field("ttnn", "0.9.9"), f"ttnn 0.9.9, this program has {ttnn_version()}"),
}
NEWER = {
    "format": (lambda value: value.update(format=FORMAT_VERSION + 1), f"format version {FORMAT_VERSION + 1}, this"),
    "kind": (set_version(KIND, versions()[KIND] + 1), f"{KIND} version {versions()[KIND] + 1}, this program has"),
    "unknown kind": (
        lambda value: value["key_fields"]["conversions"].update({"later": 1, KIND: 0}),
        "later is unknown to this program",
    ),
    "ttnn": (set_field("ttnn", "0.100.0"), f"ttnn 0.100.0, this program has {ttnn_version()}"),
}


def rewritten(cache, change):
    """Let another version of the program have made the store's entry, under the name that it has there."""
    entry = only_entry(cache)
    value = json.loads(entry.manifest_path.read_text())
    change(value)
    value["key"] = entry_key(value["key_fields"])
    entry.manifest_path.write_text(signed(value))
    return entry.path.rename(entry.path.with_name(f"transformer-{MESH}-bf16-{value['key'][:24]}"))


@SMALL
@pytest.mark.parametrize(("change", "why"), OUTDATED.values(), ids=OUTDATED)
def test_outdated_entries_are_listed_and_pruned_and_never_read(mesh, component, filled, tmp_path, change, why):
    cache = copy_store(filled, tmp_path / "store")
    store, path = Store(cache), rewritten(cache, change)
    (found,) = store.entries()
    assert (found.name, found.state, found.about["precision"]) == (path.name, "outdated", "bf16")
    assert found.as_json()["why"].startswith(why)
    assert store.verify() == {}, "it is not damaged"
    with pytest.raises(ValueError, match=r"is outdated .*: there is nothing to verify"):
        store.verify([path.name])
    for file in (path / "tensors").iterdir():
        os.truncate(file, 1)
    model, lines = from_store(mesh, component, cache)
    assert_same(model, in_memory(mesh, component))
    assert lines == []
    assert sorted(entry.state for entry in store.entries()) == ["complete", "outdated"]
    assert [(entry.name, entry.state) for entry in store.prune()] == [(path.name, "outdated")]
    assert [entry.state for entry in store.entries()] == ["complete"]


@SMALL
@pytest.mark.parametrize(("change", "why"), NEWER.values(), ids=NEWER)
def test_newer_entries_stay_until_they_are_named(mesh, component, filled, tmp_path, change, why):
    cache = copy_store(filled, tmp_path / "store")
    store, path = Store(cache), rewritten(cache, change)
    os.utime(path / "manifest.json", (0, 0))
    (found,) = store.entries()
    assert (found.state, found.about["why"].startswith(why)) == ("newer", True)
    assert store.verify() == {}
    assert store.prune() == store.prune(older_than_days=1) == []
    assert [entry.name for entry in store.prune([path.name])] == [path.name]
    assert store.entries() == []


@SMALL
def test_a_raised_version_makes_what_is_stored_outdated(mesh, component, filled, tmp_path, monkeypatch):
    from models.conversion import CONVERSIONS, ROTARY_FREQUENCIES
    from models.mochi.transformer import rope

    cache = copy_store(filled, tmp_path / "store")
    raised = replace(ROTARY_FREQUENCIES, version=ROTARY_FREQUENCIES.version + 1)
    monkeypatch.setattr(rope, "ROTARY_FREQUENCIES", raised)
    monkeypatch.setitem(CONVERSIONS, raised.name, raised)
    assert [entry.state for entry in Store(cache).entries()] == ["outdated"]
    model, _ = from_store(mesh, component, cache)
    assert_same(model, in_memory(mesh, component))
    assert sorted(entry.state for entry in Store(cache).entries()) == ["complete", "outdated"]
    monkeypatch.undo()
    assert sorted(entry.state for entry in Store(cache).entries()) == ["complete", "newer"]


def test_kinds_that_are_no_longer_used_are_outdated(monkeypatch):
    from weight_cache import versions as module

    fields = {"ttnn": ttnn_version(), "conversions": {"dropped": 1}}
    assert module.key_state(fields)[0] == "newer"
    monkeypatch.setattr(module, "RETIRED", frozenset({"dropped"}))
    assert module.key_state(fields) == ("outdated", "dropped is no longer used")


def test_listing_and_pruning_import_neither_torch_nor_ttnn(tmp_path):
    import subprocess
    import sys

    folder = tmp_path / "mochi-weights" / "entries" / "old"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"format": 1}')
    code = (
        "import sys; from weight_cache.store import Store; store = Store(sys.argv[1]);"
        "print([entry.state for entry in store.entries()], [entry.state for entry in store.prune()]);"
        "print([name for name in ('torch', 'ttnn', 'numpy') if name in sys.modules])"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["['outdated'] ['outdated']", "[]"]
