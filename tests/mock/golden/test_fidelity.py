"""Math fidelity: products that can be worked out by hand, on values that lose just the bits in question."""

import pytest
import torch
import ttnn

from models.mock.golden.fidelity import product, truncate

LOW_A = 1 + 2**-7  # the last bit of a bfloat16, which only HiFi3 and HiFi4 take from the first operand
LOW_B = 1 + 2**-5  # the fifth bit, which LoFi does not take from the second operand


def config(fidelity: str, *, float32_sums: bool = True) -> ttnn.WormholeComputeKernelConfig:
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=getattr(ttnn.MathFidelity, fidelity),
        math_approx_mode=False,
        fp32_dest_acc_en=float32_sums,
        packer_l1_acc=True,
    )


@pytest.mark.parametrize(
    ("fidelity", "expected"),
    [
        ("LoFi", 1.0),
        ("HiFi2", LOW_B),
        ("HiFi3", LOW_B + 2**-7),  # all but the product of both low parts
        ("HiFi4", LOW_A * LOW_B),
    ],
)
def test_phases(fidelity, expected):
    a, b = torch.tensor([[LOW_A]]), torch.tensor([[LOW_B]])
    assert product(a, b, config(fidelity)).item() == expected


def test_the_last_bit_of_tf32_is_lost_on_the_second_operand_only():
    low = torch.tensor([[1 + 2**-10]])
    one = torch.ones(1, 1)
    assert product(low, one, config("HiFi4")).item() == 1 + 2**-10
    assert product(one, low, config("HiFi4")).item() == 1


def test_a_product_can_have_a_fidelity_of_its_own():
    a, b = torch.tensor([[1.0]]), torch.tensor([[LOW_B]])
    assert product(a, b, config("HiFi2"), ttnn.MathFidelity.LoFi).item() == 1.0


@pytest.mark.parametrize("fidelity", ["LoFi", "HiFi2", "HiFi4"])
def test_sums_in_bfloat16(fidelity):
    """256 + 1 is 258 in bfloat16, since halves go away from zero: three ones that come one by one make 6."""
    sums = config(fidelity, float32_sums=False)
    ones = torch.ones(1, 64)
    column = torch.zeros(64, 1)
    column[0], column[16:] = 256.0, 1.0 / 16
    assert product(ones, column, sums).item() == 262.0
    assert product(ones, column, config(fidelity)).item() == 259.0
    assert product(torch.ones(1, 32), torch.full((32, 1), 16.0), sums).item() == 512.0


def test_truncation_is_towards_zero():
    values = torch.tensor([1.99, -1.99, 0.0, 3.0, -2.5])
    assert truncate(values, 1).tolist() == [1.5, -1.5, 0.0, 3.0, -2.0]


def test_operands_of_ops_reach_the_multipliers_in_order(chips):
    """ttnn.linear's first operand loses its last bit at HiFi2; the weight does not."""
    a, b = torch.full((1, 1, 32, 32), LOW_A), torch.full((32, 32), LOW_B)
    for x, w, expected in ((a, b, 32 * LOW_B), (b[None, None], a[0, 0], 32 * LOW_A * LOW_B)):
        out = ttnn.linear(chips.same(x), chips.same(w), dtype=ttnn.float32, compute_kernel_config=config("HiFi2"))
        assert chips.get(out)[0].unique().tolist() == [expected]
