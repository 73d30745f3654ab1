"""Full-size dry runs: the real program with parameters of the true shapes, no weights and no numbers."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import ttnn

from models.mochi.config import CONFIGS, TransformerConfig
from models.mochi.geometry import Geometry, Scales
from models.mochi.sampling import guided
from models.mochi.transformer import MochiTransformer
from models.parallel import Mesh
from models.perf.trace import Trace, dram_allocated, trace

STEPS = 50
GB = 1e9


@dataclass(frozen=True)
class DryRun:
    """What a dry run found, per chip. ``stages`` maps a stage to its trace; memory is in bytes."""

    mesh: str
    geometry: Geometry
    blocks: int
    tokens: int
    weight_bytes: int
    stages: dict[str, Trace]

    @property
    def dram_peak_bytes(self) -> int:
        """Most DRAM allocated in any stage."""
        return max(stage.dram_peak_bytes for stage in self.stages.values())

    def to_json(self) -> dict:
        """The report as plain data."""
        return {
            "mode": "dry run",
            "layout": self.mesh,
            "height": self.geometry.height,
            "width": self.geometry.width,
            "num_frames": self.geometry.num_frames,
            "visual_tokens": self.tokens,
            "blocks": self.blocks,
            "weight_bytes": self.weight_bytes,
            "dram_peak_bytes": self.dram_peak_bytes,
            "stages": {name: {**stage.summary(), "ops": stage.by_op()} for name, stage in self.stages.items()},
        }

    def lines(self) -> list[str]:
        """The report as text lines."""
        g = self.geometry
        lines = [
            "dry run: every op validated and every buffer allocated by ttnn on a mock mesh; no numbers, no silicon",
            f"{self.mesh}, {g.width}x{g.height}, {g.num_frames} frames, {self.tokens} visual tokens, "
            f"{self.blocks} blocks; all figures per chip",
            f"weights       {self.weight_bytes / GB:8.3f} GB",
        ]
        for name, stage in self.stages.items():
            lines.append(
                f"{name:<13} {stage.device_calls} device calls, {stage.total('flops') / 1e12:.2f} TFLOP, "
                f"DRAM {stage.total('dram_bytes') / GB:.2f} GB moved, "
                f"links {stage.total('link_bytes') / GB:.2f} GB, {stage.total('exposed_link_bytes') / GB:.2f} exposed, "
                f"peak {stage.dram_peak_bytes / GB:.3f} GB, host {stage.host_seconds:.3f} s"
            )
        lines.append(f"DRAM peak     {self.dram_peak_bytes / GB:8.3f} GB")
        return lines


def dry_run_denoise(
    mesh: Mesh,
    geometry: Geometry,
    *,
    config: TransformerConfig = CONFIGS["preview"],
    blocks: int | None = None,
    text_tokens: int = 256,
    steps: int = STEPS,
    on_stage: Callable[[str], None] | None = None,
) -> DryRun:
    """Build the transformer at full size and run one guided denoising step on it.

    Stages: ``prepare`` (rotation tables, both captions, all modulations), ``denoise`` (one forward), ``guide`` (the
    rest of a guided step: the second forward, guidance and the Euler step).

    Args:
        mesh: an open mock mesh without golden execution, with its layout.
        geometry: the video.
        config: model sizes.
        blocks: build only so many blocks; all by default.
        text_tokens: tokens of each prompt, 1 to 256.
        steps: denoising steps that modulations are prepared for.
        on_stage: called with each stage's name as it begins.

    Raises:
        RuntimeError: what the device would raise: out of memory, an unsupported shape.
    """
    if blocks is not None:
        config = dataclasses.replace(config, num_layers=blocks)
    tell = on_stage or (lambda stage: None)
    tell("build")
    model = MochiTransformer(config, mesh)
    model.allocate()
    weights = dram_allocated(mesh.device)
    _, _, frames, height, width = geometry.latent_shape
    patch = config.patch_size
    times = list(np.linspace(0, 980, steps))
    features = torch.zeros(text_tokens, config.text_embed_dim)
    stages = {}

    tell("prepare")
    with trace(mesh.device) as stages["prepare"]:
        grid = model.grid(frames, height // patch, width // patch)
        positive, negative = model.prepare(features, times), model.prepare(features, times)
        state = model.upload_patches(torch.zeros(grid.tokens, config.patch_values))
    # Programs are built on the first call; the second shows what a step costs the host.
    tell("compile")
    model(state, positive, 0, grid)
    tell("denoise")
    with trace(mesh.device) as stages["denoise"]:
        conditional = model(state, positive, 1, grid)
    tell("guide")
    with trace(mesh.device) as stages["guide"]:
        velocity = guided(conditional, model(state, negative, 1, grid), 4.5)
        state = ttnn.add(state, ttnn.multiply(velocity, 0.02))
    return DryRun(str(mesh.layout), geometry, config.num_layers, grid.tokens, weights, stages)


def preview_geometry(height: int = 480, width: int = 848, num_frames: int = 163) -> Geometry:
    """A geometry of Mochi 1 preview: 8 x 8 pixels and 6 frames per latent, patches of 2."""
    return Geometry(height, width, num_frames, Scales())
