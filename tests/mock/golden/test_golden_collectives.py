"""Collectives chip by chip, over each mesh axis. The axes differ in length, so that a wrong one cannot pass."""

import pytest
import torch
import ttnn

from tests.mock.golden.chips import COLS, ROWS, bf16, group, position, tf32

AXES = [0, 1]
LINE = {"topology": ttnn.Topology.Linear, "num_links": 1}


def expect(chips, tensor, values, atol=0.0):
    chips.check(tensor, lambda v: v, values, atol=atol)


def sums(values, axis):
    return [torch.stack([values[j] for j in group(i, axis)]).sum(0) for i in range(8)]


def chunk(value, chip, axis, dim):
    return value.chunk(ROWS if axis == 0 else COLS, dim=dim)[position(chip, axis)]


def semaphores(chips, count):
    grid = chips.device.compute_with_storage_grid_size()
    cores = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(grid.x - 1, grid.y - 1))})
    return [ttnn.create_global_semaphore(chips.device, cores, 0) for _ in range(count)]


@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.float32])
@pytest.mark.parametrize("dim", [0, 2, 3])
@pytest.mark.parametrize("axis", AXES)
def test_all_gather(chips, axis, dim, dtype):
    x = chips.random(1, 1, 32, 64, dtype=dtype)
    out = ttnn.all_gather(chips.put(x, dtype), dim=dim, cluster_axis=axis, **LINE)
    expect(chips, out, [torch.cat([x[j] for j in group(i, axis)], dim=dim) for i in range(8)])


@pytest.mark.parametrize("axis", AXES)
def test_all_gather_async(chips, axis):
    x = chips.random(1, 1, 32, 64)
    whole = [torch.cat([x[j] for j in group(i, axis)], dim=3) for i in range(8)]
    buffer = ttnn.allocate_tensor_on_device(
        ttnn.Shape(list(whole[0].shape)), ttnn.bfloat16, ttnn.TILE_LAYOUT, chips.device
    )
    gather = ttnn.experimental.all_gather_async
    options = {"cluster_axis": axis, "multi_device_global_semaphore": semaphores(chips, 2), **LINE}
    expect(chips, gather(chips.put(x), persistent_output_buffer=buffer, dim=3, **options), whole)
    expect(chips, gather(chips.put(x), None, dim=3, **options), whole)


def test_results_in_a_persistent_buffer_are_overwritten_by_the_next(chips):
    """As on silicon: two results in one buffer are one result."""
    a, b = chips.random(1, 1, 32, 64, seed="a"), chips.random(1, 1, 32, 64, seed="b")
    buffer = ttnn.allocate_tensor_on_device(ttnn.Shape([1, 1, 64, 64]), ttnn.bfloat16, ttnn.TILE_LAYOUT, chips.device)
    options = {"cluster_axis": 0, "dim": 2, "multi_device_global_semaphore": semaphores(chips, 2), **LINE}

    def gathered(values):
        return [torch.cat([values[j] for j in group(i, 0)], dim=2) for i in range(8)]

    first = ttnn.experimental.all_gather_async(chips.put(a), persistent_output_buffer=buffer, **options)
    expect(chips, first, gathered(a))
    ttnn.experimental.all_gather_async(chips.put(b), persistent_output_buffer=buffer, **options)
    expect(chips, first, gathered(b))
    expect(chips, buffer, gathered(b))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("axis", AXES)
def test_reduce_scatter(chips, axis, dim):
    x = [v.round() for v in chips.random(1, 1, 128, 128)]  # whole numbers: the order of additions cannot matter
    out = ttnn.reduce_scatter(chips.put(x), dim=dim, cluster_axis=axis, **LINE)
    expect(chips, out, [chunk(s, i, axis, dim) for i, s in enumerate(sums(x, axis))])


def test_reduce_scatter_rounds_at_every_hop(chips):
    values = [1.0, 2.0**-8, 2.0**-8, 2.0**-8]
    x = [torch.full((1, 1, 32, 128), values[position(i, 1)]) for i in range(8)]
    out = chips.get(ttnn.reduce_scatter(chips.put(x), dim=3, cluster_axis=1, **LINE))
    # From the left each half unit beside the 1 is rounded up; from the right two of them first make a whole one.
    seen = [float(part.unique()) for part in out[:4]]
    assert seen == [1.0 + units * 2.0**-7 for units in (2, 2, 3, 3)]


def test_partial_sums_come_from_the_ends_of_a_line(chips):
    """From either end shard after shard is added; a chip adds its own to what comes from the left, then from the right.

    256 + 1 is rounded up to 258, and 256 + (1 + 1) is 258: who adds in another order has another sum.
    """
    values = [0.0, 256.0, 1.0, 1.0]
    x = [torch.full((1, 1, 32, 128), values[position(i, 1)]) for i in range(8)]
    out = chips.get(ttnn.reduce_scatter(chips.put(x), dim=3, cluster_axis=1, **LINE))
    assert [float(part.unique()) for part in out[:4]] == [258.0, 258.0, 260.0, 260.0]
    out = chips.get(ttnn.all_reduce(chips.put(x), cluster_axis=1, **LINE))
    assert {float(part.unique()) for part in out} == {260.0}, "all have the sum of the chip behind the middle"


@pytest.mark.parametrize("axis", AXES)
def test_reduce_scatter_async(chips, axis):
    x = [v.round() for v in chips.random(1, 1, 32, 128)]
    out = ttnn.experimental.reduce_scatter_minimal_async(
        chips.put(x),
        None,
        dim=3,
        multi_device_global_semaphore=semaphores(chips, 3),
        barrier_semaphore=semaphores(chips, 1)[0],
        cluster_axis=axis,
        **LINE,
    )
    expect(chips, out, [chunk(s, i, axis, 3) for i, s in enumerate(sums(x, axis))])


@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.float32])
@pytest.mark.parametrize("axis", AXES)
def test_all_reduce(chips, axis, dtype):
    x = [v.round() for v in chips.random(1, 1, 40, 64)]
    expect(chips, ttnn.all_reduce(chips.put(x, dtype), cluster_axis=axis, **LINE), sums(x, axis))


def test_all_reduce_adds_float32_as_tf32(chips):
    x = chips.random(1, 1, 32, 64, dtype=ttnn.float32)
    out = ttnn.all_reduce(chips.put(x, ttnn.float32), cluster_axis=0, **LINE)
    expect(chips, out, sums([tf32(v) for v in x], 0), atol=2**-10 * 4)  # 11 bits of the larger operand


@pytest.mark.parametrize("axis", AXES)
def test_mesh_partition(chips, axis):
    x = chips.random(1, 1, 128, 64)
    out = ttnn.mesh_partition(chips.put(x), 2, axis)
    expect(chips, out, [chunk(v, i, axis, 2) for i, v in enumerate(x)])


@pytest.mark.parametrize("axis", AXES)
def test_row_parallel_product(chips, axis):
    """The sum of the chips' products is the product over the whole inner dim."""
    x, w = chips.random(1, 1, 32, 64), chips.random(1, 1, 64, 128)
    partial = ttnn.linear(chips.put(x), chips.put(w), dtype=ttnn.float32)
    whole = [
        torch.cat([x[j] for j in group(i, axis)], 3) @ torch.cat([w[j] for j in group(i, axis)], 2) for i in range(8)
    ]
    everywhere = ttnn.all_reduce(partial, cluster_axis=axis, **LINE)
    expect(chips, everywhere, whole, atol=0.1)
    scattered = ttnn.reduce_scatter(partial, dim=3, cluster_axis=axis, **LINE)
    expect(chips, scattered, [chunk(v, i, axis, 3) for i, v in enumerate(whole)], atol=0.1)
    one_chip = chips.get(partial)
    assert min((a - b).abs().max() for a, b in zip(one_chip, whole, strict=True)) > 1.0


def test_the_other_axis_gives_other_values(chips):
    x = chips.random(1, 1, 128, 128)
    tensor = chips.put(x)
    for op in (ttnn.all_reduce, lambda t, cluster_axis, **o: ttnn.reduce_scatter(t, 3, cluster_axis=cluster_axis, **o)):
        out = chips.get(op(tensor, cluster_axis=0, **LINE))
        wrong = [s if s.shape == out[0].shape else chunk(s, i, 0, 3) for i, s in enumerate(sums(x, 1))]
        assert min((a - bf16(b)).abs().max() for a, b in zip(out, wrong, strict=True)) > 1.0
