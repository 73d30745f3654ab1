import json
import threading

import pytest
import torch

from tests import random_checkpoint as recipe
from tests.random_checkpoint import build, random_checkpoint
from weight_cache.checkpoints.checkpoint import Checkpoint


def test_it_is_a_complete_small_checkpoint(small_checkpoint):
    checkpoint = Checkpoint(small_checkpoint)
    for component in checkpoint.components:
        component.check()
    assert len(checkpoint.transformer.files) > 1, "the transformer is sharded, as the big one is"
    assert sum(path.stat().st_size for path in small_checkpoint.rglob("*") if path.is_file()) < 25e6


def test_making_it_twice_gives_the_same_files(small_checkpoint, tmp_path):
    build(tmp_path / "again")
    manifests = [json.loads((folder / "files.json").read_text()) for folder in (small_checkpoint, tmp_path / "again")]
    assert manifests[0] == manifests[1]
    assert "tokenizer/spiece.model" in manifests[0]


@pytest.fixture
def quick_build(monkeypatch):
    """Counts builds and makes a directory of one file, slowly enough for a race."""
    builds = []
    barrier = threading.Barrier(2, timeout=10)

    def quick(directory, together=False):
        builds.append(directory)
        directory.mkdir(parents=True)
        (directory / "weights").write_text("w")
        (directory / "files.json").write_text(json.dumps(recipe._hashes(directory)))
        if quick.together:
            barrier.wait()

    quick.together = False
    monkeypatch.setattr(recipe, "build", quick)
    return quick, builds


def test_a_damaged_one_is_made_again(quick_build, tmp_path):
    _, builds = quick_build
    first = random_checkpoint(tmp_path)
    assert random_checkpoint(tmp_path) == first
    assert len(builds) == 1
    (first / "weights").write_text("damaged")
    assert random_checkpoint(tmp_path) == first
    assert (first / "weights").read_text() == "w"
    assert [p.name for p in tmp_path.iterdir()] == [first.name], "nothing temporary is left"


def test_two_at_once_both_get_it(quick_build, tmp_path):
    quick, builds = quick_build
    quick.together = True
    results = []
    threads = [threading.Thread(target=lambda: results.append(random_checkpoint(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 2
    assert len(results) == 2
    assert results[0] == results[1]
    assert [p.name for p in tmp_path.iterdir()] == [results[0].name]


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def fail(directory):
        directory.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "build", fail)
    with pytest.raises(KeyboardInterrupt):
        random_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_diffusers_loads_and_runs_it(small_checkpoint):
    from diffusers import MochiPipeline

    pipe = MochiPipeline.from_pretrained(small_checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    arguments = dict(height=32, width=48, num_frames=7, num_inference_steps=4, output_type="np")
    frames = pipe("a red ball", generator=torch.Generator().manual_seed(0), **arguments).frames
    assert frames.shape == (1, 7, 32, 48, 3)
    assert frames.std() > 0.1, "visible variation"
    assert ((frames == 0) | (frames == 1)).mean() < 0.3, "not clipped to black and white"
    assert abs(frames[:, 1:] - frames[:, :-1]).mean() > 0.01, "it moves"
    other = pipe("two horses", generator=torch.Generator().manual_seed(0), **arguments).frames
    assert abs(other - frames).mean() > 0.01, "the prompt matters"
