"""The rule that cuts attention into chunks: it fits L1, and the busiest core does the least."""

import math

import pytest

from models.layers.attention_chunks import L1_BUDGET, Chunks, choose_chunks, l1_bytes
from models.machine.attention_steps import measured

PACKED = 1088 / 1024  # bytes of a bfloat8_b element
MOCHI = {"heads": 6, "width": 128}


@pytest.mark.parametrize(
    ("chunks", "element_bytes", "streaming", "actual"),
    [
        # What ttnn 0.81.1 answers on the mock 2x4 for the ring joint op, 12 heads of 128 and 4 x 11,136 tokens.
        (Chunks(384, 512), 2.0, False, 2_237_856),
        (Chunks(256, 1024), 2.0, False, 2_753_952),
        (Chunks(512, 512), PACKED, False, 2_401_696),
        (Chunks(384, 512), 2.0, True, 1_846_720),
        (Chunks(224, 1024), 2.0, True, 2_098_624),
        (Chunks(384, 512), PACKED, True, 1_508_800),
        (Chunks(128, 2048), PACKED, True, 1_996_224),
        (Chunks(352, 1024), PACKED, True, 2_055_104),
    ],
)
def test_l1_is_what_the_op_takes(chunks, element_bytes, streaming, actual):
    # Without streaming one tile less for masks.
    assert l1_bytes(chunks, 128, element_bytes, streaming=streaming) - actual in ({0} if streaming else {0, 2080})


@pytest.mark.parametrize(
    ("rows", "shards", "cores", "chosen"),
    [(22_272, 2, 56, Chunks(256, 512)), (5_568, 8, 64, Chunks(192, 512))],
    ids=["2x4", "4x8"],
)
def test_full_size(rows, shards, cores, chosen):
    keys = (rows,) * shards + (256,)
    assert choose_chunks((rows, 256), keys, **MOCHI, cores=cores, element_bytes=PACKED, streaming=True) == chosen
    exact = choose_chunks((rows, 256), keys, **MOCHI, cores=cores)
    assert exact == Chunks(192, 512)  # the older kernel keeps a mask, and 256 x 512 in bfloat16 does not fit L1 with it


@pytest.mark.parametrize("rows", [96, 400, 864, 3_424, 11_136, 44_544])
@pytest.mark.parametrize("cores", [1, 56, 63, 64])
@pytest.mark.parametrize("element_bytes", [2.0, PACKED])
@pytest.mark.parametrize("streaming", [True, False])
def test_no_chunks_that_nobody_has_measured(rows, cores, element_bytes, streaming):
    keys = (rows,) * 4 + (256,)
    chosen = choose_chunks((rows, 256), keys, **MOCHI, cores=cores, element_bytes=element_bytes, streaming=streaming)
    assert (chosen.q, chosen.k) in {(step.q, step.k) for step in measured()}


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
    for text in ("256", "\u0663\u0662x32", "9" * 5000 + "x32"):
        with pytest.raises(ValueError, match="are not QUERIESxKEYS"):
            Chunks.parse(text)
    with pytest.raises(ValueError, match="attention chunks 100x384: 100 must be a positive multiple of 32"):
        Chunks.parse("100x384")
