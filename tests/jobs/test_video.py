import json
import os

import numpy as np
import pytest

from models.jobs.video import write_mp4
from models.machine.files import check_writable, write_json


def moving_square(frames=9, height=48, width=64):
    video = np.zeros((frames, height, width, 3), dtype=np.uint8)
    for i in range(frames):
        video[i, 10:30, 4 * i : 4 * i + 20, 0] = 255
    return video


def test_the_file_plays_back_as_written(tmp_path):
    import imageio_ffmpeg

    video, done = moving_square(), []
    write_mp4(video, tmp_path / "a.mp4", fps=30, on_frame=lambda i, n: done.append((i, n)))
    assert done[0] == (1, 9)
    assert done[-1] == (9, 9)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    meta = next(reader)
    assert (meta["codec"], meta["fps"], meta["size"]) == ("h264", 30.0, (64, 48))
    assert meta["pix_fmt"].startswith("yuv420p")
    frames = np.stack([np.frombuffer(f, np.uint8).reshape(48, 64, 3) for f in reader]).astype(int)
    assert frames.shape == video.shape
    assert abs(frames - video).mean() < 8
    assert frames[0, 20, 10, 0] > 200 > 60 > frames[8, 20, 10, 0], "first frame first"


# BT.709 in limited range (ITU-R BT.709-6, items 3.2 and 4.6): Y = 0.2126 R + 0.7152 G + 0.0722 B.
COLOURS = {
    (255, 0, 0): (63, 102, 240),
    (0, 255, 0): (173, 42, 26),
    (0, 0, 255): (32, 240, 118),
    (200, 120, 40): (129, 84, 166),
}


@pytest.mark.parametrize("size", [(64, 64), (480, 848), (720, 1280)], ids=str)
def test_colours_are_converted_by_bt_709_and_tagged(tmp_path, size):
    import subprocess

    import imageio_ffmpeg

    ffmpeg, (height, width) = imageio_ffmpeg.get_ffmpeg_exe(), size
    for colour, wanted in COLOURS.items():
        write_mp4(np.full((1, height, width, 3), colour, np.uint8), tmp_path / "a.mp4")
        raw = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
        done = subprocess.run([ffmpeg, "-i", tmp_path / "a.mp4", *raw], capture_output=True, check=True)
        assert b"yuv420p(tv, bt709" in done.stderr
        planes = np.frombuffer(done.stdout, np.uint8)
        luma, chroma = planes[: height * width], planes[height * width :].reshape(2, -1)
        found = (luma.mean(), chroma[0].mean(), chroma[1].mean())
        assert np.abs(np.subtract(found, wanted)).max() < 1.5, (colour, found, wanted)


def test_the_index_comes_before_the_data(tmp_path):
    write_mp4(moving_square(), tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_sizes_that_are_no_multiple_of_16_are_kept(tmp_path):
    import imageio_ffmpeg

    write_mp4(moving_square(3, 50, 62), tmp_path / "a.mp4")
    assert next(imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4")))["size"] == (62, 50)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_what_was_there(tmp_path, error):
    (tmp_path / "a.mp4").write_text("old")

    def stop(done, total):
        raise error

    with pytest.raises(error):
        write_mp4(moving_square(), tmp_path / "a.mp4", on_frame=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "old"


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 16, 16, 3), np.float32), "uint8"),
        (np.zeros((2, 3, 16, 16), np.uint8), "T, H, W, 3"),
        (np.zeros((2, 15, 16, 3), np.uint8), "even sizes"),
        (np.zeros((0, 16, 16, 3), np.uint8), "at least one frame"),
    ],
)
def test_frames_that_are_none_are_refused(tmp_path, frames, message):
    with pytest.raises((ValueError, TypeError), match=message):
        write_mp4(frames, tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_where_writing_is_impossible_is_found_before(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for out, message in [
        (tmp_path / "file" / "a.mp4", "cannot be written"),
        (tmp_path / "folder.mp4", "is a directory"),
        (tmp_path / "a.avi", "must end with .mp4"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_writable(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written"):
        check_writable(tmp_path / "a.mp4")


def test_a_new_folder_is_made(tmp_path):
    check_writable(tmp_path / "new" / "deep" / "a.mp4")
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def test_json_is_whole_or_absent(tmp_path):
    write_json({"a": [1.5, None, "ü"]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None, "ü"]}
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "b.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("written", [0, 8])
def test_a_video_that_lacks_frames_is_not_kept(tmp_path, monkeypatch, written):
    import imageio_ffmpeg

    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda path: (written, 0.1))
    with pytest.raises(OSError, match=f"wrote {written} of 9 frames"):
        write_mp4(moving_square(), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []
