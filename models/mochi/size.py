"""Whether a video fits, on the chips and on this host: judged from sizes alone, before anything is allocated.

What is counted is the least that a run needs, so that nothing is refused which would fit. ttnn's allocator, on a mock
mesh as on cards, and the decoder (`models.mochi.vae.memory`) judge the rest while running.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from models.machine.errors import InputError
from models.machine.systems import chip_dram
from models.mochi.components import COMPONENTS, Configs, Models, choose_layout
from models.mochi.geometry import Geometry
from models.mochi.precision import PRECISIONS, Precision
from models.mochi.sampling.reuse import ReusePolicy, kept_tensors
from models.mochi.vae.memory import chunk_frames
from models.mochi.vae.split import Split, choose_split
from weight_cache.plan import NamedMesh, chip_bytes, data_bytes
from weight_cache.precision import set_precision, stored_precision

if TYPE_CHECKING:
    from models.parallel import Layout

# Tensors of all the chip's tokens and the transformer's whole width, in bfloat16, that denoising holds at once. Dry
# runs of 848x480 with 163 frames count 15.5 on 4x8 and 17.8 on 2x4 (tests/performance/baselines, guide less weights).
_ALIVE = 12
_BF16, _FLOAT32 = 2, 4
# Meshes that a refusal may suggest, the smallest first, and precisions, the most exact first.
_MESHES = ((1, 2), (1, 4), (2, 4), (4, 8))
_SMALLER = "fast"


@dataclass(frozen=True)
class Subject:
    """What is judged: models on a mesh, and how they run.

    Attributes:
        configs: of the models.
        layout: of the mesh.
        precision: of the transformer.
        mode: a dry run loads no weights and computes no frames; golden execution computes all on this host.
        components: whose weights are loaded.
        vae_split: of the decoder; by the video if None.
        kept: tensors of all of a chip's tokens that denoising keeps besides, for the reuse of blocks.
    """

    configs: Configs
    layout: Layout
    precision: Precision
    mode: str = "hardware"
    components: Sequence[str] = COMPONENTS
    vae_split: str | None = None
    kept: int = 0

    def keeping(self, reuse: ReusePolicy | None, *, is_guided: bool) -> Subject:
        """Return the subject of a run with this reuse of blocks: on halves each chip keeps what one branch needs."""
        branches = 2 if is_guided and self.layout.cfg_axis is None else 1
        return replace(self, kept=0 if reuse is None else branches * kept_tensors(reuse))

    @property
    def whole(self) -> str | None:
        """The mesh's layout without halves for the branches of guidance.

        None if this one has none, or the mesh has no layout for the model's heads.
        """
        if self.layout.cfg_axis is None:
            return None
        with suppress(InputError):
            return str(choose_layout(self.configs, self.layout.mesh_shape, self.precision))
        return None

    @property
    def weights(self) -> tuple[int, int]:
        """Bytes of weights on a chip, and of all chips together where each value counts once."""
        if self.mode == "dry-run":
            return 0, 0
        sizes = _weights(self.configs, self.layout.branch, self.precision)
        chosen = [sizes[name] for name in COMPONENTS if name in self.components]
        return sum(chip for chip, _ in chosen), sum(data for _, data in chosen)

    def denoising(self, geometry: Geometry) -> int:
        """Return the least bytes of activations of denoising on a chip."""
        if "transformer" not in self.components:
            return 0
        tokens = -(-geometry.num_tokens // self.layout.branch.sp)
        return (_ALIVE + self.kept) * tokens * self.configs.transformer.inner_dim * _BF16

    def host(self, geometry: Geometry) -> int:
        """Return the least bytes of this host: noise and latents, frames in float32 and as bytes, tables of positions.

        Golden execution holds the weights and activations of all chips too.
        """
        latents = 2 * prod(geometry.latent_shape) * _FLOAT32
        tables = geometry.num_tokens * self.configs.transformer.inner_dim * _FLOAT32
        tables = tables if "transformer" in self.components else 0
        computed = 0
        if self.mode == "golden":
            computed = self.weights[1] + self.denoising(geometry) * self.layout.branch.sp
        return latents + max(self.frames(geometry), tables) + computed

    def frames(self, geometry: Geometry) -> int:
        """Return the bytes of a video's frames on this host, in float32 twice and as bytes."""
        pixels = 3 * geometry.num_frames * geometry.height * geometry.width
        return 0 if self.mode == "dry-run" else (2 * _FLOAT32 + 1) * pixels


def check_size(subject: Subject, geometry: Geometry | None, videos: int = 1) -> None:
    """Judge weights, and where it is known a video, or several of one call, whose frames the host holds together.

    Raises:
        InputError: something does not fit; the message says what would.
    """
    problem = _problem(subject, geometry)
    if problem is not None:
        raise InputError(f"{problem}; {_mend(subject, geometry)}")
    if geometry is not None and videos * subject.frames(geometry) > host_bytes():
        raise InputError(
            f"{videos} videos of {geometry.width}x{geometry.height} with {geometry.num_frames} frames do not fit this "
            f"host: they take {_gb(videos * subject.frames(geometry))} and {_gb(host_bytes())} are here; make fewer in "
            "one call"
        )


def fits(subject: Subject, geometry: Geometry | None) -> bool:
    """Return whether `check_size` passes."""
    return _problem(subject, geometry) is None


def host_bytes() -> int:
    """Return the memory of this host, or the limit that its control group has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(file).read_text()))
    return total


def _problem(subject: Subject, geometry: Geometry | None) -> str | None:
    """Return what does not fit, or None."""
    dram, mesh = chip_dram(), "x".join(map(str, subject.layout.mesh_shape))
    weights = subject.weights[0]
    if weights > dram:
        return (
            f"the weights do not fit {mesh}: a chip would hold {_gb(weights)} at precision {subject.precision.name} in "
            f"layout {subject.layout}, and has {_gb(dram)}"
        )
    if geometry is None:
        return None
    video = f"{geometry.width}x{geometry.height} with {geometry.num_frames} frames"
    host = subject.host(geometry)
    if host > host_bytes():
        return f"{video} does not fit this host: it takes {_gb(host)} and {_gb(host_bytes())} are here"
    needed = weights + subject.denoising(geometry)
    if needed > dram:
        return (
            f"{video} does not fit {mesh}: a chip would hold {_gb(weights)} of weights and at least "
            f"{_gb(needed - weights)} for denoising, and has {_gb(dram)}"
        )
    return _decoding(subject, geometry, dram - weights)


def _decoding(subject: Subject, geometry: Geometry, free: int) -> str | None:
    if "vae" not in subject.components:
        return None
    mesh = NamedMesh(subject.layout.branch)
    size = (geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    split = Split.parse(subject.vae_split) if subject.vae_split is not None else choose_split(mesh, *size)
    try:
        chunk_frames(subject.configs.vae, split, mesh, size, free)
    except InputError as error:
        return str(error).partition("; use ")[0]
    return None


def _mend(subject: Subject, geometry: Geometry | None) -> str:
    """Return what would fit, as words: another precision, a larger mesh, fewer frames."""
    found = [words for words in (_other_set_up(subject, geometry), _fewer(subject, geometry)) if words]
    return f"{' or '.join(found)} would fit" if found else "no mesh that is known would do: use a smaller size"


def _other_set_up(subject: Subject, geometry: Geometry | None) -> str | None:
    for words, other in _others(subject):
        if fits(other, geometry):
            return words
    return None


def _others(subject: Subject) -> Iterator[tuple[str, Subject]]:
    if subject.precision.name != _SMALLER:
        yield f"--precision {_SMALLER}", replace(subject, precision=PRECISIONS[_SMALLER])
    if subject.layout.branch.sp > 1 and not subject.layout.fsdp:
        sharded = replace(subject.layout, fsdp=True)
        yield f"--layout {sharded}", replace(subject, layout=sharded)
    for shape in _MESHES:
        if prod(shape) > prod(subject.layout.mesh_shape):
            with suppress(InputError):
                layout = choose_layout(subject.configs, shape, subject.precision)
                yield f"--mesh {shape[0]}x{shape[1]}", replace(subject, layout=layout, vae_split=None)


def _fewer(subject: Subject, geometry: Geometry | None) -> str | None:
    """Return the most frames of this size that fit, by bisection; None if not even one does."""
    if geometry is None or not fits(subject, replace(geometry, num_frames=1)):
        return None
    few, many = 0, geometry.latent_frames - 1
    while many - few > 1:
        middle = (few + many) // 2
        fit = fits(subject, replace(geometry, num_frames=middle * geometry.scales.temporal + 1))
        few, many = (middle, many) if fit else (few, middle)
    return f"--num-frames {few * geometry.scales.temporal + 1}"


@functools.lru_cache(maxsize=32)
def _weights(configs: Configs, layout: Layout, precision: Precision) -> dict[str, tuple[int, int]]:
    """Return by component the bytes of weights on a chip, and of all chips where each value counts once."""
    found = {}
    for name, module in Models.declare(configs, NamedMesh(layout)).by_component().items():
        set_precision(module, stored_precision(name, precision.weights))
        parameters = [parameter for _, _, parameter in module.parameters()]
        # The text encoder has a layout of its own.
        found[name] = (
            sum(chip_bytes(parameter, module.mesh) for parameter in parameters),
            sum(data_bytes(parameter, module.mesh) for parameter in parameters),
        )
    return found


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
