"""LoRAs at load: the store keeps the weights of the checkpoint alone, and what a LoRA changes is merged anew each time.

Parameters that no LoRA changes come from the store. The others are read from the checkpoint, merged, converted and
packed on the host, and sent to the mesh without being written. So a strength costs no space, and loading takes longer
by the conversion of the changed parameters; docs/weights.md has the figures. The result is the one that a conversion of
merged weights would give, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weight_cache.checkpoints.lora import LoraRequest, LoraSource, checked_source

if TYPE_CHECKING:
    from models.layers import Module, Parameter
    from weight_cache.checkpoints.component import Component


class Merge:
    """The parameters of a module that LoRAs change."""

    def __init__(self, module: Module, component: Component, loras: Sequence[LoraRequest]) -> None:
        """Read and check the LoRAs; no weights are read yet.

        Args:
            module: declared, on the mesh that it will be loaded to.
            component: its weights.
            loras: to merge, in this order.

        Raises:
            ValueError: weights or LoRAs do not fit the model.
        """
        self._module, self._component = module, component
        self._source = checked_source(module, component, loras)
        self._changed = self._source.changed() if isinstance(self._source, LoraSource) else set()

    @property
    def notes(self) -> list[str]:
        """Lines for the user on what the LoRA files leave open."""
        return self._source.notes if isinstance(self._source, LoraSource) else []

    def changes(self, prefix: str, parameter: Parameter) -> bool:
        """Return whether a LoRA changes a parameter whose checkpoint names begin with `prefix`."""
        return any(prefix + name in self._changed for name in parameter.sources)

    def put(self, prefix: str, parameter: Parameter) -> None:
        """Merge, convert and pack one parameter, and send it to the mesh.

        Raises:
            InputError: the checkpoint was written to or replaced since it was opened.
        """
        import ttnn

        mesh = self._module.mesh
        host = parameter.read(self._source, prefix)
        if parameter.dtype == ttnn.bfloat16:
            # ttnn would round in the same way, and packs half as many bytes faster.
            host = host.bfloat16()
        packed = parameter.distribute(mesh, host)
        # What the store holds and what is read here must be of the same files.
        for file in self._component.held_files:
            file.check()
        parameter.put(mesh, packed)
