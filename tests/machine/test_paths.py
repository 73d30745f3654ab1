"""What the operating system refuses of a path is one line with the path, the reason and the mend, in every opener."""

import errno
import os
import resource

import pytest

from models.jobs import decode, generate
from models.machine import files, host, leftovers, paths
from models.machine.checks import json_file, read_bytes
from models.machine.errors import InputError, MachineError
from models.machine.headers import read_header
from models.mochi.setup import Request, VideoRequest
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.component import Component
from weight_cache.checkpoints.lora import LoraRequest

LONG = "x" * 5000
OPENERS = {
    "is_file": paths.is_file,
    "is_dir": paths.is_dir,
    "exists": paths.exists,
    "is_taken": paths.is_taken,
    "listed": paths.listed,
    "json": lambda path: json_file(path, "settings", "give another"),
    "bytes": lambda path: read_bytes(path, "settings", "give another", 10),
    "header": read_header,
    "checkpoint": Checkpoint.open,
    "component": Component,
    "LoRA": LoraRequest.of,
    "LoRAs": lambda path: LoraRequest.all_of([(path, 0.5)]),
    "latents": lambda path: decode.plan(decode.DecodeRequest(str(path), Request(model=None, mesh="1x1"))),
}


@pytest.mark.parametrize("opener", OPENERS)
def test_a_name_that_is_too_long_is_a_line(opener):
    with pytest.raises(InputError, match=r"File name too long\): give a shorter name") as refused:
        OPENERS[opener](LONG)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("opener", OPENERS)
def test_no_permission_is_a_line(opener, tmp_path, monkeypatch):
    """Root may do all, so the refusal is made here."""
    for name in ("stat", "open", "listdir", "scandir"):
        whole = getattr(os, name)

        def refuse(path, *rest, _whole=whole, **named):
            if str(path).startswith(str(tmp_path)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return _whole(path, *rest, **named)

        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(InputError, match=r"Permission denied.*: allow this user to read it and to enter its folders"):
        OPENERS[opener](tmp_path / "there")


def test_what_is_there_is_seen(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loose").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [paths.is_file(tmp_path / name) for name in ("file", "loose", "none", "a\0b", "file/x")] == [True] + [
        False
    ] * 4
    assert (paths.is_dir(tmp_path), paths.exists(tmp_path / "loose"), paths.is_taken(tmp_path / "loose")) == (1, 0, 1)
    assert [path.name for path in paths.listed(tmp_path)] == ["file", "loop", "loose"]
    with pytest.raises(InputError, match="links lead in a circle"):
        paths.is_file(tmp_path / "loop")


@pytest.mark.parametrize("name", ["video.mp4", "video.json", "video.latents.safetensors"])
def test_a_link_to_nothing_is_not_replaced(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    out = tmp_path / "video.mp4"
    with pytest.raises(InputError, match="is a link to nothing"):
        generate.check_outputs(out, latents=True)
    with pytest.raises(InputError, match="exists and is not of an earlier video"):
        generate.check_own(out, latents=True)
    with pytest.raises(InputError, match="is a link to nothing"):
        files.check_writable(tmp_path / name, (tmp_path / name).suffix)
    assert (tmp_path / name).is_symlink()
    assert generate.free_name("video", 1, tmp_path).name == "video-1.mp4"
    (tmp_path / "video-1.json").symlink_to(tmp_path / "elsewhere")
    assert generate.free_name("video", 1, tmp_path).name == "video-1-2.mp4"


def test_an_optional_file_that_is_a_link_to_nothing_is_not_left_out(small_copy):
    (small_copy / "generation_defaults.json").unlink()
    assert Checkpoint.open(small_copy).optional_json("generation_defaults.json") == {}
    (small_copy / "generation_defaults.json").symlink_to(small_copy / "nothing")
    with pytest.raises(InputError, match="does not exist"):
        Checkpoint.open(small_copy).optional_json("generation_defaults.json")


@pytest.mark.parametrize(
    ("kind", "limits", "words"),
    [
        (resource.RLIMIT_NOFILE, (24, 24), "may open 24 files, and ttnn needs 256: .* ulimit -n 4096"),
        (resource.RLIMIT_FSIZE, (4096, -1), "may write files of 4096 bytes, and ttnn needs .* [(]ulimit -f[)]"),
    ],
)
def test_a_limit_of_the_process_is_a_line_before_ttnn_meets_it(monkeypatch, kind, limits, words):
    whole = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda asked: limits if asked == kind else whole(asked))
    with pytest.raises(MachineError, match=words):
        host.check_limits()


def test_a_limit_that_may_be_raised_is_raised(monkeypatch):
    made = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 4096) if kind == resource.RLIMIT_NOFILE else (-1, -1))
    monkeypatch.setattr(resource, "setrlimit", lambda *given: made.append(given))
    host.check_limits()
    assert made == [(resource.RLIMIT_NOFILE, (host.OPEN_FILES, 4096))]


@pytest.mark.parametrize("make", ["folder", "file"])
def test_what_a_kill_must_not_leave_is_guarded_before_it_is_there(tmp_path, monkeypatch, make):
    seen = []
    guard = leftovers.guard
    monkeypatch.setattr(leftovers, "guard", lambda path: (seen.append(os.path.lexists(path)), guard(path)))
    if make == "folder":
        leftovers.remove(leftovers.temporary_folder("mochi-tt-test-"))
    else:
        with files.renamed_when_done(tmp_path / "x"):
            pass
    assert seen == [False]


def test_an_empty_name_is_said_to_be_empty():
    from models.mochi.setup import resolve

    for given in ({"model": ""}, {"base": " "}, {"cache_dir": ""}, {"profile": ""}):
        with pytest.raises(InputError, match="is empty"):
            resolve(Request(mesh="1x1", video=VideoRequest(), **given))
    with pytest.raises(InputError, match="is empty"):
        Checkpoint.open("")
