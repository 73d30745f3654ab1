"""What golden execution refuses, and that a refusal leaves it usable."""

import re

import pytest
import torch
import ttnn

from models.mock.golden import RULES, GoldenError
from models.mock.golden.rules import Rule, local_rule
from tests.mock.golden.chips import bf16


@pytest.fixture
def ones(chips):
    return chips.same(torch.ones(1, 1, 32, 32))


@pytest.fixture
def rule():
    """Replace a rule for one test."""
    saved = {}

    def replace(name, function):
        saved[name] = RULES[name]
        RULES[name] = Rule(function, local=True, source="this test")

    yield replace
    RULES.update(saved)


@pytest.fixture(autouse=True)
def _usable_afterwards(chips):
    yield
    chips.check(ttnn.add(chips.same(torch.ones(1, 1, 32, 32)), 1.0), lambda v: v, [torch.full((1, 1, 32, 32), 2.0)] * 8)


def test_an_op_without_golden_names_itself_and_the_caller(ones):
    with pytest.raises(GoldenError, match=r"ttnn\.experimental\.dropout at .*_errors\.py:\d+: the op has no"):
        ttnn.experimental.dropout(ones, probability=0.5, scale=2.0, seed=1)


def test_the_line_named_is_the_callers(ones):
    import sys

    line = sys._getframe().f_lineno + 2
    with pytest.raises(GoldenError, match=rf"test_golden_errors\.py:{line}:"):
        ttnn.experimental.dropout(ones, probability=0.5, scale=2.0, seed=1)


def test_random_and_unfollowed_goldens_are_refused(chips, ones):
    with pytest.raises(GoldenError, match=r"ttnn\.rand at .* not one of a single device"):
        ttnn.rand((1, 1, 32, 32), device=chips.device, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)
    with pytest.raises(GoldenError, match="not covered by golden execution"):
        ttnn.copy_device_to_host_tensor(ones, ttnn.allocate_tensor_on_host(ones.spec, chips.device))


def test_deallocated_tensors(chips):
    for free in (ttnn.deallocate, lambda t: t.deallocate(True), lambda t: t.deallocate()):
        x = chips.same(torch.ones(1, 1, 32, 32))
        free(x)
        assert not x.is_allocated()
        with pytest.raises(GoldenError, match=r"ttnn\.add at .* input \[1, 1, 32, 32\] .* has been deallocated"):
            ttnn.add(x, 1.0)
        for read in (ttnn.from_device, ttnn.to_torch, lambda t: t.cpu()):
            with pytest.raises(GoldenError, match="has been deallocated"):
                read(x)


def test_freeing_one_handle_frees_all(chips):
    x = chips.same(torch.ones(1, 1, 64, 64))
    view = ttnn.reshape(x, (1, 2, 32, 64))
    ttnn.deallocate(x)
    with pytest.raises(GoldenError, match="deallocated"):
        ttnn.add(view, 1.0)


@pytest.mark.parametrize("allocate", ["empty", "empty_like", "allocate_tensor_on_device"])
def test_unwritten_buffers(chips, ones, allocate):
    if allocate == "empty":
        x = ttnn.empty([1, 1, 32, 32], dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=chips.device)
    elif allocate == "empty_like":
        x = ttnn.empty_like(ones)
    else:
        x = ttnn.allocate_tensor_on_device(ttnn.Shape([1, 1, 32, 32]), ttnn.bfloat16, ttnn.TILE_LAYOUT, chips.device)
    for use in (lambda: ttnn.add(x, 1.0), lambda: ttnn.to_torch(x)):
        with pytest.raises(GoldenError, match="allocated and never written"):
            use()


def test_tensors_made_behind_its_back(chips):
    x = ttnn.from_torch(torch.ones(1, 1, 32, 32), dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT).to(chips.device)
    with pytest.raises(GoldenError, match="made by an unseen call"):
        ttnn.add(x, 1.0)
    with pytest.raises(GoldenError, match=r"ttnn\.Tensor\.to.* not seen by golden execution"):
        chips.same(torch.ones(1, 1, 32, 32)).to(ttnn.ROW_MAJOR_LAYOUT)


def test_a_host_tensor_among_the_inputs(ones):
    host = ttnn.from_torch(torch.ones(1, 1, 32, 32), dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)
    with pytest.raises(GoldenError, match=r"a host tensor .* is an op's input"):
        ttnn.add(ones, host)


def test_shape_disagreement(ones, rule):
    rule("ttnn.silu", lambda input_tensor: input_tensor[..., :16])
    with pytest.raises(GoldenError, match=r"ttnn\.silu at .*golden shape \(1, 1, 32, 16\) is not the op's"):
        ttnn.silu(ones)


def test_number_of_outputs(ones, rule):
    rule("ttnn.silu", lambda input_tensor: (input_tensor, input_tensor))
    with pytest.raises(GoldenError, match="golden has 2 outputs, the op has 1"):
        ttnn.silu(ones)


def test_a_golden_that_fails(ones, rule):
    def broken(input_tensor):
        raise KeyError("lost")

    rule("ttnn.silu", broken)
    with pytest.raises(GoldenError, match=r"its golden function failed: KeyError: 'lost'"):
        ttnn.silu(ones)


def test_a_golden_that_writes_into_its_input(ones, rule):
    rule("ttnn.silu", lambda input_tensor: input_tensor.add_(1.0))
    with pytest.raises(GoldenError, match="wrote into its inputs"):
        ttnn.silu(ones)


def test_a_second_rule_for_an_op():
    with pytest.raises(ValueError, match=r"ttnn\.add has a golden rule already"):
        local_rule("ttnn.add", source="this test")(lambda: None)


@pytest.mark.parametrize("value", [-1.0, 2.0**33, float("nan"), 0.5])
def test_integers_out_of_range(chips, rule, value):
    x = ttnn.from_torch(
        torch.ones(1, 1, 32, 32, dtype=torch.int32),
        device=chips.device,
        dtype=ttnn.uint32,
        layout=ttnn.TILE_LAYOUT,
        mesh_mapper=ttnn.ReplicateTensorToMesh(chips.device),
    )
    rule("ttnn.clone", lambda input: torch.full(input.shape, value))
    with pytest.raises(GoldenError, match=r"ttnn\.clone at .*uint32|UINT32"):
        ttnn.clone(x)


def test_a_real_refusal_changes_nothing(chips, ones):
    before = chips.get(ones)
    with pytest.raises(RuntimeError) as caught:
        ttnn.matmul(ones, chips.same(torch.ones(1, 1, 64, 64)))
    assert not isinstance(caught.value, GoldenError)
    assert re.search("TT_FATAL|TT_THROW", str(caught.value))
    assert all(torch.equal(a, b) for a, b in zip(chips.get(ones), before, strict=True))


def test_a_missing_reduction_shows(chips):
    """What a forgotten all-reduce leaves is on no chip the sum."""
    x, w = chips.random(1, 1, 32, 64), chips.random(1, 1, 64, 32)
    partial = chips.get(ttnn.linear(chips.put(x), chips.put(w)))
    whole = bf16(sum(a @ b for a, b in zip(x[:4], w[:4], strict=True)))
    for value in partial[:4]:
        assert torch.corrcoef(torch.stack([value.flatten(), whole.flatten()]))[0, 1] < 0.9


def test_showing_a_tensor_never_fails(chips, ones):
    assert "[1, 1, 32, 32]" in repr(ones)
    ttnn.deallocate(ones)
    assert "mock mesh" in str(ones)
