"""Distributed norms and the attention wrapper's rules, over meshes and awkward widths."""

import pytest
import torch
import ttnn

from models.layers import Heads, Width, joint_attention, layer_norm, rms_norm
from models.reference.metrics import relative_rmse
from tests.support import randn

LAYOUTS = ["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "4x8sp1tp0"]
# A norm rounds its output to bfloat16 once (relative step 2^-8, so an error of 0.0017) and its weight once more.
MAX_RMSE = 0.004


@pytest.mark.parametrize("mesh", LAYOUTS, indirect=True)
@pytest.mark.parametrize("size", [256, 72, 682, 2048])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm_over_fractured_features(mesh, size, kind):
    width = Width.sharded(size, mesh.tp.size)
    x, weight, bias = 2 * randn(1, 1, 45, size, seed=1) + 0.3, 1 + randn(size, seed=2) / 3, randn(size, seed=3)

    def up(tensor, **kwargs):
        return mesh.upload(width.pad(tensor, tensor.ndim - 1), tp=3, **kwargs)

    x_device = up(x)
    x = mesh.download(x_device, tp=3).float()[..., :size]
    weight_device = up((weight * width.norm_factor)[None, None, None])
    if kind == "rms":
        out = rms_norm(x_device, weight_device, mesh, width, 1e-6)
        expected = torch.nn.functional.rms_norm(x, (size,), weight, 1e-6)
    else:
        out = layer_norm(x_device, weight_device, up(bias[None, None, None]), mesh, width, 1e-6)
        expected = torch.nn.functional.layer_norm(x, (size,), weight, bias, 1e-6)
    host = mesh.download(out, tp=3).float()
    assert relative_rmse(expected, host[..., :size]) < MAX_RMSE
    if kind == "rms":
        assert host[..., size:].abs().sum() == 0


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_attention_without_sp_has_no_padding_rows(mesh):
    q = mesh.upload(randn(1, 2, 64, 32))
    with pytest.raises(ValueError, match="64 visual rows for 60 tokens"):
        joint_attention(Heads(q, q, q), None, mesh, tokens=60, scale=1.0, fidelity=ttnn.MathFidelity.HiFi2)
