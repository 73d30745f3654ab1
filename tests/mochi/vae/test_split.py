"""Splits as text, their extents, and the rules that choose split and chunk."""

import pytest

from models.mochi.vae.config import DecoderConfig
from models.mochi.vae.memory import chunk_frames, peak_bytes
from models.mochi.vae.split import Split, choose_split

PREVIEW = DecoderConfig()
FULL = (28, 60, 106)
GB = 10**9


@pytest.mark.parametrize("text", ["t0h1", "h0w1", "w0t1", "t1", "w0", "none"])
def test_text(text):
    assert str(Split.parse(text)) == text


def test_order_of_text_does_not_matter():
    assert Split.parse(" H1T0 ") == Split.parse("t0h1")


@pytest.mark.parametrize("text", ["", "th", "t2", "x0", "t0h0", "t0t1", "t0h1w0", "h1h1"])
def test_not_a_split(text):
    with pytest.raises(ValueError, match=r"split .*write it as t0h1"):
        Split.parse(text)


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_extent(mesh):
    extent = Split.parse("t0h1").extent(mesh, 3, 9, 13)
    assert (extent.time.local, extent.height.local, extent.width.local) == (2, 3, 13)
    assert (extent.height.is_uneven, extent.height.last_shard, extent.height.last_size) == (True, 2, 3)
    assert extent.time.last_size == 1
    bigger = extent.times(3, 2, 2)
    assert (bigger.time.real, bigger.height.real, bigger.height.local, bigger.width.real) == (9, 18, 6, 26)
    assert Split.parse("h0t1").extent(mesh, 1, 9, 13).time.local == 2, "two frames to look back to"


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "1x8sp0tp1", "4x8sp1tp0"], indirect=True)
@pytest.mark.parametrize("size", [FULL, (28, 90, 160), (28, 106, 60), (5, 60, 106), (1, 2, 2)], ids=str)
def test_choice(mesh, size):
    """Every mesh axis is used, memory stays near the least that any split needs."""
    split = choose_split(mesh, *size)
    assert [dim is not None for dim in split.dims] == [side > 1 for side in mesh.layout.mesh_shape]
    extent = split.extent(mesh, *size)
    ideal = size[0] * size[1] * size[2] / (mesh.sp.size * mesh.tp.size)
    if min(size) > 4:
        assert extent.time.local * extent.height.local * extent.width.local <= 1.2 * ideal


@pytest.mark.parametrize(
    ("mesh", "size", "late", "early"),
    [
        ("2x4sp0tp1", FULL, "w0h1", "w0h1"),
        ("4x8sp1tp0", FULL, "h0w1", "h0w1"),
        ("1x2sp0tp1", (28, 4, 4), "t1", "h1"),
        ("1x8sp0tp1", (64, 3, 3), "t1", "t1"),
    ],
    indirect=["mesh"],
    ids=str,
)
def test_time_stays_whole_where_frames_are_dropped_early(mesh, size, late, early):
    """Unless another split stores more: then memory comes first."""
    assert str(choose_split(mesh, *size)) == late
    assert str(choose_split(mesh, *size, whole_time=True)) == early


@pytest.mark.parametrize("mesh", ["2x4sp0tp1", "1x1sp0tp1"], indirect=True)
@pytest.mark.parametrize("split", ["w0h1", "t0h1"])
def test_chunks_follow_memory(mesh, split):
    split = Split.parse(split)
    memory = [free * GB for free in (8, 12, 40, 200)]
    lengths = [chunk_frames(PREVIEW, split, mesh, FULL, free) for free in memory]
    assert lengths == sorted(lengths)
    assert lengths[-1] == 28 > lengths[0]
    shards = split.extent(mesh, *FULL).time.shards
    assert all(length % shards == 0 for length in lengths)
    for length, free in zip(lengths, memory, strict=True):
        assert peak_bytes(PREVIEW, split.extent(mesh, length, *FULL[1:]), chunked=length < 28) < free
    with pytest.raises(ValueError, match="do not fit"):
        chunk_frames(PREVIEW, split, mesh, FULL, GB // 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_block_out_channels": (100, 256, 512, 768)}, "multiples of 32"),
        ({"layers_per_block": (3, 3)}, "must have 5 entries"),
        ({"temporal_expansions": (1, 2)}, "must have 3 entries"),
        ({"latents_mean": (0.0,) * 11}, "must both have 12 entries"),
        ({"act_fn": "gelu"}, "is not supported"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig.from_dict(change)
