"""The whole AsymmDiT against Diffusers on random weights."""

import pytest
import torch

from models.mochi.sampling.packing import pack_latents, unpack_latents
from models.mochi.transformer import MochiTransformer
from models.reference.metrics import relative_rmse
from tests.mock.golden.covered_ops import uncovered
from tests.support import SMALL, StateDict, check, config_of, in_both, randn, reference

TIMES = [30.0, 512.7, 990.0]


def build(mesh, **sizes) -> MochiTransformer:
    model = reference(**sizes)
    ours = MochiTransformer(config_of(model), mesh)
    ours.load(StateDict(model))
    return ours


def predict(ours: MochiTransformer, latents, features, step: int) -> torch.Tensor:
    patch = ours.config.patch_size
    _, _, frames, height, width = latents.shape
    grid = ours.grid(frames, height // patch, width // patch)
    prompt = ours.prepare(features, TIMES)
    prompt.select(step)
    out = ours(ours.upload_patches(pack_latents(latents, patch)), prompt, grid)
    return unpack_latents(ours.download_patches(out, grid.tokens), latents.shape, patch)


def expect(latents, features, step: int, **sizes):
    length = max(features.shape[0], 1)
    padded = torch.zeros(1, length + 3, features.shape[1])
    padded[0, : features.shape[0]] = features
    mask = torch.zeros(1, length + 3, dtype=torch.bool)
    mask[0, : features.shape[0]] = True

    def run(dtype, latents, padded):
        model = reference(dtype, **sizes)
        return model(latents, padded, torch.tensor([TIMES[step]]), mask, return_dict=False)[0]

    return in_both(run, latents, padded)


def compare(mesh, latent_grid, length: int, step: int, **sizes) -> None:
    latents = randn(1, 12, *latent_grid, seed=1)
    features = randn(length, sizes["text_embed_dim"], seed=2)
    exact, rounded = expect(latents, features, step, **sizes)
    actual = predict(build(mesh, **sizes), latents, features, step)
    check(actual, exact, rounded, min_pcc=0.999, max_rmse=0.04)


# 2 x 3 x 5 = 30 tokens: not a multiple of 32 x SP on any mesh; on 4x8 some chips hold only padding.
@pytest.mark.parametrize(
    ("mesh", "length"),
    [
        *(("2x4sp1tp0", length) for length in (1, 7, 77, 256)),
        ("1x1sp0tp1", 77),
        ("1x2sp0tp1", 7),
        ("2x4sp0tp1", 1),
        ("2x4sp0tp1", 256),
        ("4x8sp1tp0", 1),
        ("4x8sp1tp0", 256),
    ],
    indirect=["mesh"],
)
def test_matches_diffusers(mesh, length):
    compare(mesh, (2, 6, 10), length, step=1, **SMALL)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "2x4sp0tp1"], indirect=True)
@pytest.mark.parametrize("step", [0, 2])
def test_every_step_of_a_schedule(mesh, step):
    compare(mesh, (3, 4, 6), 19, step=step, **SMALL)


@pytest.mark.parametrize("mesh", ["2x4sp1tp0"], indirect=True)
def test_a_prompt_goes_from_step_to_step(mesh):
    """One prompt taken to several steps, back too, predicts what fresh ones do."""
    ours, features = build(mesh, **SMALL), randn(7, SMALL["text_embed_dim"], seed=2)
    grid, prompt = ours.grid(2, 3, 5), ours.prepare(features, TIMES)
    patches = ours.upload_patches(pack_latents(randn(1, 12, 2, 6, 10, seed=1), 2))
    for step in (2, 0, 1):
        prompt.select(step)
        fresh = ours.prepare(features, TIMES[step : step + 1])
        both = [ours.download_patches(ours(patches, each, grid), grid.tokens) for each in (prompt, fresh)]
        assert relative_rmse(*both) < 0.002, step


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "2x4sp0tp1"], indirect=True)
def test_prompt_without_tokens(mesh):
    """An all-False mask: no text in attention, and a caption pool that sees only its own zero mean."""
    compare(mesh, (2, 6, 10), 0, step=1, **SMALL)


# Several tiles of tokens per chip, and a head width that is not a whole tile.
@pytest.mark.parametrize("mesh", ["1x2sp1tp0", "2x2sp0tp1"], indirect=True)
@pytest.mark.parametrize(
    "sizes",
    [
        # Diffusers' own unit-test sizes: widths below one tile.
        {"num_attention_heads": 2, "attention_head_dim": 8, "pooled_projection_dim": 16, "text_embed_dim": 32},
        # Widths that no number of tiles divides, time features of odd width.
        {"num_attention_heads": 6, "attention_head_dim": 20, "pooled_projection_dim": 72, "text_embed_dim": 48},
        {"num_attention_heads": 4, "attention_head_dim": 64, "pooled_projection_dim": 96, "text_embed_dim": 128},
    ],
    ids=["diffusers-test", "odd", "wide-heads"],
)
def test_any_sizes(mesh, sizes):
    compare(mesh, (3, 10, 14), 13, step=1, num_layers=2, time_embed_dim=20, **sizes)


APART = 0.015  # 0.0123 on the kernels, one chip, fused against plain


def test_meshes_agree(open_layout):
    """The same input on one chip and on eight agrees to bfloat16 rounding.

    Two bfloat16 evaluations of one function differ by their rounding errors only: at most by the root of 2 times the
    error that either has against float32 (0.0119 on the kernels); a missing or doubled shard would differ by far more.
    """
    latents, features = randn(1, 12, 2, 6, 10, seed=1), randn(9, SMALL["text_embed_dim"], seed=2)
    alone = predict(build(open_layout("1x1sp0tp1"), **SMALL), latents, features, 1)
    for layout in ("2x4sp0tp1", "2x4sp1tp0", "1x2sp0tp1"):
        together = predict(build(open_layout(layout), **SMALL), latents, features, 1)
        assert relative_rmse(alone, together) < APART, layout
        assert (alone - together).abs().max() < 0.1 * alone.abs().max(), layout


@pytest.mark.parametrize("layout", ["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "2x4sp1tp0"])
def test_fused_equals_plain(open_layout, layout):
    """Fused ops compute what single ops do; they round to bfloat16 less often, so both differ by rounding only."""
    latents, features = randn(1, 12, 2, 6, 10, seed=1), randn(9, SMALL["text_embed_dim"], seed=2)
    fused = predict(build(open_layout(layout), **SMALL), latents, features, 1)
    plain = predict(build(open_layout(f"{layout}-plain"), **SMALL), latents, features, 1)
    assert relative_rmse(plain, fused) < APART


@pytest.mark.parametrize("layout", ["2x4sp0tp1", "2x4sp1tp0"])
def test_weights_sharded_over_sp(open_layout, layout):
    """Gathering a weight before its use changes no bit; each chip holds a share of the large matrices."""
    latents, features = randn(1, 12, 2, 6, 10, seed=1), randn(9, SMALL["text_embed_dim"], seed=2)
    whole, sharded = build(open_layout(layout), **SMALL), build(open_layout(f"{layout}fsdp"), **SMALL)
    assert torch.equal(predict(whole, latents, features, 1), predict(sharded, latents, features, 1))
    size = sharded.mesh.sp.size
    for ours, theirs in zip(whole.blocks[0].parameters(), sharded.blocks[0].parameters(), strict=True):
        if "to_qkv.weight" in ours[0] or "down.weight" in ours[0]:
            assert theirs[2].tensor.volume() * size == ours[2].tensor.volume()


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_a_missing_reduction_is_caught(mesh, monkeypatch):
    """Break one collective: each chip keeps its own partial sum of the feed-forward."""
    import ttnn

    from models.layers import linear

    def keep_own_part(x, *, dim, over):
        return ttnn.mesh_partition(x, dim, cluster_axis=over.index)

    monkeypatch.setattr(linear, "reduce_scatter", keep_own_part)
    with pytest.raises(AssertionError, match="PCC"):
        compare(mesh, (2, 6, 10), 7, step=1, **SMALL)


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_attending_to_padding_is_caught(mesh, monkeypatch):
    """Break the token count: attention sees the padding rows of the last shard."""
    from models.mochi.transformer import model

    monkeypatch.setattr(model.Grid, "tokens", property(lambda grid: 64))
    latents, features = randn(1, 12, 2, 6, 10, seed=1), randn(7, SMALL["text_embed_dim"], seed=2)
    ours = build(mesh, **SMALL)
    grid = ours.grid(2, 3, 5)
    prompt = ours.prepare(features, TIMES)
    prompt.select(1)
    out = ours(ours.upload_patches(pack_latents(latents, 2)), prompt, grid)
    actual = unpack_latents(ours.download_patches(out, 30), latents.shape, 2)
    exact, rounded = expect(latents, features, 1, **SMALL)
    with pytest.raises(AssertionError):
        check(actual, exact, rounded, min_pcc=0.999, max_rmse=0.04)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "2x4sp0tp1", "2x4sp0tp1-plain"], indirect=True)
def test_every_op_has_a_tested_golden(mesh):
    from models.mock import golden

    engine = golden.active()
    if engine is None:
        pytest.skip("this machine has cards: numbers come from them, not from golden functions")
    engine.ops_seen.clear()
    compare(mesh, (2, 6, 10), 7, step=1, **SMALL)
    assert engine.ops_seen
    assert not uncovered(engine.ops_seen)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_too_many_text_tokens(mesh):
    ours = build(mesh, **SMALL)
    with pytest.raises(ValueError, match="257 text tokens are more than the model's 256"):
        ours.prepare(randn(257, SMALL["text_embed_dim"]), TIMES)


def test_layout_must_divide_heads(open_layout):
    with pytest.raises(ValueError, match=r"TP=4 does not divide the model's 6 attention heads"):
        MochiTransformer(config_of(reference(**(SMALL | {"num_attention_heads": 6}))), open_layout("2x4sp0tp1"))


def test_weights_of_another_model_are_named(open_layout):
    ours = MochiTransformer(config_of(reference(**SMALL)), open_layout("1x2sp0tp1"))
    other = reference(**(SMALL | {"num_layers": 2}))
    with pytest.raises(ValueError, match=r"missing \(transformer_blocks\.1\."):
        ours.load(StateDict(other))
    with pytest.raises(ValueError, match=r"unexpected \(extra\."):
        ours.load(StateDict(torch.nn.ModuleDict({"extra": torch.nn.Linear(2, 2)})))
    wider = reference(**(SMALL | {"pooled_projection_dim": 160}))
    with pytest.raises(ValueError, match=r"has shape \(160, 256\), the model needs \(128, 256\)"):
        ours.load(StateDict(wider))
