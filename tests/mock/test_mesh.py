"""Every test that opens a cluster does so in a process of its own: ttnn binds a process to one cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.machine import host as guard
from models.mock.mesh import close_mock_mesh, mock_mesh, open_mock_mesh, set_process_system
from models.mock.toolchain import package_directory

PRELUDE = """
import json, os
from models.machine.host import quiet_ttnn
ttnn = quiet_ttnn()
import torch
from models.mock.mesh import (
    close_mock_mesh, mock_mesh, open_mock_mesh, process_system, release_cluster, set_process_system,
)

def facts(mesh):
    x = ttnn.from_torch(torch.ones(1, 1, 32, 64), device=mesh, layout=ttnn.TILE_LAYOUT, dtype=ttnn.bfloat16)
    gathered = [
        list(ttnn.all_gather(x, dim=3, cluster_axis=axis, topology=ttnn.Topology.Linear).shape)[3] // 64
        for axis, size in enumerate(mesh.shape) if size > 1
    ]
    grid, dram = mesh.compute_with_storage_grid_size(), mesh.dram_grid_size()
    return [list(mesh.shape), [grid.x, grid.y], dram.x * dram.y, gathered]

def refused(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""

T3000 = """
def bare(rows, cols):
    return open_mock_mesh(rows, cols, numbers=False)

meshes = [bare(*shape) for shape in ((2, 4), (1, 1), (1, 2), (2, 2), (2, 4), (4, 2), (1, 8), (8, 1))]
side_by_side = [facts(mesh) for mesh in meshes]
for mesh in meshes:
    close_mock_mesh(mesh)
with mock_mesh(2, 2, numbers=False) as mesh:
    after = facts(mesh)
twice = refused(lambda: close_mock_mesh(mesh))
larger = refused(lambda: bare(4, 4))
impossible = refused(lambda: bare(16, 2))
other = refused(lambda: open_mock_mesh(2, 4, numbers=False, system="galaxy"))
rebind = refused(lambda: set_process_system("galaxy"))
release_cluster()
with mock_mesh(1, 8, numbers=False) as mesh:
    reopened = facts(mesh)
left = sorted(name for name in os.environ if name.startswith("TT_"))
print(json.dumps(dict(
    side_by_side=side_by_side, after=after, twice=twice, larger=larger, impossible=impossible, other=other,
    rebind=rebind, reopened=reopened, left=left, system=process_system().name,
)))
"""

REUSE = """
from pathlib import Path

def tensor(mesh):
    return ttnn.from_torch(torch.ones(1, 1, 32, 64), device=mesh, layout=ttnn.TILE_LAYOUT, dtype=ttnn.bfloat16)

def threads():
    return len(list(Path("/proc/self/task").iterdir()))

def use(mesh):
    halves = mesh.get_submeshes() or mesh.create_submeshes(ttnn.MeshShape(1, 2))
    for part in (mesh, *halves):
        ttnn.add(tensor(part), tensor(part))

def state(mesh):
    views = [ttnn.get_memory_view(mesh, kind) for kind in (ttnn.BufferType.DRAM, ttnn.BufferType.L1)]
    return [mesh.num_program_cache_entries(), *(view.total_bytes_allocated_per_bank for view in views)]

found, counts, states = {}, [], []
for numbers in (True, False, True):
    with mock_mesh(2, 2, numbers=numbers, system="t3000") as mesh, mock_mesh(1, 4, numbers=False) as line:
        states.append([state(part) for part in (mesh, *mesh.get_submeshes())])
        use(mesh)
        kept = line
    counts.append(threads())
found |= {"threads": len(set(counts)), "states": states}
with mock_mesh(1, 4, numbers=False) as one, mock_mesh(1, 4, numbers=False) as two:
    found["two at once"] = [one is kept, two is kept]
with mock_mesh(2, 2) as full:
    left = tensor(full)
with mock_mesh(2, 2) as fresh:
    found["after a leak"] = [fresh is full, *state(fresh)]
print(json.dumps(found))
"""

GALAXY = """
set_process_system("galaxy")
meshes = [open_mock_mesh(*shape, numbers=False) for shape in ((4, 8), (4, 4), (3, 5), (8, 4), (1, 1))]
print(json.dumps([facts(mesh) for mesh in meshes]))
"""

N150 = """
with mock_mesh(1, 1, numbers=False) as mesh:
    print(json.dumps([process_system().name, facts(mesh)]))
"""

TORUS = """
with mock_mesh(4, 8, numbers=False, system="galaxy-torus") as mesh:
    x = ttnn.from_torch(torch.ones(1, 1, 32, 64), device=mesh, layout=ttnn.TILE_LAYOUT, dtype=ttnn.bfloat16)
    shapes = [
        list(ttnn.all_gather(x, dim=3, cluster_axis=axis, topology=ttnn.Topology.Ring).shape) for axis in (0, 1)
    ]
    print(json.dumps(shapes))
import loguru
exec("logger.warning(text)", {"__name__": "ttnn", "logger": loguru.logger, "text": "a warning of ttnn's"})
"""


def start(script: str, directory: Path) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TT_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=directory,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[Any, str]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(out), errors


def package_state() -> dict[Path, int]:
    paths = (path for path in package_directory().rglob("*") if "__pycache__" not in path.parts)
    return {path: path.lstat().st_mtime_ns for path in paths}


def test_t3000_serves_every_mesh_it_holds(tmp_path: Path) -> None:
    before = package_state()
    found, errors = finish(start(T3000, tmp_path))
    assert package_state() == before
    assert found["side_by_side"] == [
        [[2, 4], [8, 8], 12, [2, 4]],
        [[1, 1], [8, 8], 12, []],
        [[1, 2], [8, 8], 12, [2]],
        [[2, 2], [8, 8], 12, [2, 2]],
        [[2, 4], [8, 8], 12, [2, 4]],
        [[4, 2], [8, 8], 12, [4, 2]],
        [[1, 8], [8, 8], 12, [8]],
        [[8, 1], [8, 8], 12, [8]],
    ]
    assert found["after"] == [[2, 2], [8, 8], 12, [2, 2]]
    assert found["reopened"] == [[1, 8], [8, 8], 12, [8]]
    assert found["system"] == "t3000"
    assert found["twice"].startswith("ValueError: this mesh was not opened by open_mock_mesh")
    for refusal in ("larger", "other", "rebind"):
        assert found[refusal].startswith("RuntimeError: "), refusal
        assert "mock cluster, t3000 (2x4), which was chosen at the first open" in found[refusal], refusal
    assert found["impossible"].startswith("InputError: mesh 16x2 fits no mock system")
    assert found["left"] == []
    assert errors == ""
    assert list(tmp_path.iterdir()) == []


def test_a_mesh_that_was_closed_empty_is_handed_out_as_new(tmp_path: Path) -> None:
    found, errors = finish(start(REUSE, tmp_path))
    assert found["states"] == [[[0, 0, 0]], [[0, 0, 0]] * 3, [[0, 0, 0]] * 3]
    assert found["threads"] == 1, "ttnn keeps some for every submesh that was ever made"
    assert found["two at once"] == [True, False]
    assert found["after a leak"] == [False, 0, 0, 0]
    assert errors == ""


def test_two_clusters_at_once(tmp_path: Path) -> None:
    galaxy, n150 = start(GALAXY, tmp_path), start(N150, tmp_path)
    assert finish(n150) == (["n150", [[1, 1], [8, 9], 12, []]], "")
    assert finish(galaxy) == (
        [
            [[4, 8], [8, 9], 12, [4, 8]],
            [[4, 4], [8, 9], 12, [4, 4]],
            [[3, 5], [8, 9], 12, [3, 5]],
            [[8, 4], [8, 9], 12, [8, 4]],
            [[1, 1], [8, 9], 12, []],
        ],
        "",
    )


def test_torus_has_rings_and_only_the_import_is_silenced(tmp_path: Path) -> None:
    shapes, errors = finish(start(TORUS, tmp_path))
    assert shapes == [[1, 1, 32, 256], [1, 1, 32, 512]]
    assert "a warning of ttnn's" in errors
    assert len(errors.splitlines()) == 1


def test_cards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0").touch()
    monkeypatch.setattr(guard, "CARD_DIRECTORY", tmp_path)
    with pytest.raises(RuntimeError, match=r"1 Tenstorrent card\(s\) present.*mode 'hardware'"):
        open_mock_mesh(2, 4)
    with pytest.raises(RuntimeError, match="a mock mesh is refused"), mock_mesh(1, 1):
        pass


def test_wrong_arguments_open_nothing() -> None:
    with pytest.raises(ValueError, match="'t4000' does not exist"):
        open_mock_mesh(2, 4, system="t4000")
    with pytest.raises(ValueError, match="'t4000' does not exist"):
        set_process_system("t4000")
    with pytest.raises(ValueError, match="mesh 7x7 fits no mock system"):
        open_mock_mesh(7, 7)
    with pytest.raises(ValueError, match="not opened by open_mock_mesh"):
        close_mock_mesh(object())  # type: ignore[arg-type]
