"""Names of files: reserved when they are chosen, and nothing of others is replaced."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.jobs.decode import DecodeRequest, _About, _completed
from models.jobs.decode import plan as plan_decoding
from models.jobs.generate import GenerateRequest, check_own, decoded_by, plan, reserve_name
from models.jobs.latents import load_latents, save_latents
from models.machine.errors import InputError
from models.machine.files import Reservation, Taken
from models.mochi.setup import Request, VideoRequest

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from models.jobs.generate import reserve_name
held = reserve_name("a ball", 1, Path(sys.argv[1]))
print(held.path.name, flush=True)
sys.stdin.read()
"""


def test_processes_at_once_take_names_of_their_own(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    started = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT) for _ in range(3)]
    names = {process.stdout.readline().strip() for process in started}
    assert names == {"a-ball-1.mp4", "a-ball-1-2.mp4", "a-ball-1-3.mp4"}
    started[0].kill()
    started[0].wait()
    freed = reserve_name("a ball", 1, tmp_path)
    assert freed.path.name in names, "the end of a process frees its name"
    with pytest.raises(Taken, match="is being written by another job"):
        Reservation(freed.path)
    freed.release()
    for process in started[1:]:
        process.communicate("")


def test_threads_at_once_take_names_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda _: reserve_name("a ball", 1, tmp_path), range(24)))
    assert len({one.path for one in held}) == 24
    for one in held:
        one.release()
    assert not list(tmp_path.iterdir())


def test_a_name_is_free_again_when_released_or_forgotten(tmp_path):
    for _ in range(2):
        with Reservation(tmp_path / "a.mp4"):
            pass
    Reservation(tmp_path / "a.mp4")
    with Reservation(tmp_path / "a.mp4"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mp4", "a.json", "a.latents.safetensors"])
@pytest.mark.parametrize("record", [None, "[", {"video": "b.mp4"}, {"unrelated": 1}])
def test_files_of_others_are_not_replaced(tmp_path, name, record):
    (tmp_path / name).write_bytes(b"mine")
    if record is not None and name != "a.json":
        (tmp_path / "a.json").write_text(record if isinstance(record, str) else json.dumps(record))
    with pytest.raises(InputError, match="is not replaced: choose another --out"):
        check_own(tmp_path / "a.mp4", latents=True)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_an_earlier_video_of_ours_is_replaced(tmp_path):
    check_own(tmp_path / "a.mp4", latents=True)
    for name in ("a.mp4", "a.latents.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.json").write_text(json.dumps({"video": "a.mp4"}))
    check_own(tmp_path / "a.mp4", latents=True)


def test_both_plans_refuse_and_reserve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = Request(mode="golden", mesh="1x2", video=VideoRequest(height=32, width=32, num_frames=7, num_steps=2))
    save_latents(torch.zeros(1, 12, 2, 4, 4), tmp_path / "x.safetensors", {})
    plans = [
        lambda out: plan(GenerateRequest("x", request, out=out)),
        lambda out: plan_decoding(DecodeRequest("x.safetensors", Request(model=None, mode="golden"), out=out)),
    ]
    for index, make in enumerate(plans):
        (tmp_path / "their.json").write_text("{}")
        with pytest.raises(InputError, match=r"their\.json exists and is not of an earlier video"):
            make("their.mp4")
        job = make(f"ours{index}.mp4")
        for other in plans:
            with pytest.raises(InputError, match="is being written by another job"):
                other(f"ours{index}.mp4")
        job.reservation.release()


def test_latents_record_what_decoding_needs(tmp_path):
    checkpoint = SimpleNamespace(source="/models/mochi", variant="bf16")
    request = Request(model="/models/mochi", variant="bf16", base="/models/base", vae_split="h0w1")
    setup = SimpleNamespace(
        request=request,
        checkpoint=checkpoint,
        conventions=SimpleNamespace(first_frames="genmo"),
        mesh_shape=(2, 4),
        layout="2x4sp1tp0",
    )
    save_latents(torch.zeros(1, 12, 2, 4, 4), tmp_path / "x.safetensors", {"fps": 24} | decoded_by(setup))
    kept = load_latents(tmp_path / "x.safetensors")[1]
    about = _About(**{name: kept[name] for name in _About.__dataclass_fields__})
    made = _completed(Request(model=None), about)
    assert (made.model, made.variant, str(made.base)) == ("/models/mochi", "bf16", "/models/base")
    assert (made.vae_split, made.first_frames, made.components) == ("h0w1", "genmo", ("vae",))
    asked = _completed(Request(model=None, variant="fp16", base="b", vae_split="w1", first_frames="diffusers"), about)
    assert (asked.variant, asked.base, asked.vae_split, asked.first_frames) == ("fp16", "b", "w1", "diffusers")
    other = _completed(Request(model="tiny"), about)
    assert (other.variant, other.base, other.vae_split, other.first_frames) == (None, None, "h0w1", None)


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"fps": 10**6}, {"fps": "x"}, {"model": 1}, {"vae_split": "q7"}])
def test_latents_that_record_nonsense_are_refused(tmp_path, wrong):
    save_latents(torch.zeros(1, 12, 2, 4, 4), tmp_path / "x.safetensors", {"model": "tiny"} | wrong)
    with pytest.raises(InputError):
        plan_decoding(DecodeRequest(str(tmp_path / "x.safetensors"), Request(model=None, mode="golden")))
