"""Topologies of a Galaxy with wrap-around cables; `test_ring.py` runs this file on that mock in its own process."""

import pytest
import ttnn


@pytest.mark.parametrize("mesh", ["4x8sp1tp0", "4x4sp0tp1", "2x4sp0tp1"], indirect=True)
def test_axes_that_span_the_torus_are_rings(mesh):
    sizes = {0: 4, 1: 8}
    for axis in (mesh.sp, mesh.tp):
        closed = axis.size == sizes[axis.index]
        assert axis.topology == (ttnn.Topology.Ring if closed else ttnn.Topology.Linear)
