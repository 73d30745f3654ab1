"""The three models of Mochi 1: their sizes, and their declaration on a mesh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from models.layers import Chunks
from models.machine.errors import InputError
from models.machine.systems import chip_dram
from models.mochi.config import CONFIGS, TransformerConfig
from models.mochi.conventions import FirstFrames
from models.mochi.precision import PRECISIONS, Precision
from models.mochi.sampling.branches import GuidanceParallel
from models.mochi.text.t5 import T5_XXL, T5Config, T5Encoder
from models.mochi.transformer import MochiTransformer
from models.mochi.vae.config import DecoderConfig
from models.mochi.vae.decoder import MochiVaeDecoder
from models.parallel import Halves, Layout
from weight_cache.checkpoints.lora import checked_source
from weight_cache.plan import NamedMesh, plan

if TYPE_CHECKING:
    from models.layers import Module
    from models.parallel import Mesh
    from weight_cache.checkpoints.checkpoint import Checkpoint
    from weight_cache.checkpoints.component import Component
    from weight_cache.checkpoints.lora import LoraRequest
    from weight_cache.store import Message, Progress, Store

COMPONENTS = ("text_encoder", "vae", "transformer")
# Of a chip's DRAM, what weights may take before they are sharded over SP too; the rest is for the video.
_WEIGHTS_SHARE = 0.72


@dataclass(frozen=True)
class Configs:
    """Sizes of the three models; the defaults are Mochi 1 preview's."""

    text_encoder: T5Config = T5_XXL
    vae: DecoderConfig = field(default_factory=DecoderConfig)
    transformer: TransformerConfig = CONFIGS["preview"]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Configs:
        """Those of a checkpoint.

        Raises:
            ValueError: a setting that is not implemented.
        """
        return cls(
            T5Config.from_dict(checkpoint.text_encoder.config),
            DecoderConfig.from_dict(checkpoint.vae.config),
            TransformerConfig.from_dict(checkpoint.transformer.config),
        )

    def check_blocks(self, checkpoint: Checkpoint, components: Sequence[str] = COMPONENTS) -> None:
        """Compare the numbers of blocks with what the headers of the weights hold, before any block is declared.

        Raises:
            MissingInputError: there are no weights.
            InputError: there are more or fewer, or a file is damaged.
        """
        for component in checkpoint.components:
            if component.name not in components:
                continue
            component.check()
            for beginning, wanted in getattr(self, component.name).blocks.items():
                rests = (key.removeprefix(beginning) for key in component.keys() if key.startswith(beginning))  # noqa: SIM118 (not a mapping)
                found = len({rest.partition(".")[0] for rest in rests})
                if found != wanted:
                    raise InputError(
                        f"{component.name} config: it says {wanted} blocks {beginning}*, the weights have {found}: "
                        "check config.json and the files"
                    )


def check_weights(
    configs: Configs, checkpoint: Checkpoint, layout: Layout, components: Sequence[str] = COMPONENTS
) -> None:
    """Compare names and shapes of a checkpoint's tensors with what its configurations ask for, from headers alone.

    Raises:
        InputError: tensors are missing, unexpected or of another shape.
    """
    declared = Models.declare(configs, NamedMesh(layout.branch)).by_component()
    for component in checkpoint.components:
        if component.name in components:
            checked_source(declared[component.name], component)


def choose_layout(
    configs: Configs,
    mesh_shape: tuple[int, int],
    precision: Precision,
    layout: str | None = None,
) -> Layout:
    """The layout asked for, or the mesh's default: with the weights over SP too only where they would not fit else.

    Args:
        configs: of the models.
        mesh_shape: (rows, columns) of chips.
        precision: that the weights will be stored for.
        layout: as the user wrote it; None for the default.

    Raises:
        ValueError: it does not parse, is for another mesh, or its TP does not divide the transformer's heads.
    """
    heads = configs.transformer.num_attention_heads
    chosen = Layout.default(mesh_shape, heads) if layout is None else Layout.parse(layout, mesh_shape)
    chosen.check_heads(heads)
    if (
        layout is None
        and chosen.sp > 1
        and _weights_of_a_chip(configs, chosen, precision) > _WEIGHTS_SHARE * chip_dram()
    ):
        return replace(chosen, fsdp=True)
    return chosen


def _weights_of_a_chip(configs: Configs, layout: Layout, precision: Precision) -> int:
    models = Models.declare(configs, NamedMesh(layout.branch))
    return sum(plan(module, name, precision.weights).chip_bytes for name, module in models.by_component().items())


@dataclass(frozen=True)
class Models:
    """The three models on a mesh, under the names of a checkpoint's components.

    On two halves of a mesh they lie on the conditional one, and ``parallel`` has the other half's transformer.
    """

    text_encoder: T5Encoder
    vae: MochiVaeDecoder
    transformer: MochiTransformer
    parallel: GuidanceParallel | None = None

    @classmethod
    def declare(
        cls,
        configs: Configs,
        placed: Mesh | Halves,
        precision: Precision = PRECISIONS["default"],
        *,
        vae_split: str | None = None,
        first_frames: FirstFrames = "genmo",
        chunks: Chunks | None = None,
    ) -> Models:
        """Declare all of them, without weights.

        Args:
            configs: their sizes.
            placed: where they will lie.
            precision: how the transformer's arithmetic is done.
            vae_split: how the decoder is split, such as `"h0w1"`; chosen per video if None.
            first_frames: where the decoder drops surplus frames; see `models.mochi.conventions`.
            chunks: of attention; by rule if None.

        Raises:
            ValueError: the layout does not divide the heads, or `vae_split` is not a split.
        """
        mesh = placed.conditional if isinstance(placed, Halves) else placed
        parallel = None
        if isinstance(placed, Halves):
            other = MochiTransformer(configs.transformer, placed.unconditional, precision, chunks=chunks)
            parallel = GuidanceParallel(placed, other)
        return cls(
            T5Encoder(configs.text_encoder, mesh),
            MochiVaeDecoder(configs.vae, mesh, split=vae_split, first_frames=first_frames),
            MochiTransformer(configs.transformer, mesh, precision, chunks=chunks),
            parallel,
        )

    def by_component(self) -> dict[str, Module]:
        """The models by the names of a checkpoint's components."""
        return {name: getattr(self, name) for name in COMPONENTS}

    def load(
        self,
        checkpoint: Checkpoint,
        store: Store,
        *,
        precision: Precision,
        loras: Sequence[LoraRequest] = (),
        components: Sequence[str] = COMPONENTS,
        progress: Progress | None = None,
        on_message: Message | None = None,
    ) -> None:
        """Fill the models of some components from the store of converted weights, which is filled first if it must be.

        Raises:
            InputError: weights or LoRAs do not fit.
            MachineError: no space, or the store cannot be written.
        """
        for module, component, merged in self.with_weights(checkpoint, loras, components):
            store.load(
                module,
                component,
                precision=precision.weights,
                loras=merged,
                progress=progress,
                on_message=on_message,
            )

    def with_weights(
        self, checkpoint: Checkpoint, loras: Sequence[LoraRequest] = (), components: Sequence[str] = COMPONENTS
    ) -> Iterator[tuple[Module, Component, Sequence[LoraRequest]]]:
        """Each model of `components`, what of `checkpoint` fills it, and those of `loras` that are merged into it.

        All of them are checked before the first is given.

        Raises:
            FileNotFoundError: a weight file is missing.
            ValueError: weights or LoRAs do not fit the model.
        """
        parts: list[tuple[Module, Component, Sequence[LoraRequest]]] = [
            (self.text_encoder, checkpoint.text_encoder, ()),
            (self.vae, checkpoint.vae, ()),
            (self.transformer, checkpoint.transformer, loras),
        ]
        if self.parallel is not None:
            parts.append((self.parallel.unconditional, checkpoint.transformer, loras))
        parts = [part for part in parts if part[1].name in components]
        for part in parts:
            checked_source(*part)
        yield from parts
