"""The examples run as a reader runs them: each in a process and a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# Arguments that keep each short, and what it leaves: frames, width and height of each video.
RUNS = {
    "compare_seeds.py": (["2"], {"seeds.mp4": (25, 288, 64)}),
    "own_mesh.py": (["2"], {"0.mp4": (25, 96, 64), "1.mp4": (25, 96, 64)}),
    "video_to_mp4.py": ([], {"red_ball.mp4": (25, 96, 64)}),
}


def run(name, arguments, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_every_example_is_run():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(RUNS)


# The first one runs each time; the others are as long and do little else.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "video_to_mp4.py" else [pytest.mark.full]) for name in RUNS]
)
def test_example(name, tmp_path):
    import imageio_ffmpeg

    arguments, videos = RUNS[name]
    done = run(name, arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("*.mp4")} == set(videos)
    for video, (frames, width, height) in videos.items():
        reader = imageio_ffmpeg.read_frames(str(tmp_path / video))
        assert next(reader)["size"] == (width, height)
        pictures = list(reader)
        assert len(pictures) == frames
        assert len(set(pictures[0])) > 8, f"{video} is one flat colour"


def test_the_first_example_has_four_statements():
    """The README promises it."""
    import ast

    statements = ast.parse((EXAMPLES / "video_to_mp4.py").read_text(encoding="utf-8")).body[1:]
    assert sum(1 + len(getattr(statement, "body", [])) for statement in statements) == 4
