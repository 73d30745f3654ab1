"""Times of calls that can be worked out by hand from the constants, and the constants' own rules."""

import pytest

from models.machine.systems import system
from models.performance.cost_model import Seconds, constants, dispatch, kind_of, op_time
from models.performance.counts import Cost
from models.performance.settings import Settings
from models.performance.trace import Record

QUIETBOX, GALAXY = system("quietbox"), system("galaxy")
LAUNCH = constants()["launch"]["seconds"][1]
MATMUL, GATHERED = "ttnn.linear", "ttnn.experimental.all_gather_minimal_matmul_async"
ATTENTION = "ttnn.transformer.ring_joint_scaled_dot_product_attention"


def expected(name, machine=QUIETBOX, settings=None, **counts):
    return op_time(Record(name, (), Cost(**counts), settings or Settings(fidelity="HiFi2")), machine).seconds.expected


def efficiency(kind, what):
    return constants()["kind"][kind][what][1]


def test_a_product_takes_its_flops_over_the_peak_of_its_cores():
    peak = 8 * 7 * 2048e9
    took = expected(MATMUL, flops=1e12, settings=Settings(fidelity="HiFi2", cores=56))
    assert took == pytest.approx(1e12 / (peak * efficiency("matmul", "matrix")) + LAUNCH)


def test_the_longer_of_product_and_memory_counts():
    dram = 10e9 / (288e9 * efficiency("matmul", "dram"))
    assert expected(MATMUL, flops=1e9, dram_bytes=10e9) == pytest.approx(dram + LAUNCH)
    record = Record(MATMUL, (), Cost(flops=1e9, dram_bytes=10e9), Settings(fidelity="HiFi2"))
    assert op_time(record, QUIETBOX).bound == "dram"


def test_l1_is_not_free():
    speed = constants()["l1"]["core_cycle_bytes"][1] * 64 * 1e9
    assert expected("ttnn.add", l1_bytes=1e9) == pytest.approx(1e9 / speed + LAUNCH)


def test_exposed_link_bytes_add_and_overlapped_ones_hide_but_for_a_part():
    product = 1e12 / (QUIETBOX.peak_flops("HiFi2") * efficiency("gathered_matmul", "matrix"))
    link = 50e6 / (12.5e9 * efficiency("gathered_matmul", "link"))
    assert link < product
    hidden = product + efficiency("gathered_matmul", "exposed_one_link") * link
    assert expected(GATHERED, flops=1e12, link_bytes=50e6) == pytest.approx(hidden + LAUNCH)
    several = product + efficiency("gathered_matmul", "exposed") * link / 4
    assert expected(GATHERED, settings=Settings("HiFi2", links=4), flops=1e12, link_bytes=50e6) == pytest.approx(
        several + LAUNCH
    )
    bare = expected(GATHERED, flops=1e12, link_bytes=50e6, exposed_link_bytes=50e6)
    assert bare == pytest.approx(product + link + LAUNCH)


def test_links_of_the_call_share_its_bytes():
    one = expected("ttnn.all_gather", link_bytes=1e9, exposed_link_bytes=1e9)
    four = expected("ttnn.all_gather", GALAXY, link_bytes=1e9, exposed_link_bytes=1e9)
    two = expected("ttnn.all_gather", GALAXY, Settings(links=2), link_bytes=1e9, exposed_link_bytes=1e9)
    assert one - LAUNCH == pytest.approx(4 * (four - LAUNCH)) == pytest.approx(2 * (two - LAUNCH))


def test_a_collective_streams_memory_through_its_links():
    both = expected("ttnn.all_gather", link_bytes=1e9, exposed_link_bytes=1e9, dram_bytes=1e9)
    assert both == expected("ttnn.all_gather", link_bytes=1e9, exposed_link_bytes=1e9)


def attention(fidelity="HiFi2", operand_bytes=2.0, float32_sums=None) -> Seconds:
    """Time of 2592 steps of 256 x 512, without links and memory."""
    settings = Settings(fidelity, operand_bytes=operand_bytes, float32_sums=float32_sums)
    cost = Cost(flops=1e12, steps=2592, step_tiles=128, step_keys=16)
    return op_time(Record(ATTENTION, (), cost, settings), GALAXY).seconds


def test_attention_takes_the_published_time_of_its_steps():
    """172.2 ms in the block of MiniMax-H3, and 171.7 to 175.3 ms alone."""
    assert attention().expected == pytest.approx(0.1722, rel=0.005)
    assert attention().low < 0.1717
    assert attention().high > 0.1752


def test_smaller_operands_are_no_expected_gain_in_attention():
    plain, packed = attention(), attention(operand_bytes=1088 / 1024)
    assert packed.expected == plain.expected
    assert packed.low < 0.9 * plain.low, "the range keeps it"
    assert packed.high == plain.high


def test_lofi_and_the_older_kernel_of_attention():
    plain = attention().expected
    assert attention("LoFi", 1088 / 1024).expected == pytest.approx(0.85 * plain, rel=1e-3)
    assert attention("HiFi4", float32_sums=True).expected > 1.24 * plain


@pytest.mark.parametrize(
    ("fidelity", "operand_bytes", "share"),
    [
        ("HiFi2", 2.0, 1.0),  # what the efficiencies were measured at
        ("LoFi", 2.0, 1.0),  # the unpacker paces it: bytes, not passes
        ("HiFi4", 2.0, (4 * 64 + 24) / 203),
        ("HiFi2", 1.0625, (2 * 64 + 24) / 203),
        ("LoFi", 1.0625, 1.0625 / 2),
    ],
)
def test_fidelity_and_operand_types(fidelity, operand_bytes, share):
    plain = expected(MATMUL, flops=1e12) - LAUNCH
    other = expected(MATMUL, flops=1e12, settings=Settings(fidelity, operand_bytes=operand_bytes)) - LAUNCH
    assert other / plain == pytest.approx(share)


def test_dispatch_grows_with_the_chips():
    """1,869 calls of one forward: 0.14 s on 8 chips and 0.43 s on 32, as measured."""
    assert dispatch(1869, QUIETBOX).expected == pytest.approx(0.14, abs=0.005)
    assert dispatch(1869, GALAXY).expected == pytest.approx(0.43, abs=0.005)


def test_ranges_are_ordered_and_sourced_and_never_ideal():
    for name, table in constants()["kind"].items():
        assert table["source"], name
        for what in {"matrix", "dram", "link"} & set(table):
            fast, usual, slow = table[what]
            assert 0.9 > fast >= usual >= slow > 0, (name, what)
    assert all(constants()[name]["source"] for name in ("matrix", "attention", "l1", "launch", "dispatch"))


def test_unlisted_ops_are_elementwise():
    assert kind_of("ttnn.add") == "elementwise"
    assert kind_of(GATHERED) == "gathered_matmul"


def test_seconds_add_case_by_case():
    assert Seconds(1, 2, 3) * 2 + Seconds(0, 1, 2) == Seconds(2, 5, 8)
    assert Seconds(1, 2, 9).at_least(Seconds(2, 2, 3)) == Seconds(2, 2, 9)
    assert Seconds(1, 2, 3).to_json() == {"low": 1, "expected": 2, "high": 3}
