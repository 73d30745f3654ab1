"""`mochi-tt generate --video` and `--image`: what is read of the file, and which steps are done."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from models.jobs.batch import plan_batch
from models.jobs.generate import GenerateRequest, plan, run
from models.jobs.latents import load_latents
from models.jobs.video import write_mp4
from models.machine.errors import InputError, MissingInputError
from models.mochi.setup import Request, VideoRequest

pytestmark = pytest.mark.alone  # Meshes and pipelines leave memory behind.


def request(small_checkpoint, tmp_path, source, *, video=None, **options) -> GenerateRequest:
    own = Request(
        model=small_checkpoint,
        mesh="1x2",
        mode="golden",
        cache_dir=tmp_path / "store",
        video=VideoRequest(num_steps=4, **(video or {})),
    )
    out = str(tmp_path / f"{len(list(tmp_path.glob('made*.mp4')))}-made.mp4")
    return GenerateRequest("a ball", own, out=out, source=None if source is None else str(source), **options)


def test_a_video_from_a_video(clip, small_checkpoint, tmp_path):
    """Two of four steps, from the source's frames up to the checkpoint's default; the record says what was done."""
    asked = request(small_checkpoint, tmp_path, clip, strength=0.5, save_latents=True)
    job = plan(asked)
    assert job.pictures.shape == (13, 64, 96, 3)
    assert (len(job.video.guidance), len(job.video.schedule[1])) == (2, 4)
    path = run(job)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["sigmas"] == job.video.sigmas
    assert len(record["sigmas"]) == 3
    assert record["arguments"]["source"] == str(clip)
    assert record["arguments"]["strength"] == 0.5
    assert record["forwards"]["conditional"]["computed"] == 2
    assert record["seconds"]["encode_video"] > 0
    assert load_latents(job.latents_file)[0].shape == (1, 12, 3, 8, 12)


def test_strength_zero_and_one(clip, small_checkpoint, tmp_path):
    """One is text-to-video of the seed, bit for bit; nothing is encoded for it. Zero does no step."""
    latents = {}
    for name, source, strength in (("plain", None, None), ("one", clip, 1.0), ("zero", clip, 0.0)):
        asked = request(small_checkpoint, tmp_path, source, strength=strength, save_latents=True)
        job = plan(GenerateRequest(**(vars(asked) | {"out": str(tmp_path / f"{name}.mp4")})))
        run(job)
        latents[name] = load_latents(job.latents_file)[0]
    assert (latents["one"] == latents["plain"]).all()
    record = json.loads((tmp_path / "zero.json").read_text())
    assert record["sigmas"] == [0.0]
    assert record["forwards"]["conditional"] == {"computed": 0, "reused": 0}


def test_the_length_of_the_source(clip, small_checkpoint, tmp_path):
    """A short video makes a short one; what is asked for must be there."""
    short = tmp_path / "short.mp4"
    write_mp4(np.zeros((9, 64, 96, 3), np.uint8) + 100, short)
    job = plan(request(small_checkpoint, tmp_path, short))
    assert job.video.geometry.num_frames == 7
    job.reservation.release()
    with pytest.raises(InputError, match="has 9 frames at 30 frames per second, and 13 were asked for: ask for 7"):
        plan(request(small_checkpoint, tmp_path, short, video={"num_frames": 13}))


def test_an_image(small_checkpoint, tmp_path):
    Image.new("RGB", (200, 100), "red").save(tmp_path / "red.png")
    job = plan(request(small_checkpoint, tmp_path, tmp_path / "red.png", is_image=True, strength=0.3))
    assert job.pictures.shape == (1, 64, 96, 3)
    assert job.video.geometry.num_frames == 13
    assert len(job.video.guidance) == 1
    job.reservation.release()


def test_several_videos_of_one_source(clip, small_checkpoint, tmp_path):
    batch = plan_batch(request(small_checkpoint, tmp_path, clip, strength=0.5), 2)
    assert [len(job.video.guidance) for job in batch.jobs] == [2, 2]
    assert [job.video.settings.seed for job in batch.jobs] == [1710977262, 1710977263]
    assert np.shares_memory(batch.jobs[0].pictures, batch.jobs[1].pictures), "the frames are read and kept once"
    for job in batch.jobs:
        job.reservation.release()
    with pytest.raises(InputError, match="2 videos would be the same one"):
        plan_batch(request(small_checkpoint, tmp_path, clip, edit=True), 2)


def test_less_than_a_step_is_told(clip, small_checkpoint, tmp_path):
    said = []
    run(plan(request(small_checkpoint, tmp_path, clip, strength=0.2)), on_message=said.append)
    assert any("strength is less than one step" in line for line in said)


def test_the_record_says_what_was_used(clip, small_checkpoint, tmp_path):
    """Also of a file whose name is no text."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/b\xffll.mp4")
    os.rename(clip, odd)
    record = json.loads(run(plan(request(small_checkpoint, tmp_path, odd, edit=True))).with_suffix(".json").read_text())
    used = {name: record["arguments"][name] for name in ("edit", "eta", "eta_end", "strength")}
    assert used == {"edit": True, "eta": 0.9, "eta_end": 0.35, "strength": None}
    assert record["arguments"]["source"].endswith("b\ufffdll.mp4")
    assert record["inversion_forwards"] == len(record["guidance_schedule"]) > 0


def test_what_is_refused(clip, small_checkpoint, tmp_path):
    def refused(message, source, kind=InputError, **options):
        with pytest.raises(kind, match=message):
            plan(request(small_checkpoint, tmp_path, source, **options))

    refused("give --video FILE or --image FILE", None, strength=0.5)
    refused("does not exist", tmp_path / "none.mp4", MissingInputError)
    refused("is a folder", tmp_path)
    refused("is no still image: give it as video", clip, is_image=True)
    refused("strength 2 must be from 0", clip, strength=2.0)
    refused("this run does none", clip, strength=0.0, preview=1)
    refused("solver is euler, not unipc", clip, edit=True, video={"solver": "unipc"})
    (tmp_path / "text.png").write_text("no picture")
    refused("text.png has no", tmp_path / "text.png", is_image=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    refused("is an image: give it as image", tmp_path / "a.png")


def test_a_checkpoint_without_an_encoder(clip, small_copy, tmp_path):
    from safetensors.torch import save_file

    from weight_cache.checkpoints.checkpoint import Checkpoint

    vae = Checkpoint(small_copy).vae
    kept = {name: vae.tensor(name).clone() for name in vae.keys() if name.startswith("decoder.")}  # noqa: SIM118
    for path in (small_copy / "vae").glob("*.safetensors"):
        path.unlink()
    save_file(kept, small_copy / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(MissingInputError, match="has no encoder, which reads videos"):
        plan(request(small_copy, tmp_path, clip))
    plan(request(small_copy, tmp_path, None)).reservation.release()
