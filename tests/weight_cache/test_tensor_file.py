"""Files of parameters are, byte for byte, what ttnn would write, whoever writes them."""

import errno

import pytest
import torch
import ttnn

from models.layers import Parameter
from weight_cache import tensor_file
from weight_cache.digest import checksum
from weight_cache.tensor_file import TensorWriter

LAYOUTS = ("1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "2x4sp1tp0", "4x8sp1tp0")


def matrix(shape, **placement):
    return Parameter({"weight": shape}, moves_only=True, **placement)


def values(*shape, seed=0):
    """A bfloat16 matrix that is not contiguous, as a transposed weight of a checkpoint is."""
    return torch.randn(*reversed(shape), generator=torch.Generator().manual_seed(seed)).bfloat16().T


@pytest.fixture
def written_by_ttnn(monkeypatch):
    """Names of the files that ttnn wrote."""
    names, dump = [], ttnn.dump_tensor
    monkeypatch.setattr(ttnn, "dump_tensor", lambda path, tensor: names.append(path.name) or dump(path, tensor))
    return names


def write_two(mesh, parameter, hosts, folder):
    """Write two parameters of one kind, and compare both with what ttnn writes."""
    writer = TensorWriter(mesh)
    for index, host in enumerate(hosts):
        path = folder / f"{index}.tensorbin"
        assert writer.write(path, parameter, host) == checksum(path)
    for index, host in enumerate(hosts):
        expected = folder / "expected.tensorbin"
        ttnn.dump_tensor(expected, parameter.distribute(mesh, host))
        assert (folder / f"{index}.tensorbin").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("mesh", LAYOUTS, indirect=True)
@pytest.mark.parametrize("placement", [{"tp": 1}, {"tp": 0}, {}, {"sp": 0, "tp": 1}, {"sp": 1}], ids=str)
def test_alike_parameters_are_written_as_ttnn_would(mesh, placement, tmp_path, written_by_ttnn, monkeypatch):
    monkeypatch.setattr(tensor_file, "_PIECE_BYTES", 100_000)  # several pieces and a smaller last one
    shape = (256, 768)
    write_two(mesh, matrix(shape, **placement), [values(*shape, seed=seed) for seed in range(2)], tmp_path)
    assert written_by_ttnn == ["0.tensorbin", "expected.tensorbin", "expected.tensorbin"]


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "2x4sp0tp1", "2x4sp1tp0"], indirect=True)
@pytest.mark.parametrize("placement", [{"tp": 3}, {"sp": 2, "tp": 3}, {"tp": 2}, {"sp": 0}, {}], ids=str)
def test_several_matrices_in_one_are_written_as_ttnn_would(mesh, placement, tmp_path, written_by_ttnn):
    """Such as the four parts of a modulation's weight, which are a view of the checkpoint's tensor."""
    shape = (4, 1, 128, 256)
    hosts = [values(1024, 128, seed=seed).unflatten(0, (1, 4, 256)).permute(1, 0, 3, 2) for seed in range(2)]
    assert hosts[0].shape == shape
    write_two(mesh, matrix(shape, **placement), hosts, tmp_path)
    assert written_by_ttnn == ["0.tensorbin", "expected.tensorbin", "expected.tensorbin"]


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        ((64, 128), ttnn.bfloat8_b, ttnn.TILE_LAYOUT),
        ((64, 128), ttnn.float32, ttnn.TILE_LAYOUT),
        ((64, 128), ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT),
        ((64, 160), ttnn.bfloat16, ttnn.TILE_LAYOUT),  # shards of 40 columns
        ((48, 128), ttnn.bfloat16, ttnn.TILE_LAYOUT),
        ((3, 64, 160), ttnn.bfloat16, ttnn.TILE_LAYOUT),
    ],
    ids=str,
)
def test_what_is_not_whole_tiles_of_bfloat16_is_left_to_ttnn(mesh, shape, dtype, layout, tmp_path, written_by_ttnn):
    parameter = matrix(shape, tp=len(shape) - 1, dtype=dtype, layout=layout)
    write_two(mesh, parameter, [torch.randn(shape).bfloat16() for _ in range(2)], tmp_path)
    assert written_by_ttnn[:2] == ["0.tensorbin", "1.tensorbin"]


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_float32_values_are_rounded_by_ttnn(mesh, tmp_path, written_by_ttnn):
    parameter = matrix((64, 128), tp=1)
    write_two(mesh, parameter, [values(64, 128), values(64, 128).float() * 1.001], tmp_path)
    assert written_by_ttnn[:2] == ["0.tensorbin", "1.tensorbin"]


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_another_order_of_values_is_left_to_ttnn(mesh, tmp_path, written_by_ttnn, monkeypatch):
    """A ttnn that arranges its files differently costs time, and nothing else."""
    pieces = tensor_file._pieces
    monkeypatch.setattr(tensor_file, "_pieces", lambda *a: (memoryview(p.tobytes()[::-1]) for p in pieces(*a)))
    write_two(mesh, matrix((64, 128), tp=1), [values(64, 128, seed=seed) for seed in range(2)], tmp_path)
    assert written_by_ttnn[:2] == ["0.tensorbin", "1.tensorbin"]


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_a_full_disk_is_an_error(mesh, tmp_path):
    import resource

    writer, parameter = TensorWriter(mesh), matrix((256, 256), tp=1)
    writer.write(tmp_path / "first.tensorbin", parameter, values(256, 256))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="too large") as error:
            writer.write(tmp_path / "second.tensorbin", parameter, values(256, 256))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "2x4sp0tp1"], indirect=True)
def test_stored_bfloat8_is_the_nearest_block_float(mesh, tmp_path):
    """Against the definition of the format, not against ttnn: 16 values of a row share the largest one's exponent, and
    have 7 bits each (tt-metal `tech_reports/data_formats`)."""
    host = torch.randn((64, 128), generator=torch.Generator().manual_seed(8)).bfloat16()
    parameter = matrix((64, 128), tp=1, dtype=ttnn.bfloat8_b)
    TensorWriter(mesh).write(tmp_path / "a.tensorbin", parameter, host)
    parameter.put(mesh, ttnn.load_tensor(tmp_path / "a.tensorbin"))
    stored, wanted = mesh.download(parameter.tensor, tp=1).double(), host.double()
    exponent = wanted.abs().unflatten(1, (-1, 16)).amax(-1, keepdim=True).log2().floor()
    step = (2.0 ** (exponent - 6)).expand(-1, -1, 16).flatten(1)
    assert (stored % step).abs().max() == 0, "values are whole steps of their block"
    assert ((stored - wanted).abs() / step).max() <= 0.75, "to which a value is rounded, in two roundings"
    assert abs((stored * wanted).sum() / wanted.square().sum() - 1) < 1e-3, "without a bias"
    parameter.release()
