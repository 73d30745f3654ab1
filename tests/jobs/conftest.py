"""What several tests of jobs take."""

from pathlib import Path

import numpy as np
import pytest

from models.jobs.video import write_mp4


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A red square that moves to the right: 20 frames of 96x64 at 30 frames per second."""
    frames = np.zeros((20, 64, 96, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[16:48, 2 * index : 2 * index + 32] = (220, 40, 40)
    write_mp4(frames, tmp_path / "ball.mp4")
    return tmp_path / "ball.mp4"
