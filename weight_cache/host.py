"""Loading of a checkpoint component into a PyTorch module on the host, strictly and without a second copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from models.machine.errors import InputError
from weight_cache.checkpoints.checkpoint import Component


def load_module(
    module: torch.nn.Module,
    component: Component,
    *,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
    aliases: Mapping[str, str] | None = None,
) -> torch.nn.Module:
    """Fill `module` (built on the meta device) with the tensors of `component`, tensor by tensor.

    Weights stored in `dtype` stay views of the mapped file. The module is returned frozen, in eval mode.

    Args:
        module: module whose parameters and buffers have the names and shapes of the checkpoint.
        component: component to read.
        prefix: prefix of the component's keys that belong to `module`, such as `decoder.`; other keys are ignored.
        dtype: dtype of the loaded parameters.
        aliases: names that may stand for another name of the same value (tied weights): name -> stored name, both
            without the prefix.

    Raises:
        ValueError: a weight is missing, unexpected or of another shape; the message has its full name.
    """
    where = f"checkpoint component {component.name} in {component.directory}"
    wanted = module.state_dict()
    stored = {key.removeprefix(prefix) for key in component if key.startswith(prefix)}
    aliases = aliases or {}
    source = {name: name if name in stored else aliases.get(name, name) for name in wanted}
    missing = sorted(name for name, key in source.items() if key not in stored)
    unexpected = sorted(stored - set(source.values()) - set(aliases) - set(aliases.values()))
    for kind, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{where} {kind} {prefix}{names[0]}{more}: it does not match its config.json")
    state = {}
    for name, key in source.items():
        shape = component.shape(prefix + key)
        if shape != tuple(wanted[name].shape):
            raise InputError(
                f"{where} has {prefix}{key} of shape {list(shape)}, but its config.json asks for "
                f"{list(wanted[name].shape)}"
            )
        state[name] = component.tensor(prefix + key).to(dtype)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)
