"""What each way around an op costs: projected seconds of a video with it, less those without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.device import open_mesh
from models.layers import Chunks
from models.machine.systems import System
from models.machine.ways import ALL_PLAIN, ALTERNATIVES, FUSED, Ways
from models.mochi.config import CONFIGS
from models.mochi.geometry import Geometry
from models.mochi.precision import Precision
from models.parallel import Layout, place
from models.performance.cost_model import dispatch
from models.performance.dry_run import dry_run
from models.performance.projection import Projection

_BLOCKS = 3
_CHUNKS = Chunks(128, 128)
# Ops of the decoder too; it has none of the others.
_IN_DECODER = ("halo", "all-reduce")


@dataclass(frozen=True)
class Fallback:
    """Projected seconds that a way around costs in a video; None where the video does not fit with it.

    `steps` is for all denoising steps, `decode` for the decoding.
    """

    name: str
    instead: str
    steps: float | None
    decode: float = 0.0

    def row(self, video: float) -> str:
        """Return a row of the table for a video of so many seconds."""
        if self.steps is None:
            return f"| {self.name} | {self.instead} | does not fit | | |"
        cost = self.steps + self.decode
        return f"| {self.name} | {self.instead} | {self.steps:+.1f} | {self.decode:+.1f} | {cost / video:+.1%} |"


HEADER = ("| avoided | taken instead | steps, s | decoding, s | of the video |", "|---|---|---|---|---|")


@dataclass(frozen=True)
class _Time:
    steps: float
    dispatched: float
    decode: float


def fallbacks(
    system: System, layout: Layout, precision: Precision, geometry: Geometry, num_steps: int
) -> Iterator[str]:
    """Give the rows of the table, beginning with its header.

    A few blocks are run and what differs is taken times the blocks of the model. Guidance is on.
    """

    def time(ways: Ways, stages: Sequence[str], chunks: Chunks | None = None) -> _Time | None:
        try:
            with open_mesh(layout.mesh_shape, "dry-run", system=system.name) as opened:
                placed = place(opened.device, layout, ways)
                run = dry_run(placed, geometry, stages=stages, precision=precision, blocks=_BLOCKS, chunks=chunks)
                placed.release()
        except RuntimeError:
            return None
        made = Projection.on_this_machine(system, run, num_steps)
        calls = sum(run.stages[part].device_calls for part in ("denoise", "guide") if part in run.stages)
        sent = dispatch(calls, system).expected * num_steps
        seconds = made.seconds()
        steps = seconds["step"].expected * num_steps if "denoise" in stages else 0.0
        decode = seconds["decode"].expected if "decode" in stages else 0.0
        return _Time(steps, sent, decode)

    scale = CONFIGS["preview"].num_layers / _BLOCKS
    fused = time(FUSED, ("denoise", "decode"))
    if fused is None:
        raise RuntimeError(f"{layout} does not hold the video")
    video = fused.steps * scale + fused.decode
    yield from HEADER

    def row(name: str, instead: str, ways: Ways, *, decodes: bool = False, chunks: Chunks | None = None) -> str:
        found = time(ways, ("denoise", "decode") if decodes else ("denoise",), chunks)
        if found is None:
            return Fallback(name, instead, None).row(video)
        decode = found.decode - fused.decode if decodes else 0.0
        return Fallback(name, instead, (found.steps - fused.steps) * scale, decode).row(video)

    for name, alternative in ALTERNATIVES.items():
        yield row(name, alternative.instead, Ways(frozenset({name})), decodes=name in _IN_DECODER)
    yield row("all of these", "", ALL_PLAIN, decodes=True)
    yield row("more than one link", "`--links 1`", Ways(links=1), decodes=True)
    if system.ring:
        yield row("rings", "`--topology line`", Ways(lines=True), decodes=True)
    yield row("chunks of attention by rule", f"`--attention-chunks {_CHUNKS}`", FUSED, chunks=_CHUNKS)
    waits = max(fused.dispatched - fused.steps, 0.0) * scale
    yield Fallback("capture", "`--no-capture`: the host sends every op", waits).row(video)
