"""The jobs behind `mochi-tt cache build`: converting a checkpoint's weights for a mesh, or planning that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.device import cards, open_mesh, parse_mesh
from models.mochi.components import Configs, Models, choose_layout
from models.mochi.config import config_named
from models.mochi.inputs import check_configs
from models.mochi.precision import Precision
from models.parallel import place
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.lora import LoraRequest
from weight_cache.plan import NamedMesh, Plan, plan
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


def plan_weights(job: Job) -> list[Plan]:
    """How large the entries will be, one per component; reads at most a checkpoint's headers and opens no mesh.

    Raises:
        ValueError: a value breaks its rule.
        FileNotFoundError: the checkpoint or a part of it is missing.
    """
    shape = parse_mesh(job.mesh)
    precision = Precision.named(job.precision)
    if job.model_config is None:
        configs = Configs.of(Checkpoint.open(job.model, job.variant, job.base))
    else:
        configs = Configs(transformer=config_named(job.model_config))
    layout = choose_layout(configs, shape, precision, job.layout)
    models = Models.declare(configs, NamedMesh(layout.branch))
    return [plan(module, component, precision.weights) for component, module in models.by_component().items()]


def build_weights(
    job: Job, progress: Progress | None = None, say: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Make the entries of all components unless they are there; returns what the store says of each, and its path.

    Raises:
        ValueError: a value breaks its rule, or weights or LoRAs do not fit.
        FileNotFoundError: the checkpoint or a part of it is missing.
        OSError: no space, or the store cannot be written.
    """
    shape = parse_mesh(job.mesh)
    precision = Precision.named(job.precision)
    loras = [LoraRequest.parse(text) for text in job.loras]
    checkpoint = Checkpoint.open(job.model, job.variant, job.base)
    configs = Configs.of(checkpoint)
    layout = choose_layout(configs, shape, precision, job.layout)
    check_configs(checkpoint)
    for component in checkpoint.components:
        component.check()
    store, built = Store(job.cache_dir), {}
    # ttnn packs on the host, but asks the cluster for its tiles: a mock one does where there are no cards.
    with open_mesh(shape, "auto" if cards() else "dry-run") as opened:
        models = Models.declare(configs, place(opened.device, layout))
        for module, component, merged in models.with_weights(checkpoint, loras):
            manifest, path = store.build(
                module, component, precision=precision.weights, loras=merged, progress=progress, say=say
            )
            # Two halves of a mesh share the transformer's entry.
            built[path] = manifest.about | {
                "tensors": len(manifest.tensors),
                "bytes": manifest.bytes,
                "path": str(path),
            }
    return list(built.values())
