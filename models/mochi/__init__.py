"""Mochi 1 on Tenstorrent meshes: `from models.mochi import MochiPipeline`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.mochi.pipeline import MochiPipeline

__all__ = ["MochiPipeline"]


def __getattr__(name: str) -> Any:
    # Lazy, so that importing a sub-module (the CLI's geometry checks, say) does not load torch and ttnn.
    if name == "MochiPipeline":
        from models.mochi.pipeline import MochiPipeline

        return MochiPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
