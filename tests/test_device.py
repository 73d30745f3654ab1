import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.device import cards, choose_mode, open_mesh, parse_mesh
from models.jobs.doctor import SystemReport, describe
from models.machine import host as guard
from models.machine.errors import MachineError

GOLDEN = """
import json, sys, pathlib
from models.device import open_mesh, quiet_ttnn
ttnn = quiet_ttnn()
import torch
def add(opened):
    mapper = ttnn.ShardTensorToMesh(opened.device, dim=3)
    x = ttnn.from_torch(torch.full((1, 1, 32, 64), 3.0), device=opened.device, layout=ttnn.TILE_LAYOUT,
        dtype=ttnn.bfloat16, mesh_mapper=mapper)
    y = ttnn.to_torch(ttnn.add(x, x), mesh_composer=ttnn.ConcatMeshToTensor(opened.device, dim=3))
    return [opened.mode, opened.system, list(opened.shape), y.min().item(), y.max().item()]
found = []
nowhere = pathlib.Path("nowhere")
with open_mesh("1x2", card_directory=nowhere) as opened:
    found.append(add(opened))
opened.close()
with open_mesh((1, 2), "dry-run", card_directory=nowhere) as opened:
    found.append(add(opened))
from models.mock import golden
print(json.dumps(found + [golden.active() is None]))
"""

# The code that opens cards, run against a described cluster: this checks its order of calls, not silicon.
HARDWARE = """
import json, os, pathlib
from models.mock.cluster import system_named, write_descriptor
from models.mock.toolchain import cache_directory, mock_variables, prepare_toolchain
path = write_descriptor(system_named("t3000"), cache_directory() / "clusters")
os.environ |= mock_variables(prepare_toolchain(), path)
os.environ["TT_METAL_LOGS_PATH"] = os.getcwd()
from models.device import open_mesh
node = pathlib.Path("cards"); node.mkdir(); (node / "0").touch()
found = []
from models import device
seen, inside = [], device.environment
device.environment = lambda variables: (seen.append(dict(variables)), inside(variables))[1]
for mesh in ("2x4", "1x2", "8x1"):
    with open_mesh(mesh, card_directory=node, operation_seconds=150.4) as opened:
        found.append([opened.mode, opened.system, list(opened.shape), len(opened.device.get_device_ids())])
for mesh, mode in (("9x9", "hardware"), ("2x4", "golden")):
    try:
        open_mesh(mesh, mode, card_directory=node)
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps([*found, [v.get("TT_METAL_OPERATION_TIMEOUT_SECONDS") for v in seen]]))
"""


# One chip, opened as hardware and as a mock: real ttnn refuses a fabric there, a described cluster does not.
ONE_CHIP = """
import json, os, pathlib, sys
from models.machine.host import quiet_ttnn
ttnn = quiet_ttnn()
fabrics, start = [], ttnn.set_fabric_config
ttnn.set_fabric_config = lambda config, *rest: (fabrics.append(str(config).split(".")[-1]), start(config, *rest))
from models.device import open_mesh
node = pathlib.Path("cards")
if sys.argv[1] == "hardware":
    from models.mock.cluster import system_named, write_descriptor
    from models.mock.toolchain import cache_directory, mock_variables, prepare_toolchain
    path = write_descriptor(system_named("n150"), cache_directory() / "clusters")
    os.environ |= mock_variables(prepare_toolchain(), path)
    os.environ["TT_METAL_LOGS_PATH"] = os.getcwd()
    node.mkdir(); (node / "0").touch()
from models.parallel import Layout, Mesh
with open_mesh("1x1", card_directory=node) as opened:
    mesh = Mesh(opened.device, Layout.parse("1x1sp0tp1"))
    if opened.mode == "golden":
        from tests.mochi.transformer.test_block import CONFIG, SMALL, reference, run_block
        run_block(mesh, lambda dtype: reference(dtype, **SMALL), CONFIG, 0, 7)
    found = [opened.mode, list(opened.shape)]
print(json.dumps([*found, [name for name in fabrics if name != "DISABLED"]]))
"""


def run(script: str, directory: Path, *arguments: str) -> tuple[Any, str]:
    """The last line printed, as JSON, and everything printed before it or logged."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TT_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=directory,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *before, last = done.stdout.splitlines()
    return json.loads(last), "\n".join(before) + done.stderr


@pytest.fixture
def no_card(tmp_path: Path) -> Path:
    return tmp_path / "absent"


@pytest.fixture
def simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What can be seen of a simulator without opening it."""
    folder = tmp_path / "simulator"
    folder.mkdir()
    library = folder / "libttsim_wh.so"
    for file in (library, folder / "soc_descriptor.yaml"):
        file.touch()
    monkeypatch.setenv("TT_METAL_SIMULATOR", str(library))
    return library


@pytest.fixture
def two_cards(tmp_path: Path) -> Path:
    for name in ("10", "2", "by-id"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(("text", "shape"), [("2x4", (2, 4)), ("1X1", (1, 1)), (" 4 x 8 ", (4, 8))])
def test_parse_mesh(text: str, shape: tuple[int, int]) -> None:
    assert parse_mesh(text) == shape


@pytest.mark.parametrize("text", ["", "8", "2x", "2x4x1", "0x4", "2x0", "-1x4", "2*4", "two x four"])
def test_parse_mesh_says_what_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not ROWSxCOLUMNS.*write e.g. 2x4") as error:
        parse_mesh(text)
    assert repr(text) in str(error.value)


def test_cards(no_card: Path, two_cards: Path) -> None:
    assert cards(no_card) == []
    assert cards(two_cards) == [str(two_cards / "2"), str(two_cards / "10")]


def test_modes(no_card: Path, two_cards: Path) -> None:
    assert choose_mode("auto", card_directory=no_card) == "golden"
    assert choose_mode("auto", card_directory=two_cards) == "hardware"
    assert choose_mode("hardware", card_directory=two_cards) == "hardware"
    for directory in (no_card, two_cards):
        assert choose_mode("golden", card_directory=directory) == "golden"
        assert choose_mode("dry-run", card_directory=directory) == "dry-run"
    with pytest.raises(MachineError, match=r"needs a Tenstorrent card and none was found.*tt-kmd.*sfpi.*golden"):
        choose_mode("hardware", card_directory=no_card)
    with pytest.raises(ValueError, match="mode 'fast' does not exist"):
        choose_mode("fast", card_directory=no_card)  # type: ignore[arg-type]


def test_a_named_simulator_is_what_ttnn_opens(simulator: Path, no_card: Path, two_cards: Path) -> None:
    for directory in (no_card, two_cards):
        assert choose_mode("auto", card_directory=directory) == "simulator"
        assert choose_mode("simulator", card_directory=directory) == "simulator"
        assert choose_mode("golden", card_directory=directory) == "golden"
        with pytest.raises(MachineError, match="would open in place of the cards; unset it"):
            choose_mode("hardware", card_directory=directory)


def test_a_mock_opens_though_a_simulator_is_named(tmp_path: Path, simulator: Path) -> None:
    """ttnn would open the library, which is none."""
    script = f"import os; os.environ['TT_METAL_SIMULATOR'] = {str(simulator)!r}\n"
    script += GOLDEN.replace('with open_mesh("1x2", card', 'with open_mesh("1x2", "golden", card')
    found, _ = run(script, tmp_path)
    assert found[0] == ["golden", "n300", [1, 2], 6.0, 6.0]


def test_report_of_the_simulator(simulator: Path, no_card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = describe(no_card)
    assert (report.mode, report.simulator) == ("simulator", simulator)
    assert f"simulator                  {simulator}" in str(report)
    (simulator.parent / "soc_descriptor.yaml").unlink()
    assert "soc_descriptor.yaml is missing" in str(describe(no_card))
    monkeypatch.delenv("TT_METAL_SIMULATOR")
    report = describe(no_card)
    assert (report.mode, report.simulator) == ("golden", None)
    assert "github.com/tenstorrent/ttsim" in str(report)


@pytest.mark.parametrize(
    ("shape", "mode", "error", "words"),
    [
        ("2x4", "hardware", MachineError, "needs a Tenstorrent card"),
        ("1x1", "simulator", MachineError, "TT_METAL_SIMULATOR names no library; download libttsim_wh.so"),
        ("2by4", "golden", ValueError, "is not ROWSxCOLUMNS"),
        ((2, 0), "golden", ValueError, "is not ROWSxCOLUMNS"),
        ((7, 7), "dry-run", ValueError, "fits no mock system"),
        ("2x4", "quick", ValueError, "mode 'quick' does not exist"),
    ],
)
def test_what_cannot_be_opened(shape: Any, mode: Any, error: type[Exception], words: str, no_card: Path) -> None:
    with pytest.raises(error, match=words):
        open_mesh(shape, mode, card_directory=no_card)


def test_auto_never_mocks_beside_cards(two_cards: Path, no_card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mock looks for cards itself: a caller that looked in the wrong place is still refused."""
    monkeypatch.setattr(guard, "CARD_DIRECTORY", two_cards)
    with pytest.raises(RuntimeError, match=r"2 Tenstorrent card\(s\) present.*refused"):
        open_mesh("2x4", "auto", card_directory=no_card)


def test_golden_computes_and_dry_run_does_not(tmp_path: Path) -> None:
    found, log = run(GOLDEN, tmp_path)
    assert found[0] == ["golden", "n300", [1, 2], 6.0, 6.0]
    assert found[1] == ["dry-run", "n300", [1, 2], 0.0, 0.0]
    assert found[2] is True
    assert len(log.splitlines()) == 1
    assert "mesh 1x2 in mode golden (no card found: mock mesh, numbers from torch)" in log


def test_hardware_opening_on_a_described_cluster(tmp_path: Path) -> None:
    found, log = run(HARDWARE, tmp_path)
    assert found[:3] == [
        ["hardware", "hardware", [2, 4], 8],
        ["hardware", "hardware", [1, 2], 2],
        ["hardware", "hardware", [8, 1], 8],
    ]
    assert found[3].startswith("InputError: mesh 9x9 does not fit this machine's 2x4 chips")
    assert found[4].startswith("RuntimeError: this process has opened real cards")
    assert found[5] == ["150", "150", "150", None], "ttnn's watchdog where a limit was given"
    assert "mesh 2x4 in mode hardware (cards found)" in log
    assert "| warning " in log
    assert "| info " not in log


@pytest.mark.parametrize("mode", ["hardware", pytest.param("golden", marks=pytest.mark.full)])
def test_one_chip_has_no_fabric(mode: str, tmp_path: Path) -> None:
    found, _ = run(ONE_CHIP, tmp_path, mode)
    assert found == [mode, [1, 1], []]


def test_report_without_cards(no_card: Path) -> None:
    report = describe(no_card)
    assert (report.cards, report.mode, report.mesh) == ((), "golden", "2x4")
    assert report.hint is not None
    assert "tt-kmd" in report.hint
    assert report.ttnn == dict(report.versions).get("ttnn", report.ttnn) != "missing"
    assert report.compiler_wanted is not None
    assert report.compiler_wanted.startswith("riscv-tt-elf-g++ (tenstorrent/sfpi:")
    assert all(version != "missing" for _, version in report.versions)
    assert dict(report.caches)["mock kernels"] != dict(report.caches)["hardware kernels"]
    page = str(report)
    for label, value in report.rows():
        assert label in page
        assert value in page
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.mode = "hardware"  # type: ignore[misc]


def test_report_with_cards(two_cards: Path) -> None:
    report = describe(two_cards)
    assert report.mode == "hardware"
    assert report.cards == (str(two_cards / "2"), str(two_cards / "10"))
    assert report.compiler is not None or "no RISC-V compiler" in str(report.hint)


def test_report_opens_and_imports_nothing(tmp_path: Path) -> None:
    script = "import json, sys; from models.jobs.doctor import describe; describe(); "
    script += "print(json.dumps([name for name in ('ttnn', 'torch') if name in sys.modules]))"
    assert run(script, tmp_path) == ([], "")
    assert isinstance(describe(), SystemReport)
