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
from models.parallel import place
from weight_cache.plan import NamedMesh, Plan, plan
from weight_cache.store import Progress, Store


def plan_weights(setup: Setup) -> list[Plan]:
    """Compute how large the entries will be, one per component. No weights are read and no mesh is opened."""
    models = Models.declare(setup.configs, NamedMesh(setup.layout.branch))
    return [plan(module, component, setup.precision.weights) for component, module in models.by_component().items()]


def unfit(setup: Setup) -> str | None:
    """Return what does not fit a chip and what would, or None if the weights fit."""
    assert setup.subject is not None
    try:
        check_size(replace(setup.subject, mode="hardware"), None)
    except InputError as error:
        return str(error)
    return None


def build_weights(
    setup: Setup, progress: Progress | None = None, on_message: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Make the entries of all components unless they are there; return what the store says of each, and its path.

    Raises:
        InputError: weights or LoRAs do not fit, or the set-up has no checkpoint.
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
        for module, component, merged in models.with_weights(setup.checkpoint, setup.loras):
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
