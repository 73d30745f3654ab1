"""Reading of videos and images; the files are made by ffmpeg and Pillow."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from models.jobs.media import Frames, Limits, check_is_video, is_image, measure, media_in, read_media
from models.machine.errors import InputError, MissingInputError

WANTED = Frames(height=32, width=48, most=100)


def ffmpeg(*arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


@pytest.fixture
def video(tmp_path: Path):
    def made(source: str, *options: str, name: str = "a.mkv") -> Path:
        ffmpeg("-f", "lavfi", "-i", source, *(options or ("-c:v", "ffv1", "-pix_fmt", "bgr0")), str(tmp_path / name))
        return tmp_path / name

    return made


def colours(path: Path, wanted: Frames = WANTED) -> np.ndarray:
    """The mean colour of each frame's middle."""
    frames = read_media(path, wanted)
    assert frames.dtype == np.uint8
    assert frames.shape[1:] == (wanted.height, wanted.width, 3)
    return frames[:, 12:20, 20:28].mean((1, 2))


@pytest.mark.parametrize(("rate", "seconds"), [("30", 1), ("24", 1), ("60", 1), ("24000/1001", 2), ("7", 1)])
def test_frames_per_second(video, rate, seconds):
    """Frames are repeated or left out: as many as the seconds have, and each at its time."""
    path = video(f"color=black:size=64x64:rate={rate}:duration={seconds},geq=r='255*T/{seconds}':g=0:b=0")
    found = colours(path)
    assert abs(len(found) - 30 * seconds) <= 2
    times = np.arange(len(found)) / 30
    step = 1 / eval(rate)
    assert np.abs(found[:, 0] - 255 * times / seconds).max() < 255 * (step + 1 / 30) / seconds + 3


def test_variable_frame_rate(video, tmp_path):
    """One frame that stands still for half a second, by its time stamps."""
    path = video(
        "color=red:size=64x64:rate=10:duration=1,select='not(between(n,3,7))'", "-fps_mode", "vfr", "-c:v", "ffv1"
    )
    assert len(read_media(path, WANTED)) in (29, 30, 31)
    assert tmp_path.exists()


def test_no_more_is_read_than_is_wanted(video):
    """Of a long file a few frames: it takes no longer for the rest."""
    path = video("testsrc=size=64x64:rate=30:duration=20", "-c:v", "libx264", "-preset", "ultrafast", name="a.mp4")
    assert len(read_media(path, Frames(32, 48, 7))) == 7
    later = read_media(path, Frames(32, 48, 1, start=10))
    assert (later[0] != read_media(path, Frames(32, 48, 1))[0]).any()
    with pytest.raises(InputError, match="has no frames after 100 s"):
        read_media(path, Frames(32, 48, 1, start=100))


def halves(size=(96, 64)) -> Image.Image:
    """Red on the left, blue on the right, with a green stripe at the very top."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    image.paste("lime", (0, 0, size[0], 2))
    return image


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_flags(tmp_path, turn):
    """A video that is stored turned, with the flag that turns it back."""
    halves().rotate(-turn, expand=True).save(tmp_path / "turned.png")
    ffmpeg("-i", str(tmp_path / "turned.png"), "-c:v", "libx264rgb", "-crf", "0", str(tmp_path / "t.mp4"))
    flagged = tmp_path / "f.mp4"
    ffmpeg("-display_rotation", str(turn), "-i", str(tmp_path / "t.mp4"), "-c", "copy", str(flagged))
    frame = read_media(flagged, WANTED)[0].astype(int)
    reddish, bluish = frame[16, 4], frame[16, -4]
    assert reddish[0] > 200 > 60 > reddish[2]
    assert bluish[2] > 200 > 60 > bluish[0]


def test_the_orientation_of_photographs(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    halves().rotate(90, expand=True).save(tmp_path / "a.jpg", exif=exif, quality=95)
    frame = read_media(tmp_path / "a.jpg", WANTED)[0].astype(int)
    assert frame[16, 4, 0] > 200
    assert frame[16, -4, 2] > 200


@pytest.mark.parametrize("kind", ["png", "mov"])
def test_what_is_transparent_is_black(tmp_path, kind):
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 128))
    image.paste((0, 255, 0, 0), (0, 0, 32, 64))
    image.save(tmp_path / "a.png")
    path = tmp_path / f"a.{kind}"
    if kind == "mov":
        ffmpeg("-i", str(tmp_path / "a.png"), "-c:v", "qtrle", str(path))
    frame = read_media(path, Frames(64, 64, 5))[0].astype(int)
    assert abs(frame[32, 48] - [128, 0, 0]).max() < 4
    assert frame[32, 10].max() < 4


@pytest.mark.parametrize("kind", ["png", "mkv"])
@pytest.mark.parametrize("fit", [False, True])
def test_filling_and_fitting(tmp_path, kind, fit):
    """A wide picture in a high frame: the middle, or all of it between black bars."""
    halves((128, 64)).save(tmp_path / "a.png")
    if kind == "mkv":
        ffmpeg("-i", str(tmp_path / "a.png"), "-c:v", "ffv1", str(tmp_path / "a.mkv"))
    frame = read_media(tmp_path / f"a.{kind}", Frames(64, 64, 5, fit=fit))[0].astype(int)
    assert bool(frame[2].max() < 8) is fit, "bars above only where the whole picture is shown"
    for row in (32,):
        assert frame[row, 8, 0] > 200
        assert frame[row, 56, 2] > 200


def test_pixels_that_are_not_square(tmp_path):
    """A picture of 64x64 whose pixels are twice as wide as high fills a frame of 2:1 whole."""
    halves((64, 64)).save(tmp_path / "a.png")
    ffmpeg("-i", str(tmp_path / "a.png"), "-vf", "setsar=2/1", "-c:v", "ffv1", str(tmp_path / "a.mkv"))
    frame = read_media(tmp_path / "a.mkv", Frames(32, 64, 1))[0].astype(int)
    assert frame[0, 10, 1] > 128, "the stripe at the very top is still there"


def test_broken_files(tmp_path, video):
    whole = video("testsrc=size=64x64:rate=30:duration=1", "-c:v", "libx264", name="a.mp4").read_bytes()
    for name, content in {"cut.mp4": whole[:2000], "text.mp4": b"hello", "empty.mov": b"", "half.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} has no video \(.+\): give a video"):
            read_media(tmp_path / name, WANTED)
    halves().save(tmp_path / "b.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:150])
    with pytest.raises(InputError, match=r"image .*cut.png cannot be read \(.+\)"):
        read_media(tmp_path / "cut.png", WANTED)
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.1", str(tmp_path / "sound.wav"))
    with pytest.raises(InputError, match="has no video"):
        read_media(tmp_path / "sound.wav", WANTED)


def test_strange_names_and_playlists(tmp_path, video):
    """A name is a file, whatever it looks like, and no file makes another be fetched."""
    path = video("color=red:size=64x64:rate=30:duration=0.2")
    odd = tmp_path / "concat:-a|b %03d.mkv"
    odd.write_bytes(path.read_bytes())
    assert len(read_media(odd, WANTED)) == 6
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match="has no video"):
        read_media(tmp_path / "list.m3u8", WANTED)


def test_what_is_in_a_folder(tmp_path, video):
    path = video("color=red:size=64x64:rate=30:duration=0.1", "-c:v", "gif", name="b.GIF")
    halves().save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("x")
    assert [found.name for found in media_in(tmp_path)] == ["a.png", "b.GIF"]
    assert is_image(tmp_path / "a.png")
    assert not is_image(path)
    assert not is_image(tmp_path / "notes.txt")
    with pytest.raises(MissingInputError, match="does not exist"):
        media_in(tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match="has no videos or images"):
        media_in(tmp_path / "empty")


@pytest.mark.parametrize(("value", "seen"), [(0, 0), (1000, 4), (32768, 128), (65535, 255)])
def test_sixteen_bits(tmp_path, value, seen):
    Image.fromarray(np.full((40, 40), value, np.uint16)).save(tmp_path / "a.png")
    assert colours(tmp_path / "a.png").tolist() == [[seen] * 3]


def test_floats_have_no_white(tmp_path):
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match="floats, whose white nobody knows"):
        read_media(tmp_path / "a.tiff", WANTED)


def test_too_thin_to_fit(tmp_path):
    Image.new("RGB", (20000, 1), "red").save(tmp_path / "a.png")
    assert read_media(tmp_path / "a.png", WANTED).shape == (1, 32, 48, 3)
    with pytest.raises(InputError, match="20000x1, of which --fit would leave no pixel"):
        read_media(tmp_path / "a.png", Frames(32, 48, 1, fit=True))


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 40), name) for name in ("red", "lime", "blue")]


@pytest.mark.parametrize("kind", ["png", "webp", "avif"])
def test_animations_are_videos(tmp_path, kind):
    """Each picture as long as it says: 0.1, 0.2 and 0.1 s."""
    path = tmp_path / f"a.{kind}"
    first, *others = pictures()
    first.save(path, save_all=True, append_images=others, duration=[100, 200, 100])
    assert not is_image(path)
    check_is_video(path)
    found = (colours(path) > 128).tolist()
    assert [found.count(row) for row in ([True, False, False], [False, True, False], [False, False, True])] == [3, 6, 3]
    assert len(read_media(path, Frames(32, 48, 4))) == 4
    assert (colours(path, Frames(32, 48, 1, start=0.35))[0] > 128).tolist() == [False, False, True]
    with pytest.raises(InputError, match="no frames after 5 s"):
        read_media(path, Frames(32, 48, 1, start=5))
    measure(path, Limits(seconds=0.5))
    with pytest.raises(InputError, match=r"lasts more than 0.3 s"):
        measure(path, Limits(seconds=0.3))


@pytest.mark.parametrize(("kind", "options"), [("jpg", {"format": "MPO"}), ("gif", {}), ("avif", {})])
def test_one_picture_is_an_image(tmp_path, kind, options):
    """Of a photograph in MPO form it is the first: the second is its preview."""
    path = tmp_path / f"a.{kind}"
    first, *others = pictures()
    first.save(path, **options, **({"save_all": True, "append_images": others} if options else {}))
    assert is_image(path)
    assert (colours(path) > 128).tolist() == [[True, False, False]]


def test_pages_are_refused(tmp_path):
    first, *others = pictures()
    first.save(tmp_path / "a.tiff", save_all=True, append_images=others)
    with pytest.raises(InputError, match="has 3 pages: save one of them"):
        read_media(tmp_path / "a.tiff", WANTED)


def test_damage_within_a_file_is_refused(video, tmp_path):
    """ffmpeg goes on with grey pictures; what comes before the damage is still read."""
    path = video("testsrc=size=64x48:rate=30:duration=3", "-c:v", "libx264", "-movflags", "faststart", name="a.mp4")
    whole = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    assert len(read_media(tmp_path / "cut.mp4", Frames(32, 48, 7))) == 7
    with pytest.raises(InputError, match="is damaged"):
        read_media(tmp_path / "cut.mp4", WANTED)


def test_a_video_that_does_not_say_how_long_it_is(tmp_path):
    """As browsers record them."""
    program = imageio_ffmpeg.get_ffmpeg_exe()
    source = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=20"]
    made = subprocess.run([program, "-v", "error", *source, "-f", "webm", "-"], capture_output=True, check=True)
    (tmp_path / "a.webm").write_bytes(made.stdout)
    measure(tmp_path / "a.webm", Limits(seconds=30))
    with pytest.raises(InputError, match="lasts more than 10 s"):
        measure(tmp_path / "a.webm", Limits(seconds=10))


def test_the_transparency_of_vp9(tmp_path):
    """ffmpeg's own decoder leaves it out."""
    raw = np.zeros((10, 48, 64, 4), np.uint8)
    raw[..., 0] = 250
    given = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", "64x48", "-r", "30", "-i", "-"]
    made = ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", str(tmp_path / "a.webm")]
    program = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([program, "-v", "error", *given, *made], input=raw.tobytes(), check=True)
    assert colours(tmp_path / "a.webm").max() < 3
