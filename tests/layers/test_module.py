"""Parameters and loading: strict, by full name, one tensor at a time."""

import pytest
import torch

from models.layers import ColumnParallelLinear, Module, Parameter, Width
from models.layers.linear import fuse_columns
from tests.support import StateDict, randn

MESH = pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)


class Pair(Module):
    """Two linears below a named part."""

    def __init__(self, mesh):
        super().__init__(mesh)
        self.prefix = "pair."
        width = Width.plain(64)
        self.parts = [
            ColumnParallelLinear(mesh, [name], width, Width.sharded(128, mesh.tp.size), bias=True) for name in "ab"
        ]


def weights() -> torch.nn.Module:
    return torch.nn.ModuleDict({"pair": torch.nn.ModuleDict({n: torch.nn.Linear(64, 128) for n in "ab"})})


@MESH
def test_loads_by_checkpoint_name(mesh):
    source, module = weights(), Pair(mesh)
    done = []
    module.load(StateDict(source), on_parameter=lambda i, n: done.append((i, n)))
    assert done == [(i + 1, 4) for i in range(4)]
    x = randn(1, 1, 32, 64)
    with torch.no_grad():
        expected = source["pair"]["b"](x)
    actual = mesh.download(module.parts[1](mesh.upload(x)), tp=3).float()
    assert (actual - expected).abs().max() < 0.02
    paths = [path for path, _, _ in module.parameters()]
    assert paths == ["parts.0.weight", "parts.0.bias", "parts.1.weight", "parts.1.bias"]


@MESH
def test_every_misfit_is_named_in_full(mesh):
    source = weights()
    del source["pair"]["b"]
    source["pair"]["c"] = torch.nn.Linear(64, 128)
    with pytest.raises(
        ValueError,
        match=r"2 missing \(pair\.b\.bias, pair\.b\.weight\); 2 unexpected \(pair\.c\.bias, pair\.c\.weight\)",
    ):
        Pair(mesh).load(StateDict(source))
    source = weights()
    source["pair"]["a"] = torch.nn.Linear(32, 128)
    with pytest.raises(ValueError, match=r"pair\.a\.weight has shape \(128, 32\), the model needs \(128, 64\)"):
        Pair(mesh).load(StateDict(source))


@MESH
def test_a_misfit_loads_nothing(mesh):
    module, source = Pair(mesh), weights()
    del source["pair"]["b"]
    with pytest.raises(ValueError, match="missing"):
        module.load(StateDict(source))
    with pytest.raises(RuntimeError, match=r"a\.weight was used before it was loaded"):
        module.parts[0](mesh.upload(randn(1, 1, 32, 64)))


@MESH
def test_release_frees_the_device(mesh):
    module = Pair(mesh)
    module.load(StateDict(weights()))
    tensor = module.parts[0].weight.tensor
    module.release()
    assert not tensor.is_allocated()


def test_fused_columns_give_each_shard_its_part_of_all():
    a, b = torch.arange(8.0)[None], torch.arange(100.0, 104.0)[None]
    assert fuse_columns([a, b], 2)[0].tolist() == [0, 1, 2, 3, 100, 101, 4, 5, 6, 7, 102, 103]


@pytest.mark.parametrize(("size", "tp", "padded"), [(3072, 4, 3072), (682, 4, 768), (682, 1, 704), (16, 2, 64)])
def test_width_pads_to_whole_tiles_per_shard(size, tp, padded):
    width = Width.sharded(size, tp)
    assert width.padded == padded
    x = randn(2, size)
    assert torch.equal(width.pad(x, 1)[:, :size], x)
    assert width.pad(x, 1)[:, size:].abs().sum() == 0


def test_head_width_pads_each_head():
    width = Width.heads(3, 20)
    x = randn(60, 2)
    padded = width.pad(x, 0).reshape(3, 32, 2)
    assert torch.equal(padded[:, :20], x.reshape(3, 20, 2))
    assert padded[:, 20:].abs().sum() == 0


def test_a_parameter_says_what_it_is_made_of():
    with pytest.raises(RuntimeError, match="made of q, k was used before"):
        _ = Parameter({"q": (1,), "k": (1,)}).tensor
