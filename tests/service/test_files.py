"""Ranges, and what the janitor deletes."""

import pytest

from models.jobs.media import Limits
from models.service.files import LATENTS, RECORD, VIDEO, BadRange, Files, Janitor, byte_range, measured
from models.service.inputs import Inputs
from models.service.jobs import Bounds, Outcome, new_id
from models.service.store import SqliteJobs


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=3-", (3, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=9-99", (9, 10)),
        ("bytes=5-3", None),
        ("bytes=", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=0-" + "9" * 30, None),
        ("bytes=٣-", None),
    ],
)
def test_ranges(header, wanted):
    assert byte_range(header, 10) == wanted


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-11", "bytes=-0"])
def test_ranges_without_a_byte(header):
    with pytest.raises(BadRange):
        byte_range(header, 10)


@pytest.fixture
def parts(tmp_path):
    jobs, files = SqliteJobs(tmp_path / "jobs.sqlite3"), Files(tmp_path / "jobs")
    files.root.mkdir()
    clock = [0.0]
    inputs = Inputs(tmp_path / "inputs", Limits())
    janitor = Janitor(jobs, files, inputs, keep_seconds=100, keep_bytes=250, clock=lambda: clock[0])
    yield jobs, files, janitor, clock
    jobs.close()


def completed(jobs, files):
    job = jobs.submit("me", {"prompt": "a"}, {}, Bounds(100))[0]
    jobs.claim("w")
    folder = files.make(job.id)
    for file in (VIDEO, LATENTS, RECORD):
        (folder / file).write_bytes(b"x" * 100)
    size, digest = measured(folder / VIDEO)
    jobs.finish(job.id, "w", Outcome("completed", None, (), {"bytes": size, "sha256": digest}))
    return job.id


def test_results_go_by_age_and_size_and_folders_of_no_job_go(parts, monkeypatch):
    jobs, files, janitor, clock = parts
    first, second = completed(jobs, files), completed(jobs, files)
    orphan = new_id()
    files.make(orphan)
    (files.root / "of the user").mkdir()
    waiting = jobs.submit("me", {"prompt": "a"}, {}, Bounds(100))[0].id
    jobs.claim("w")
    (files.make(waiting) / LATENTS).write_bytes(b"kept")
    assert janitor.clean() == ([], [orphan])
    assert {path.name for path in files.folder(first).iterdir()} == {VIDEO}
    assert (files.folder(waiting) / LATENTS).exists()
    third = completed_later(jobs, files, waiting)
    assert janitor.clean() == ([first], [])
    assert not files.folder(first).exists()
    assert files.open(first) is None
    monkeypatch.setattr("time.time", lambda: 9e9)  # the wall clock jumps
    assert janitor.clean() == ([], [])
    clock[0] = 101.0
    assert set(janitor.clean()[0]) == {second, third}
    assert [path.name for path in files.root.iterdir()] == ["of the user"]


def completed_later(jobs, files, name):
    (files.folder(name) / VIDEO).write_bytes(b"x" * 100)
    jobs.finish(name, "w", Outcome("completed", None, (), {"bytes": 100, "sha256": "x"}))
    return name


@pytest.mark.parametrize(
    "name", ["..", "../x", "video_" + "g" * 32, "video_" + "0" * 31, "video_" + "0" * 32 + "/x", ""]
)
def test_no_other_name_becomes_a_path(parts, name):
    with pytest.raises(ValueError, match="name no job"):
        parts[1].folder(name)


OLD, NEW = "1-a0", "2-b0"


def test_a_claim_begins_with_the_latents_of_another_and_writes_by_itself(parts):
    files, name = parts[1], new_id()
    old = files.make(name, OLD)
    (old / LATENTS).write_bytes(b"latents")
    (old / RECORD).write_bytes(b"record")
    new = files.make(name, NEW)
    assert new != old
    assert [(new / file).read_bytes() for file in (LATENTS, RECORD)] == [b"latents", b"record"]
    (new / VIDEO).write_bytes(b"new")
    (old / VIDEO).write_bytes(b"old, of a worker that was taken for dead")
    with files.open(name, VIDEO, NEW) as file:
        assert file.read() == b"new"
    assert files.open(name, VIDEO) is None


def test_of_a_completed_job_the_claims_video_alone_is_kept(parts):
    jobs, files = parts[:2]
    name = jobs.submit("me", {"prompt": "a"}, {}, Bounds(100))[0].id
    jobs.claim(NEW)
    for claim in (OLD, NEW):
        for file in (LATENTS, RECORD, VIDEO):
            (files.make(name, claim) / file).write_bytes(claim.encode())
    assert files.sweep(jobs) == []
    assert len(list(files.folder(name).rglob("*.*"))) == 6
    jobs.finish(name, NEW, Outcome("completed", None, (), {"bytes": 4, "sha256": "x", "claim": NEW}))
    assert files.sweep(jobs) == []
    assert [path.name for path in files.folder(name).rglob("*")] == [NEW, VIDEO]
    assert (files.folder(name, NEW) / VIDEO).read_bytes() == NEW.encode()


@pytest.mark.parametrize("claim", ["..", "a/b", "/etc", "claim"])
def test_no_other_claim_becomes_a_path(parts, claim):
    with pytest.raises(ValueError, match="name no job"):
        parts[1].folder(new_id(), claim)
