"""Sub-layers and blocks of the AsymmDiT against Diffusers' modules on random weights."""

import functools
from types import SimpleNamespace

import pytest
import torch
import ttnn
from diffusers.models.transformers.transformer_mochi import MochiRoPE, MochiTransformerBlock

from models.layers import Width
from models.mochi.config import TransformerConfig
from models.mochi.precision import Precision
from models.mochi.transformer.attention import JointAttention
from models.mochi.transformer.block import TransformerBlock
from models.mochi.transformer.conditioning import CaptionPool, Conditioning, Modulation, StepTable, sinusoid
from models.mochi.transformer.model import FinalLayer, PatchEmbed
from models.mochi.transformer.rope import RotaryEmbedding, padded_tokens, positions
from models.mochi.transformer.widths import Widths
from models.reference.metrics import relative_rmse
from models.reference.random_weights import outlier_scale, randomize_
from models.reference.transformer import MODULATION_GAINS
from tests.support import SMALL, StateDict, check, config_of, in_both, pairs, randn, reference
from weight_cache.precision import set_precision

MESHES = ["1x1sp0tp1", "1x2sp0tp1", "2x4sp0tp1", "2x4sp0tp1-plain", "2x4sp1tp0", "4x8sp1tp0"]
GRID = (2, 3, 5)
TOKENS = 30
CONFIG = config_of(reference(**SMALL))
# Sub-layers are compared with PyTorch's bfloat16 where products use every bit of it; blocks and models as they run.
EXACT = Precision.named("accurate")


def pad(x: torch.Tensor, width: Width) -> torch.Tensor:
    return width.pad(x, x.ndim - 1)


class Streams:
    """Inputs of both streams on the mesh, and their way back."""

    def __init__(self, mesh, config, length: int, *, tokens: int = TOKENS, outliers: bool = False):
        self.mesh, self.tokens = mesh, tokens
        self.widths = Widths.of(config, mesh.tp.size)
        self.spatial = randn(1, tokens, config.inner_dim, seed=3)
        self.text = randn(1, length, config.pooled_projection_dim, seed=4)
        if outliers:
            self.spatial *= outlier_scale(config.inner_dim)
            self.text *= outlier_scale(config.pooled_projection_dim)
        rows = padded_tokens(tokens, mesh.sp.size)
        padded = torch.zeros(1, 1, rows, self.widths.visual.padded)
        padded[0, 0, :tokens] = pad(self.spatial[0], self.widths.visual)
        self.spatial_device = mesh.upload(padded, sp=2, tp=3)
        self.text_device = mesh.upload(pad(self.text[None], self.widths.text), tp=3)

    def spatial_back(self, x) -> torch.Tensor:
        return self.mesh.download(x, sp=2, tp=3)[0, :, : self.tokens, : self.widths.visual.size].float()

    def text_back(self, x) -> torch.Tensor:
        return self.mesh.download(x, tp=3)[0, ..., : self.widths.text.size].float()


def rotary(mesh, config, model, grid=GRID):
    module = RotaryEmbedding(mesh, config, Widths.of(config, mesh.tp.size).head)
    frequencies = torch.nn.Module()
    frequencies.pos_frequencies = model.pos_frequencies
    module.load(StateDict(frequencies))
    return module(*grid)


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 3, 5), (5, 4, 7)])
def test_positions(grid):
    model = reference(**SMALL)
    expected = model.rope._get_positions(*grid, dtype=torch.float64)
    assert torch.allclose(torch.from_numpy(positions(*grid)).T.double(), expected.double(), atol=1e-4)


@pytest.mark.parametrize("mesh", MESHES, indirect=True)
def test_rope(mesh):
    """The table holds cosines and sines of the learned angles, pair by pair; padding rows have angle 0."""
    model = reference(**SMALL)
    table = rotary(mesh, CONFIG, model)
    cos, sin = model.rope(model.pos_frequencies, *GRID, dtype=torch.float32)
    for ours, expected in ((table.cos, cos), (table.sin, sin)):
        host = mesh.download(ours, sp=2, tp=1).float()[0]
        expected = expected.detach().transpose(0, 1).repeat_interleave(2, dim=-1)
        assert (host[:, :TOKENS] - expected).abs().max() <= 2**-8  # half a bfloat16 step at 1
    x = randn(1, 8, TOKENS, 32, seed=9)
    padded = torch.zeros(1, 8, padded_tokens(TOKENS, mesh.sp.size), 32)
    padded[:, :, :TOKENS] = x
    rotated = mesh.download(table.apply(mesh.upload(padded, sp=2, tp=1)), sp=2, tp=1).float()[:, :, :TOKENS]
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.detach().transpose(0, 1), sin.detach().transpose(0, 1)
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    assert relative_rmse(expected, rotated) < 0.005


@pytest.mark.parametrize("channels", [64, 20])
def test_sinusoid(channels):
    from diffusers.models.embeddings import get_timestep_embedding

    times = [0.0, 25.0, 512.7, 999.0]
    expected = get_timestep_embedding(
        torch.tensor(times), channels, flip_sin_to_cos=True, downscale_freq_shift=0, max_period=10000
    )
    # The reference takes cosines of float32 angles up to 1000.
    assert torch.allclose(torch.from_numpy(sinusoid(times, channels))[0, 0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("mesh", "length"),
    [("2x4sp0tp1", 0), ("2x4sp0tp1", 1), *zip(MESHES, (0, 1, 45) * 2, strict=True)],
    indirect=["mesh"],
)
def test_caption_pool(mesh, length):
    model = reference(**SMALL)
    features = randn(1, length + 2, SMALL["text_embed_dim"], seed=5)
    mask = torch.arange(length + 2)[None] < length
    exact, rounded = in_both(lambda dtype, x: reference(dtype, **SMALL).time_embed.pooler(x, mask), features)
    pool = CaptionPool(mesh, CONFIG, Widths.of(CONFIG, mesh.tp.size))
    pool.load(StateDict(model.time_embed.pooler, "time_embed.pooler."))
    out = pool(mesh.upload(features[None, :, :length]) if length else None)
    check(mesh.download(out, tp=3)[0, 0].float(), exact, rounded, max_rmse=0.02)


@pytest.mark.parametrize("mesh", MESHES, indirect=True)
def test_conditioning(mesh):
    """Timestep embedding plus pooled caption for several steps at once, and the caption projection."""
    model = reference(**SMALL)
    features, times = randn(1, 21, SMALL["text_embed_dim"], seed=5), [1.0, 250.5, 997.0]
    mask = torch.ones(1, 21, dtype=torch.bool)

    def run(dtype, x):
        embed = reference(dtype, **SMALL).time_embed
        outs = [embed(torch.tensor([t]), x, mask, hidden_dtype=dtype) for t in times]
        return torch.cat([torch.nn.functional.silu(out[0]) for out in outs]), outs[0][1]

    (exact, exact_text), (rounded, rounded_text) = in_both(run, features)
    module = Conditioning(mesh, CONFIG, Widths.of(CONFIG, mesh.tp.size))
    module.load(StateDict(model.time_embed, "time_embed."))
    conditioning, text = module(times, mesh.upload(features[None]))
    check(mesh.download(conditioning)[0, 0].float(), exact, rounded, max_rmse=0.02)
    check(mesh.download(text, tp=3)[0].float(), exact_text, rounded_text, max_rmse=0.02)


@pytest.mark.parametrize("mesh", MESHES, indirect=True)
def test_modulation(mesh):
    block = reference(**SMALL).transformer_blocks[0]
    conditioning = randn(3, CONFIG.inner_dim, seed=6)
    widths = Widths.of(CONFIG, mesh.tp.size)
    kinds = ("scale", "gate", "scale", "gate")
    module = Modulation(mesh, "linear", widths.visual, widths.visual, kinds)
    module.load(StateDict(block.norm1.linear, "linear."))
    tables = module(mesh.upload(conditioning[None, None]))
    cuts = {"2x4sp0tp1": 2, "2x4sp1tp0": 4, "4x8sp1tp0": 1}  # a chip's 64 columns on 4x8 are not 8 whole tiles
    assert module.linear.cuts == cuts.get(str(mesh.layout), 1)
    with torch.no_grad():
        parts = block.norm1.linear(conditioning).chunk(4, dim=1)
    table = StepTable([tables[:1], tables[1:]])
    for step in (2, 0):
        table.select(step)
        rows = [*table.group(0), *table.group(1)]
        for row, part, kind in zip(rows, parts, kinds, strict=True):
            expected = 1 + part if kind == "scale" else torch.tanh(part)
            found = mesh.download(row, tp=3)[0, 0, 0].float()
            check(found, expected[step], None, max_rmse=0.01)
            # Rounding has no direction: a wrong constant has, and would hide within the error's limit.
            gain = (found * expected[step]).sum() / expected[step].square().sum()
            assert abs(gain - 1) < 0.002, f"{kind} is {gain:.5f} of what it should be"
    with pytest.raises(ValueError, match="step 3 is not among the 3 that were prepared"):
        table.select(3)


@pytest.mark.parametrize(("mesh", "length", "last"), pairs(MESHES, [1, 77], [False, True]), indirect=["mesh"])
def test_attention(mesh, length, last):
    index = 3 if last else 0
    model = reference(**SMALL)
    streams = Streams(mesh, CONFIG, length)
    mask = torch.ones(1, length, dtype=torch.bool)

    def run(dtype, spatial, text):
        model = reference(dtype, **SMALL)
        rope = model.rope(model.pos_frequencies, *GRID, dtype=torch.float32)
        attend = model.transformer_blocks[index].attn1
        return attend(spatial, encoder_hidden_states=text, attention_mask=mask, image_rotary_emb=rope)

    exact, rounded = in_both(run, streams.spatial, streams.text)
    ours = JointAttention(mesh, CONFIG, streams.widths, EXACT, text_output=not last)
    ours.load(StateDict(model.transformer_blocks[index].attn1, "attn1."))
    spatial, text = ours(streams.spatial_device, streams.text_device, rotary(mesh, CONFIG, model), TOKENS)
    check(streams.spatial_back(spatial), exact[0], rounded[0])
    if last:
        assert text is None
    else:
        check(streams.text_back(text), exact[1], rounded[1])


@pytest.mark.parametrize("mesh", MESHES, indirect=True)
@pytest.mark.parametrize("stream", ["visual", "text"])
def test_feed_forward(mesh, stream):
    """Inner widths are 682 and 341: neither tiles nor shards divide them."""
    from models.layers import SwiGLUFeedForward

    name, width, inner = {
        "visual": ("ff", CONFIG.inner_dim, CONFIG.ff_inner_dim),
        "text": ("ff_context", CONFIG.pooled_projection_dim, CONFIG.ff_context_inner_dim),
    }[stream]
    x = randn(1, 19, width, seed=7)
    exact, rounded = in_both(lambda dtype, x: getattr(reference(dtype, **SMALL).transformer_blocks[0], name)(x), x)
    padded = Width.sharded(width, mesh.tp.size)
    ours = SwiGLUFeedForward(mesh, name, padded, inner, ttnn.MathFidelity.HiFi4)
    ours.load(StateDict(getattr(reference(**SMALL).transformer_blocks[0], name), f"{name}."))
    out = ours(mesh.upload(pad(x[None], padded), tp=3))
    check(mesh.download(out, tp=3)[0, ..., :width].float(), exact, rounded, max_rmse=0.02)


def run_block(
    mesh,
    model_of,
    config,
    index: int,
    length: int,
    grid=GRID,
    precision="bf16",
    weights=torch.float32,
    of_update=False,
    outliers=False,
    **limits,
) -> None:
    """Compare one block; ``model_of(dtype)`` gives the reference's blocks, frequencies and rope, ours ``weights``.

    With ``of_update`` what the block adds is compared, without the residual that it leaves as it was. Channels of
    ``outliers`` are left out: there bfloat16 rounds the residual by more than the block adds.
    """
    last = index == config.num_layers - 1
    tokens = grid[0] * grid[1] * grid[2]
    streams = Streams(mesh, config, length, tokens=tokens, outliers=outliers)
    before = (streams.spatial, streams.text) if of_update else (torch.zeros(()), torch.zeros(()))
    embedding = randn(1, config.inner_dim, seed=8)
    mask = torch.ones(1, length, dtype=torch.bool)

    def run(dtype, spatial, text, embedding):
        model = model_of(dtype)
        rope = model.rope(model.pos_frequencies, *grid, dtype=torch.float32)
        return model.transformer_blocks[index](spatial, text, embedding, mask, image_rotary_emb=rope)

    exact, rounded = in_both(run, streams.spatial, streams.text, embedding)
    policy = Precision.named(precision)
    block = TransformerBlock(mesh, config, streams.widths, policy, index, last=last)
    set_precision(block, policy.weights)
    block.load(StateDict(model_of(weights).transformer_blocks[index], f"transformer_blocks.{index}."))
    conditioning = pad(torch.nn.functional.silu(embedding)[None, None], streams.widths.visual)
    tables = block.modulations(mesh.upload(conditioning))
    rope = rotary(mesh, config, model_of(weights), grid)
    table = StepTable(tables)
    spatial, text = block(streams.spatial_device, streams.text_device, table.group(0), table.group(1), rope, tokens)
    found = (streams.spatial_back(spatial), None if text is None else streams.text_back(text))
    assert (found[1] is None) == last
    for ours, theirs, bf16, start in zip(found, exact, rounded, before, strict=True):
        if ours is not None:
            usual = outlier_scale(ours.shape[-1]) == 1 if outliers else slice(None)
            check(*((x.float() - start)[..., usual] for x in (ours, theirs, bf16)), **limits)


@pytest.mark.parametrize(("mesh", "index", "length"), pairs(MESHES, [0, 3], [1, 7, 77, 256]), indirect=["mesh"])
def test_block(mesh, index, length):
    run_block(mesh, lambda dtype: reference(dtype, **SMALL), CONFIG, index, length)


# Without SP there are no shards to pad for, but the rotation wants whole tiles all the same.
@pytest.mark.parametrize(
    ("mesh", "grid"),
    [
        *(("1x3sp0tp1", grid) for grid in ((1, 1, 1), (3, 3, 5), (1, 8, 8), (2, 7, 5))),  # 1, 45, 64 and 70 tokens
        ("1x1sp0tp1", (1, 1, 1)),
        ("1x1sp0tp1", (2, 7, 5)),
        ("1x2sp0tp1", (3, 3, 5)),
        ("1x8sp0tp1", (1, 1, 1)),
        ("1x8sp0tp1", (1, 8, 8)),
    ],
    indirect=["mesh"],
)
def test_block_without_sp(mesh, grid):
    """Tokens that are whole tiles and tokens that are not; three chips have six heads and an odd number of sums."""
    sizes = SMALL | ({"num_attention_heads": 6, "pooled_projection_dim": 96} if mesh.tp.size == 3 else {})
    run_block(mesh, lambda dtype: reference(dtype, **sizes), config_of(reference(**sizes)), 0, 45, grid=grid)


@pytest.mark.full
@pytest.mark.alone
@pytest.mark.parametrize("mesh", ["2x4sp0tp1"], indirect=True)
def test_block_at_real_width(mesh):
    run_block_at_real_width(mesh)


def run_block_at_real_width(mesh, *, fill=randomize_, sharpness: float = 1.0, **options) -> None:
    """24 heads of 128, widths 3072 and 1536, 70 visual and 33 text tokens.

    ``fill`` overwrites the weights; the scores of attention are ``sharpness`` times as large.
    """
    config = TransformerConfig(num_layers=2)

    @functools.cache
    def rounded():
        block = MochiTransformerBlock(
            config.inner_dim, config.num_attention_heads, config.attention_head_dim, config.pooled_projection_dim
        )
        gains = {name.removeprefix("norm_out."): gain for name, gain in MODULATION_GAINS.items()}
        sharper = dict.fromkeys(("norm_q.weight", "norm_added_q.weight"), sharpness)
        fill(block, gains=gains | sharper)
        frequencies = randn(3, config.num_attention_heads, config.attention_head_dim // 2, seed=11) / 5
        return block.bfloat16(), torch.nn.Parameter(frequencies)

    def model_of(dtype):
        """The one block there is, in ``dtype``: bfloat16 holds its weights, and in float32 they are 0.8 GB."""
        block, frequencies = rounded()
        return SimpleNamespace(transformer_blocks=[block.to(dtype)], pos_frequencies=frequencies, rope=MochiRoPE())

    run_block(mesh, model_of, config, 0, 33, grid=(2, 5, 7), weights=torch.bfloat16, **options)


@pytest.mark.parametrize("mesh", MESHES, indirect=True)
def test_patch_embed(mesh):
    from models.mochi.sampling.packing import pack_latents

    model = reference(**SMALL)
    latents = randn(1, 12, 2, 6, 10, seed=1)
    exact, rounded = in_both(
        lambda dtype, x: reference(dtype, **SMALL).patch_embed(x.transpose(1, 2).flatten(0, 1)), latents
    )
    widths = Widths.of(CONFIG, mesh.tp.size)
    ours = PatchEmbed(mesh, CONFIG, widths.visual)
    ours.load(StateDict(model.patch_embed, "patch_embed."))
    patches = torch.zeros(1, 1, padded_tokens(TOKENS, mesh.sp.size), 48)
    patches[0, 0, :TOKENS] = pack_latents(latents, 2)

    out = ours(mesh.upload(patches, dtype=ttnn.float32, sp=2))
    check(mesh.download(out, sp=2, tp=3)[0, 0, :TOKENS].float(), exact.flatten(0, 1), rounded.flatten(0, 1))


@pytest.mark.parametrize("mesh", MESHES, indirect=True)
def test_final_layer(mesh):
    model = reference(**SMALL)
    streams = Streams(mesh, CONFIG, 1)
    embedding = randn(1, CONFIG.inner_dim, seed=8)

    def run(dtype, spatial, embedding):
        model = reference(dtype, **SMALL)
        return model.proj_out(model.norm_out(spatial, embedding))

    exact, rounded = in_both(run, streams.spatial, embedding)
    ours = FinalLayer(mesh, CONFIG, streams.widths.visual)
    pair = torch.nn.ModuleDict({"norm_out": model.norm_out, "proj_out": model.proj_out})
    ours.load(StateDict(pair))
    tables = ours.modulation(mesh.upload(torch.nn.functional.silu(embedding)[None, None]))
    out = ours(streams.spatial_device, StepTable([tables]).group(0))
    check(mesh.download(out, sp=2)[0, :, :TOKENS].float(), exact, rounded, max_rmse=0.02)
