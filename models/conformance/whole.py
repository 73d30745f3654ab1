"""Whole pieces: a transformer block, and a tiny video. Golden execution alone says what they should give."""

from __future__ import annotations

import torch

from models.conformance.bench import Bench, Output, Weights, case
from models.mochi.config import TransformerConfig
from models.mochi.precision import Precision
from models.mochi.transformer.block import TransformerBlock
from models.mochi.transformer.conditioning import StepTable
from models.mochi.transformer.rope import RotaryEmbedding, padded_tokens
from models.mochi.transformer.widths import Widths

_TEXT, _GRID = 33, (2, 5, 7)
_GOLDEN = "golden execution's rounding, op by op"


def block(bench: Bench, config: TransformerConfig, precision: str = "bf16") -> list[Output]:
    """A block of random weights on 70 visual and 33 text tokens."""
    mesh, tokens = bench.mesh, _GRID[0] * _GRID[1] * _GRID[2]
    widths = Widths.of(config, mesh.tp.size)
    layer = TransformerBlock(mesh, config, widths, Precision.named(precision), 0, last=False, chunks=bench.chunks)
    layer.load(Weights(layer))
    rope = RotaryEmbedding(mesh, config, widths.head)
    rope.load(Weights(rope, scale=0.2))
    spatial = torch.zeros(1, 1, padded_tokens(tokens, mesh.sp.size), widths.visual.padded)
    spatial[:, :, :tokens] = widths.visual.pad(bench.normal(1, 1, tokens, config.inner_dim), 3)
    text = widths.text.pad(bench.normal(1, 1, _TEXT, config.pooled_projection_dim), 3)
    conditioning = widths.visual.pad(bench.normal(1, 1, 1, config.inner_dim), 3)
    table = StepTable(layer.modulations(bench.up(conditioning)))
    made, joint = layer(
        bench.up(spatial, sp=2, tp=3), bench.up(text, tp=3), table.group(0), table.group(1), rope(*_GRID), tokens
    )
    visual = mesh.download(made, sp=2, tp=3)[:, :, :tokens]
    assert joint is not None
    return [Output(visual, None), Output(joint, None, tp=3)]


@case("block", "a transformer block", _GOLDEN, 3e-2, kind="whole")
def _block(bench: Bench) -> list[Output]:
    sizes = {"num_attention_heads": 8, "attention_head_dim": 64, "pooled_projection_dim": 256}
    return block(bench, TransformerConfig(num_layers=2, **sizes))


@case("block at real width", "a transformer block", _GOLDEN, 3e-2, kind="whole")
def _real_block(bench: Bench) -> list[Output]:
    return block(bench, TransformerConfig(num_layers=2))


@case("tiny video", "the whole pipeline", _GOLDEN, 0.15, kind="whole")
def _video(bench: Bench) -> list[Output]:
    """Four steps of the built-in model: its latents and its frames."""
    from models.device import OpenMesh
    from models.mochi.pipeline import MochiPipeline

    opened = bench.opened
    assert isinstance(opened, OpenMesh)
    pipe = MochiPipeline.from_pretrained("tiny", mesh=opened, layout=str(bench.mesh.layout), profile="none")
    size = {"height": 64, "width": 64, "num_frames": 7}
    made = pipe("a red ball rolls left", num_inference_steps=4, seed=0, output_type="latent", **size)  # type: ignore[arg-type]
    latents = made.frames  # type: ignore[union-attr]
    frames = pipe.decode(latents, "np")
    return [Output(latents, None), Output(torch.from_numpy(frames), None)]
