"""Random faults never give wrong weights without a word, a traceback or a hang; and the injector sees it if they do."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import sleep

import pytest

from tests.weight_cache import faults
from tests.weight_cache.faults import LAYOUT, OUTCOMES, Faults, Small, Trial, attempt, load, run, table, truth
from weight_cache import store as stores
from weight_cache.checkpoints.component import Component
from weight_cache.checkpoints.held import HeldFile
from weight_cache.entry import Entry
from weight_cache.locks import Busy, Locks
from weight_cache.store import Store

ON_A_MESH = pytest.mark.parametrize("mesh", [LAYOUT], indirect=True)
BAD = OUTCOMES[3:]


@pytest.fixture(scope="module")
def folder():
    """A folder that everyone may enter, as pytest's may not be."""
    with tempfile.TemporaryDirectory(prefix="mochi-tt-faults-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def prepared(folder, open_layout):
    (folder / "prepared").mkdir()
    return Faults(open_layout(LAYOUT), folder / "prepared")


@pytest.fixture
def trial(prepared, tmp_path):
    """A sound checkpoint and store that a test may damage."""
    root = Path(shutil.copytree(prepared.made[False], tmp_path / "trial", symlinks=True))
    return Trial(root, prepared.mesh, random.Random(0), with_lora=False)


def bad(found, shown):
    return "\n".join([*shown, table(found)]) if any(found[key] for key in found if key[1] in BAD) else ""


@ON_A_MESH
def test_faults_never_pass_in_silence(mesh, folder):
    shown = []
    found = run(mesh, folder, 40, 3, shown.append)
    assert not bad(found, shown), bad(found, shown)


@pytest.mark.full
@pytest.mark.timeout(3600)
@ON_A_MESH
@pytest.mark.parametrize("seed", range(100, 103))
def test_a_thousand_faults_never_pass_in_silence(mesh, folder, seed, capsys):
    shown = []
    found = run(mesh, folder / str(seed), 1000, seed, shown.append)
    with capsys.disabled():
        print(f"\n{table(found)}")
    assert not bad(found, shown), bad(found, shown)


def forgetful(monkeypatch, guard):
    """Take one guard away."""
    if guard == "checkpoint":
        monkeypatch.setattr(HeldFile, "check", lambda self: None)
    elif guard == "load":
        monkeypatch.setattr(Entry, "checked", lambda self, record: "")
        monkeypatch.setattr(Entry, "still", lambda self, record, seen: None)


@ON_A_MESH
@pytest.mark.parametrize(
    ("guard", "kind", "target", "moment"),
    [
        ("checkpoint", "in place", "shard", "reading"),
        ("load", "flip", "tensor", "loaded before"),
        ("load", "exchange", "tensor", "loaded before"),
    ],
)
def test_the_injector_sees_what_a_missing_guard_lets_through(mesh, prepared, monkeypatch, guard, kind, target, moment):
    def one(number):
        monkeypatch.setattr(
            Faults,
            "draw",
            lambda self, draw, root: Trial(
                root, mesh, draw, with_lora=False, target=target, kind=kind, moment=moment, number=draw.randrange(9)
            ),
        )
        return prepared.run(random.Random(number))[0]

    forgetful(monkeypatch, guard)
    # A missing guard may show in another way, where ttnn itself notices.
    silent = next((number for number in range(20) if one(number) == "silent"), None)
    assert silent is not None
    monkeypatch.undo()
    assert one(silent) in OUTCOMES[:3]


@ON_A_MESH
def test_an_unfinished_entry_with_a_flipped_bit_is_not_resumed_from_it(mesh, trial, prepared):
    shutil.rmtree(trial.cache)
    faults._interrupt(trial)
    entry = trial.entry()
    assert not (entry / "manifest.json").exists()
    victim = sorted((entry / "tensors").iterdir())[0]
    content = bytearray(victim.read_bytes())
    content[-7] ^= 1
    victim.write_bytes(content)
    assert attempt(trial, load) == ("right", truth(mesh, trial.checkpoint, None))


@ON_A_MESH
@pytest.mark.parametrize("moment", ["reading", "writing", "publishing"])
def test_a_checkpoint_overwritten_with_its_time_restored_is_refused_by_name(mesh, trial, moment):
    shutil.rmtree(trial.cache)
    trial.kind, trial.target, trial.moment = "in place", "shard", moment
    trial.draw.random = lambda: 0.4  # Restores the time of change; acts before the call.
    trial.draw.randint = lambda low, high: low + 2 if high > low else low
    with faults.at_the_moment(trial):
        outcome, why = attempt(trial, load)
    assert outcome == "refused"
    assert f"{trial.checkpoint / 'model-1.safetensors'} changed while it was in use" in why
    # What was read before is sound, and of the weights that the checkpoint had then.
    assert (trial.entry() / "manifest.json").exists() == (moment == "publishing")
    assert attempt(trial, load)[1] == truth(mesh, trial.checkpoint, None)


@ON_A_MESH
def test_what_is_loaded_is_locked_against_pruning(mesh, trial, monkeypatch):
    import ttnn

    load_tensor, said = ttnn.load_tensor, []

    def prune_then_load(path):
        assert Store(trial.cache).prune(everything=True, on_message=said.append) == []
        return load_tensor(path)

    monkeypatch.setattr(ttnn, "load_tensor", prune_then_load)
    assert attempt(trial, load) == ("right", truth(mesh, trial.checkpoint, None))
    assert said[0].endswith(f"stays: process {os.getpid()} works on it")
    assert len(Store(trial.cache).prune(everything=True)) == 1


@ON_A_MESH
def test_a_new_file_has_the_permissions_that_the_umask_leaves(mesh, trial):
    shutil.rmtree(trial.cache)
    before = os.umask(0o002)
    try:
        load(trial)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in trial.cache.rglob("*") if path.is_file()}
    private = {name: mode for name, mode in modes.items() if mode != 0o664}
    assert set(private.values()) <= {0o644}, private
    assert all(name.startswith("digests") for name in private)


@ON_A_MESH
def test_a_store_whose_folder_is_a_link_is_refused(mesh, trial):
    entries = Store(trial.cache).root / "entries"
    elsewhere = entries.rename(trial.root / "elsewhere")
    entries.symlink_to(elsewhere)
    before = faults.snapshot(elsewhere)
    assert attempt(trial, load)[0] == "refused"
    with pytest.raises(OSError, match="is a link or no directory"):
        Store(trial.cache).prune(everything=True)
    assert faults.snapshot(elsewhere) == before


HOLD = """
import sys
import tempfile
from pathlib import Path
from weight_cache.locks import Locks
with Locks(Path(sys.argv[1])).exclusive("name", print):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_stopped_holder_is_named_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr("weight_cache.locks.SAY_AGAIN_SECONDS", 0.5)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        locks = Locks(tmp_path)
        with pytest.raises(Busy, match=f"process {holder.pid}"), locks.exclusive("name", None):
            pass
        os.kill(holder.pid, signal.SIGSTOP)
        while "stopped" not in locks.holders("name"):
            sleep(0.01)
        said = []

        def tell(line):
            said.append(line)
            if len(said) == 4:
                holder.kill()

        with locks.exclusive("name", tell):
            pass
        assert said[0] == f"process {holder.pid} (stopped) works on these weights: waiting for it"
        assert "kill -CONT" in said[3]
    finally:
        holder.kill()
        holder.wait()


def test_readers_share_and_a_deleted_lock_is_noticed(tmp_path):
    locks = Locks(tmp_path)
    with locks.shared("name", print), locks.shared("name", print), pytest.raises(Busy):
        locks.exclusive("name", None).__enter__()
    target = tmp_path / "outside"
    target.write_text("kept")
    (tmp_path / "name.lock").unlink()
    (tmp_path / "name.lock").symlink_to(target)
    with locks.exclusive("name", None):
        assert not (tmp_path / "name.lock").is_symlink()
    assert target.read_text() == "kept"


@ON_A_MESH
def test_a_manifest_that_fits_another_model_is_not_loaded(mesh, trial):
    """Whole and with the right hash, but not of this module's declaration."""
    component = Component(trial.checkpoint)
    wanted = Store(trial.cache)._wanted(Small(mesh), component, "bf16", None)
    manifest = wanted.entry.manifest()
    assert stores._misfit(manifest, wanted.module) == ""
    wanted.module.table.sp = 0
    assert stores._misfit(manifest, wanted.module).startswith("table is ")
    del wanted.module.bias
    assert stores._misfit(manifest, wanted.module) == "it has other tensors"
