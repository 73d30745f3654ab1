"""A Galaxy with wrap-around cables: axes that span it are rings, and the same model runs on them.

Its cluster is not the one that other tests of this process run on, so it has a process of its own.
"""

import subprocess
import sys

import pytest
import ttnn

from models.performance.counts import Call


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_parts_of_a_system_are_lines(mesh):
    assert mesh.sp.topology == mesh.tp.topology == ttnn.Topology.Linear


MODEL = [
    "tests/mochi/transformer/test_block.py::test_block[4x8sp1tp0-0-77]",
    "tests/mochi/transformer/test_model.py::test_matches_diffusers[4x8sp1tp0-1]",
]


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(["tests/parallel/on_torus.py", *MODEL[:1]], id="block", marks=pytest.mark.full),
        pytest.param(["tests/parallel/test_collectives.py", *MODEL[1:]], id="model", marks=pytest.mark.full),
    ],
)
def test_the_model_on_rings(chosen):
    """`pytest --system galaxy-torus` runs what is there for a line: collectives, a block and the whole model."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "", "--system", "galaxy-torus", *chosen]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " skipped" not in done.stdout


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
@pytest.mark.parametrize(("topology", "hops"), [(ttnn.Topology.Linear, 3), (ttnn.Topology.Ring, 2)])
def test_a_ring_halves_the_busiest_link(mesh, topology, hops):
    x = mesh.upload([[0.0]])
    assert Call("ttnn.all_gather", (x,), {"cluster_axis": 1, "topology": topology}, [x], [x]).hops() == hops
