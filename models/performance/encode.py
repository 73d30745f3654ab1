"""Full-size dry runs of the VAE encoder."""

from typing import Any

import torch
import ttnn

from models.mochi.geometry import Geometry
from models.mochi.vae.encoder import MochiVaeEncoder
from models.mochi.vae.encoder_memory import peak_bytes
from models.performance.trace import Trace, trace


def trace_encode(encoder: MochiVaeEncoder, geometry: Geometry) -> tuple[Trace, dict[str, Any]]:
    """Encode a video with an encoder whose parameters are allocated, beside what is on the mesh.

    Returns:
        The trace, and facts: the split, the frames that the stage at full resolution makes at a time, and the bytes of
        activations that were planned.

    Raises:
        RuntimeError: an error that the device would raise too: out of memory, an unsupported shape.
        InputError: the video does not fit.
    """
    size = (geometry.num_frames, geometry.height, geometry.width)
    chunk, extents = encoder.chunk_for(*size), encoder.extents(*size)
    frames = torch.zeros(1, 1, 1, 3, dtype=torch.uint8).expand(*size, 3)
    with trace(encoder.mesh.device) as made:
        moments, extent = encoder(frames, chunk=chunk)
        ttnn.deallocate(moments)
    split = encoder.split_for(extent.time.real, extent.height.real, extent.width.real)
    return made, {
        "split": str(split),
        "first_stage_frames": chunk,
        "planned_bytes": peak_bytes(encoder.config, extents, chunk),
    }
