from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in checkpoint; kept between runs beside pytest's temporary folders. Do not write in it."""
    from models.mochi.tiny import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.getbasetemp().parent / "mochi-tt")


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the built-in checkpoint that a test may damage."""
    import shutil

    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))
