"""The real engine: the tiny model on a mock mesh of one chip, job after job."""

import io
import threading

import imageio_ffmpeg
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from models.jobs import generate
from models.jobs.media import Limits
from models.machine.errors import Cancelled, InputError
from models.mochi.setup import Request, VideoRequest
from models.service.engine import PipelineEngine
from models.service.files import LATENTS, RECORD, VIDEO, Files
from models.service.inputs import Inputs
from models.service.jobs import Job, new_id

pytestmark = pytest.mark.alone  # Meshes and pipelines leave memory behind.

SMALL = {"width": 32, "height": 32, "num_frames": 7, "num_inference_steps": 2}


def job(**fields) -> Job:
    return Job(1, new_id(), "me", "in_progress", {"prompt": "a red ball", **SMALL, **fields}, {}, 0.0)


def silent(*_) -> None:
    pass


def red_picture() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 30, 30)).save(made, "PNG")
    return made.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("loras")
    name = "transformer_blocks.0.attn1.to_q"
    weights = {f"{name}.lora_A.weight": torch.ones(2, 256), f"{name}.lora_B.weight": 0.05 * torch.ones(256, 2)}
    save_file(weights, made / "style.safetensors")
    return made


@pytest.fixture(scope="module")
def engine(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    inputs = Inputs(tmp_path_factory.mktemp("inputs"), Limits())
    made = PipelineEngine(Request("tiny", mesh="1x1", mode="golden", cache_dir=cache), folder, inputs)
    stages = []
    made.load(lambda stage, done, total: stages.append(stage), silent)
    assert "load" in stages
    yield made
    made.close()


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_a_job_is_the_video_that_generate_makes(engine, files, tmp_path):
    one = job(seed=5)
    stages = []
    result = engine.run(one, files.make(one.id), lambda *stage: stages.append(stage), silent)
    assert {"encode", "denoise", "decode", "write"} <= set(result.seconds)
    assert result.forwards == {"computed": 4, "reused": 0, "inverted": 0}
    assert ("denoise", 2, 2) in stages
    video = VideoRequest(height=32, width=32, num_frames=7, num_steps=2, seed=5)
    request = Request("tiny", mesh="1x1", mode="golden", cache_dir=engine._request.cache_dir, video=video)
    out = tmp_path / "same.mp4"
    generate.run(generate.plan(generate.GenerateRequest("a red ball", request, out=str(out))))
    assert (files.folder(one.id) / VIDEO).read_bytes() == out.read_bytes()
    assert imageio_ffmpeg.count_frames_and_secs(str(out))[0] == 7


@pytest.mark.parametrize("strength", [0.5, None])
def test_a_job_from_a_picture_is_the_video_that_generate_makes(engine, files, tmp_path, strength):
    (tmp_path / "a.png").write_bytes(red_picture())
    name = engine._inputs.keep(red_picture()).id
    one = job(seed=5, image=name, **({} if strength is None else {"strength": strength}))
    result = engine.run(one, files.make(one.id), silent, silent)
    video = VideoRequest(height=32, width=32, num_frames=7, num_steps=2, seed=5)
    request = Request("tiny", mesh="1x1", mode="golden", cache_dir=engine._request.cache_dir, video=video)
    start = {"source": str(tmp_path / "a.png"), "is_image": True, "strength": strength}
    out = tmp_path / "same.mp4"
    generate.run(generate.plan(generate.GenerateRequest("a red ball", request, out=str(out), **start)))
    assert (files.folder(one.id) / VIDEO).read_bytes() == out.read_bytes()
    assert result.forwards["computed"] == 2


def test_the_way_back_of_an_edit_is_counted(engine, files):
    one = job(image=engine._inputs.keep(red_picture()).id, edit=True)
    assert engine.run(one, files.make(one.id), silent, silent).forwards == {"computed": 4, "reused": 0, "inverted": 2}


@pytest.mark.parametrize("fields", [{"strength": 0}, {"strength": 0.4}, {"num_inference_steps": 1}])
def test_a_job_without_a_step_is_the_source(engine, files, fields):
    one = job(image=engine._inputs.keep(red_picture()).id, **fields)
    result = engine.run(one, files.make(one.id), silent, silent)
    assert result.forwards == {"computed": 0, "reused": 0, "inverted": 0}
    assert (files.folder(one.id) / VIDEO).exists()
    planned = engine._planner.plan(one.fields)
    assert planned.about["forwards"] == 0
    assert [line for line in planned.messages if "the prompt has no effect" in line]


def test_a_job_whose_decoding_died_goes_on_from_its_latents(engine, files, monkeypatch):
    one = job(seed=6)
    folder = files.make(one.id)

    def die(stage, done, total):
        if stage == "decode":
            raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        engine.run(one, folder, die, silent)
    assert {LATENTS, RECORD} <= {path.name for path in folder.iterdir()}
    assert not (folder / VIDEO).exists()
    stages = []
    result = engine.run(one, folder, lambda stage, done, total: stages.append(stage), silent)
    assert "denoise" not in stages
    assert {"denoise", "decode"} <= set(result.seconds)
    resumed = (folder / VIDEO).read_bytes()
    again = job(seed=6)
    engine.run(again, files.make(again.id), silent, silent)
    assert (files.folder(again.id) / VIDEO).read_bytes() == resumed
    # Latents that are damaged, or of other weights, are not taken.
    for damage in (
        lambda: (folder / LATENTS).write_bytes(b"damaged"),
        lambda: (folder / RECORD).write_text((folder / RECORD).read_text().replace('"default"', '"bf16"')),
    ):
        damage()
        stages.clear()
        engine.run(one, folder, lambda stage, done, total: stages.append(stage), silent)
        assert "denoise" in stages


def test_interrupt_ends_a_run_within_a_step(engine, files):
    one = job(num_inference_steps=50)
    seen = []

    def progress(stage, done, total):
        if stage == "denoise":
            seen.append(done)
            if done == 2:
                thread = threading.Thread(target=engine.interrupt)
                thread.start()
                thread.join()

    with pytest.raises(Cancelled):
        engine.run(one, files.make(one.id), progress, silent)
    assert max(seen) <= 3
    assert not (files.folder(one.id) / VIDEO).exists()
    engine.run(job(), files.make(one.id), silent, silent)


def test_a_lora_changes_the_video_and_without_it_the_old_one_comes_back(engine, files):
    def made(**fields):
        one = job(seed=8, **fields)
        engine.run(one, files.make(one.id), silent, silent)
        return (files.folder(one.id) / VIDEO).read_bytes()

    plain, styled, again = made(), made(lora="style:8"), made()
    assert plain == again
    assert styled != plain


def test_a_rule_that_a_job_breaks_is_said(engine, files):
    for fields, said in (({"lora": "gone"}, "not in this service's folder"), ({"width": 33}, "multiple of 16")):
        with pytest.raises(InputError, match=said):
            engine.run(job(**fields), files.root, silent, silent)


def test_the_program_cache_is_bounded(folder, files):
    """Each geometry brings its programs; above the bound they go, and the next video is the same."""
    engine = PipelineEngine(Request("tiny", mesh="1x1", mode="golden"), folder, most_programs=200)
    engine.load(silent, silent)
    try:
        videos, counts = [], []
        for width in (32, 48, 32):
            one = job(width=width)
            engine.run(one, files.make(one.id), silent, silent)
            counts.append(engine.tidy()["programs"])
            videos.append((files.folder(one.id) / VIDEO).read_bytes())
        assert max(counts) <= 200
        assert engine.tidy()["program_cache_clearings"] >= 2
        assert videos[0] == videos[2]
    finally:
        engine.close()


@pytest.mark.full
def test_twenty_geometries_leave_memory_flat(engine, files):
    from models.service.worker import _resident

    sizes = [(32 + 16 * (number % 5), 32 + 16 * (number // 5)) for number in range(20)]
    resident = []
    for _ in range(2):
        for width, height in sizes:
            one = job(width=width, height=height)
            engine.run(one, files.make(one.id), silent, silent)
            engine.tidy()
            resident.append(_resident() / 1e6)
    print([round(value) for value in resident])
    assert max(resident[20:]) < 1.1 * max(resident[:20])
