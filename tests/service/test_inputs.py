"""Pictures and videos that clients send: what is taken, how it is used, and how it goes."""

import hashlib
import io
import os
import subprocess
import time

import httpx
import imageio_ffmpeg
import numpy as np
import openai
import pytest
from PIL import Image

from models.jobs.media import Limits
from models.machine.errors import InputError
from models.service.errors import ServiceError
from models.service.inputs import KEEP_SECONDS, Inputs, TooManyInputs, is_taken
from models.service.service import Service
from models.service.settings import Settings
from models.service.store import SqliteJobs
from tests.service.harness import Server, until

SIZE = {"size": "64x64"}


def picture(kind: str = "PNG", size=(80, 60), colour=(200, 30, 30)) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, colour).save(made, kind)
    return made.getvalue()


def moving(kind: str, count: int = 5) -> bytes:
    made = io.BytesIO()
    first, *others = [Image.new("RGB", (80, 60), (40 * index, 30, 30)) for index in range(count)]
    first.save(made, kind, save_all=True, append_images=others, duration=100)
    return made.getvalue()


def clip(folder, seconds: float, name: str = "a.mp4", size: str = "64x64") -> bytes:
    source = f"testsrc=size={size}:rate=30:duration={seconds}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", source, str(folder / name)]
    subprocess.run(command, check=True)
    return (folder / name).read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("service") / "s") as made:
        yield made


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def send(server, content: bytes, name: str = "a.png", **values) -> httpx.Response:
    return server.client.post("/v1/files", files={"file": (name, content)}, data=values)


def error(answer: httpx.Response) -> tuple[int, str, str]:
    found = answer.json()["error"]
    assert "inputs" not in found["message"], "no path is told"
    return answer.status_code, found["param"], found["message"]


def test_the_openai_client_starts_a_video_from_a_picture_and_from_a_video(client, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    clip(tmp_path, 1)
    for name, kind, frames in (("a.png", "image", 13), ("a.mp4", "video", 13)):
        with open(tmp_path / name, "rb") as file:
            video = client.videos.create(
                prompt="a blue ball",
                input_reference=file,
                extra_body={"strength": 0.5, "num_inference_steps": 8, "num_frames": frames},
            )
        settings = video.model_extra["settings"]
        assert settings[kind] == f"file-{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}"
        assert (settings["strength"], settings["num_frames"], settings["num_inference_steps"]) == (0.5, frames, 8)
    file = client.files.create(file=("b.png", picture("WEBP")), purpose="vision")
    assert (file.object, file.model_extra["kind"]) == ("file", "image")
    for reference in (file.id, {"file_id": file.id}):
        video = client.videos.create(prompt="a", extra_body={"input_reference": reference, "strength": "0.5"})
        assert video.model_extra["settings"]["image"] == file.id
    assert client.videos.create(prompt="a", extra_body={"image": file.id}).model_extra["settings"]["image"] == file.id


def test_a_video_gives_as_many_frames_as_it_has(server, tmp_path):
    short = send(server, clip(tmp_path, 0.25)).json()["id"]  # 7 or 8 frames
    made = server.create("a", video=short)
    assert made["settings"]["num_frames"] == 7
    refused = server.client.post("/v1/videos", json={"prompt": "a", "video": short, "num_frames": 13})
    assert error(refused)[:2] == (422, "video")
    assert "ask for 7" in error(refused)[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "neither a picture nor a video"),
        (b"hello", "neither a picture nor a video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "neither a picture nor a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "neither a picture nor a video"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "neither a picture nor a video"),
        (picture()[:60], "cannot be read"),
        (b"\x00\x00\x00\x20ftypisom" + b"#EXTM3U\n" * 9, "no video that can be read"),
        (picture(size=(9000, 9000)), "million pixels are the most"),
    ],
)
def test_files_that_are_refused(server, content, said):
    status, param, message = error(send(server, content))
    assert (status, param) == (422, "file")
    assert said in message
    assert not [path for path in (server.folder / "inputs").glob("*") if path.read_bytes() == content]


def test_what_is_too_long_or_too_large_is_refused(server, tmp_path):
    long = clip(tmp_path, 130, size="16x16")
    assert "lasts more than 120 s" in error(send(server, long))[2]
    answer = send(server, picture() + b"x" * 50_000_000)
    assert error(answer)[0] == 413
    plain = server.client.post("/v1/videos", json={"prompt": "x" * 2_000_000})
    assert plain.status_code == 413, "a request without a file may be no larger than before"


def piped(seconds: float) -> bytes:
    """A WebM that was written to a pipe, so that it states no length."""
    source = f"testsrc=size=16x16:rate=30:duration={seconds}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-f", "lavfi", "-i", source]
    command += ["-c:v", "libvpx", "-deadline", "realtime", "-f", "webm", "-"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def test_a_length_that_is_not_stated_is_bounded_too(tmp_path):
    inputs = Inputs(tmp_path / "inputs", Limits(seconds=2))
    with pytest.raises(InputError, match="more than 2 s, which is the most"):
        inputs.keep(piped(3))
    assert list((tmp_path / "inputs").iterdir()) == []
    assert inputs.keep(piped(2)).kind == "video"
    assert inputs.keep(clip(tmp_path, 2)).kind == "video"
    assert inputs.keep(moving("GIF")).kind == "video"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"strength": 0.5}, "strength", "belongs to a picture or a video"),
        ({"edit": True}, "edit", "belongs to a picture or a video"),
        ({"image": "file-" + "0" * 64}, "image", "is not there"),
        ({"image": "/etc/passwd"}, "image", "must be the id"),
        ({"image": "file-../../jobs.sqlite3"}, "image", "must be the id"),
        ({"input_reference": {"image_url": "data:image/png;base64,AA"}}, "input_reference", "must be the id"),
        ({"input_reference": {"url": "http://example.org/a.png"}}, "input_reference", "must be the id"),
        ({"video": "IMAGE"}, "video", "is a picture: give it as image"),
        ({"image": "IMAGE", "input_reference": "IMAGE"}, "input_reference", "are both given"),
        ({"image": "IMAGE", "strength": 1.5}, "strength", "must be from 0"),
        ({"image": "IMAGE", "strength": "nan"}, "strength", "must be a number"),
        ({"image": "IMAGE", "eta": 0.5}, "eta", "give edit too"),
    ],
)
def test_fields_that_are_refused(server, fields, param, said):
    name = send(server, picture()).json()["id"]
    values = {key: name if value == "IMAGE" else value for key, value in fields.items()}
    answer = server.client.post("/v1/videos", json={"prompt": "a", **values})
    assert error(answer)[:2] == (422, param), answer.text
    assert said in error(answer)[2]


def test_false_asks_for_nothing_without_a_file(server):
    assert server.create("a", edit=False, fit=False, **SIZE)["status"] == "queued"
    form = server.client.post("/v1/videos", data={"prompt": "a", "edit": "false"})
    assert form.status_code == 200, form.text
    refused = server.client.post("/v1/videos", json={"prompt": "a", "edit": False, "eta": 0})
    assert error(refused)[:2] == (422, "eta"), "0 is a value"


def test_forms_with_files_are_checked(server):
    two = server.client.post("/v1/videos", data={"prompt": "a"}, files={"image": picture(), "video": picture()})
    assert error(two)[:2] == (422, "image")
    other = server.client.post("/v1/videos", data={"prompt": "a"}, files={"mask": picture()})
    assert error(other)[:2] == (422, "mask")
    assert error(server.client.post("/v1/files", data={"file": "text"}))[:2] == (422, "file")
    assert error(server.client.post("/v1/files", data={"x": "y"}, files={"file": picture()}))[:2] == (422, "x")
    made = server.client.post("/v1/videos", data={"prompt": "a", "strength": "1"}, files={"image": ("../x", picture())})
    assert made.status_code == 200
    assert sorted(path.name for path in server.folder.iterdir() if path.name == "x") == []


def test_a_file_stays_as_long_as_a_video_needs_it(tmp_path):
    inputs = Inputs(tmp_path / "inputs", Limits())
    kept, other = inputs.keep(picture()).id, inputs.keep(picture(colour=(1, 2, 3))).id
    assert inputs.keep(picture()).id == kept
    assert inputs.sweep({kept}) == [], "they have just come"
    for name in (kept, other):
        os.utime(tmp_path / "inputs" / name, times=(time.time() - 2 * KEEP_SECONDS,) * 2)
    assert inputs.sweep({kept}) == [other]
    assert inputs.find(other) is None
    assert inputs.find(kept) == (tmp_path / "inputs" / kept, "image")
    assert inputs.keep(picture()).id == kept
    assert inputs.sweep(set()) == [], "it came again"
    with pytest.raises(InputError):
        inputs.keep(b"hello")
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == [kept]


def test_the_file_of_a_refused_request_goes(server):
    def refused(content: bytes) -> None:
        form = {"prompt": "a", "strength": "7"}
        answer = server.client.post("/v1/videos", data=form, files={"input_reference": content})
        assert error(answer)[:2] == (422, "strength")

    def there(content: bytes) -> bool:
        return (server.folder / "inputs" / f"file-{hashlib.sha256(content).hexdigest()}").exists()

    alone, before = picture(colour=(9, 9, 9)), picture(colour=(8, 8, 8))
    assert send(server, before).status_code == 200
    refused(before)
    refused(alone)
    until(lambda: not there(alone), "the janitor has passed")
    assert there(before), "it was sent by another request"


def test_a_file_that_came_again_is_not_dropped(tmp_path):
    inputs = Inputs(tmp_path / "inputs", Limits())
    kept = inputs.keep(picture())
    inputs.drop(inputs.keep(picture()))
    assert inputs.sweep(set()) == [], "it was there before"
    inputs.drop(kept)
    assert inputs.sweep(set()) == [], "it came again since"
    other = inputs.keep(picture(colour=(1, 2, 3)))
    inputs.drop(other)
    assert inputs.sweep({other.id}) == [], "a video needs it"
    assert inputs.sweep(set()) == [other.id]


def test_all_files_together_are_bounded(tmp_path):
    first, second = picture(), picture(colour=(1, 2, 3))
    inputs = Inputs(tmp_path / "inputs", Limits(), len(first) + len(second) - 1)
    kept = inputs.keep(first)
    with pytest.raises(TooManyInputs):
        inputs.keep(second)
    assert inputs.keep(first).id == kept.id, "what is there takes no more room"
    os.utime(tmp_path / "inputs" / kept.id, (0, 0))
    inputs.sweep(set())
    assert inputs.keep(second).stamp is not None


def test_too_many_files_are_answered_with_a_time_to_wait(tmp_path):
    service = Service(Settings(tmp_path, keep_input_bytes=10), SqliteJobs(tmp_path / "jobs.sqlite3"), None, None)
    with pytest.raises(ServiceError, match="10 bytes together") as found:
        service.keep(picture())
    assert (found.value.status, found.value.code) == (429, "files_full")
    assert found.value.headers == {"Retry-After": "60"}


def test_what_is_taken_is_known_by_its_first_bytes():
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "AVIF"):
        assert is_taken(picture(kind))
    assert not is_taken(picture("BMP"))
    assert not is_taken(np.zeros(100, np.uint8).tobytes())


@pytest.mark.parametrize("kind", ["GIF", "AVIF", "WEBP", "JPEG"])
def test_a_still_picture_of_any_kind_is_given_as_image(server, kind):
    sent = send(server, picture(kind)).json()
    assert sent["kind"] == "image"
    for field in ("image", "input_reference"):
        assert server.create("a", **{field: sent["id"]}, **SIZE)["settings"]["image"] == sent["id"]
    refused = server.client.post("/v1/videos", json={"prompt": "a", "video": sent["id"]})
    assert error(refused) == (422, "video", "video is a picture: give it as image")


def test_pictures_that_move_are_a_video(server):
    sent = send(server, moving("GIF")).json()
    assert sent["kind"] == "video"
    assert server.create("a", input_reference=sent["id"], num_frames=1, **SIZE)["settings"]["video"] == sent["id"]
    refused = server.client.post("/v1/videos", json={"prompt": "a", "image": sent["id"]})
    assert error(refused) == (422, "image", "image is a video: give it as video")
