"""Full-size dry runs of the VAE decoder, and the counting rules of its ops."""

import math
from dataclasses import dataclass

import torch
import ttnn

from models.mochi.conventions import FirstFrames
from models.mochi.geometry import Geometry
from models.mochi.vae.config import DecoderConfig
from models.mochi.vae.decoder import MochiVaeDecoder
from models.mochi.vae.split import Split
from models.parallel import Mesh
from models.performance.counts import Call, Cost, cost_rule, elementwise, moved, nbytes, traffic
from models.performance.trace import Trace, dram_allocated, trace


@cost_rule("ttnn.experimental.conv3d")
def _conv3d(call: Call) -> Cost:
    weight = call.inputs[1]
    positions = math.prod(list(call.outputs[0].shape)[:-1])
    flops = 2 * positions * math.prod(weight.padded_shape)
    return Cost(flops=flops, dram_bytes=traffic(*call.inputs, *call.outputs))


@cost_rule("ttnn.experimental.neighbor_pad_async")
def _neighbor_pad(call: Call) -> Cost:
    x, out = call.inputs[0], call.outputs[0]
    dims, before, after = call.args[1:4]  # This is the order of HaloExchange's call.
    links = sum(
        max(left, right) * nbytes(x) / x.padded_shape[dim] for dim, left, right in zip(dims, before, after, strict=True)
    )
    return Cost(dram_bytes=traffic(x, out), link_bytes=links)


@cost_rule("ttnn.experimental.slice_write")
def _slice_write(call: Call) -> Cost:
    part, whole = call.inputs[:2]
    return Cost(**moved([(part, nbytes(part)), (whole, nbytes(part))]))


@cost_rule("ttnn.reshape")
def _reshape(call: Call) -> Cost:
    x, out = call.inputs[0], call.outputs[0]
    is_view = x.is_allocated() and x.buffer_unique_id() == out.buffer_unique_id()
    return Cost() if is_view else elementwise(call)


@dataclass(frozen=True)
class DecodeRun:
    """Result of a dry run of the decoder, per chip.

    It has the trace, the split, the sizes of the chunks in latent frames, and the bytes of the weights.
    """

    trace: Trace
    split: Split
    chunks: tuple[int, ...]
    weight_bytes: int

    def to_json(self) -> dict:
        """Return the report as plain data."""
        return {
            **self.trace.summary(),
            "split": str(self.split),
            "chunks": list(self.chunks),
            "weight_bytes": self.weight_bytes,
            "ops": self.trace.by_op(),
        }


def dry_run_decode(
    mesh: Mesh,
    geometry: Geometry,
    *,
    config: DecoderConfig | None = None,
    split: Split | str | None = None,
    chunk: int | None = None,
    first_frames: FirstFrames | str = "genmo",
) -> DecodeRun:
    """Build the decoder at full size and decode a video, beside the tensors that are already on the mesh.

    Args:
        mesh: an open mock mesh without golden execution.
        geometry: size of the video.
        config: model sizes; Mochi 1 preview's by default.
        split: see `MochiVaeDecoder`.
        chunk: number of latent frames at a time; computed from the free DRAM by default.
        first_frames: see `models.mochi.conventions`; the published checkpoint's by default.

    Raises:
        RuntimeError: an error that the device would raise too: out of memory, an unsupported shape.
        ValueError: the video does not fit.
    """
    before = dram_allocated(mesh.device)
    decoder = MochiVaeDecoder(config or DecoderConfig(), mesh, split=split, first_frames=first_frames)
    decoder.allocate()
    try:
        return trace_decode(decoder, geometry, chunk, weight_bytes=dram_allocated(mesh.device) - before)
    finally:
        decoder.release()


def trace_decode(
    decoder: MochiVaeDecoder, geometry: Geometry, chunk: int | None = None, *, weight_bytes: int = 0
) -> DecodeRun:
    """Decode a video with a decoder whose parameters are allocated; see `dry_run_decode`."""
    latents = torch.zeros(geometry.latent_shape)
    sizes = []
    with trace(decoder.mesh.device) as made:
        for part in decoder.chunks(latents, chunk):
            sizes.append(part.latents.time.real)
            ttnn.deallocate(part.frames_BTHWC)
    return DecodeRun(made, decoder.split_for(*latents.shape[2:]), tuple(sizes), weight_bytes)
