"""The jobs behind `mochi-tt cache build`: converting a checkpoint's weights for a mesh, or planning that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.device import cards, open_mesh, parse_mesh
from models.mochi.config import TransformerConfig, config_named
from models.mochi.inputs import resolve_layout
from models.mochi.precision import Precision
from models.mochi.transformer import MochiTransformer
from models.parallel import Layout, Mesh
from weight_cache.checkpoint import Checkpoint
from weight_cache.lora import LoraRequest
from weight_cache.plan import Plan, plan_transformer
from weight_cache.store import Progress, Store


@dataclass(frozen=True)
class Job:
    """What to convert, in the words of the command line."""

    model: str = "tiny"
    variant: str | None = None
    base: str | None = None
    mesh: str = "2x4"
    layout: str | None = None
    precision: str = "default"
    loras: tuple[str, ...] = ()
    cache_dir: str | None = None
    model_config: str | None = None


def plan_weights(job: Job) -> Plan:
    """How large the entry will be; reads at most a checkpoint's headers and opens no mesh.

    Raises:
        ValueError: a value breaks its rule.
        FileNotFoundError: the checkpoint or a part of it is missing.
    """
    shape = parse_mesh(job.mesh)
    weights = Precision.named(job.precision).weights
    if job.model_config is None:
        checkpoint = Checkpoint.open(job.model, job.variant, job.base)
        config = TransformerConfig.from_dict(checkpoint.transformer.config)
        return plan_transformer(config, resolve_layout(checkpoint, shape, job.layout).branch, weights)
    config = config_named(job.model_config)
    heads = config.num_attention_heads
    layout = Layout.parse(job.layout, shape) if job.layout else Layout.default(shape, heads)
    layout.check_heads(heads)
    return plan_transformer(config, layout.branch, weights)


def build_weights(
    job: Job, progress: Progress | None = None, say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Make the entry unless it is there; returns what the store says of it, and its path.

    Raises:
        ValueError: a value breaks its rule, or weights or LoRAs do not fit.
        FileNotFoundError: the checkpoint or a part of it is missing.
        OSError: no space, or the store cannot be written.
    """
    shape = parse_mesh(job.mesh)
    weights = Precision.named(job.precision).weights
    loras = [LoraRequest.parse(text) for text in job.loras]
    checkpoint = Checkpoint.open(job.model, job.variant, job.base)
    layout = resolve_layout(checkpoint, shape, job.layout).branch
    checkpoint.transformer.check()
    config = TransformerConfig.from_dict(checkpoint.transformer.config)
    # ttnn packs on the host, but asks the cluster for its tiles: a mock one does where there are no cards.
    with open_mesh(layout.mesh_shape, "auto" if cards() else "dry-run") as opened:
        model = MochiTransformer(config, Mesh(opened.device, layout))
        manifest, path = Store(job.cache_dir).build(
            model, checkpoint.transformer, precision=weights, loras=loras, progress=progress, say=say
        )
    return manifest.about | {"tensors": len(manifest.tensors), "bytes": manifest.bytes, "path": str(path)}
