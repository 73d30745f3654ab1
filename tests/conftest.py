from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings


def pytest_configure(config: pytest.Config) -> None:
    """Property-based tests: few examples, always the same, by default; many with the long tests."""
    for name, examples in (("quick", 30), ("whole", 1000)):
        settings.register_profile(
            name,
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
    settings.load_profile("quick" if config.option.markexpr == "not full" else "whole")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mochi-tt")
    group.addoption("--model", default=None, help="fill the user's own store of converted weights for this checkpoint")
    group.addoption("--variant", default=None, help="of its weight files, such as bf16")
    group.addoption("--precision", default="default", help="policy that the converted weights are for")


@pytest.fixture(scope="session", autouse=True)
def cache_directory(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path | None]:
    """Keep converted weights out of the user's cache, unless --model asks to fill it; child processes inherit it."""
    if request.config.getoption("--model") is not None:
        yield None
        return
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOCHI_TT_CACHE_DIR", str(directory))
        yield directory


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of random weights; kept between runs beside pytest's folders. Do not write in it."""
    from tests.random_checkpoint import random_checkpoint

    return random_checkpoint(tmp_path_factory.getbasetemp().parent / "mochi-tt")


@pytest.fixture
def small_copy(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the random checkpoint that a test may damage."""
    import shutil

    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
