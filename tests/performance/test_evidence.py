"""The table of docs/evidence.md: no op of the device path without a row, and no witness that said nothing."""

import json
from pathlib import Path

import pytest
import torch
import ttnn

from models.performance.configurations import configurations
from models.performance.evidence import WAYS, Way, Witness, device_path, kept, table, widened, witnesses
from scripts.evidence import DEVICE_PATH, DOCUMENT, RECORDS
from tests.support import randn

ROWS = json.loads(DEVICE_PATH.read_text())


def record(test: str, names: list[str], mode: str = "simulator", outcome: str = "passed", chips: int = 1) -> dict:
    return {
        "test": test,
        "mode": mode,
        "chips": chips,
        "seconds": 1.0,
        "outcome": outcome,
        "configurations": names,
    }


def test_the_document_has_a_row_for_each_configuration():
    text = DOCUMENT.read_text()
    assert set(ROWS) == set(map(str, WAYS))
    for name in {name for names in ROWS.values() for name in names}:
        assert f"| {name} |" in text, "python -m scripts.evidence --traced"


def _marks(way: Way) -> list:
    """One way takes half a minute; the others are for the long run."""
    long = [] if way == Way("quietbox", "sp1tp0") else [pytest.mark.full]
    return [pytest.mark.alone, *long, *([pytest.mark.system("galaxy")] if way.system == "galaxy" else [])]


@pytest.mark.parametrize("way", [pytest.param(way, marks=_marks(way), id=str(way)) for way in WAYS])
def test_the_device_path_has_no_other_configuration(way):
    """After a change that adds one: `python -m scripts.evidence` writes it down, and shows who vouches for it."""
    new = set(device_path(way)) - set(ROWS[str(way)])
    assert not new, f"no row in docs/evidence.md: {sorted(new)}"


def test_records_name_tests_that_exist_and_passed():
    for file in RECORDS.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            path = Path(row["test"].partition("::")[0])
            assert path.exists(), row["test"]
            assert row["outcome"] == "passed"
            assert row["configurations"]


def test_the_best_witness_counts():
    rows = [
        record("a", ["x", "y"], outcome="failed"),
        record("tests/mock/golden/test_kernel_vectors.py::v", ["x", "z"], "golden"),
        record("golden", ["w"], "golden"),
        record("b", ["x"], chips=2),
        record("c", ["x"], "hardware", chips=8),
    ]
    found = witnesses(rows)
    assert found["x"] == Witness("hardware", "c", 8)
    assert found["z"].kind == "vector"
    assert "y" not in found, "a failed test is no witness"
    assert "w" not in found, "golden execution does not vouch for itself"
    assert [row["test"] for row in kept(rows, ["x"])] == ["c"]


def test_a_near_configuration_is_said_to_be_near():
    found = witnesses([record("a", ["add bf16 -> bf16", "all_gather bf16 links 1 -> bf16 over 2 chips"])])
    names = ["add bf16/part -> bf16", "all_gather bf16 links several -> bf16 over 3+ chips", "add f32 -> f32"]
    assert [row.kind for row in widened(found, names).values() if row.kind == "near"] == ["near", "near"]
    text = "\n".join(table({"way": [*names, "add bf16 -> bf16"]}, found))
    assert "| golden | 1 |" in text
    assert "| kernels | 1 |" in text


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_what_decides_the_code_is_in_a_configuration(mesh):
    x = mesh.upload(randn(1, 1, 40, 64, seed=1))
    y = mesh.upload(randn(1, 1, 32, 64, seed=1), dtype=ttnn.float32)
    config = ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity.HiFi2, math_approx_mode=False, fp32_dest_acc_en=True
    )
    w = mesh.upload(torch.eye(64)[None, None])
    with configurations() as found:
        ttnn.add(x, 1.0)
        ttnn.add(y, y)
        ttnn.linear(x, w, dtype=ttnn.float32, activation="silu", compute_kernel_config=config)
    assert list(found) == [
        "add bf16/part number -> bf16/part",
        "add f32 f32 -> f32",
        "linear bf16/part bf16 activation silu HiFi2 f32 sums -> f32/part",
    ]
    assert set(found.values()) == {2}
