"""Buffers: who shares one, when its values change, and when they are let go."""

import gc
import threading

import pytest
import torch
import ttnn

from models.machine import ops
from models.mock import golden


def value(chips, number):
    return [torch.full((1, 1, 32, 32), float(number))] * 8


def expect(chips, tensor, number):
    chips.check(tensor, lambda v: v.reshape(tuple(tensor.shape)), value(chips, number))


def drams(device):
    return ttnn.get_memory_view(device, ttnn.BufferType.DRAM).total_bytes_allocated_per_bank


def settle(engine):
    gc.collect()
    engine.store.sweep(everything=True)


def test_output_tensors_share_their_buffer(chips):
    x = chips.same(torch.ones(1, 1, 32, 32))
    out = ttnn.empty([1, 1, 32, 32], dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=chips.device)
    ttnn.add(x, 1.0, output_tensor=out)  # the result's own handle dies here
    expect(chips, out, 2)
    first = ttnn.add(x, 2.0, output_tensor=out)
    second = ttnn.add(x, 3.0, output_tensor=out)
    for handle in (first, second, out):
        expect(chips, handle, 4)


def test_a_matrix_product_into_a_buffer(chips):
    x = chips.same(torch.eye(32)[None, None])
    out = ttnn.empty([1, 1, 32, 32], dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=chips.device)
    result = ttnn.matmul(x, x, optional_output_tensor=out)
    assert result.buffer_unique_id() == out.buffer_unique_id()
    chips.check(out, lambda v: v, [torch.eye(32)[None, None]] * 8)


def test_views_see_in_place_writes(chips):
    x = chips.same(torch.ones(1, 1, 32, 32))
    for view in (ttnn.reshape(x, (32, 32)), x.reshape((1, 32, 32))):
        assert view.buffer_unique_id() == x.buffer_unique_id()
    views = [ttnn.reshape(x, (32, 32)), x.reshape((1, 32, 32))]
    ttnn.add_(x, 4.0)
    for view in views:
        expect(chips, view, 5)
    ttnn.multiply_(views[0], 2.0)
    expect(chips, x, 10)


def test_copies_do_not(chips):
    x = chips.same(torch.ones(1, 1, 32, 32))
    copies = [ttnn.clone(x), ttnn.reshape(x, (1, 32, 1, 32)), ttnn.slice(x, [0, 0, 0, 0], [1, 1, 16, 32])]
    ttnn.add_(x, 4.0)
    for copy in copies:
        for part in chips.get(copy):
            assert torch.equal(part, torch.ones_like(part))


def test_copy_into_another_tensor(chips):
    x, y = (chips.same(torch.full((1, 1, 32, 32), v)) for v in (1.0, 2.0))
    view = ttnn.reshape(y, (32, 32))
    ttnn.copy(x, y)
    expect(chips, y, 1)
    expect(chips, view, 1)


def test_values_die_with_their_tensors(chips, engine):
    settle(engine)
    weight, before, memory = chips.same(torch.ones(1, 1, 32, 32)), len(engine.store), drams(chips.device)
    x = chips.same(torch.zeros(1, 1, 32, 32))
    for _ in range(500):
        x = ttnn.multiply(ttnn.add(x, weight), 0.5)
        assert len(engine.store) < before + 40
    expect(chips, weight, 1)
    del x
    settle(engine)
    assert len(engine.store) == before
    ttnn.add(weight, 1.0)
    settle(engine)
    assert drams(chips.device) == memory


def test_memory_is_free_for_the_next_op(chips, engine):
    """A tensor dropped by the program is not held back, at latest a few ops on if it was a long-lived one."""
    settle(engine)
    base = drams(chips.device)
    big = chips.same(torch.zeros(1, 1, 1024, 1024))
    held = drams(chips.device) - base
    assert held > 0
    small = chips.same(torch.zeros(1, 1, 32, 32))
    small_bytes = drams(chips.device) - base - held
    del big
    expect(chips, small, 0)
    assert drams(chips.device) == base + small_bytes
    old = chips.same(torch.zeros(1, 1, 1024, 1024))
    for _ in range(40):
        ttnn.add(small, 1.0)
    del old
    for _ in range(40):
        ttnn.add(small, 1.0)
    assert drams(chips.device) < base + held


def test_deallocation_frees_at_once(chips, engine):
    settle(engine)
    base, entries = drams(chips.device), len(engine.store)
    x = chips.same(torch.zeros(1, 1, 1024, 1024))
    view = ttnn.reshape(x, (1024, 1024))
    ttnn.deallocate(view)
    assert drams(chips.device) == base
    assert len(engine.store) == entries


def test_handles_used_again_and_again_are_counted_once(chips, engine):
    settle(engine)
    entries = len(engine.store)
    out = ttnn.empty([1, 1, 32, 32], dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=chips.device)
    x = chips.same(torch.ones(1, 1, 32, 32))
    for _ in range(100):
        ttnn.add(x, 1.0, output_tensor=out)
    del out, x
    settle(engine)
    assert len(engine.store) == entries


def test_replicas_are_computed_once(chips, engine):
    calls = []
    rules = golden.RULES
    saved = rules["ttnn.silu"]
    rules["ttnn.silu"] = golden.Rule(lambda input_tensor: calls.append(1) or input_tensor, True, "this test")
    try:
        ttnn.silu(chips.same(torch.ones(1, 1, 32, 32)))
        assert len(calls) == 1
        ttnn.silu(chips.put(chips.random(1, 1, 32, 32)))
        assert len(calls) == 1 + 8
    finally:
        rules["ttnn.silu"] = saved


def test_install_and_uninstall(device_2x4):
    """The last one out restores ttnn: its op entry point, its tensor methods and functions."""
    engine = golden.active()
    methods = ("cpu", "reshape", "to_torch", "deallocate", "__repr__")
    assert golden.install() is engine
    golden.uninstall()
    assert golden.active() is engine
    assert engine.run in ops._hooks

    users = golden._count
    saved = [vars(ttnn.Tensor)[name] for name in methods]
    try:
        for _ in range(users):
            golden.uninstall()
        assert golden.active() is None
        assert engine.run not in ops._hooks
        assert all(type(vars(ttnn.Tensor)[name]).__name__ == "nb_method" for name in methods)
        assert type(ttnn.get_device_tensors).__name__ == "nb_func"
        with pytest.raises(RuntimeError, match="not installed"):
            golden.uninstall()
        plain = ttnn.ones([1, 1, 32, 32], dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=device_2x4)
        part = ttnn.get_device_tensors(plain)[0]
        assert torch.equal(ttnn.to_torch(part).float(), torch.zeros(1, 1, 32, 32)), "a mock mesh holds zeros"
    finally:
        for _ in range(users):
            golden.install()
    assert all(vars(ttnn.Tensor)[name] is not old for name, old in zip(methods, saved, strict=True))
    with pytest.raises(golden.GoldenError, match="unseen call"):
        ttnn.add(plain, 1.0)


def test_threads_that_pack_weights_do_not_disturb_the_device(chips, engine):
    """Packing on the host runs beside device ops, whose values and lifetimes stay right."""
    from concurrent.futures import ThreadPoolExecutor

    x = chips.random(1, 1, 32, 64)
    stop = threading.Event()

    def pack() -> int:
        packed = 0
        while not stop.is_set():
            ttnn.from_torch(torch.randn(64, 64), dtype=ttnn.bfloat8_b, layout=ttnn.TILE_LAYOUT)
            packed += 1
        return packed

    with ThreadPoolExecutor(3) as pool:
        packers = [pool.submit(pack) for _ in range(3)]
        try:
            y = chips.put(x)
            for _ in range(200):
                y = ttnn.multiply(y, 1.0)
                y = ttnn.add(y, chips.put(x))
                y = ttnn.subtract(y, chips.put(x))
        finally:
            stop.set()
    assert all(packer.result() > 0 for packer in packers)
    chips.check(ttnn.multiply(chips.put(x), 2.0), lambda v: 2 * v, x)
    assert not engine.inside
