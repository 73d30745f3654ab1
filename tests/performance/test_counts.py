"""Counting rules on calls whose cost can be worked out by hand."""

from types import SimpleNamespace

import pytest
import ttnn

from models.parallel import all_reduce, gather, reduce_scatter
from models.performance.trace import trace
from tests.support import randn

ROWS, INNER, COLUMNS = 64, 256, 128


def only(mesh, function):
    with trace(mesh.device) as made:
        function()
    assert made.device_calls == 1, [record.name for record in made.records]
    return made.records[0].cost


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_linear(mesh):
    x, w = mesh.upload(randn(1, 1, ROWS, INNER)), mesh.upload(randn(INNER, COLUMNS))
    cost = only(mesh, lambda: ttnn.linear(x, w))
    assert cost.flops == 2 * ROWS * INNER * COLUMNS
    assert cost.dram_bytes == 2 * (ROWS * INNER + INNER * COLUMNS + ROWS * COLUMNS)
    assert cost.link_bytes == 0


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_collectives(mesh):
    """On a line of four chips the busiest link carries three shards one way."""
    x = mesh.upload(randn(1, 1, ROWS, INNER), tp=3)
    whole = 2 * ROWS * INNER
    cost = only(mesh, lambda: gather(x, dim=3, over=mesh.tp))
    assert (cost.link_bytes, cost.dram_bytes) == (3 * whole / 4, whole + whole / 4)
    y = mesh.upload(randn(1, 1, ROWS, INNER))
    cost = only(mesh, lambda: reduce_scatter(y, dim=3, over=mesh.tp))
    arriving = 3 * whole / 4  # partial sums, through a buffer
    assert (cost.link_bytes, cost.dram_bytes) == (3 * whole / 4, whole + whole / 4 + 2 * arriving)
    cost = only(mesh, lambda: all_reduce(y, over=mesh.sp))
    assert cost.link_bytes == whole


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_views_and_host_work_are_no_device_calls(mesh):
    x = mesh.upload(randn(1, 1, ROWS, INNER))
    with trace(mesh.device) as made:
        ttnn.reshape(x, (1, 2, ROWS // 2, INNER))
        mesh.upload(randn(1, 1, 32, 32))
        mesh.download(x)
    assert made.device_calls == 0


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_attention_counts_all_keys(mesh):
    from models.layers import Heads, joint_attention

    q = mesh.upload(randn(1, 2, 64, 32))
    text = mesh.upload(randn(1, 2, 20, 32))
    visual, joint = Heads(q, q, q), Heads(text, text, text)
    options = {"tokens": 120, "scale": 0.125, "fidelity": ttnn.MathFidelity.HiFi2}
    cost = only(mesh, lambda: joint_attention(visual, joint, mesh, **options))
    assert cost.flops == 4 * 2 * 32 * (64 + 32) * (2 * 64 + 32)
    assert cost.link_bytes == 2 * (2 * 2 * 64 * 32)
    # Chunks of 32 queries and of 64 keys of a head: more cores than chunks, each against 3 chunks of keys.
    assert (cost.steps, cost.step_tiles) == (3, 1 * 2 * 32 / 128)


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_settings_of_a_call(mesh):
    """Fidelity, operand types, grid and links are those that the layers ask for."""
    from models.layers.matmul import gathered_matmul

    x, w = mesh.upload(randn(1, 1, ROWS, INNER), tp=3), mesh.upload(randn(INNER, COLUMNS), dtype=ttnn.bfloat8_b, tp=1)
    with trace(mesh.device) as made:
        gathered_matmul(x, w, mesh, fidelity=ttnn.MathFidelity.LoFi)
    settings = made.records[-1].settings
    assert (settings.fidelity, settings.links) == ("LoFi", mesh.tp.links)
    assert settings.cores == mesh.grid[0] * (mesh.grid[1] - 1)
    assert settings.operand_bytes == (2 + 1088 / 1024) / 2


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_peak_memory_sees_what_is_alive(mesh):
    with trace(mesh.device) as made:
        tensor = mesh.upload(randn(1, 1, 1024, 1024))
        ttnn.deallocate(tensor)
        before = made.dram_peak_bytes
        small = mesh.upload(randn(1, 1, 32, 32))
    assert made.dram_peak_bytes == before >= 2 * 1024 * 1024
    assert small.is_allocated()


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_the_tracers_own_time_is_no_time_of_the_calls(mesh, monkeypatch):
    import itertools

    import models.performance.trace as module

    clock = itertools.count()  # A second passes between any two looks at it.
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with trace(mesh.device) as made:
        x = mesh.upload(randn(1, 1, 32, 32))
        ttnn.add(ttnn.multiply(x, x), x)
    looks = next(clock)
    traced = (looks - 2) // 2  # The first and the last look are the block's own, each op has two.
    assert traced >= 2
    assert made.host_seconds == looks - 1 - traced
