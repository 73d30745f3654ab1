"""What `from_pretrained` does before there is a pipeline: names, downloads, types, and where warnings point."""

import io
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.diffusers_api import loading
from models.diffusers_api.arguments import on_cpu
from models.diffusers_api.described import bars
from models.diffusers_api.loading import check_keywords, linked, open_checkpoint, precision_of
from models.diffusers_api.measures import tell
from models.machine.errors import InputError, MissingInputError
from weight_cache.checkpoints.download import download

ROOT = Path(__file__).parents[2]


@pytest.fixture
def said():
    return {}


@pytest.fixture
def hub(tmp_path, small_checkpoint, monkeypatch):
    """A hub's cache, empty at first, that a download fills with the random checkpoint."""
    cache = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def fetch(repository, **arguments):
        asked.append((repository, arguments))
        snapshot = cache / "models--someone--mochi" / "snapshots" / ("0" * 40)
        shutil.copytree(small_checkpoint, snapshot)
        refs = snapshot.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text("0" * 40)
        return snapshot

    asked = []
    return SimpleNamespace(cache=cache, fetch=fetch, asked=asked)


def test_an_id_is_downloaded_once(hub, said):
    arguments = dict(cache_dir=hub.cache, token="t", say=said.__setitem__, fetch=hub.fetch)
    first = open_checkpoint("someone/mochi", variant=None, **arguments)
    second = open_checkpoint("someone/mochi", variant=None, **arguments)
    assert first.source == second.source == "someone/mochi"
    ((repository, asked),) = hub.asked
    assert repository == "someone/mochi"
    assert {name: asked[name] for name in ("variant", "cache_dir", "revision", "token")} == {
        "variant": None,
        "cache_dir": hub.cache,
        "revision": None,
        "token": "t",
    }


def test_what_is_incomplete_is_downloaded_and_what_is_wrong_is_not(hub, said):
    arguments = dict(cache_dir=hub.cache, say=said.__setitem__, fetch=hub.fetch)
    folder = open_checkpoint("someone/mochi", **arguments).directory
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingInputError, match="local_files_only"):
        open_checkpoint("someone/mochi", local_files_only=True, **arguments)
    assert len(hub.asked) == 1
    with pytest.raises(InputError, match="variant"):
        open_checkpoint("someone/mochi", variant="fp8", **arguments)
    assert len(hub.asked) == 1


def test_local_files_only_never_downloads(hub, said):
    with pytest.raises(MissingInputError, match="local_files_only is set"):
        open_checkpoint("someone/mochi", cache_dir=hub.cache, local_files_only=True, say=said.__setitem__)


def test_a_download_passes_on_what_is_of_the_hub(small_copy, tmp_path):
    """The hub is a stand-in: what is asked of it."""
    calls = {}
    names = [str(path.relative_to(small_copy)) for path in small_copy.rglob("*") if path.is_file()]

    class Api:
        def model_info(self, repository, **arguments):
            calls["info"] = arguments
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=1) for name in names])

    def snapshot_download(repository, **arguments):
        calls["snapshot"] = arguments
        return str(small_copy)

    stand_in = SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download)
    download("someone/mochi", variant=None, cache_dir=tmp_path, revision="v2", token="t", hub=stand_in)
    assert {"revision": "v2", "token": "t"}.items() <= calls["info"].items()
    assert {"revision": "v2", "token": "t", "cache_dir": str(tmp_path)}.items() <= calls["snapshot"].items()
    download("someone/mochi", variant=None, hub=stand_in)
    assert not {"revision", "token", "cache_dir"} & (calls["info"].keys() | calls["snapshot"].keys())


def test_what_is_of_the_hub_has_no_effect_on_a_directory(small_checkpoint, said, tmp_path):
    open_checkpoint(small_checkpoint, cache_dir=tmp_path, revision="main", say=said.__setitem__)
    assert "weights_cache_dir" in said["cache_dir"]
    assert "no effect" in said["revision"]


@pytest.mark.parametrize("model", [None, "", " ", 5, "no/such/thing/at all", "nothing"])
def test_no_checkpoint_is_one_line(model, said):
    with pytest.raises(InputError) as error:
        open_checkpoint(model, say=said.__setitem__)
    assert "\n" not in str(error.value)


def test_links_to_the_hub_are_read_from_its_cache(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names, **at: asked.append((names, at)) or "FILE")
    link = "https://huggingface.co/Comfy-Org/mochi/blob/main/split_files/diffusion_models/mochi_bf16.safetensors"
    assert linked(link, local_files_only=True) == "FILE"
    names = ("Comfy-Org/mochi", "split_files/diffusion_models/mochi_bf16.safetensors")
    assert asked == [(names, {"revision": "main", "local_files_only": True})]
    for other in ("https://example.org/a/b/blob/main/x.safetensors", "x.safetensors", 7):
        assert linked(other) == other


def test_a_link_that_cannot_be_read_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingInputError, match="check the link and the connection"):
        linked("https://huggingface.co/someone/mochi/resolve/main/x.safetensors", local_files_only=True)


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        (None, None),
        ("auto", None),
        (torch.float32, "accurate"),
        (torch.bfloat16, "default"),
        ("float16", "default"),
        ({"transformer": torch.float32, "default": torch.bfloat16}, "accurate"),
        ({"default": torch.bfloat16}, "default"),
    ],
)
def test_types_stand_for_precisions(given, precision, said):
    assert precision_of(given, said.__setitem__) == precision
    assert bool(said) == (precision is not None)


@pytest.mark.parametrize("given", [torch.float64, "bf16", 3, torch])
def test_other_types_are_refused(given, said):
    with pytest.raises(InputError, match="torch_dtype"):
        precision_of(given, said.__setitem__)


@pytest.mark.parametrize("name", [*loading.NOT_NEEDED, *loading.REFUSED])
def test_keywords_say_why(name, said):
    check_keywords({name: None}, said.__setitem__)
    assert not said
    if name in loading.REFUSED:
        with pytest.raises(InputError, match=f"{name} 'x' is not taken"):
            check_keywords({name: "x"}, said.__setitem__)
    else:
        check_keywords({name: "x"}, said.__setitem__)
        assert said[name].startswith(f"{name} is not needed: ")


def test_a_generator_elsewhere_gives_its_seed(monkeypatch):
    """There is no GPU here: the generator only says that it is on one."""
    lines = []

    class Elsewhere(torch.Generator):
        device = torch.device("cuda")

    made = on_cpu([Elsewhere().manual_seed(7), torch.Generator().manual_seed(7)], lines.append)
    assert torch.equal(torch.randn(4, generator=made[0]), torch.randn(4, generator=made[1]))
    assert len(lines) == 1
    assert "seed 7" in lines[0]


@pytest.mark.parametrize("on_terminal", [True, False])
def test_loading_shows_a_bar_on_a_terminal(on_terminal, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: on_terminal
    monkeypatch.setattr("sys.stderr", stream)
    progress = bars()
    for stage, total in (("load", 2), ("convert vae", 3)):
        for done in range(total + 1):
            progress(stage, done, total)
    assert ("convert vae:" in stream.getvalue()) == on_terminal
    assert bool(stream.getvalue()) == on_terminal


def test_a_plain_install_is_enough():
    """Optional packages are not imported, nor anything printed."""
    code = (
        "import sys, mochi_tt; [getattr(mochi_tt, name) for name in mochi_tt.__all__]; "
        "print({'diffusers', 'peft', 'imageio', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_warnings_point_at_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_keywords({"device_map": "auto"}, lambda subject, line: tell(None, line))
    assert [warning.filename for warning in caught] == [__file__]
