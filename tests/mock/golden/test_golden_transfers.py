"""Uploads, downloads and files: what goes up comes down, in every dtype and placement."""

import pytest
import torch
import ttnn

from tests.mock.golden.chips import COLS, ROWS

INTEGERS = {
    ttnn.uint8: (0, 255),
    ttnn.uint16: (0, 65535),
    ttnn.int32: (-(2**31), 2**31 - 1),
    ttnn.uint32: (0, 2**31 + 5),
}


@pytest.mark.parametrize("layout", [ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT])
@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.float32])
def test_floats(chips, dtype, layout):
    x = chips.random(1, 2, 40, 64, dtype=dtype)
    chips.check(chips.put(x, dtype, layout), lambda v: v, x, dtype=dtype)


@pytest.mark.parametrize("layout", [ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers(device_2x4, dtype, layout):
    low, high = INTEGERS[dtype]
    x = torch.tensor([low, high, 1, 7] * 256, dtype=torch.int64).reshape(1, 1, 32, 32)
    # Torch has few kernels for unsigned dtypes; ttnn reads their bits.
    host = x.to({ttnn.uint8: torch.uint8, ttnn.uint32: torch.uint32}.get(dtype, torch.int32))
    tensor = ttnn.from_torch(
        host, device=device_2x4, dtype=dtype, layout=layout, mesh_mapper=ttnn.ReplicateTensorToMesh(device_2x4)
    )
    for part in ttnn.get_device_tensors(tensor):
        assert torch.equal(ttnn.to_torch(part).to(torch.int64), x)


@pytest.mark.parametrize("dtype", [ttnn.bfloat8_b, ttnn.bfloat4_b])
def test_block_floats_are_packed_by_ttnn_once(chips, dtype):
    x = chips.random(1, 1, 40, 64, dtype=ttnn.float32)
    down = chips.get(chips.put(x, dtype))
    for value, got in zip(x, down, strict=True):
        packed = ttnn.to_torch(ttnn.from_torch(value, dtype=dtype, layout=ttnn.TILE_LAYOUT)).float()
        assert torch.equal(got, packed)
        assert not torch.equal(got, value)
    # Packed numbers survive a second trip unchanged.
    again = chips.get(chips.put(down, dtype))
    assert all(torch.equal(a, b) for a, b in zip(again, down, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3.4e38, 1e-40])
def test_special_numbers(chips, value):
    x = [torch.full((1, 1, 32, 32), value)] * 8
    for got in chips.get(chips.put(x, ttnn.float32)):
        torch.testing.assert_close(got, x[0], rtol=0, atol=0, equal_nan=True)
    for got in chips.get(ttnn.typecast(chips.put(x, ttnn.float32), ttnn.bfloat16)):
        torch.testing.assert_close(got, x[0].to(torch.bfloat16).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dims", [(2, 3), (3, 2), (None, 3), (2, None), (None, None)])
def test_mappers(device_2x4, dims):
    x = torch.arange(128 * 256, dtype=torch.float32).reshape(1, 1, 128, 256)
    if dims == (None, None):
        mapper = ttnn.ReplicateTensorToMesh(device_2x4)
    else:
        mapper = ttnn.ShardTensor2dMesh(device_2x4, mesh_shape=(ROWS, COLS), dims=dims)
    tensor = ttnn.from_torch(x, device=device_2x4, dtype=ttnn.float32, layout=ttnn.TILE_LAYOUT, mesh_mapper=mapper)
    # An op between, so that no value can come from the host tensor itself.
    for chip, part in enumerate(ttnn.get_device_tensors(ttnn.multiply(tensor, 2.0))):
        expected = 2 * x
        for axis, dim in enumerate(dims):
            if dim is not None:
                expected = expected.chunk((ROWS, COLS)[axis], dim=dim)[divmod(chip, COLS)[axis]]
        assert torch.equal(ttnn.to_torch(part), expected)


def test_composer_joins_the_mesh(chips, device_2x4):
    x = torch.randn(1, 1, 64, 128)
    mapper = ttnn.ShardTensor2dMesh(device_2x4, mesh_shape=(ROWS, COLS), dims=(2, 3))
    tensor = ttnn.from_torch(x, device=device_2x4, dtype=ttnn.float32, layout=ttnn.TILE_LAYOUT, mesh_mapper=mapper)
    composer = ttnn.ConcatMesh2dToTensor(device_2x4, mesh_shape=(ROWS, COLS), dims=(2, 3))
    assert torch.equal(ttnn.to_torch(tensor, mesh_composer=composer), x)


def test_tensor_methods(chips):
    x = chips.random(1, 1, 32, 32, dtype=ttnn.float32)
    part = ttnn.get_device_tensors(chips.put(x, ttnn.float32))[5]
    assert torch.equal(part.cpu().to_torch(), x[5])
    assert torch.equal(part.to_torch(), x[5])
    assert part.to_list() == x[5].tolist()
    assert torch.equal(torch.from_numpy(part.to_numpy()), x[5])


def test_one_chips_part(chips):
    x = chips.random(1, 1, 32, 32)
    tensor = chips.put(x)
    for chip, part in enumerate(ttnn.get_device_tensors(tensor)):
        assert torch.equal(ttnn.to_torch(part).float(), x[chip])
    with pytest.raises(RuntimeError, match="one device's part of a mesh tensor"):
        ttnn.add(ttnn.get_device_tensors(tensor)[3], 1.0)


def test_a_part_outlives_its_mesh_tensor(chips):
    x = chips.random(1, 1, 32, 32)
    part = ttnn.get_device_tensors(chips.put(x))[6]
    for _ in range(3):
        chips.same(torch.ones(1, 1, 32, 32))
    assert torch.equal(ttnn.to_torch(part).float(), x[6])


def test_host_tensor_to_device(chips):
    x = chips.random(1, 1, 32, 32)
    mapper = ttnn.ShardTensor2dMesh(chips.device, mesh_shape=(ROWS, COLS), dims=(0, 1))
    grid = torch.cat([torch.cat(x[r * COLS : r * COLS + COLS], dim=1) for r in range(ROWS)], dim=0)
    host = ttnn.from_torch(grid, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, mesh_mapper=mapper)
    chips.check(ttnn.to_device(host, chips.device), lambda v: v, x)
    buffer = ttnn.allocate_tensor_on_device(ttnn.Shape([1, 1, 32, 32]), ttnn.bfloat16, ttnn.TILE_LAYOUT, chips.device)
    ttnn.copy_host_to_device_tensor(host, buffer)
    chips.check(buffer, lambda v: v, x)
    chips.check(ttnn.add(buffer, 1.0), lambda v: v + 1, x, atol=2**-8)


def test_host_work_stays_on_the_host(engine):
    before = dict(engine.ops_seen)
    host = ttnn.from_torch(torch.ones(1, 1, 32, 32), dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)
    assert torch.equal(ttnn.to_torch(ttnn.to_layout(host, ttnn.ROW_MAJOR_LAYOUT)).float(), torch.ones(1, 1, 32, 32))
    assert engine.ops_seen == before


def test_files(chips, tmp_path):
    x = chips.random(1, 1, 32, 64)
    path = tmp_path / "tensor.tensorbin"
    ttnn.dump_tensor(path, chips.put(x, ttnn.bfloat8_b))
    loaded = ttnn.load_tensor(path, device=chips.device)
    assert loaded.dtype == ttnn.bfloat8_b
    packed = [ttnn.to_torch(ttnn.from_torch(v, dtype=ttnn.bfloat8_b, layout=ttnn.TILE_LAYOUT)).float() for v in x]
    chips.check(loaded, lambda v: v, packed)


def test_submeshes(open_layout):
    """Meshes cut from the same chips have values of their own."""
    for rows, cols in ((1, 1), (1, 2), (2, 2)):
        part = open_layout(f"{rows}x{cols}sp0tp1").device
        x = torch.randn(1, 1, 32 * rows, 32 * cols)
        mapper = ttnn.ShardTensor2dMesh(part, mesh_shape=(rows, cols), dims=(2, 3))
        tensor = ttnn.from_torch(x, device=part, dtype=ttnn.float32, layout=ttnn.TILE_LAYOUT, mesh_mapper=mapper)
        for axis, size in ((0, rows), (1, cols)):
            if size > 1:
                tensor = ttnn.all_gather(tensor, dim=2 + axis, cluster_axis=axis, topology=ttnn.Topology.Linear)
        for piece in ttnn.get_device_tensors(ttnn.multiply(tensor, 2.0)):
            assert torch.equal(ttnn.to_torch(piece), 2 * x)
