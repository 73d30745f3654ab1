"""Distributed norms and the attention wrapper's rules, over meshes and awkward widths."""

import pytest
import torch
import ttnn

from models.layers import HeadRMSNorm, Heads, RotaryTable, Width, joint_attention, layer_norm, rms_norm
from models.layers.normalization import _norm_links
from models.mochi.transformer.rope import _pair_rotation
from models.reference.metrics import relative_rmse
from tests.support import StateDict, pairs, randn

LAYOUTS = ["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "4x8sp1tp0"]
# A norm rounds its output to bfloat16 once (relative step 2^-8, so an error of 0.0017) and its weight once more.
MAX_RMSE = 0.004


@pytest.mark.parametrize(
    ("mesh", "size", "kind"), pairs(LAYOUTS, [256, 72, 682, 2048], ["rms", "layer"]), indirect=["mesh"]
)
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


@pytest.mark.parametrize("size", [120, 256])
def test_norm_over_an_odd_number_of_chips(open_layout, size):
    """The fused op adds the chips' sums in pairs, so three chips take the separate ones."""
    mesh = open_layout("1x3sp0tp1")
    width = Width.sharded(size, 3)
    x, weight = randn(1, 1, 45, size, seed=1), 1 + randn(size, seed=2) / 3
    out = rms_norm(
        mesh.upload(width.pad(x, 3), tp=3),
        mesh.upload(width.pad((weight * width.norm_factor)[None, None, None], 3), tp=3),
        mesh,
        width,
        1e-6,
    )
    expected = torch.nn.functional.rms_norm(x, (size,), weight, 1e-6)
    assert relative_rmse(expected, mesh.download(out, tp=3).float()[..., :size]) < 2 * MAX_RMSE  # x is rounded too


@pytest.mark.parametrize("mesh", ["4x8sp1tp0"], indirect=True)
@pytest.mark.parametrize(("rows", "links"), [(96, 3), (129, 3), (160, 3), (161, 3), (225, 4), (257, 3), (300, 4)])
def test_norm_of_few_rows_over_many_links(mesh, rows, links):
    """A prompt of 129 to 160 tokens: its 5 rows of tiles cannot be shared by the 4 links of a Galaxy."""
    width = Width.sharded(256, mesh.tp.size)
    x, weight = randn(1, 1, rows, 256, seed=1), 1 + randn(256, seed=2) / 3
    x_device = mesh.upload(x, tp=3)
    assert _norm_links(x_device, mesh.tp.links) == links
    out = rms_norm(x_device, mesh.upload(weight[None, None, None], tp=3), mesh, width, 1e-6)
    expected = torch.nn.functional.rms_norm(x, (256,), weight, 1e-6)
    assert relative_rmse(expected, mesh.download(out, tp=3).float()) < 2 * MAX_RMSE


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.bfloat8_b])
def test_norm_of_all_heads_on_one_chip(mesh, dtype):
    """Mochi's 24 heads of 128 with TP = 1 are 96 tiles, which the fused op norms, and does not rotate."""
    width, rows = Width.heads(1, 128), 64
    x, weight = randn(1, 1, rows, 24 * 128, seed=1), 1 + randn(128, seed=2) / 3
    angles = randn(1, 24, rows, 64, seed=3).repeat_interleave(2, dim=-1)
    norm = HeadRMSNorm(mesh, "norm", 24, width, 1e-5, dtype)
    norm.load(StateDict(torch.nn.ParameterDict({"weight": torch.nn.Parameter(weight)}), "norm."))
    assert (norm.fused, norm.rotates) == (True, False)
    table = RotaryTable(mesh.upload(torch.cos(angles)), mesh.upload(torch.sin(angles)), mesh.upload(_pair_rotation()))
    out = norm(mesh.upload(x), table)
    assert out.dtype == dtype
    expected = torch.nn.functional.rms_norm(x.reshape(1, rows, 24, 128).transpose(1, 2), (128,), weight, 1e-5)
    turned = torch.stack([-expected[..., 1::2], expected[..., 0::2]], dim=-1).flatten(-2)
    expected = expected * torch.cos(angles) + turned * torch.sin(angles)
    # Inputs, tables and the norm are rounded too; bfloat8_b keeps 7 bits next to the largest of 16 values.
    assert relative_rmse(expected, mesh.download(out).float()) < (2 * MAX_RMSE if dtype == ttnn.bfloat16 else 0.012)


# Tiles of heads on a chip: 2, 6 and 3 are no whole blocks of the fused op, 4 and 8 are.
@pytest.mark.parametrize(
    ("mesh", "sizes", "rotate"),
    pairs(["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1"], [(8, 32), (24, 20), (12, 64), (4, 96)], [False, True]),
    indirect=["mesh"],
)
def test_norm_of_heads(mesh, sizes, rotate):
    """Every number of tiles of heads on a chip, with and without rotation."""
    heads, head = sizes
    width = Width.heads(1, head)
    rows = 64 if rotate else 45
    x, weight = randn(1, 1, rows, heads * head, seed=1), 1 + randn(head, seed=2) / 3
    angles = randn(1, heads, rows, head // 2, seed=3).repeat_interleave(2, dim=-1)
    norm = HeadRMSNorm(mesh, "norm", heads, width, 1e-5)
    norm.load(StateDict(torch.nn.ParameterDict({"weight": torch.nn.Parameter(weight)}), "norm."))
    assert norm.fused == (norm.heads > 1 and norm.heads * width.padded // 32 % 4 == 0)
    table = None
    if rotate:
        cos, sin = (mesh.upload(width.pad(f(angles), 3), tp=1) for f in (torch.cos, torch.sin))
        table = RotaryTable(cos, sin, mesh.upload(_pair_rotation()))
    padded = Width.heads(heads, head).pad(x, 3)
    out = mesh.download(norm(mesh.upload(padded, tp=3), table), tp=1).float()[..., :head]
    split = x.reshape(1, rows, heads, head).transpose(1, 2)
    expected = torch.nn.functional.rms_norm(split, (head,), weight, 1e-5)
    if rotate:
        turned = torch.stack([-expected[..., 1::2], expected[..., 0::2]], dim=-1).flatten(-2)
        expected = expected * torch.cos(angles) + turned * torch.sin(angles)
    assert relative_rmse(expected, out) < 2 * MAX_RMSE  # inputs and tables are rounded too


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_attention_without_sp_has_padding_in_its_last_tile_only(mesh):
    """Keys behind the real tokens are never attended to, whatever they hold."""
    q, k, v = (randn(1, 2, 64, 32, seed=seed) for seed in (1, 2, 3))
    k[:, :, 60:], v[:, :, 60:] = 50.0, 50.0
    heads = Heads(*(mesh.upload(x) for x in (q, k, v)))
    options = {"scale": 32**-0.5, "fidelity": ttnn.MathFidelity.HiFi4}
    out, _ = joint_attention(heads, None, mesh, tokens=60, **options)
    assert list(out.shape) == [1, 2, 64, 32]
    expected = torch.nn.functional.scaled_dot_product_attention(*(x[:, :, :60] for x in (q, k, v)))
    assert relative_rmse(expected, mesh.download(out).float()[:, :, :60]) < 0.02
    with pytest.raises(ValueError, match="30 rows are not the tiles of 64"):
        joint_attention(heads, None, mesh, tokens=30, **options)
