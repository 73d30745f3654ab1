"""The rule that cuts attention into chunks: it fits L1, and the busiest core does the least."""

import math

import pytest

from models.layers.attention_chunks import L1_BUDGET, Chunks, choose_chunks, l1_bytes

MOCHI = {"heads": 6, "width": 128}


@pytest.mark.parametrize(
    ("chunks", "element_bytes", "actual"),
    [
        # What ttnn 0.81.1 answers on the mock mesh for the ring joint op with heads of 128.
        (Chunks(256, 512), 2.0, 1_639_840),
        (Chunks(512, 512), 2.0, 2_639_264),
        (Chunks(512, 1024), 2.0, 4_212_128),
        (Chunks(1024, 512), 1088 / 1024, 4_269_472),
    ],
)
def test_l1_is_at_least_what_the_op_takes(chunks, element_bytes, actual):
    assert actual <= l1_bytes(chunks, 128, element_bytes) < 1.07 * actual


@pytest.mark.parametrize(
    ("rows", "shards", "cores", "chosen"),
    [(22_272, 2, 56, Chunks(192, 512)), (5_568, 8, 64, Chunks(192, 512))],
    ids=["2x4", "4x8"],
)
def test_full_size(rows, shards, cores, chosen):
    keys = (rows,) * shards + (256,)
    assert choose_chunks((rows, 256), keys, **MOCHI, cores=cores) == chosen
    packed = choose_chunks((rows, 256), keys, **MOCHI, cores=cores, element_bytes=1088 / 1024)
    assert packed.q * packed.k > chosen.q * chosen.k  # half the bytes, larger chunks


def test_no_core_waits_for_a_few_chunks_more():
    """276 chunks of 128 rows fill 64 cores five times with the last round nearly empty; 186 of 192 rows fill three."""
    chosen = choose_chunks((5_568, 256), (5_568,) * 8 + (256,), **MOCHI, cores=64)
    units = 6 * (math.ceil(5_568 / chosen.q) + math.ceil(256 / chosen.q))
    assert units / 64 > 0.9 * math.ceil(units / 64)


@pytest.mark.parametrize(("rows", "width"), [(1, 384), (32, 32), (40, 64), (4096, 128), (4096, 256)])
def test_any_size_is_whole_tiles_and_fits(rows, width):
    chosen = choose_chunks((rows,), (rows,), heads=2, width=width, cores=56)
    assert chosen.q % 32 == chosen.k % 32 == 0
    assert max(chosen.q, chosen.k) < 2 * max(32, -(-rows // 32) * 32)
    assert l1_bytes(chosen, width) <= L1_BUDGET


def test_heads_that_fit_nowhere():
    with pytest.raises(ValueError, match="heads of 8192 does not fit"):
        choose_chunks((64,), (64,), heads=1, width=8192, cores=56)


def test_chunks_by_name():
    assert str(Chunks.parse("256x384")) == "256x384"
    with pytest.raises(ValueError, match="are not QUERIESxKEYS"):
        Chunks.parse("256")
    with pytest.raises(ValueError, match="attention chunks 100x384: 100 must be a positive multiple of 32"):
        Chunks.parse("100x384")
