"""Full-size dry runs: the real program with parameters of the real shapes, without weights and numbers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.layers import Chunks
from models.machine.errors import InputError
from models.mochi.config import CONFIGS, TransformerConfig
from models.mochi.conventions import FirstFrames
from models.mochi.geometry import Geometry, Scales
from models.mochi.precision import PRECISIONS, Precision
from models.mochi.sampling.branches import BranchesInTurn, BranchesOnHalves, GuidanceParallel, Schedule
from models.mochi.sampling.cached import ReusingInTurn, ReusingOnHalves
from models.mochi.sampling.reuse import Blocks, ReusePolicy
from models.mochi.sampling.solver import EULER, solver_weights
from models.mochi.setup import Video
from models.mochi.text.t5 import T5_XXL, T5Encoder
from models.mochi.transformer import MochiTransformer
from models.mochi.vae.config import DecoderConfig, EncoderConfig
from models.mochi.vae.decoder import MochiVaeDecoder
from models.mochi.vae.encoder import MochiVaeEncoder
from models.parallel import Halves, Mesh
from models.performance.decode import trace_decode
from models.performance.encode import trace_encode
from models.performance.trace import Trace, dram_allocated, trace
from weight_cache.precision import set_precision

STAGES = ("encode", "denoise", "decode")
# What a run does only if it is asked for.
FURTHER_STAGES = ("encode_video",)
STEPS = 50
SCALE = 4.5
GB = 1e9


@dataclass(frozen=True)
class Sampling:
    """What a denoising loop does besides its forwards.

    Attributes:
        solver: one of `models.mochi.sampling.solver.SOLVERS`.
        reuse: of blocks; None for none.
        keeps_difference: whether guided steps keep what `StepKind.DIFFERENCE` needs.
    """

    solver: str = EULER
    reuse: ReusePolicy | None = None
    keeps_difference: bool = False

    @classmethod
    def of(cls, video: Video, *, on_halves: bool) -> "Sampling":
        """Return that of a video."""
        return cls(video.solver, video.reuse, video.guidance_reuse is not None and not on_halves)


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run, per chip. Memory is in bytes.

    `weights` maps a component to its bytes; all weights are resident through the whole run. `stages` maps a stage to
    its trace. `details` maps a stage to further facts about it.
    """

    mesh: str
    precision: Precision
    geometry: Geometry
    blocks: int
    weights: dict[str, int]
    stages: dict[str, Trace]
    details: dict[str, dict]

    @property
    def dram_peak_bytes(self) -> int:
        """Largest number of DRAM bytes allocated in any stage."""
        return max(stage.dram_peak_bytes for stage in self.stages.values())

    def to_json(self) -> dict:
        """Return the report as plain data."""
        return {
            "mode": "dry run",
            "layout": self.mesh,
            "precision": self.precision.name,
            "height": self.geometry.height,
            "width": self.geometry.width,
            "num_frames": self.geometry.num_frames,
            "visual_tokens": self.geometry.num_tokens,
            "blocks": self.blocks,
            "weight_bytes": self.weights,
            "dram_peak_bytes": self.dram_peak_bytes,
            "stages": {
                name: {**stage.summary(), **self.details.get(name, {}), "ops": stage.by_op()}
                for name, stage in self.stages.items()
            },
        }

    def lines(self) -> list[str]:
        """Return the report as text lines."""
        g = self.geometry
        weights = ", ".join(f"{name} {size / GB:.2f}" for name, size in self.weights.items())
        lines = [
            "dry run: every op validated and every buffer allocated by ttnn on a mock mesh; no numbers, no silicon",
            f"{self.mesh}, {g.width}x{g.height}, {g.num_frames} frames, {g.num_tokens} visual tokens, "
            f"{self.blocks} blocks; all figures per chip",
            f"precision     {self.precision}",
            f"weights       {sum(self.weights.values()) / GB:.2f} GB resident ({weights})",
        ]
        for name, stage in self.stages.items():
            lines.append(
                f"{name:<13} {stage.device_calls} device calls, {stage.total('flops') / 1e12:.2f} TFLOP, "
                f"DRAM {stage.total('dram_bytes') / GB:.2f} GB moved, "
                f"links {stage.total('link_bytes') / GB:.2f} GB, {stage.total('exposed_link_bytes') / GB:.2f} exposed, "
                f"peak {stage.dram_peak_bytes / GB:.2f} GB, calls made in {stage.host_seconds:.2f} s here"
                + "".join(f", {key} {value}" for key, value in self.details.get(name, {}).items())
            )
        lines.append(f"DRAM peak     {self.dram_peak_bytes / GB:.2f} GB")
        return lines


def dry_run(
    placed: Mesh | Halves,
    geometry: Geometry,
    *,
    stages: Sequence[str] = STAGES,
    config: TransformerConfig = CONFIGS["preview"],
    precision: Precision = PRECISIONS["default"],
    blocks: int | None = None,
    text_tokens: int = 256,
    steps: int = STEPS,
    sampling: Sampling = Sampling(),
    split: str | None = None,
    first_frames: FirstFrames | str = "genmo",
    chunks: Chunks | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> DryRun:
    """Put all three models on the mesh at full size and run stages of one video on it.

    The weights of all models are resident, whatever stages run. `encode` is one prompt. `denoise` has three traces:
    `prepare` (rotation tables, both captions, all modulations), `denoise` (one forward) and `guide` (the rest of a
    guided step: the second forward, guidance and the solver's step). `decode` is the whole video. Where `sampling`
    reuses blocks, `denoise_reused` and `guide_reused` are the same two of a step that reuses them. On two halves the
    conditional half is traced: it holds the text encoder and the decoder, and the second forward does not run on it.
    `encode_video`, of `FURTHER_STAGES`, encodes a video of the same size; the VAE's encoder is then resident too.

    Args:
        placed: an open mock mesh without golden execution, with its layout, or its halves.
        geometry: size of the video.
        stages: some of `STAGES` and `FURTHER_STAGES`.
        config: transformer sizes; the other models are Mochi 1 preview's.
        precision: precision of the transformer.
        blocks: number of transformer blocks to build; all by default.
        text_tokens: number of tokens of each prompt, 1 to 256.
        steps: number of denoising steps that modulations are prepared for.
        sampling: solver and reuse.
        split: split of the decoder over the mesh; see `models.mochi.vae.Split`.
        first_frames: see `models.mochi.conventions`; the published checkpoint's by default.
        chunks: chunks of attention; chosen by rule if None.
        on_stage: called with each stage's name when it begins.

    Raises:
        ValueError: there is no such stage.
        RuntimeError: an error that the device would raise too: out of memory, an unsupported shape.
    """
    known = (*STAGES, *FURTHER_STAGES)
    unknown = [stage for stage in stages if stage not in known]
    if unknown:
        raise InputError(f"stage {unknown[0]!r} does not exist: choose from {', '.join(known)}")
    if blocks is not None:
        config = dataclasses.replace(config, num_layers=blocks)
    tell = on_stage or (lambda stage: None)
    tell("build")
    mesh = placed.conditional if isinstance(placed, Halves) else placed
    encoder = T5Encoder(T5_XXL, mesh)
    transformer = MochiTransformer(config, mesh, precision, chunks=chunks)
    set_precision(transformer, precision.weights)
    decoder = MochiVaeDecoder(DecoderConfig(), mesh, split=split, first_frames=first_frames)
    models: dict[str, Any] = {"text_encoder": encoder, "transformer": transformer, "vae": decoder}
    if "encode_video" in stages:
        models["vae_encoder"] = MochiVaeEncoder(EncoderConfig(), mesh)
    weights = {}
    for name, model in models.items():
        before = dram_allocated(mesh.device)
        model.allocate()
        weights[name] = dram_allocated(mesh.device) - before
    parallel = None
    if isinstance(placed, Halves):
        parallel = GuidanceParallel(placed, MochiTransformer(config, placed.unconditional, precision, chunks=chunks))
        set_precision(parallel.unconditional, precision.weights)
        parallel.unconditional.allocate()
    traces: dict[str, Trace] = {}
    details: dict[str, dict] = {}
    if "encode" in stages:
        tell("encode")
        ids = np.arange(text_tokens) + 2
        encoder(ids)  # The first call builds programs; the second is the host's cost of a prompt.
        with trace(mesh.device) as traces["encode"]:
            encoder(ids)
    if "denoise" in stages:
        traces |= _denoise(transformer, parallel, geometry, text_tokens, steps, sampling, tell)
    if "decode" in stages:
        tell("decode")
        mesh.free_buffers()  # The sampler does the same at its end.
        decoded = trace_decode(decoder, geometry)
        traces["decode"] = decoded.trace
        details["decode"] = {
            "split": str(decoded.split),
            "chunks": list(decoded.chunks),
            "first_frames": str(decoder.first_frames),
        }
    if "encode_video" in stages:
        tell("encode_video")
        mesh.free_buffers()
        traces["encode_video"], details["encode_video"] = trace_encode(models["vae_encoder"], geometry)
    return DryRun(str(placed.layout), precision, geometry, config.num_layers, weights, traces, details)


def _denoise(
    model: MochiTransformer,
    parallel: GuidanceParallel | None,
    geometry: Geometry,
    text_tokens: int,
    steps: int,
    sampling: Sampling,
    tell: Callable[[str], None],
) -> dict[str, Trace]:
    device, config, step = model.mesh.device, model.config, min(1, steps - 1)
    times = list(np.linspace(0, 980, steps))
    features = torch.zeros(text_tokens, config.text_embed_dim)
    patches = torch.zeros(geometry.num_tokens, config.patch_values)
    guidance = [SCALE] * steps
    weights = solver_weights(sampling.solver, list(np.linspace(1, 0, steps + 1)), guidance)
    in_turn: Any = BranchesInTurn
    on_halves: Any = BranchesOnHalves
    if sampling.reuse is not None:
        in_turn = functools.partial(ReusingInTurn, reuse=sampling.reuse)
        on_halves = functools.partial(ReusingOnHalves, reuse=sampling.reuse)
    traces: dict[str, Trace] = {}
    tell("prepare")
    with trace(device) as traces["prepare"]:
        grid = model.grid(*geometry.token_grid)
        prompts = [model.prepare(features, times)]
        schedules = [Schedule.upload(model.mesh, guidance, weights)]
        if parallel is None:
            prompts.append(model.prepare(features, times))
            keeps = sampling.keeps_difference
            branches = in_turn(model, grid, patches, prompts, schedules[0], keeps_difference=keeps)
        else:
            other = parallel.unconditional
            prompts.append(other.prepare(features, times))
            schedules.append(Schedule.upload(other.mesh, guidance, weights))
            grids = [grid, other.grid(*geometry.token_grid)]
            branches = on_halves(model, parallel, grids, patches, prompts, schedules)
    ways = {"": branches.predict}
    if sampling.reuse is not None:
        ways["_reused"] = functools.partial(branches.predict, blocks=Blocks.REUSED)
    for suffix, predict in ways.items():
        tell(f"compile{suffix}")
        predict(0)
        tell(f"denoise{suffix}")
        with trace(device) as traces[f"denoise{suffix}"]:
            for prompt in prompts:
                prompt.select(step)
            for schedule in schedules:
                schedule.table.select(step)
            conditional = predict(0)
        tell(f"guide{suffix}")
        with trace(device) as traces[f"guide{suffix}"]:
            branches.advance(conditional, predict(1))
    return traces


def preview_geometry(height: int = 480, width: int = 848, num_frames: int = 163) -> Geometry:
    """Return a geometry of Mochi 1 preview: 8 x 8 pixels and 6 frames per latent, patches of 2."""
    return Geometry(height, width, num_frames, Scales())
