"""`mochi-tt cache` and `mochi-tt download`: what they print and write, and every kind of bad input."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scripts.cli import main
from weight_cache.checkpoints.download import download, wanted_files
from weight_cache.manifest import FORMAT_VERSION
from weight_cache.store import Store


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def refused(capsys, *arguments):
    """The one line on standard error of a refused call."""
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mochi-tt: error: ")
    return lines[0]


@pytest.fixture
def on_this_mesh(open_layout, monkeypatch):
    """Let the command work on the mesh that this test process has open already."""
    import contextlib

    from models.jobs import weights as prepare

    mesh = open_layout("2x4sp0tp1")
    monkeypatch.setattr(prepare, "open_mesh", lambda *_: contextlib.nullcontext(SimpleNamespace(device=mesh.device)))
    return mesh


# The name `mesh` is what the root conftest reads to choose this process's mock cluster.
@pytest.mark.parametrize("mesh", ["2x4sp1tp0"])
def test_build_list_verify_and_prune(small_checkpoint, store, tmp_path, capsys, on_this_mesh, mesh):
    out = tmp_path / "out.json"
    arguments = ["cache", "build", "--model", str(small_checkpoint), "--cache-dir", str(store), "--precision", "bf8"]
    assert main([*arguments, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "identify transformer" in text
    assert "convert transformer 0.00/0.01 GB" in text
    built = {entry["component"]: entry for entry in json.loads(out.read_text())["entries"]}
    assert {name: entry["precision"] for name, entry in built.items()} == {
        "text_encoder": "bf16",
        "vae": "bf16",
        "transformer": "bf8",
    }
    for entry in built.values():
        assert entry["layout"] == ("2x4sp0tp1" if entry["component"] == "text_encoder" else mesh)
        assert entry["tensors"] == len(list((Path(entry["path"]) / "tensors").iterdir()))

    assert main(["cache", "list", "--cache-dir", str(store), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "3 entries" in text
    assert "layout 2x4sp1tp0, precision bf8, from" in text
    entries = json.loads(out.read_text())["entries"]
    for entry in entries:
        assert entry["state"] == "complete"
        assert 0 <= entry["age_days"] < 1

    assert main(["cache", "verify", "--cache-dir", str(store), "--json", str(out)]) == 0
    assert json.loads(out.read_text()) == {"entries": {entry["name"]: {} for entry in entries}}
    damaged = Path(built["transformer"]["path"])
    victim = next((damaged / "tensors").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["cache", "verify", "bf8", "--cache-dir", str(store), "--json", str(out)]) == 1
    assert victim.name in capsys.readouterr().out
    found = json.loads(out.read_text())["entries"]
    assert {name: list(wrong) for name, wrong in found.items()} == {damaged.name: [victim.name]}

    assert main(["cache", "prune", "--cache-dir", str(store)]) == 0
    assert "nothing to delete" in capsys.readouterr().out
    assert main(["cache", "prune", "bf8", "--cache-dir", str(store)]) == 0
    assert f"deleted {damaged.name}" in capsys.readouterr().out
    assert len(Store(store).entries()) == 2
    assert main(["cache", "prune", "--all", "--cache-dir", str(store)]) == 0
    assert Store(store).entries() == []


def test_outdated_and_newer_entries_are_listed_with_the_reason(store, capsys):
    for name, version in (("old", 1), ("new", 1000)):
        folder = Store(store).root / "entries" / name
        folder.mkdir(parents=True)
        value = {"format": version, "about": {"layout": "2x4sp0tp1"}, "tensors": []}
        (folder / "manifest.json").write_text(json.dumps(value))
    assert main(["cache", "list", "--cache-dir", str(store)]) == 0
    text = capsys.readouterr().out
    assert "old\n  outdated, " in text
    assert "new\n  newer, " in text
    assert f"  format version 1, this program has {FORMAT_VERSION}: mochi-tt cache prune\n" in text
    assert f"  format version 1000, this program has {FORMAT_VERSION}\n" in text
    assert "layout 2x4sp0tp1" in text
    assert main(["cache", "verify", "--cache-dir", str(store)]) == 0, "neither is damaged"
    assert "entry old is outdated" in refused(capsys, "cache", "verify", "old", "--cache-dir", store)
    assert main(["cache", "prune", "--cache-dir", str(store)]) == 0
    assert capsys.readouterr().out.splitlines() == ["deleted old (outdated, 0.000 GB)"]
    assert main(["cache", "prune", "--help"]) == 0
    assert "outdated" in capsys.readouterr().out


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"])
def test_generate_finds_what_build_made(small_checkpoint, store, capsys, on_this_mesh, mesh, monkeypatch):
    """Another precision of the transformer shares the entries of the other components."""
    from models.mochi import MochiPipeline
    from weight_cache import convert

    for precision in ("default", "bf8"):
        assert (
            main(["cache", "build", "--model", small_checkpoint, "--cache-dir", str(store), "--precision", precision])
            == 0
        )
    assert len(Store(store).entries()) == 4
    monkeypatch.setattr(convert, "convert", lambda *_, **__: pytest.fail("converted again"))
    from models.device import OpenMesh

    opened = OpenMesh(on_this_mesh.device, "golden", "t3000")
    MochiPipeline.from_pretrained(small_checkpoint, mesh=opened, precision="fast", cache_dir=store)


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"])
def test_the_encoder_is_built_where_it_is_asked_for(small_checkpoint, store, capsys, on_this_mesh, mesh, monkeypatch):
    from models.mochi import MochiPipeline
    from weight_cache import convert

    arguments = ["cache", "build", "--model", small_checkpoint, "--cache-dir", str(store)]
    assert main(arguments) == 0
    assert "encoder:" not in capsys.readouterr().out.replace("text_encoder:", "")
    assert main([*arguments, "--encoder"]) == 0
    assert "vae encoder: " in capsys.readouterr().out
    entries = Store(store).entries()
    assert len(entries) == 4
    assert sum(entry.name.startswith("vae_encoder-") for entry in entries) == 1
    monkeypatch.setattr(convert, "convert", lambda *_, **__: pytest.fail("converted again"))
    from models.device import OpenMesh

    opened = OpenMesh(on_this_mesh.device, "golden", "t3000")
    pipe = MochiPipeline.from_pretrained(small_checkpoint, mesh=opened, cache_dir=store)
    pipe.encode_video(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_plan_needs_no_weights_and_no_mesh(tmp_path, capsys, monkeypatch):
    from models import device

    monkeypatch.setattr(device, "open_mesh", lambda *_: pytest.fail("a mesh was opened"))
    out = tmp_path / "plan.json"
    arguments = ["cache", "build", "--plan", "--model-config", "preview", "--mesh", "2x4", "--json", str(out)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "transformer  2x4sp1tp0  mixed" in text
    assert "15.9" in text
    planned = json.loads(out.read_text())
    assert [part["component"] for part in planned["components"]] == ["text_encoder", "vae", "transformer"]
    assert planned["chip_bytes"] == sum(part["chip_bytes"] for part in planned["components"])
    assert planned["chip_bytes"] < planned["disk_bytes"]
    assert main([*arguments, "--encoder"]) == 0
    more = json.loads(out.read_text())
    assert more["components"][-1]["component"] == "vae encoder"
    assert more["chip_bytes"] > planned["chip_bytes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["build", "--precision", "fp4"],
            "precision 'fp4' does not exist: choose one of accurate, bf16, default",
        ),
        (["build", "--model", "./nowhere"], "no checkpoint at ./nowhere"),
        (["build", "--model", "."], "no model_index.json"),
        (["build", "--mesh", "2by4"], "'2by4'"),
        (["build", "--layout", "sp0"], "layout 'sp0'"),
        (["build", "--lora", "nothing.safetensors"], "no LoRA file at nothing.safetensors"),
        (["build", "--plan", "--model-config", "huge"], "model config 'huge' does not exist"),
        (["build", "--model-config", "preview"], "--model-config goes with --plan"),
        (["build", "--json", "out.txt"], "must end with .json"),
        (["build", "--base", "tiny"], "base is for Genmo's"),
        (["verify", "nothing"], "no entry of"),
        (["prune", "nothing"], "no entry of"),
        (["list", "--json", "missing.txt"], "must end with .json"),
        (["--bogus"], "No such option"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    small_checkpoint, tmp_path, store, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOCHI_TT_CACHE_DIR", str(store))
    if "build" in arguments and "--model" not in arguments and "--plan" not in arguments:
        arguments = [*arguments, "--model", small_checkpoint]
    assert message in refused(capsys, "cache", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_a_file(small_checkpoint, tmp_path, capsys, on_this_mesh):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "cache", "build", "--model", small_checkpoint, "--cache-dir", tmp_path / "file")
    assert "cannot be written" in line
    assert "--cache-dir" in line
    assert (tmp_path / "file").read_text() == ""


class Hub:
    """Stands for the hub: a directory."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.fetched: list[str] = []

    def HfApi(self):
        return self

    def model_info(self, repository, files_metadata):
        files = [p for p in self.directory.rglob("*") if p.is_file()]
        return SimpleNamespace(
            siblings=[
                SimpleNamespace(rfilename=p.relative_to(self.directory).as_posix(), size=p.stat().st_size)
                for p in files
            ]
        )

    def snapshot_download(self, repository, allow_patterns, local_dir):
        self.fetched = allow_patterns
        for name in allow_patterns:
            target = Path(local_dir) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.directory / name, target)
        return local_dir


def test_only_what_is_read_is_fetched(small_copy, tmp_path):
    from weight_cache.checkpoints.checkpoint import Checkpoint

    vae = small_copy / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(vae, vae.with_name("diffusion_pytorch_model.bf16.safetensors"))
    for name in ("dit.safetensors", "encoder.safetensors", "README.md", "transformer/old.bin"):
        (small_copy / name).write_text("large")
    hub = Hub(small_copy)
    path = download("someone/mochi", directory=tmp_path / "here", hub=hub)
    assert "vae/diffusion_pytorch_model.bf16.safetensors" in hub.fetched
    assert "vae/diffusion_pytorch_model.safetensors" not in hub.fetched
    assert not {"dit.safetensors", "encoder.safetensors", "README.md", "transformer/old.bin"} & set(hub.fetched)
    assert Checkpoint(path, "bf16").transformer.keys()
    assert Checkpoint(path).vae.keys(), "the next command needs no variant"
    plain = download("someone/mochi", directory=tmp_path / "plain", variant=None, hub=hub)
    assert "vae/diffusion_pytorch_model.safetensors" in hub.fetched
    assert Checkpoint(plain).vae.keys()


def test_the_files_of_the_real_repository():
    """Names as genmo/mochi-1-preview has them."""
    shards = [f"diffusion_pytorch_model{v}-0000{i}-of-00002.safetensors" for v in ("", ".bf16") for i in (1, 2)]
    files = [
        *(f"transformer/{name}" for name in shards),
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/diffusion_pytorch_model.safetensors.index.bf16.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bf16.safetensors",
        "text_encoder/config.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
        "dit.safetensors",
        "decoder.safetensors",
        "encoder.safetensors",
    ]
    chosen = wanted_files(files, "bf16")
    assert [name for name in chosen if name.startswith("transformer/")] == sorted(
        [
            "transformer/config.json",
            *(f"transformer/{name}" for name in shards[2:]),
            "transformer/diffusion_pytorch_model.safetensors.index.bf16.json",
        ]
    )
    assert "text_encoder/model-00001-of-00002.safetensors" in chosen
    genmo = wanted_files(files, "bf16", genmo=True)
    assert {"dit.safetensors", "decoder.safetensors", "encoder.safetensors", "tokenizer/spiece.model"} <= set(genmo)
    assert not any(name.startswith(("transformer/", "vae/")) for name in genmo)
    with pytest.raises(ValueError, match=r"Diffusers' layout: it lacks model_index\.json, vae/"):
        wanted_files([name for name in files if not name.startswith(("model_index", "vae"))])


def test_a_download_says_how_large_it_is_and_what_comes_next(small_copy, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    hub = Hub(small_copy)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.HfApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    where = tmp_path / "my model"
    assert main(["download", "someone/mochi", "--directory", str(where)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+\.\d GB in \d+ files of someone/mochi", lines[0])
    assert lines[-1] == f"next: mochi-tt generate \"a red ball\" --model '{where}'"


def test_half_a_download_is_not_taken_for_whole(small_copy, tmp_path):
    shard = next((small_copy / "transformer").glob("*00002*"))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="lacks the shard"):
        download("someone/mochi", directory=tmp_path / "here", hub=Hub(small_copy))


def test_a_hub_that_cannot_be_reached_is_one_line(capsys, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    def fail(*_, **__):
        raise HTTPError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    assert "cannot be fetched from the Hugging Face hub (no route to host)" in refused(capsys, "download")


def test_a_lora_of_another_model_leaves_the_store_as_it_was(small_checkpoint, store, tmp_path, capsys, on_this_mesh):
    lora = tmp_path / "lora.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.ones(1, 2), "transformer.x.lora_B.weight": torch.ones(2, 1)}, lora)
    line = refused(capsys, "cache", "build", "--model", small_checkpoint, "--cache-dir", store, "--lora", f"{lora}:0.5")
    assert "it is for another model" in line
    assert not store.exists()
