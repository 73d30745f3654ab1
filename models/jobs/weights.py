"""The jobs behind `mochi-tt cache build`: converting a checkpoint's weights for a mesh, or planning that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from models.device import cards, open_mesh
from models.machine.errors import InputError
from models.mochi.components import Models
from models.mochi.setup import Setup
from models.mochi.size import check_size
from models.mochi.vae.config import EncoderConfig
from models.mochi.vae.encoder import MochiVaeEncoder
from models.parallel import Mesh, place
from weight_cache.checkpoints.lora import checked_source
from weight_cache.plan import NamedMesh, Plan, plan
from weight_cache.store import Progress, Store


def plan_weights(setup: Setup, *, encoder: bool = False) -> list[Plan]:
    """Compute how large the entries will be, one per component. No weights are read and no mesh is opened.

    With `encoder` the last is of the VAE's encoder.
    """
    mesh = NamedMesh(setup.layout.branch)
    models = Models.declare(setup.configs, mesh)
    planned = [plan(module, component, setup.precision.weights) for component, module in models.by_component().items()]
    if encoder:
        planned.append(replace(plan(_encoder(setup, mesh), "vae", setup.precision.weights), component="vae encoder"))
    return planned


def _encoder(setup: Setup, mesh: Mesh) -> MochiVaeEncoder:
    """Declare the VAE's encoder of a checkpoint, or Genmo's of a model by name."""
    of = {} if setup.checkpoint is None else setup.checkpoint.vae_encoder.config
    return MochiVaeEncoder(EncoderConfig.from_dict(of), mesh)


def unfit(setup: Setup) -> str | None:
    """Return what does not fit a chip and what would, or None if the weights fit."""
    assert setup.subject is not None
    try:
        check_size(replace(setup.subject, mode="hardware"), None)
    except InputError as error:
        return str(error)
    return None


def build_weights(
    setup: Setup,
    progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
    *,
    encoder: bool = False,
) -> list[dict[str, Any]]:
    """Make the entries of all components unless they are there; return what the store says of each, and its path.

    Args:
        setup: resolved, with a checkpoint.
        progress: called as `progress(stage, done, total)`.
        on_message: called with a line for what the user should know.
        encoder: whether the VAE's encoder is converted too, which only runs from videos and images need.

    Raises:
        InputError: weights or LoRAs do not fit, or the set-up has no checkpoint.
        MissingInputError: the checkpoint has no encoder.
        OSError: no space, or the store cannot be written.
    """
    if setup.checkpoint is None:
        raise InputError("without a checkpoint there is nothing to convert: name a model")
    problem = unfit(setup)
    if problem is not None:
        raise InputError(problem)
    store, built = Store(setup.request.cache_dir), {}
    # ttnn packs on the host, but asks the cluster for its tiles: a mock one does where there are no cards.
    with open_mesh(setup.mesh_shape, "auto" if cards() else "dry-run") as opened:
        models = Models.declare(setup.configs, place(opened.device, setup.layout, setup.ways))
        parts = list(models.with_weights(setup.checkpoint, setup.loras))
        if encoder:
            parts.append((_encoder(setup, models.vae.mesh), setup.checkpoint.vae_encoder, ()))
            checked_source(*parts[-1])
        for module, component, merged in parts:
            manifest, path = store.build(
                module,
                component,
                precision=setup.precision.weights,
                loras=merged,
                progress=progress,
                on_message=on_message,
            )
            # Two halves of a mesh share the transformer's entry.
            built[path] = manifest.about | {
                "tensors": len(manifest.tensors),
                "bytes": manifest.bytes,
                "path": str(path),
            }
    return list(built.values())
