"""The AsymmDiT (Asymmetric Diffusion Transformer) of Mochi 1 on a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ttnn

from models.conversion import PATCH_EMBEDDING_WEIGHT
from models.layers import Chunks, ColumnParallelLinear, Module, RotaryTable, RowParallelLinear, Width, layer_norm
from models.machine.errors import InputError
from models.mochi.config import TransformerConfig
from models.mochi.precision import PRECISIONS, Precision
from models.mochi.transformer.block import TransformerBlock
from models.mochi.transformer.conditioning import Conditioning, Modulation, StepTable
from models.mochi.transformer.rope import RotaryEmbedding, padded_tokens
from models.mochi.transformer.widths import Widths
from models.parallel import Mesh

_EPS = 1e-6

# The visual stream [1, 1, N / SP, D / TP], fractured over SP and TP, and the text stream [1, 1, L, P / TP], replicated
# over SP, fractured over TP; no text stream without tokens, and none after the last block.
Streams = tuple["ttnn.Tensor", "ttnn.Tensor | None"]


@dataclass(frozen=True)
class Grid:
    """Visual tokens of a video, `frames x rows x columns` patches, and their rotation."""

    frames: int
    rows: int
    columns: int
    rope: RotaryTable

    @property
    def tokens(self) -> int:
        """Number of real visual tokens over all shards."""
        return self.frames * self.rows * self.columns


@dataclass(frozen=True)
class PreparedPrompt:
    """Everything in a denoising run that depends only on prompt and schedule.

    `text_1BLP` is the start of the text stream, fractured over TP (None for a prompt without tokens). `weights` holds
    the norm weights for all S steps: for each block those of the visual and of the text stream, then those of the final
    layer.
    """

    text_1BLP: ttnn.Tensor | None
    weights: StepTable

    def select(self, step: int) -> None:
        """Go to a denoising step, an index into the timesteps given to `MochiTransformer.prepare`.

        Raises:
            ValueError: there is no such step.
        """
        self.weights.select(step)


class MochiTransformer(Module):
    """The AsymmDiT, which maps latent patches and a caption to the estimate of `z0 - noise` per patch."""

    def __init__(
        self,
        config: TransformerConfig,
        mesh: Mesh,
        precision: Precision = PRECISIONS["bf16"],
        *,
        chunks: Chunks | None = None,
    ) -> None:
        """Declare the model; `load` reads its weights.

        Args:
            config: sizes of the model.
            mesh: mesh that the model runs on.
            precision: arithmetic of the model. The loader of the weights sets their storage types
                (`weight_cache.precision`).
            chunks: chunks of attention; chosen by rule if None.

        Raises:
            ValueError: the layout's TP does not divide the heads.
        """
        super().__init__(mesh)
        self.config = config
        widths = Widths.of(config, mesh.tp.size)
        visual = widths.visual
        self.patch_embed = PatchEmbed(mesh, config, visual)
        self.conditioning = Conditioning(mesh, config, widths)
        self.rotary = RotaryEmbedding(mesh, config, widths.head)
        self.blocks = [
            TransformerBlock(mesh, config, widths, precision, index, last=index == config.num_layers - 1, chunks=chunks)
            for index in range(config.num_layers)
        ]
        self.final = FinalLayer(mesh, config, visual)

    @classmethod
    def from_checkpoint(
        cls, checkpoint, mesh: Mesh, *, on_parameter: Callable[[int, int], None] | None = None
    ) -> MochiTransformer:
        """Build the model from a checkpoint component and load its weights strictly.

        The component has a `config` with Diffusers' names, and the tensors.

        Raises:
            ValueError: the configuration, the layout or the weights do not fit.
        """
        model = cls(TransformerConfig.from_dict(checkpoint.config), mesh)
        model.load(checkpoint, on_parameter=on_parameter)
        return model

    def grid(self, frames: int, rows: int, columns: int) -> Grid:
        """Prepare a geometry of `frames x rows x columns` patches."""
        return Grid(frames, rows, columns, self.rotary(frames, rows, columns))

    def prepare(self, features, timesteps: Sequence[float]) -> PreparedPrompt:
        """Compute everything that depends only on prompt and schedule, for all steps.

        Args:
            features: host caption features [L, C] of the prompt's real tokens, L >= 0.
            timesteps: S model times, (1 - sigma) * 1000.

        Raises:
            ValueError: the prompt has more tokens than the model's `max_sequence_length`.
        """
        length = features.shape[0]
        if length > self.config.max_sequence_length:
            raise InputError(f"{length} text tokens are more than the model's {self.config.max_sequence_length}")
        uploaded = self.mesh.upload(features[None, None]) if length else None
        conditioning_11SD, text_1BLP = self.conditioning(timesteps, uploaded)
        tables = [table for block in self.blocks for table in block.modulations(conditioning_11SD)]
        return PreparedPrompt(text_1BLP, StepTable([*tables, self.final.modulation(conditioning_11SD)]))

    def upload_patches(self, patches) -> ttnn.Tensor:
        """Upload host patches [N, I] float32 as [1, 1, N / SP, I] float32, fractured over SP, padded with zeros."""
        return ttnn.to_device(self._distributed(patches), self.mesh.device)

    def write_patches(self, patches, patches_1BNI: ttnn.Tensor) -> None:
        """Upload host patches [N, I] float32 to the place of others, whose address does not change."""
        ttnn.copy_host_to_device_tensor(self._distributed(patches), patches_1BNI)

    def _distributed(self, patches) -> ttnn.Tensor:
        import torch

        patches = torch.as_tensor(patches)
        padding = padded_tokens(patches.shape[0], self.mesh.sp.size) - patches.shape[0]
        patches = torch.nn.functional.pad(patches, (0, 0, 0, padding))
        return self.mesh.distribute(patches[None, None], dtype=ttnn.float32, sp=2)

    def download_patches(self, patches_1BNI: ttnn.Tensor, tokens: int):
        """Download [1, 1, N / SP, I], fractured over SP, as host patches [tokens, I] float32."""
        return self.mesh.download(patches_1BNI, sp=2)[0, 0, :tokens].float()

    def __call__(self, patches_1BNI: ttnn.Tensor, prompt: PreparedPrompt, grid: Grid) -> ttnn.Tensor:
        """Predict `z0 - noise` at the current step of `prompt`.

        Args:
            patches_1BNI: latent patches [1, 1, N / SP, I] float32, values ordered (row, column, channel), fractured
                over SP on N, replicated over TP.
            prompt: result of `prepare`.
            grid: result of `grid`.

        Returns:
            The prediction in float32, with the shape, order and placement of the patches.
        """
        return self.finish(self.run(*self.begin(patches_1BNI, prompt), prompt, grid)[0], prompt)

    @property
    def stream_width(self) -> int:
        """Features of the visual stream on a chip, D / TP with padding."""
        return self.final.width.padded // self.mesh.tp.size

    def begin(self, patches_1BNI: ttnn.Tensor, prompt: PreparedPrompt) -> Streams:
        """Embed the patches; return the streams before the first block. See `__call__` for the arguments."""
        return self.patch_embed(patches_1BNI), prompt.text_1BLP

    def run(
        self,
        spatial_1BND: ttnn.Tensor,
        text_1BLP: ttnn.Tensor | None,
        prompt: PreparedPrompt,
        grid: Grid,
        start: int = 0,
        end: int | None = None,
    ) -> Streams:
        """Run the blocks from `start` to before `end` (all that are left if None) and return the streams after them."""
        for index, block in list(enumerate(self.blocks))[start:end]:
            visual = prompt.weights.group(2 * index)
            text = [] if text_1BLP is None else prompt.weights.group(2 * index + 1)
            spatial_1BND, text_1BLP = block(spatial_1BND, text_1BLP, visual, text, grid.rope, grid.tokens)
        return spatial_1BND, text_1BLP

    def finish(self, spatial_1BND: ttnn.Tensor, prompt: PreparedPrompt) -> ttnn.Tensor:
        """Predict from the visual stream after the last block; the result is that of `__call__`."""
        return self.final(spatial_1BND, prompt.weights.group(2 * len(self.blocks)))


class PatchEmbed(Module):
    """Linear embedding of latent patches (a strided convolution in the reference)."""

    def __init__(self, mesh: Mesh, config: TransformerConfig, width: Width) -> None:
        super().__init__(mesh)
        self.proj = ColumnParallelLinear(
            mesh,
            ["patch_embed.proj"],
            Width.plain(config.patch_values),
            width,
            bias=True,
            # The reference's kernel is [D, channel, row, column]. Patches here are ordered as the final layer writes
            # them.
            kernel=(width.size, config.in_channels, config.patch_size, config.patch_size),
            flatten=lambda kernel: kernel.permute(0, 2, 3, 1).flatten(1),
            flattened=PATCH_EMBEDDING_WEIGHT,
        )

    def __call__(self, patches_1BNI: ttnn.Tensor) -> ttnn.Tensor:
        """Map [1, 1, N / SP, I] float32, replicated over TP, to [1, 1, N / SP, D / TP], fractured over TP."""
        return self.proj(ttnn.typecast(patches_1BNI, ttnn.bfloat16))


class FinalLayer(Module):
    """Modulated layer norm and the projection back to patches."""

    def __init__(self, mesh: Mesh, config: TransformerConfig, width: Width) -> None:
        super().__init__(mesh)
        self.width = width
        self.modulation = Modulation(mesh, "norm_out.linear", width, width, ("scale", "shift"))
        self.proj = RowParallelLinear(mesh, "proj_out", width, Width.plain(config.patch_values), bias=True)

    def __call__(self, spatial_1BND: ttnn.Tensor, weights: list[ttnn.Tensor]) -> ttnn.Tensor:
        """Map [1, 1, N / SP, D / TP], fractured over TP, to [1, 1, N / SP, I] float32, replicated over TP.

        `weights` are the norm's scale and shift, each [1, 1, 1, D / TP], fractured over TP.
        """
        scale, shift = weights
        normed = layer_norm(spatial_1BND, scale, shift, self.mesh, self.width, _EPS)
        return self.proj.replicated(normed)
