"""Mochi 1 on Tenstorrent meshes: `from mochi_tt import MochiPipeline, open_mesh`.

This package is the entry point. The code is in the packages `models`, `weight_cache` and `scripts` beside it. Other
projects have folders of these names too: Tenstorrent's guide puts a checkout of tt-metal on `PYTHONPATH`, and that has
`models` and `scripts`. So importing this package first sees to it that these names mean ours, and that a foreign
`models.tt_dit` is found all the same.
"""

from __future__ import annotations

import _signal  # What `signal` is made of: it is there already, so that nothing can be interrupted before the mask.
import sys

if sys.argv[0].endswith("/mochi-tt"):
    # The program, not a program that imports this: a Ctrl-C waits until `mochi_tt.__main__` can answer it.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP))
    # What the caller has ignored (nohup, a background job) stays ignored: blocked, it would wait instead.
    _signal.pthread_sigmask(
        _signal.SIG_UNBLOCK, [number for number in range(1, 32) if _signal.getsignal(number) == _signal.SIG_IGN]
    )

from typing import TYPE_CHECKING, Any

from mochi_tt.packages import claim_packages

claim_packages()

if TYPE_CHECKING:
    from models.device import OpenMesh, open_mesh
    from models.diffusers_api.loading import AutoencoderKLMochi, MochiTransformer3DModel, T5EncoderModel
    from models.diffusers_api.outputs import MochiPipelineOutput, export_to_video
    from models.diffusers_api.pipeline import MochiPipeline
    from models.machine.version import __version__

__all__ = [
    "AutoencoderKLMochi",
    "MochiPipeline",
    "MochiPipelineOutput",
    "MochiTransformer3DModel",
    "OpenMesh",
    "T5EncoderModel",
    "__version__",
    "export_to_video",
    "open_mesh",
]

_WHERE = {
    "AutoencoderKLMochi": "models.diffusers_api.loading",
    "MochiPipeline": "models.diffusers_api.pipeline",
    "MochiPipelineOutput": "models.diffusers_api.outputs",
    "MochiTransformer3DModel": "models.diffusers_api.loading",
    "T5EncoderModel": "models.diffusers_api.loading",
    "export_to_video": "models.diffusers_api.outputs",
    "OpenMesh": "models.device",
    "open_mesh": "models.device",
    "__version__": "models.machine.version",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: the pipeline brings torch and ttnn, which take seconds."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from models.machine.host import quiet_ttnn, wait_passively

    wait_passively()
    if _WHERE[name].startswith("models.diffusers_api"):
        quiet_ttnn()
    return getattr(importlib.import_module(_WHERE[name]), name)
