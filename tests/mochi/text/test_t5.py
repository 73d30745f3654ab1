"""The T5 encoder on the mesh against transformers' on random weights."""

import functools

import pytest
import torch
from transformers import T5Config as ReferenceConfig
from transformers import T5EncoderModel

from models.mochi.text.t5 import T5Config, T5Encoder, position_buckets, text_layout
from models.parallel import Layout
from models.reference.metrics import relative_rmse
from models.reference.random_weights import randomize_
from tests.support import StateDict, check

SIZES = {"d_model": 128, "d_kv": 32, "num_heads": 8, "d_ff": 256, "num_layers": 3}
# Three heads on four shards, widths that tiles do not divide.
ODD = {"d_model": 72, "d_kv": 20, "num_heads": 3, "d_ff": 100, "num_layers": 2}


@functools.cache
def reference(dtype=torch.float32, **sizes):
    config = ReferenceConfig(vocab_size=100, feed_forward_proj="gated-gelu", **sizes)
    model = T5EncoderModel(config).eval()
    randomize_(model, 3, {"SelfAttention.q.weight": sizes["d_kv"] ** -0.5})
    return model.to(dtype)


def build(mesh, **sizes) -> T5Encoder:
    model = reference(**sizes)
    ours = T5Encoder(T5Config.from_dict(model.config.to_dict()), mesh)
    ours.load(StateDict(model))
    return ours


@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_position_buckets(tokens):
    from transformers.models.t5.modeling_t5 import T5Attention

    positions = torch.arange(tokens)
    expected = T5Attention._relative_position_bucket(positions[None] - positions[:, None], True, 32, 128)
    assert torch.equal(torch.from_numpy(position_buckets(tokens, 32, 128)), expected)


@pytest.mark.parametrize(
    ("mesh", "sizes", "length"),
    [
        *(("2x4sp0tp1", sizes, length) for sizes in (SIZES, ODD) for length in (1, 13, 77)),
        ("1x1sp0tp1", SIZES, 77),
        ("2x4sp0tp1-plain", SIZES, 13),
        ("2x4sp1tp0", SIZES, 77),
        ("4x8sp1tp0", SIZES, 1),
        pytest.param("4x8sp1tp0", SIZES, 77, marks=pytest.mark.full),
    ],
    indirect=["mesh"],
)
def test_matches_transformers(mesh, sizes, length):
    """With padding behind the tokens in the reference: a prompt's features must not depend on it."""
    ids = torch.randint(2, 100, (1, length), generator=torch.Generator().manual_seed(length))
    padded = torch.nn.functional.pad(ids, (0, 6))
    mask = (torch.arange(length + 6) < length)[None].long()
    with torch.no_grad():
        exact = reference(**sizes)(padded, attention_mask=mask).last_hidden_state[:, :length]
        rounded = reference(torch.bfloat16, **sizes)(padded, attention_mask=mask).last_hidden_state[:, :length]
    features = mesh.download(build(mesh, **sizes)(ids[0]))[0].float()
    check(features, exact, rounded, max_rmse=0.03)


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight"])
def test_the_embedding_may_have_either_name(mesh, name):
    class OneName(StateDict):
        @property
        def _weights(self):
            other = {"shared.weight", "encoder.embed_tokens.weight"} - {name}
            return {key: value for key, value in super()._weights.items() if key not in other}

    model = reference(**SIZES)
    ours = T5Encoder(T5Config.from_dict(model.config.to_dict()), mesh)
    ours.load(OneName(model))
    both = mesh.download(build(mesh, **SIZES)([5, 6, 7]))
    assert torch.equal(mesh.download(ours([5, 6, 7])), both)


def test_meshes_agree(open_layout):
    ids = list(range(2, 60))
    alone = open_layout("1x1sp0tp1").download(build(open_layout("1x1sp0tp1"), **SIZES)(ids)).float()
    together = open_layout("2x4sp0tp1").download(build(open_layout("2x4sp0tp1"), **SIZES)(ids)).float()
    # Two evaluations of one function, each 0.0107 from float32 on the kernels (docs/precision.md).
    assert relative_rmse(alone, together) < 0.015


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_every_op_has_a_tested_golden(mesh):
    from models.mock import golden
    from tests.mock.golden.covered_ops import uncovered

    engine = golden.active()
    if engine is None:
        pytest.skip("this machine has cards: numbers come from them, not from golden functions")
    engine.ops_seen.clear()
    build(mesh, **SIZES)([5, 6, 7])
    assert not uncovered(engine.ops_seen)


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_bad_input(mesh):
    ours = build(mesh, **SIZES)
    with pytest.raises(ValueError, match="257 tokens: the text encoder takes 1 to 256"):
        ours([1] * 257)
    with pytest.raises(ValueError, match="feed_forward_proj is 'relu'"):
        T5Config.from_dict(ReferenceConfig(feed_forward_proj="relu").to_dict())


@pytest.mark.parametrize(
    ("layout", "heads", "wanted"),
    [
        ("2x4sp1tp0", 64, "2x4sp0tp1"),
        ("2x4sp0tp1", 64, "2x4sp0tp1"),
        ("4x8sp1tp0", 64, "4x8sp0tp1"),
        ("4x8sp1tp0", 12, "4x8sp1tp0"),
        ("2x4sp1tp0", 3, "2x4sp1tp0"),
    ],
)
def test_text_layout(layout, heads, wanted):
    """The widest TP that divides the heads, whatever the transformer's layout."""
    assert str(text_layout(Layout.parse(layout), heads)) == wanted
