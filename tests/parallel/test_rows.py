"""Copies of row-major rows that no core moves over the end of its buffer."""

import pytest
import torch
import ttnn

from models.mock import golden
from models.mock.limits import KernelLimit
from models.parallel.rows import copy_rows, fits, write_rows
from tests.support import randn


def put(mesh, host: torch.Tensor) -> ttnn.Tensor:
    return mesh.upload(host, layout=ttnn.ROW_MAJOR_LAYOUT)


def get(mesh, x: ttnn.Tensor) -> torch.Tensor:
    return mesh.download(x).float()


def overruns(rows: int, stride: int, cores: int) -> bool:
    """Walk every core through its buffer, in the plainest way."""

    def group(share: int) -> int:
        padded = -(-share // 32) * 32
        return max(size for size in range(1, padded + 1) if (padded % size == 0 and size * stride <= 4096) or size == 1)

    shares = {rows // cores + (core < rows % cores) for core in range(min(cores, rows))} - {0}
    buffer = 2 * group(max(shares))
    for share in shares:
        place = moved = 0
        while moved < share:
            if place + group(share) > buffer:
                return True
            place, moved = (place + group(share)) % buffer, moved + group(share)
    return False


@pytest.mark.parametrize(
    ("cores", "stride"),
    [
        pytest.param(cores, stride, marks=[pytest.mark.full] if stride > 256 and cores != 64 else [])
        for cores in (56, 64, 72)
        for stride in (64, 192, 256, 512, 1024, 1536, 8192)
    ],
)
def test_the_rule_is_what_the_cores_do(stride, cores):
    wrong = {rows for rows in range(1, 40 * cores) if overruns(rows, stride, cores)}
    wrong |= {rows for rows in range(120 * cores, 135 * cores) if overruns(rows, stride, cores)}
    assert all(not fits(rows, stride, cores) for rows in wrong)
    safe = (*range(1, 40 * cores), *range(120 * cores, 135 * cores))
    assert all(fits(rows, stride, cores) for rows in safe if rows not in wrong)
    assert bool(wrong) == (stride < 256), "the real decoder has no such rows"


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_a_copy_that_does_not_fit_is_cut(mesh):
    """One core moves 129 rows in groups of 40, so there is room for 80; the others move 128 in two groups of 64."""
    x, device, rows = too_many_rows(mesh)
    part = copy_rows(device, [0, 2, 1, 0], [1, rows + 2, 2, 32])
    assert torch.equal(get(mesh, part), x[:, 2 : rows + 2, 1:])
    write_rows(device, part, [0, 0, 0, 0])
    expected = x.clone()
    expected[:, :rows, :1] = x[:, 2 : rows + 2, 1:]
    assert torch.equal(get(mesh, device), expected)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_a_copy_that_is_not_cut_is_refused(mesh):
    if golden.active() is None:
        pytest.skip("this machine has cards: these calls write over L1 on them")
    _, device, rows = too_many_rows(mesh)
    with pytest.raises(KernelLimit, match=rf"write over L1: of {rows} rows .* some cores get 128, which"):
        ttnn.slice(device, [0, 2, 1, 0], [1, rows + 2, 2, 32])
    with pytest.raises(KernelLimit, match="write over L1"):
        ttnn.slice(device, [0, 2, -1, 0], [1, rows + 2, 2, 32])
    part = copy_rows(device, [0, 2, 1, 0], [1, rows + 2, 2, 32])
    with pytest.raises(KernelLimit, match="slice_write_rm_interleaved"):
        ttnn.experimental.slice_write(part, device, [0, 0, 0, 0], [1, rows, 1, 32], [1] * 4)


def too_many_rows(mesh) -> tuple[torch.Tensor, ttnn.Tensor, int]:
    """Return values, the same on the device, and a number of their rows that takes a cut to copy."""
    cores = mesh.grid[0] * mesh.grid[1]
    rows = cores * 128 + 1
    assert not fits(rows, 64, cores)
    x = randn(1, rows + 3, 2, 32, seed=1).bfloat16().float()
    return x, put(mesh, x), rows
