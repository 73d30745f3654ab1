"""`mochi-tt encode`: what it writes, and what it refuses."""

import pytest
import torch
from PIL import Image

from models.jobs.decode import DecodeRequest
from models.jobs.decode import plan as plan_decode
from models.jobs.encode import EncodeRequest, plan, run
from models.jobs.latents import load_latents, save_latents
from models.machine.errors import InputError, MissingInputError
from models.mochi.setup import Request

pytestmark = pytest.mark.alone  # Meshes and pipelines leave memory behind.


def request(source, small_checkpoint, tmp_path, **options) -> EncodeRequest:
    own = Request(model=small_checkpoint, mesh="1x2", mode="golden", cache_dir=tmp_path / "store")
    return EncodeRequest(str(source), own, **options)


def test_a_video(clip, small_checkpoint, tmp_path):
    """The latents are those of the encoder by itself, normalised, and decode takes them with their checkpoint."""
    said = []
    (path,) = run(plan(request(clip, small_checkpoint, tmp_path)), on_message=said.append)
    assert path == tmp_path / "ball.latents.safetensors"
    latents, about = load_latents(path)
    assert latents.shape == (1, 12, 3, 8, 12), "13 frames are the checkpoint's default, and the clip has more"
    assert any("ball.mp4: 13 frames of 96x64" in line for line in said)
    assert about["encoded"] == "ball.mp4"
    job = plan_decode(DecodeRequest(str(path), Request(model=None, mesh="1x2", mode="golden")))
    assert job.setup.checkpoint.directory == small_checkpoint
    job.reservation.release()
    again, _ = load_latents(run(plan(request(clip, small_checkpoint, tmp_path)))[0])
    assert torch.equal(again, latents), "an earlier file is replaced by the same"
    sampled, _ = load_latents(run(plan(request(clip, small_checkpoint, tmp_path, seed=3)))[0])
    assert not torch.equal(sampled, latents)


def test_a_folder(clip, small_checkpoint, tmp_path):
    """Videos and images side by side; a broken file is told and left out, the others are written first."""
    folder = tmp_path / "media"
    folder.mkdir()
    clip.rename(folder / "ball.mp4")
    Image.new("RGB", (50, 50), "red").save(folder / "red.png")
    (folder / "broken.mov").write_bytes(b"x")
    job = plan(request(folder, small_checkpoint, tmp_path, num_frames=7, out=str(tmp_path / "out")))
    with pytest.raises(InputError, match=r"1 of 3 files could not be read: broken.mov"):
        run(job)
    assert load_latents(tmp_path / "out" / "ball.latents.safetensors")[0].shape == (1, 12, 2, 8, 12)
    assert load_latents(tmp_path / "out" / "red.latents.safetensors")[0].shape == (1, 12, 1, 8, 12)
    assert not (tmp_path / "out" / "broken.latents.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 8}, "num_frames 8"),
        ({"num_frames": 0}, "num_frames 0 must be from 1"),
        ({"width": 100}, "width 100"),
        ({"fps": 0}, "fps 0 must be"),
        ({"start": -1.0}, "start -1 must be seconds"),
        ({"seed": -1}, "seed -1 must be"),
        ({"out": "x.mp4"}, "must end with .safetensors"),
        ({"num_frames": 100_003, "width": 848, "height": 480}, "does not fit the encoder"),
    ],
)
def test_what_is_refused_before_a_mesh_opens(clip, small_checkpoint, tmp_path, options, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        plan(request(clip, small_checkpoint, tmp_path, **options))


def test_files_that_cannot_be(clip, small_checkpoint, tmp_path):
    with pytest.raises(MissingInputError, match="does not exist"):
        plan(request(tmp_path / "none.mp4", small_checkpoint, tmp_path))
    (tmp_path / "ball.latents.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"no latents of an earlier encoding of ball.mp4, so it is not replaced"):
        plan(request(clip, small_checkpoint, tmp_path))
    save_latents(torch.zeros(1, 12, 2, 4, 4), tmp_path / "ball.latents.safetensors", {"model": "tiny"})
    with pytest.raises(InputError, match="so it is not replaced"):  # those of generate --save-latents
        plan(request(clip, small_checkpoint, tmp_path))
    Image.new("RGB", (50, 50), "red").save(tmp_path / "ball.png")
    with pytest.raises(InputError, match="two files named ball"):
        plan(request(tmp_path, small_checkpoint, tmp_path, out=str(tmp_path / "out")))
    with pytest.raises(InputError, match="is a file, and the source is a folder"):
        plan(request(tmp_path, small_checkpoint, tmp_path, out=str(clip)))


def test_an_image_has_one_frame(small_checkpoint, tmp_path):
    Image.new("RGB", (50, 50), "red").save(tmp_path / "red.png")
    with pytest.raises(InputError, match="num_frames 13 is for videos"):
        plan(request(tmp_path / "red.png", small_checkpoint, tmp_path, num_frames=13))
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "broken.mov").write_bytes(b"x")
    (folder / "text.png").write_text("no picture")
    job = plan(request(folder, small_checkpoint, tmp_path, num_frames=13))
    for reservation in job.reservations:
        reservation.release()
    Image.new("RGB", (50, 50), "red").save(folder / "red.png")
    with pytest.raises(InputError, match="num_frames 13 is for videos"):
        plan(request(folder, small_checkpoint, tmp_path, num_frames=13))


def test_more_frames_than_there_are(clip, small_checkpoint, tmp_path):
    job = plan(request(clip, small_checkpoint, tmp_path, num_frames=25))
    with pytest.raises(InputError, match="has 20 frames at 30 frames per second, and 25 were asked for: ask for 19"):
        run(job)
    assert not (tmp_path / "ball.latents.safetensors").exists()
