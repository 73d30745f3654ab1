"""The AsymmVAE decoder of Mochi 1 on a mesh. It turns latents into frames and never gathers a whole activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import ttnn

from models.conversion import LATENT_CONV3D_BIAS, LATENT_CONV3D_WEIGHT
from models.layers.conv3d import Conv3d, Fold
from models.layers.module import Module, PartOf, TensorSource
from models.layers.staging import then
from models.machine.errors import InputError
from models.mochi.conventions import FirstFrames, check_first_frames, check_keep_all_frames
from models.mochi.vae.blocks import Past, ResBlock, Shared, UpBlock
from models.mochi.vae.config import DecoderConfig
from models.mochi.vae.frames import check_frames, check_latent_values
from models.mochi.vae.memory import chunk_frames, dram_free
from models.mochi.vae.split import Split, choose_split
from models.parallel import Mesh
from models.parallel.halo import HEIGHT, TIME, WIDTH, Extent, dims_of, download, upload

_PREFIX = "decoder."


@dataclass(frozen=True)
class Decoded:
    """A decoded chunk.

    Attributes:
        frames_BTHWC: [1, F, 8 H, 8 W, 3] bfloat16, row-major, fractured as `extent` says.
        latents: sizes and shards of the chunk's latents.
        extent: sizes and shards of the frames.
    """

    frames_BTHWC: ttnn.Tensor
    latents: Extent
    extent: Extent


class MochiVaeDecoder(Module):
    """Decoder of latents of any size, sharded over time, rows and columns with exact halos.

    Names and formulas are those of Diffusers `autoencoder_kl_mochi.py`. Weights are replicated. Every upsampling by t
    in time makes t frames of the first one, of which t - 1 are surplus. See `models.mochi.conventions` for the two ways
    to drop them.
    """

    prefix = _PREFIX

    def __init__(
        self,
        config: DecoderConfig,
        mesh: Mesh,
        *,
        split: Split | str | None = None,
        first_frames: FirstFrames | str = "diffusers",
    ) -> None:
        """Declare the decoder; `load` reads its weights.

        Args:
            config: sizes of the decoder.
            mesh: the mesh.
            split: split of videos, such as `t0h1`; `choose_split` chooses one per size if None.
            first_frames: `"genmo"` drops surplus frames inside each upsampling, `"diffusers"` at the end.

        Raises:
            ValueError: `split` is not a split, or there is no such way with the first frames.
        """
        super().__init__(mesh)
        self.config = config
        self.first_frames = check_first_frames(first_frames)
        self.split = Split.parse(split) if isinstance(split, str) else split
        self.shared = Shared(mesh)
        channels, layers = config.decoder_block_out_channels, config.layers_per_block
        latents = f"mean {config.latents_mean}, std {config.latents_std}, scale {config.scaling_factor}"
        self.conv_in = Conv3d(
            mesh,
            "conv_in",
            config.latent_channels,
            channels[-1],
            (1, 1, 1),
            fold=Fold(self._fold_normalisation, LATENT_CONV3D_WEIGHT, LATENT_CONV3D_BIAS, latents),
        )
        self.block_in = [
            ResBlock(self.shared, f"block_in.resnets.{index}.", channels[-1]) for index in range(layers[-1])
        ]
        self.up_blocks = [
            UpBlock(
                self.shared,
                f"up_blocks.{index}.",
                channels[-1 - index],
                channels[-2 - index],
                layers[-2 - index],
                config.temporal_expansions[-1 - index],
                config.spatial_expansions[-1 - index],
                prod(config.temporal_expansions[-1 - index :]) - 1 if self.trims else 0,
            )
            for index in range(len(channels) - 1)
        ]
        self.block_out = [
            ResBlock(self.shared, f"block_out.resnets.{index}.", channels[0], active=index == layers[0] - 1)
            for index in range(layers[0])
        ]
        self.proj_out = Conv3d(
            mesh,
            "proj_out",
            channels[0],
            config.out_channels,
            (1, 1, 1),
            shape=(config.out_channels, channels[0]),
        )

    @classmethod
    def from_checkpoint(
        cls,
        component,
        mesh: Mesh,
        *,
        split: Split | str | None = None,
        first_frames: FirstFrames | str = "diffusers",
        on_parameter: Callable[[int, int], None] | None = None,
    ) -> MochiVaeDecoder:
        """Build the decoder from a checkpoint's VAE: its `config` and its `decoder.*` tensors.

        The encoder's tensors are not read.

        Raises:
            ValueError: the configuration, the split or the weights do not fit.
            FileNotFoundError: a file is missing.
        """
        decoder = cls(DecoderConfig.from_dict(component.config), mesh, split=split, first_frames=first_frames)
        decoder.load(component, on_parameter=on_parameter)
        return decoder

    @property
    def trims(self) -> bool:
        """Whether surplus frames are dropped inside each upsampling, Genmo's way."""
        return self.first_frames == "genmo"

    def part_of(self, source: TensorSource) -> TensorSource:
        """Return the decoder's tensors of the VAE, without those of the encoder."""
        return PartOf(source, _PREFIX)

    def _fold_normalisation(self, weight, bias):
        """Fold the inverse of the latents' normalisation into the first convolution: `W (z std / scale + mean) + b`."""
        config = self.config
        scale = torch.ones(config.latent_channels) / config.scaling_factor
        flat = weight.flatten(1)
        if config.latents_mean:
            scale = scale * torch.tensor(config.latents_std)
            mean = torch.tensor(config.latents_mean).to(flat.device)
            bias = bias + (flat * mean).sum(dim=1)
        return (flat * scale.to(flat.device)).reshape(weight.shape), bias

    def split_for(self, frames: int, rows: int, columns: int) -> Split:
        """Return the split of latents of this size."""
        if self.split is not None:
            return self.split
        return choose_split(self.mesh, frames, rows, columns, whole_time=self.trims)

    def __call__(
        self, latents_BTHWC: ttnn.Tensor, extent: Extent, past: Past | None = None
    ) -> tuple[ttnn.Tensor, Extent]:
        """Decode latents that are on the mesh.

        Args:
            latents_BTHWC: normalised latents [1, T, H, W, 32] bfloat16, row-major, fractured as `extent` says; the
                channels after the latent's are zeros. They are freed.
            extent: sizes and shards of the latents (`Split.extent`).
            past: causal state if the video is decoded in chunks.

        Returns:
            Frames [1, F, 8 H, 8 W, 3] bfloat16, row-major, with values from about -1 to 1, and how they are fractured.
            F is 6 T. In Genmo's way, where time is not split, it is 6 T - 5 in the first chunk. Other first chunks
            begin with 5 surplus frames.
        """
        past = past if past is not None else Past()
        x_BTHWC = self.conv_in(latents_BTHWC)
        ttnn.deallocate(latents_BTHWC)
        for block in self.block_in:
            x_BTHWC = block(x_BTHWC, extent, past)
        for up_block in self.up_blocks:
            x_BTHWC, extent = up_block(x_BTHWC, extent, past)
        for block in self.block_out:
            x_BTHWC = block(x_BTHWC, extent, past)
        return then(self.proj_out, x_BTHWC), extent

    def upload_latents(self, latents_BCTHW: torch.Tensor, extent: Extent) -> ttnn.Tensor:
        """Upload host latents [1, C, T, H, W] as the call takes them: [1, T, H, W, 32], fractured as `extent` says."""
        pads = [0, self.conv_in.in_channels - self.config.latent_channels]
        for dim in (WIDTH, HEIGHT, TIME):
            pads += [0, extent[dim].padded - extent[dim].real]
        host = torch.nn.functional.pad(latents_BCTHW.float().permute(0, 2, 3, 4, 1), pads)
        return upload(self.mesh, host.contiguous(), dims_of(extent))

    def download_frames(self, frames_BTHWC: ttnn.Tensor, extent: Extent) -> torch.Tensor:
        """Download the call's result, frames of `extent`, as host frames [1, F, 8 H, 8 W, 3], without padding.

        `frames_BTHWC` is freed. Pixels are downloaded in bfloat16, 6 bytes each. Converting them to uint8 on the mesh
        would save 3 bytes each, 25 MB per chip of a 2x4 for 163 frames of 848x480. It would cost three more passes over
        one page per pixel.
        """
        whole = download(self.mesh, frames_BTHWC, dims_of(extent))
        ttnn.deallocate(frames_BTHWC)
        return whole[:, : extent.time.real, : extent.height.real, : extent.width.real].float()

    def chunks(self, latents_BCTHW: torch.Tensor, chunk: int | None = None) -> Iterator[Decoded]:
        """Decode latents chunk by chunk, in order of time.

        Args:
            latents_BCTHW: normalised latents [1, C, T, H, W].
            chunk: number of latent frames at a time; computed from the free DRAM (`chunk_frames`) if None.

        Yields:
            The frames of a chunk. Free them, or pass them to `download_frames`, before the next chunk.

        Raises:
            ValueError: `chunk` does not fill the shards, or the latents do not fit.
        """
        frames, rows, columns = latents_BCTHW.shape[2:]
        split = self.split_for(frames, rows, columns)
        if chunk is None:
            chunk = chunk_frames(self.config, split, self.mesh, (frames, rows, columns), dram_free(self.mesh))
        _check_chunk(chunk, frames, split.extent(self.mesh, frames, rows, columns))
        past = Past()
        if chunk < frames:
            self._allocate(past, split.extent(self.mesh, chunk, rows, columns))
        try:
            for start in range(0, frames, chunk):
                part = latents_BCTHW[:, :, start : start + chunk]
                past.starts, past.more = start == 0, start + chunk < frames
                extent = split.extent(self.mesh, part.shape[2], rows, columns)
                frames_BTHWC, size = self(self.upload_latents(part, extent), extent, past)
                yield Decoded(frames_BTHWC, extent, size)
        finally:
            past.release()

    def _allocate(self, past: Past, extent: Extent) -> None:
        for block in self.block_in:
            for conv in block.convolutions():
                past.allocate(conv, extent)
        for up_block in self.up_blocks:
            for block in up_block.resnets:
                for conv in block.convolutions():
                    past.allocate(conv, extent)
            extent = extent.times(*up_block.factors)
        for block in self.block_out:
            for conv in block.convolutions():
                past.allocate(conv, extent)

    def raw_frames(self, latents_BCTHW: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
        """Return host frames as the network computes them; see `chunks`.

        They are [1, 6 T, 8 H, 8 W, 3] with the surplus frames. In Genmo's way there are none: [1, 6 T - 5, 8 H, 8 W,
        3].
        """
        parts = [self.download_frames(part.frames_BTHWC, part.extent) for part in self.chunks(latents_BCTHW, chunk)]
        video = torch.cat(parts, dim=1)
        return self._without_surplus(video, latents_BCTHW.shape[2]) if self.trims else video

    def _without_surplus(self, video_BFHWC: torch.Tensor, latent_frames: int) -> torch.Tensor:
        """Return the last frames: those of the video."""
        return video_BFHWC[:, -(self.config.time_factor * (latent_frames - 1) + 1) :]

    def decode(
        self, latents_BCTHW: torch.Tensor, *, keep_all_frames: bool = False, chunk: int | None = None
    ) -> np.ndarray:
        """Decode normalised latents, and drop the decoder's surplus leading frames if Genmo's way has not done so.

        Args:
            latents_BCTHW: [1, C, T, H / 8, W / 8], as the denoising loop returns them.
            keep_all_frames: keep the surplus frames too; only in Diffusers' way, which computes them.
            chunk: number of latent frames to decode at a time; as many as fit if None. The result is the same.

        Returns:
            float32 [1, F, H, W, 3] from 0 to 1, F = 6 (T - 1) + 1, or 6 T with all frames.

        Raises:
            InputError: the latents have another shape or type, have values that are not finite or too large, or do not
                fit; a decoded value is not finite; or all frames are to be kept in Genmo's way.
        """
        check_keep_all_frames(self.first_frames, keep_all_frames)
        check_latents(latents_BCTHW, self.config.latent_channels)
        video = self.raw_frames(latents_BCTHW, chunk)
        if not keep_all_frames:
            video = self._without_surplus(video, latents_BCTHW.shape[2])
        check_frames(video.numpy())  # before the clamp, which makes a colour of infinity
        return (video / 2 + 0.5).clamp_(0, 1).numpy()

    def release(self) -> None:
        """Free the device memory of weights and tables."""
        super().release()
        self.shared.release()


def check_latents(latents_BCTHW: torch.Tensor, channels: int) -> None:
    """Check the shape, type and values of latents before they are used.

    Raises:
        ValueError: they have another shape or type, or values that are not finite.
    """
    shape = list(latents_BCTHW.shape)
    if len(shape) != 5 or shape[0] != 1 or shape[1] != channels or min(shape) < 1:
        raise InputError(f"latents must be [1, {channels}, T, H, W], not {shape}")
    if not latents_BCTHW.is_floating_point():
        raise InputError(f"latents must be floating-point numbers, not {latents_BCTHW.dtype}")
    check_latent_values(latents_BCTHW, "latents")


def _check_chunk(chunk: int, frames: int, extent: Extent) -> None:
    shards = extent.time.shards
    least = 2 * shards if shards > 1 else 1
    if chunk < frames and (chunk < least or chunk % shards):
        raise InputError(
            f"chunks of {chunk} latent frames do not fill {shards} shards of time: use a multiple of {shards}, at "
            f"least {least}"
        )
    if chunk < 1:
        raise InputError(f"chunks of {chunk} latent frames: use at least 1")
