"""Opening of the mesh of a set-up, for jobs that need a part of the VAE alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.device import OpenMesh
    from models.mochi.setup import Setup


def open_for(setup: Setup) -> AbstractContextManager[OpenMesh]:
    """Open the mesh that a set-up asks for; it is closed with the block.

    Raises:
        RuntimeError: it cannot be opened.
    """
    from models.device import open_mesh
    from models.machine.watchdog import operation_seconds

    chips, width = setup.layout.sp * setup.layout.tp, setup.configs.transformer.inner_dim
    return open_mesh(
        setup.mesh_shape,
        setup.request.mode,  # type: ignore[arg-type]
        system=setup.request.system,
        ring=setup.ring,
        operation_seconds=operation_seconds(chips, width),
    )
