from pathlib import Path

import pytest

from models.machine.errors import MachineError
from models.machine.simulator import check, named, problem


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    library = tmp_path / "libttsim_wh.so"
    library.touch()
    (tmp_path / "soc_descriptor.yaml").touch()
    monkeypatch.setenv("TT_METAL_SIMULATOR", str(library))
    for name in ("TT_METAL_MOCK_CLUSTER_DESC_PATH", "TT_METAL_SLOW_DISPATCH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return library


def test_nothing_is_missing(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named() == library
    assert problem() is None
    check()
    monkeypatch.setenv("TT_METAL_SLOW_DISPATCH_MODE", "1")
    assert problem() is None


def test_no_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        monkeypatch.setenv("TT_METAL_SIMULATOR", value or "")
        if value is None:
            monkeypatch.delenv("TT_METAL_SIMULATOR")
        assert named() is None
        with pytest.raises(MachineError, match=r"^mode 'simulator': TT_METAL_SIMULATOR names no library; download"):
            check()


@pytest.mark.parametrize("name", ["absent.so", "soc_descriptor.yaml", ""])
def test_what_is_named_is_no_library(name: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TT_METAL_SIMULATOR", str(library.parent / name))
    with pytest.raises(MachineError, match="is no library"):
        check()


def test_the_descriptor_is_missing(library: Path) -> None:
    (library.parent / "soc_descriptor.yaml").unlink()
    with pytest.raises(MachineError, match=r"soc_descriptor.yaml is missing .*: copy ttnn's"):
        check()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TT_METAL_MOCK_CLUSTER_DESC_PATH", "cluster.yaml", "would open that mock: unset it"),
        ("TT_METAL_SLOW_DISPATCH_MODE", "0", "set it to 1"),
    ],
)
def test_the_environment_says_otherwise(name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match=words):
        check()
