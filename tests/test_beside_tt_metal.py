"""Beside a checkout of tt-metal, which has `models` and `scripts` of its own: both theirs and ours are found."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS_FIRST = """
import mochi_tt, models.tt_dit.pipeline, models.perf.device_perf, models.mochi.geometry, scripts.options
from models.tt_dit.pipeline import NAME
print(NAME, models.mochi.geometry.FPS, models.perf.device_perf.NAME)
"""
THEIRS_FIRST = """
import models.tt_dit.pipeline
from mochi_tt import open_mesh, __version__
import models.mochi.geometry
print(models.tt_dit.pipeline.NAME, models.mochi.geometry.FPS, models.tt_dit.pipeline.NAME)
"""
LATE = """
import sys, mochi_tt
sys.path.insert(0, sys.argv[1])
import models.tt_dit.pipeline
print(models.tt_dit.pipeline.NAME)
"""
CLASH = """
import models.device
import mochi_tt
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A folder with the packages of a built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as file:
        file.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(params=["checkout", "wheel"])
def installed(request) -> Path:
    """Where our packages are."""
    return ROOT if request.param == "checkout" else request.getfixturevalue("wheel")


@pytest.fixture(params=[True, False], ids=["packages", "folders"])
def tt_metal(request, tmp_path) -> Path:
    """A stand-in for a checkout of tt-metal, whose folders are packages in some releases."""
    root = tmp_path / "tt-metal"
    files = {"models/tt_dit/pipeline.py": "NAME = 'theirs'", "models/perf/device_perf.py": "NAME = 'perf'"}
    files |= {"scripts/tool.py": "", "models/device.py": "", "tests/conftest.py": "raise SystemExit('theirs')"}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if request.param:
            for parent in list(path.parents)[: len(Path(name).parts) - 1]:
                (parent / "__init__.py").touch()
    return root


def run(*command: str, path: list[Path], cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("place", ["first", "last"])
def test_both_are_found(installed, tt_metal, place, tmp_path):
    path = [tt_metal, installed] if place == "first" else [installed, tt_metal]
    done = run("-c", OURS_FIRST, path=path, cwd=tmp_path)
    assert done.stdout == "theirs 30 perf\n", done.stderr
    assert done.stderr == "", "importing prints nothing"
    done = run("-c", THEIRS_FIRST, path=path, cwd=tmp_path)
    assert done.stdout == "theirs 30 theirs\n", done.stderr


def test_a_path_that_comes_late_is_found(installed, tt_metal, tmp_path):
    done = run("-c", LATE, str(tt_metal), path=[installed], cwd=tmp_path)
    assert done.stdout == "theirs\n", done.stderr


def test_a_file_of_the_name_is_named(installed, tmp_path):
    (tmp_path / "models.py").touch()
    done = run("-c", "import models, mochi_tt", path=[installed], cwd=tmp_path)
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"ImportError: models is already imported from the file {tmp_path / 'models.py'}"), line


def test_the_commands_run(installed, tt_metal, tmp_path):
    done = run("-m", "mochi_tt", "doctor", path=[tt_metal, installed], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ttnn" in done.stdout
    refused = run("-m", "mochi_tt", "generate", "x", "--width", "17", path=[tt_metal, installed], cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("mochi-tt: error: width 17 must be a positive multiple of 16")


def test_what_is_in_the_way_is_said(tt_metal, tmp_path):
    done = run("-c", CLASH, path=[tt_metal, ROOT], cwd=tmp_path)
    if (tt_metal / "models" / "__init__.py").exists():
        assert f"models.device is already imported from {tt_metal}" in done.stderr
        assert "import mochi_tt before it" in done.stderr
    else:
        assert done.returncode == 0, "a folder without __init__.py never hides ours"


def test_our_tests_run(tt_metal, tmp_path):
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/mochi/test_geometry.py"]
    done = run(*command, path=[tt_metal], cwd=ROOT)
    assert done.returncode == 0, done.stdout
