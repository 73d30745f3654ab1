"""Sweeps: what is refused before anything starts, and that every line is made once, whatever ends the run."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.jobs import sweep as sweeps
from models.jobs.generate import plan, run
from models.jobs.sweep import plan_sweep, run_sweep
from models.jobs.sweep_file import MOST_LINES, BadLines, read_lines
from models.machine.errors import InputError, MachineError
from models.mochi.setup import Request

SIZE = {"height": 32, "width": 32, "num_frames": 7, "num_steps": 2}


def request(model):
    return Request(model=str(model), mesh="1x1", mode="golden", layout="sp0tp1")


def written(path: Path, *rows) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def rows_of(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").open(encoding="utf-8")))


def videos(folder) -> set[str]:
    return {path.name for path in folder.glob("*.mp4")}


def row(number, /, **more):
    return {"prompt": "a red ball", "seed": number, **SIZE} | more


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{}", "line 2: it has no prompt"),
        ('{"prompt": 5}', "line 2: prompt 5 must be text"),
        ('{"prompt": "x", "sed": 1}', "line 2: it has 'sed', which is no setting; known are prompt, negative_prompt"),
        ('{"prompt": "x", "num_steps": 2, "num_inference_steps": 2}', "line 2: it has 'num_steps' twice"),
        ('{"prompt": "x"', "line 2: it is not valid JSON"),
        ("[]", "line 2: it holds JSON of list"),
        ('{"prompt": "x", "seed": NaN}', "line 2: it is not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, why):
    file = tmp_path / "s.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n\n{{"prompt": "b"}}\n')
    found, problems = read_lines(file)
    assert [each.number for each in found] == [1, 4]
    [problem] = problems
    assert problem.startswith(why)
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("s.txt", b"x", "is of another kind"),
        ("s.jsonl", b"", "has no lines"),
        ("s.jsonl", b"\n\n", "has no lines"),
        ("s.jsonl", b'{"prompt": "a"}\n\xff', "line 2 that is no UTF-8"),
        ("s.csv", b"", "has no header"),
        ("s.csv", b"prompt,sed\na,1\n", "header of .* has 'sed'"),
        ("s.csv", b"prompt,seed,seed\na,1,2\n", "has 'seed' twice"),
        ("s.csv", b'prompt\n"a\n', "is no CSV"),
        ("s.jsonl", b'{"prompt":"a"}\n' * (MOST_LINES + 1), f"more than {MOST_LINES} lines"),
        ("none.jsonl", None, "does not exist"),
    ],
)
def test_a_file_that_is_refused(tmp_path, name, content, why):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=why):
        read_lines(tmp_path / name)


def test_cells_that_are_no_numbers_are_refused_by_their_setting(small_checkpoint, tmp_path):
    table = tmp_path / "a.csv"
    for name, cell in (("seed", "1_0"), ("seed", "nan"), ("guidance_scale", "nan"), ("guidance_scale", "1e999")):
        table.write_text(f"prompt,{name}\na,{cell}\n")
        with pytest.raises(InputError, match=f"line 2: {name} '?{cell}"):
            plan_sweep(table, Request(model=small_checkpoint, mesh="1x1", mode="golden"), tmp_path / "out")


def test_csv_says_what_json_lines_say(small_checkpoint, tmp_path):
    """A byte-order mark, a quoted text over two lines, an empty cell, and Genmo's other names."""
    lines = written(
        tmp_path / "a.jsonl",
        row(3, cfg_scale=2.5, negative_prompt="blue\nthings"),
        row(4) | {"num_steps": None, "sigmas": [1, 0.5, 0]},
    )
    table = tmp_path / "a.csv"
    table.write_text(
        "\ufeffprompt,seed,guidance_scale,negative_prompt,width,height,num_frames,num_inference_steps,sigma_schedule\n"
        'a red ball,3,2.5,"blue\nthings",32,32,7,2,\n'
        'a red ball,4,,,32,32,7,,"1,0.5,0"\n',
        encoding="utf-8",
    )
    plans = [plan_sweep(file, request(small_checkpoint), tmp_path / file.suffix[1:]) for file in (lines, table)]
    assert [job.key for job in plans[0].jobs] == [job.key for job in plans[1].jobs]
    assert [job.line.number for job in plans[1].jobs] == [2, 4]
    for each in plans:
        each.reservation.release()


@pytest.fixture
def ball(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "ball.png")
    return tmp_path / "ball.png"


@pytest.mark.alone
def test_a_line_starts_from_a_picture_beside_the_file(small_checkpoint, tmp_path, ball):
    """The video is that of `generate --image`; what decides its content is in its key."""
    begins = {"image": "ball.png", "strength": 0.5}
    file = written(tmp_path / "s.jsonl", row(1), row(1, **begins), row(1, image=str(ball), strength=0.6, fit=True))
    sweep = plan_sweep(file, request(small_checkpoint), tmp_path / "out")
    assert len({job.key for job in sweep.jobs}) == 3
    assert [len(job.video.guidance) for job in sweep.jobs] == [2, 1, 1]
    assert run_sweep(sweep) == 0
    assert [each["num_steps"] for each in rows_of(tmp_path / "out")] == ["2", "1", "1"]
    out = tmp_path / "alone.mp4"
    job = sweep.jobs[1]
    run(plan(replace(job.request, out=str(out)), job.setup))
    assert out.read_bytes() == job.out.read_bytes()
    Image.new("RGB", (40, 40), "blue").save(ball)
    other = plan_sweep(file, request(small_checkpoint), tmp_path / "out")
    other.reservation.release()
    assert [job.key == before.key for job, before in zip(other.jobs, sweep.jobs, strict=True)] == [True, False, False]


def test_equal_jobs_from_a_file_are_one_too_many(small_checkpoint, tmp_path, ball):
    """Defaults that are named, a seed without effect, a source that is not used, a prompt that is not."""
    image, same = {"image": "ball.png"}, []
    same += [(row(1, **image, edit=True), row(2, **image, edit=True, eta=0.9))]
    same += [(row(1), row(1, **image, strength=1))]
    same += [(row(1, **image, strength=0), row(2, **image, strength=0.1, prompt="other"))]
    for pair in same:
        with pytest.raises(InputError, match="line 2: it makes the same video as line 1"):
            plan_sweep(written(tmp_path / "s.jsonl", *pair), request(small_checkpoint), tmp_path / "out")


@pytest.mark.alone
def test_a_line_without_a_step(small_checkpoint, tmp_path, ball):
    sweep = plan_sweep(
        written(tmp_path / "s.jsonl", row(1, image="ball.png", strength=0)), request(small_checkpoint), tmp_path / "out"
    )
    assert run_sweep(sweep) == 0
    (found,) = rows_of(tmp_path / "out")
    assert (found["state"], found["num_steps"], found["forwards"]) == ("done", "0", "0")
    assert (Path(found["source"]).name, found["inversion_forwards"]) == ("ball.png", "0")


def test_csv_names_files_too(small_checkpoint, tmp_path, ball):
    lines = written(tmp_path / "a.jsonl", row(3, image="ball.png", fit=True, edit=True, eta=0.8))
    table = tmp_path / "a.csv"
    table.write_text(
        "prompt,seed,width,height,num_frames,num_steps,image,fit,edit,eta,strength\n"
        "a red ball,3,32,32,7,2,ball.png,true,TRUE,0.8,\n"
    )
    plans = [plan_sweep(file, request(small_checkpoint), tmp_path / file.suffix[1:]) for file in (lines, table)]
    assert plans[0].jobs[0].key == plans[1].jobs[0].key
    for each in plans:
        each.reservation.release()


@pytest.mark.parametrize(
    ("begins", "why"),
    [
        ({"image": "ball.png", "video": "ball.png"}, "a video and an image"),
        ({"video": "ball.png"}, "is an image: give it as image"),
        ({"image": "none.png"}, "does not exist"),
        ({"image": 5}, "image 5"),
        ({"strength": 0.5}, "belong to a video or an image"),
        ({"image": "ball.png", "strength": 2}, "strength 2 must be from 0"),
        ({"image": "ball.png", "strength": "much"}, "strength is 'much'"),
        ({"image": "ball.png", "fit": 1}, "fit is 1, but must be true or false"),
        ({"image": "ball.png", "edit": True, "strength": 0.5}, "strength"),
        ({"image": "ball.png", "eta": 0.5}, "eta"),
    ],
)
def test_a_beginning_that_is_refused(small_checkpoint, tmp_path, ball, begins, why):
    with pytest.raises(InputError, match=f"line 1: .*{why}"):
        plan_sweep(written(tmp_path / "s.jsonl", row(1, **begins)), request(small_checkpoint), tmp_path / "out")


def test_all_bad_lines_are_listed_and_nothing_is_started(small_checkpoint, tmp_path):
    bad = [row(1), row(2, width=33), row(3, num_steps="8"), row(1), row(4, preset="draft"), row(5, seed=-1), "x"]
    file = written(tmp_path / "s.jsonl", *bad)
    with pytest.raises(BadLines) as refused:
        plan_sweep(file, request(small_checkpoint), tmp_path / "out")
    expected = [
        "line 2: width 33",
        "line 3: num_steps '8'",
        "line 4: it makes the same video as line 1",
        "line 5: preset draft is of precision fast",
        "line 6: seed -1",
        "line 7: it holds JSON of str",
    ]
    assert [said[: len(start)] for said, start in zip(refused.value.problems, expected, strict=True)] == expected
    assert "and 5 more (7 lines were read)" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_sweep_goes_on_and_makes_nothing_twice(small_checkpoint, tmp_path):
    out = tmp_path / "out"
    file = written(tmp_path / "s.jsonl", row(1), row(2, num_steps=3), row(3))
    told, asked = [], request(small_checkpoint)
    assert run_sweep(plan_sweep(file, asked, out, limit=2), on_message=told.append) == 0
    first = {name: (out / name).stat().st_mtime_ns for name in videos(out)}
    assert [each["state"] for each in rows_of(out)] == ["done", "done", "waiting"]

    changed = written(tmp_path / "s.jsonl", row(1), row(2, num_steps=2), row(3))
    begun = []
    run_sweep(plan_sweep(changed, asked, out), on_job=lambda job, place, count: begun.append((job.line.number, count)))
    assert begun == [(2, 2), (3, 2)]
    assert {name: (out / name).stat().st_mtime_ns for name in first} == first
    assert len(videos(out)) == 4
    rows = rows_of(out)
    assert [each["state"] for each in rows] == ["done"] * 3
    assert [each["forwards"] for each in rows] == ["4", "4", "4"]
    assert all(float(each["denoise_s"]) > 0 and (out / each["file"]).exists() for each in rows)
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.size == (3 * 192, 126)
        assert len(set(sheet.crop((0, 0, 32, 32)).getdata())) > 1
    assert not list(out.glob(".*"))

    run_sweep(plan_sweep(changed, asked, out), on_job=lambda *_: pytest.fail("all is done"))


@pytest.fixture
def quick(monkeypatch):
    """No mesh: each video is grey. `fails` names the seeds whose job fails, and how."""
    fails: dict[int, Exception] = {}
    _without_a_mesh(monkeypatch.setattr, fails)
    return fails


def _without_a_mesh(put, fails):
    from contextlib import nullcontext
    from types import SimpleNamespace

    from models.jobs.generate import Made
    from models.mochi.pipeline import MochiPipeline
    from models.mochi.sampling.reuse import Forwards

    def make(pipe, job, progress, tell):
        if job.video.settings.seed in fails:
            raise fails[job.video.settings.seed]
        output = SimpleNamespace(
            sigmas=job.video.sigmas, guidance=job.video.guidance, forwards=[Forwards()], prompts=[], negatives=[]
        )
        frames = np.full((7, 32, 32, 3), 10 * job.video.settings.seed, np.uint8)
        return Made(frames, output, "n150", {"encode": 0.1, "denoise": 0.2, "decode": 0.1})

    put(sweeps, "make", make)
    put(MochiPipeline, "load", lambda *_: nullcontext())


def test_a_job_that_fails_is_noted_or_ends_the_sweep(small_checkpoint, tmp_path, quick):
    out = tmp_path / "out"
    file = written(tmp_path / "s.jsonl", row(1), row(2), row(3))
    quick[2] = InputError("the numbers overflowed")
    with pytest.raises(InputError, match="overflowed"):
        run_sweep(plan_sweep(file, request(small_checkpoint), out))
    assert [each["state"] for each in rows_of(out)] == ["done", "failed", "waiting"]
    told = []
    planned = plan_sweep(file, request(small_checkpoint), out)
    assert run_sweep(planned, on_message=told.append, keep_going=True) == 1
    assert told == ["line 2 failed: the numbers overflowed"]
    assert [(each["state"], each["error"]) for each in rows_of(out)][1] == ("failed", "the numbers overflowed")
    assert rows_of(out)[2]["state"] == "done"

    quick[2] = RuntimeError("Out of Memory: of a bank")
    assert run_sweep(plan_sweep(file, request(small_checkpoint), out), keep_going=True) == 1
    assert rows_of(out)[1]["error"] == "RuntimeError: Out of Memory: of a bank"
    quick.clear()
    assert run_sweep(plan_sweep(file, request(small_checkpoint), out), keep_going=True) == 0
    assert [each["state"] for each in rows_of(out)] == ["done"] * 3


@pytest.mark.parametrize(("kind", "said"), [(OSError, (28, "No space left on device")), (MachineError, ("no card",))])
def test_what_the_machine_refuses_ends_the_sweep(small_checkpoint, tmp_path, quick, kind, said):
    file = written(tmp_path / "s.jsonl", row(1), row(2))
    quick[1] = kind(*said)
    with pytest.raises(kind):
        run_sweep(plan_sweep(file, request(small_checkpoint), tmp_path / "out"), keep_going=True)
    assert not videos(tmp_path / "out")


def test_two_sweeps_do_not_share_a_folder(small_checkpoint, tmp_path):
    file = written(tmp_path / "s.jsonl", row(1))
    planned = plan_sweep(file, request(small_checkpoint), tmp_path / "out")
    with pytest.raises(InputError, match="being written by another job"):
        plan_sweep(file, request(small_checkpoint), tmp_path / "out")
    planned.reservation.release()


def test_a_file_of_another_origin_is_not_replaced(small_checkpoint, tmp_path, quick):
    file = written(tmp_path / "s.jsonl", row(1))
    planned = plan_sweep(file, request(small_checkpoint), tmp_path / "out")
    planned.jobs[0].out.with_suffix(".json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match="is not of an earlier video"):
        run_sweep(planned)


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.jobs import test_sweep as shared
from models.jobs import sweep, generate, video

model, file, out, moment, place = sys.argv[1:]
calls = []

def dying(module, name, after):
    original = getattr(module, name)

    def call(*arguments, **options):
        calls.append(1)
        dies = len(calls) == int(place)
        if dies and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, call)

if moment != "real":
    shared._without_a_mesh(setattr, {})
moments = {
    "before": (sweep, "make", False),
    "made": (sweep, "make", True),
    "picture": (sweep, "write_png", True),
    "video": (video, "write_mp4", True),
    "record": (sweep, "write", True),
    "table": (sweep, "write_results", False),
}
if moment in moments:
    dying(*moments[moment])
begun = []
planned = sweep.plan_sweep(file, shared.request(model), out)
sweep.run_sweep(planned, on_job=lambda job, place, count: print(job.line.number, flush=True))
"""


def _child(*arguments) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(CHILD)
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )


@pytest.mark.parametrize(
    ("moment", "place", "again"),
    [
        ("video", 2, "2 3"),
        pytest.param("before", 1, "1 2 3", marks=pytest.mark.full),
        pytest.param("made", 3, "3", marks=pytest.mark.full),
        pytest.param("picture", 2, "2 3", marks=pytest.mark.full),
        ("record", 2, "3"),
        pytest.param("table", 2, "3", marks=pytest.mark.full),
    ],
)
def test_a_killed_sweep_goes_on_without_repeats_and_gaps(small_checkpoint, tmp_path, moment, place, again):
    out = tmp_path / "out"
    file = written(tmp_path / "s.jsonl", row(1), row(2), row(3))
    killed = _child(small_checkpoint, file, out, moment, place)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    planned = plan_sweep(file, request(small_checkpoint), out)
    assert [job.line.number for job in planned.waiting()] == [int(number) for number in again.split()]
    planned.reservation.release()
    done = _child(small_checkpoint, file, out, "none", 0)
    assert (done.returncode, done.stdout.split()) == (0, again.split()), done.stderr
    assert [each["state"] for each in rows_of(out)] == ["done"] * 3
    assert videos(out) == {each["file"] for each in rows_of(out)}
    assert (out / "contact-sheet.png").exists()


@pytest.mark.full
def test_a_sweep_of_true_videos_that_is_killed_at_random_ends_with_those_of_an_undisturbed_one(
    small_checkpoint, tmp_path
):
    import random
    import time

    rng = random.Random(5)
    file = written(tmp_path / "s.jsonl", *(row(seed) for seed in range(1, 5)))
    root = Path(__file__).resolve().parents[2]
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CHILD), small_checkpoint, file, tmp_path / "a", "real", "0"],
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(4, 14))
        child.kill()
        child.wait()
    for folder in ("a", "b"):
        assert _child(small_checkpoint, file, tmp_path / folder, "real", 0).returncode == 0
    assert videos(tmp_path / "a") == videos(tmp_path / "b")
    for name in videos(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
