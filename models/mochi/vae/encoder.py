"""The AsymmVAE encoder of Mochi 1 on a mesh. It turns frames into the mean and log-variance of latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import ttnn

from models.layers.conv3d import Conv3d
from models.layers.group_norm import FrameGroupNorm
from models.layers.module import Module, PartOf, TensorSource
from models.layers.staging import frames_of, put, then
from models.machine.errors import InputError
from models.mochi.vae.blocks import Past, Shared
from models.mochi.vae.config import FEATURES, EncoderConfig
from models.mochi.vae.down import DownBlock, Stage
from models.mochi.vae.encoder_memory import chunk_outputs
from models.mochi.vae.frames import check_latent_values, normalise
from models.mochi.vae.memory import dram_free
from models.mochi.vae.pixels import check_pixels, features_of
from models.mochi.vae.split import Split, choose_split
from models.parallel import Mesh
from models.parallel.halo import TIME, Extent, dims_of, download, upload

_PREFIX = "encoder."
# Bounds of the log-variance (Diffusers `DiagonalGaussianDistribution`).
_LOG_VARIANCE = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """The normal distribution of a video's latents, in the VAE's own space.

    Attributes:
        mean: float32 [1, C, T, H, W].
        log_variance: float32 [1, C, T, H, W].
    """

    mean: torch.Tensor
    log_variance: torch.Tensor

    def sample(self, seed: int) -> torch.Tensor:
        """Return a sample whose noise is torch's, of the seed on the CPU."""
        noise = torch.randn(self.mean.shape, generator=torch.Generator().manual_seed(seed))
        return self.mean + torch.exp(0.5 * self.log_variance.clamp(*_LOG_VARIANCE)) * noise


class MochiVaeEncoder(Module):
    """Encoder of videos and images of any size in whole latent pixels, sharded over rows and columns.

    Names and formulas are those of Diffusers `autoencoder_kl_mochi.py`. Weights are replicated, time is never split.
    The stages before the first attention over time can run in chunks of frames (`models.mochi.vae.encoder_memory`).
    """

    prefix = _PREFIX
    part = "encoder"

    def __init__(self, config: EncoderConfig, mesh: Mesh, *, split: Split | str | None = None) -> None:
        """Declare the encoder; `load` reads its weights.

        Args:
            config: sizes of the encoder.
            mesh: the mesh.
            split: split of videos, such as `h0w1`; `choose_split` chooses one per size if None.

        Raises:
            ValueError: `split` is not a split, or splits time.
        """
        super().__init__(mesh)
        self.config = config
        self.split = Split.parse(split) if isinstance(split, str) else split
        if self.split is not None and TIME in self.split.dims:
            raise InputError(f"split {self.split}: the encoder's attention is over time; split rows (h) or columns (w)")
        self.shared = Shared(mesh)
        channels, layers, attends = (
            config.encoder_block_out_channels,
            config.layers_per_block,
            config.add_attention_block,
        )
        self.proj_in = Conv3d(
            mesh, "proj_in", FEATURES, channels[0], (1, 1, 1), shape=(channels[0], config.in_channels)
        )
        self.block_in = Stage(self.shared, "block_in.", channels[0], layers[0], attends=attends[0])
        self.down_blocks = [
            DownBlock(
                self.shared,
                f"down_blocks.{index}.",
                channels[index],
                channels[index + 1],
                layers[index + 1],
                config.temporal_expansions[index],
                config.spatial_expansions[index],
                attends=attends[index + 1],
            )
            for index in range(len(channels) - 1)
        ]
        self.block_out = Stage(self.shared, "block_out.", channels[-1], layers[-1], attends=attends[-1])
        self.norm_out = FrameGroupNorm(mesh, "norm_out.norm_layer", channels[-1], self.shared.sums)
        outputs = 2 * config.latent_channels
        self.proj_out = Conv3d(
            mesh, "proj_out", channels[-1], outputs, (1, 1, 1), shape=(outputs, channels[-1]), bias=False
        )

    @classmethod
    def from_checkpoint(
        cls,
        component,
        mesh: Mesh,
        *,
        split: Split | str | None = None,
        on_parameter: Callable[[int, int], None] | None = None,
    ) -> MochiVaeEncoder:
        """Build the encoder from a checkpoint's VAE: its `config` and its `encoder.*` tensors.

        Raises:
            ValueError: the configuration, the split or the weights do not fit.
            FileNotFoundError: a file is missing.
        """
        encoder = cls(EncoderConfig.from_dict(component.config), mesh, split=split)
        encoder.load(component, on_parameter=on_parameter)
        return encoder

    def part_of(self, source: TensorSource) -> TensorSource:
        """Return the encoder's tensors of the VAE, without those of the decoder."""
        return PartOf(source, _PREFIX)

    def split_for(self, frames: int, rows: int, columns: int) -> Split:
        """Return the split of latents of this size."""
        if self.split is not None:
            return self.split
        return choose_split(self.mesh, frames, rows, columns, over_time=False)

    def extents(self, frames: int, rows: int, columns: int) -> list[Extent]:
        """Return sizes and shards of each stage for a video of this size in pixels, the video's first."""
        space = self.config.space_factor
        latents = ((frames - 1) // self.config.time_factor + 1, rows // space, columns // space)
        extent = self.split_for(*latents).extent(self.mesh, *latents).times(1, space, space)
        found = [_of_frames(extent, frames)]
        for block in self.down_blocks:
            found.append(_smaller(found[-1], *block.factors[:2]))
        return found

    def chunk_for(self, frames: int, rows: int, columns: int) -> int:
        """Return the chunk of `__call__` that fits the free DRAM, for a video of this size in pixels.

        Raises:
            InputError: the video does not fit.
        """
        return chunk_outputs(self.config, self.extents(frames, rows, columns), dram_free(self.mesh))

    def __call__(self, frames_FHWC: torch.Tensor, *, chunk: int | None = None) -> tuple[ttnn.Tensor, Extent]:
        """Encode frames of the host.

        Args:
            frames_FHWC: uint8 [F, H, W, 3], or float32 from -1 to 1; see `check_pixels`.
            chunk: frames after the first downsampling that the stages before it make at a time; computed from the free
                DRAM if None. Only where these stages have no attention.

        Returns:
            Mean and log-variance [1, T, H / 8, W / 8, 2 C] bfloat16, row-major, and how they are fractured.

        Raises:
            InputError: the video does not fit, or there are no such chunks.
        """
        frames, rows, columns, _ = frames_FHWC.shape
        extents = self.extents(frames, rows, columns)
        if chunk is None:
            chunk = self.chunk_for(frames, rows, columns)
        x_BTHWC, past = self._first(frames_FHWC, extents, chunk), Past()
        for index, block in enumerate(self.down_blocks):
            if index:
                x_BTHWC = block.conv_in(x_BTHWC)
            x_BTHWC = block.stage(x_BTHWC, extents[index + 1], past)
        x_BTHWC = self.block_out(x_BTHWC, extents[-1], past)
        self.norm_out(x_BTHWC, extents[-1], frames_of(x_BTHWC))
        return then(self.proj_out, x_BTHWC), extents[-1]

    def _first(self, frames_FHWC: torch.Tensor, extents: list[Extent], chunk: int | None) -> ttnn.Tensor:
        """Run the stage at full resolution, and the downsampling after it, in chunks of `chunk` of its outputs."""
        if not self.down_blocks:
            return self._full(frames_FHWC, extents[0], Past())
        down = self.down_blocks[0].conv_in
        out, outputs = extents[1], extents[1].time.real
        if chunk is None or chunk >= outputs:
            return down(self._full(frames_FHWC, extents[0], Past()))
        if chunk < 1 or self.config.add_attention_block[0]:
            raise InputError(f"chunks of {chunk} frames: use at least 1, and none where the first stage has attention")
        shape = [outputs, out.height.local, out.width.local, self.config.encoder_block_out_channels[1]]
        whole = ttnn.allocate_tensor_on_device(
            ttnn.Shape(shape), ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT, self.mesh.device
        )
        time, past = down.factors[0], Past()
        for conv in self.block_in.convolutions():
            past.allocate(conv, extents[0])
        try:
            for start in range(0, outputs, chunk):
                stop = min(start + chunk, outputs)
                begin, end = max(1 + (start - 1) * time, 0), 1 + (stop - 1) * time
                past.starts, past.more = start == 0, stop < outputs
                part = self._full(frames_FHWC[begin:end], _of_frames(extents[0], end - begin), past)
                put(whole, frames_of(down(part, starts=start == 0)), (start, 0, 0))
        finally:
            past.release()
        return ttnn.reshape(whole, [1, *shape])

    def _full(self, frames_FHWC: torch.Tensor, extent: Extent, past: Past) -> ttnn.Tensor:
        """Upload frames and run the stage at full resolution."""
        return self.block_in(then(self.proj_in, self.upload_frames(frames_FHWC, extent)), extent, past)

    def upload_frames(self, frames_FHWC: torch.Tensor, extent: Extent) -> ttnn.Tensor:
        """Upload frames with their Fourier features: [1, F, H, W, 32] bfloat16, fractured as `extent` says."""
        padded = (extent.height.padded, extent.width.padded)
        made = features_of(frames_FHWC, self.proj_in.in_channels, padded)
        return upload(self.mesh, made[None], dims_of(extent))

    def posterior(self, frames_FHWC: np.ndarray | torch.Tensor, *, chunk: int | None = None) -> Posterior:
        """Encode a video or an image to the distribution of its latents.

        Args:
            frames_FHWC: uint8 [F, H, W, 3], or floats from -1 to 1; F is 6 k + 1, H and W multiples of 8.
            chunk: see `__call__`. The result is the same.

        Raises:
            InputError: the frames have another shape, type or size, or do not fit; or a value is not finite.
        """
        frames = check_pixels(frames_FHWC, self.config.time_factor, self.config.space_factor)
        moments, extent = self(frames, chunk=chunk)
        whole = download(self.mesh, moments, dims_of(extent))
        ttnn.deallocate(moments)
        real = whole[:, : extent.time.real, : extent.height.real, : extent.width.real].float()
        mean, log_variance = real.permute(0, 4, 1, 2, 3).contiguous().chunk(2, dim=1)
        if not bool(real.isfinite().all()):
            raise InputError(
                "the encoded latents hold values that are not finite: the vae's weights are too large for the "
                "encoder's arithmetic; check the checkpoint, and on cards run mochi-tt selftest"
            )
        return Posterior(mean.contiguous(), log_variance.contiguous())

    def encode(
        self, frames_FHWC: np.ndarray | torch.Tensor, *, seed: int | None = None, chunk: int | None = None
    ) -> torch.Tensor:
        """Encode a video or an image to normalised latents, as the denoising loop has them and `decode` takes them.

        Args:
            frames_FHWC: see `posterior`.
            seed: of the sample's noise; the mean if None.
            chunk: see `__call__`.

        Returns:
            float32 [1, C, T, H / 8, W / 8].

        Raises:
            InputError: see `posterior`.
        """
        made = self.posterior(frames_FHWC, chunk=chunk)
        latents = normalise(made.mean if seed is None else made.sample(seed), vars(self.config))
        check_latent_values(latents, "the encoded latents", "check the checkpoint's vae")
        return latents

    def release(self) -> None:
        """Free the device memory of weights and tables."""
        super().release()
        self.shared.release()


def _of_frames(extent: Extent, frames: int) -> Extent:
    return replace(extent, time=replace(extent.time, real=frames, local=frames))


def _smaller(extent: Extent, time: int, space: int) -> Extent:
    """Return the extent after a downsampling by these factors."""

    def divided(size):
        return replace(size, real=size.real // space, local=size.local // space)

    frames = (extent.time.real - 1) // time + 1
    return Extent(replace(extent.time, real=frames, local=frames), divided(extent.height), divided(extent.width))
