"""The gathered product on grids whose width the links do not divide."""

import pytest
import ttnn

from models.layers.matmul import gathered_matmul
from models.parallel import Mesh
from models.reference.metrics import relative_rmse
from tests.support import randn


@pytest.mark.parametrize("mesh", ["4x8sp1tp0"], indirect=True)
@pytest.mark.parametrize("columns", [5, 6, 7, 8])
def test_links_that_do_not_divide_the_grid(mesh, columns):
    """4 links share 5, 6 or 7 columns of cores: all groups but the last are of one size, rounded up."""
    mesh = Mesh(mesh.device, mesh.layout)
    assert mesh.tp.links == 4
    mesh.grid = (columns, mesh.grid[1])
    x, weight = randn(1, 1, 96, 256, seed=1), randn(256, 512, seed=2)
    (out,) = gathered_matmul(mesh.upload(x, tp=3), mesh.upload(weight, tp=1), mesh, fidelity=ttnn.MathFidelity.HiFi4)
    assert relative_rmse(x @ weight, mesh.download(out, tp=3).float()) < 0.01
    mesh.release()
