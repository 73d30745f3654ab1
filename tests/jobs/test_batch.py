"""Several videos of one request, and the pictures beside a video."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from models.jobs.batch import plan_batch, run_batch
from models.jobs.generate import GenerateRequest, plan, run
from models.jobs.previews import Previews, preview_files
from models.machine.errors import InputError
from models.mochi import preview
from models.mochi.preview import MOCHI, RGB_FILE, LatentRgb, strip
from models.mochi.setup import request_of
from weight_cache.checkpoints import TINY
from weight_cache.checkpoints.checkpoint import Checkpoint

SMALL = {"height": 32, "width": 32, "num_frames": 7, "num_steps": 2, "seed": 3}


def asked(model, out, preview=None, **more):
    request = request_of(SMALL | more, model=str(model), mesh="1x1", mode="golden", layout="sp0tp1")
    return GenerateRequest("a red ball", request, out=None if out is None else str(out), preview=preview)


@pytest.fixture
def with_look(small_copy):
    (small_copy / RGB_FILE).write_text(json.dumps({"factors": MOCHI.factors, "bias": MOCHI.bias}))
    return small_copy


def test_a_batch_is_its_single_videos_with_previews_or_without(with_look, tmp_path):
    """The bytes are those of runs of their own, so a preview changes nothing, and neither does the video before."""
    batch = plan_batch(asked(with_look, tmp_path / "a.mp4", preview=1, fps=12), 2)
    paths = run_batch(batch)
    assert [path.name for path in paths] == ["a-3.mp4", "a-4.mp4"]
    alone = run(plan(asked(with_look, tmp_path / "alone.mp4", seed=4, fps=12)))
    assert alone.read_bytes() == paths[1].read_bytes()
    for seed, path in zip((3, 4), paths, strict=True):
        assert json.loads(path.with_suffix(".json").read_text())["seed"] == seed
        for step in (1, 2):
            with Image.open(tmp_path / f"a-{seed}.step-{step}.png") as picture:
                assert picture.size == (2 * 64 + 2, 64), "each latent pixel is a square of 16"
    record = json.loads((tmp_path / "a.batch.json").read_text())
    assert (record["seeds"], record["complete"]) == ([3, 4], True)
    assert [video["video"] for video in record["videos"]] == ["a-3.mp4", "a-4.mp4"]
    assert record["videos"][0]["seconds"]["load"] > 0

    again = plan_batch(asked(with_look, tmp_path / "a.mp4", preview=1), 2)  # ours, so replaced
    for job in again.jobs:
        job.reservation.release()


@pytest.mark.parametrize("name", ["a-4.mp4", "a-4.step-1.png", "a.batch.json"])
def test_nothing_of_others_is_replaced(with_look, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"{name} exists"):
        plan_batch(asked(with_look, tmp_path / "a.mp4", preview=1), 2)
    plan(asked(with_look, tmp_path / "a-3.mp4")).reservation.release()  # no name is held after a refusal


def test_names_that_nobody_gave_are_free(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "a-red-ball-4.mp4").touch()
    batch = plan_batch(asked(small_checkpoint, None), 2)
    assert [job.out.name for job in batch.jobs] == ["a-red-ball-3.mp4", "a-red-ball-4-2.mp4"]
    assert batch.record.name == "a-red-ball-3.batch.json"
    for job in batch.jobs:
        job.reservation.release()


@pytest.mark.parametrize(
    ("videos", "more", "why"),
    [
        (0, {}, "number of videos 0 must be from 1"),
        (10_001, {}, "number of videos 10001"),
        (2, {"seed": 2**63 - 1}, "the last of 2 seeds"),
        (2, {"width": 33}, "width 33"),
    ],
)
def test_a_batch_that_is_refused(small_checkpoint, tmp_path, videos, more, why):
    with pytest.raises(InputError, match=why):
        plan_batch(asked(small_checkpoint, tmp_path / "a.mp4", **more), videos)
    assert not list(tmp_path.iterdir())


def test_a_preview_has_a_step_and_a_checkpoint_that_says_how_latents_look(small_checkpoint, with_look, tmp_path):
    for every in (0, 3):
        with pytest.raises(InputError, match=f"with 2 steps, preview {every} must be from 1 to 2"):
            plan(asked(with_look, tmp_path / "a.mp4", preview=every))
    with pytest.raises(InputError, match=f"has no {RGB_FILE}, and its VAE is not that of Mochi 1 preview"):
        plan(asked(small_checkpoint, tmp_path / "a.mp4", preview=1))
    assert [path.name for path in preview_files(tmp_path / "a.mp4", 5, 12)] == ["a.step-05.png", "a.step-10.png"]
    assert not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"factors": [[1, 2, 3]] * 11, "bias": [1, 2, 3]}, "12 lists of 3 numbers"),
        ({"factors": [[1, 2]] * 12, "bias": [1, 2, 3]}, "12 lists of 3 numbers"),
        ({"factors": [[1, 2, "x"]] * 12, "bias": [1, 2, 3]}, "'x' must be a number"),
        ({"factors": 5, "bias": [1, 2, 3]}, "must be a list of lists"),
        ({"bias": [1, 2, 3]}, "it has bias"),
        ({"factors": [[1, 2, 3]] * 12, "bias": [1, 2, 3], "gamma": 2}, "gamma"),
    ],
)
def test_a_damaged_file_of_factors_is_refused(with_look, own, why):
    (with_look / RGB_FILE).write_text(json.dumps(own))
    with pytest.raises(InputError, match=why) as refused:
        LatentRgb.of(Checkpoint(with_look))
    assert str(with_look / RGB_FILE) in str(refused.value)


def test_colours_are_the_linear_function():
    look = LatentRgb([[1, 0, 0], [0, 2, 0]], [0, 0, -1])
    latents = torch.zeros(1, 2, 3, 1, 2)
    latents[0, 0, 1] = 1  # red in the second frame
    latents[0, 1, 2, 0, 1] = -9  # far below
    pictures = look.pictures(latents)
    assert pictures.dtype == np.uint8
    assert pictures[0].tolist() == [[[128, 128, 0]] * 2]
    assert pictures[1].tolist() == [[[255, 128, 0]] * 2]
    assert pictures[2].tolist() == [[[128, 128, 0], [128, 0, 0]]]
    row = strip(pictures)  # of one row, so each pixel is a square of 64
    assert row.shape == (64, 3 * 128 + 2 * preview._GAP, 3)
    assert row[63, 128].tolist() == [0, 0, 0]
    assert row[63, 130].tolist() == [255, 128, 0]
    assert strip(np.zeros((28, 60, 106, 3), np.uint8)).shape == (60, 28 * 108 - 2, 3), "Mochi's own size stays"
    latents[0, 0, 0] = torch.nan
    assert look.pictures(latents)[0, 0, 0, 0] == 0


def test_tiny_looks_as_it_decodes():
    """The factors are those of a fit, and they say most of the colours of scenes that were not fitted."""
    from diffusers import AutoencoderKLMochi

    from models.tiny.latent_rgb import samples

    look = LatentRgb.of(Checkpoint(TINY))
    vae = AutoencoderKLMochi.from_pretrained(TINY / "vae", torch_dtype=torch.float32)
    latents, colours = samples(vae, scenes=4, seed=99)
    said = latents @ torch.tensor(look.factors) + torch.tensor(look.bias)
    left = ((said - colours) ** 2).sum() / ((colours - colours.mean(0)) ** 2).sum()
    assert left < 0.12


def test_a_checkpoint_with_mochis_vae_has_mochis_factors(with_look, monkeypatch):
    (with_look / RGB_FILE).unlink()
    monkeypatch.setattr(preview, "is_preview_vae", lambda config: True)
    assert LatentRgb.of(Checkpoint(with_look)) is MOCHI


def test_a_full_disk_costs_the_previews_and_not_the_video(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from models.jobs import previews

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(previews, "write_png", full)
    told, reads = [], []
    look = SimpleNamespace(pictures=lambda latents: np.zeros((1, 2, 2, 3), np.uint8))
    shown = Previews(look, tmp_path / "a.mp4", 2, told.append)
    for step in range(1, 7):
        shown(0, SimpleNamespace(step=step, steps=6, estimate=lambda: reads.append(1)))
    assert told == ["the preview of step 2 cannot be written (No space left on device): there are no more"]
    assert reads == [1], "nothing is read any more"
