"""Names and arrangement of weights in Genmo's checkpoints, and their counterparts in Diffusers' (the canonical ones).

Source: huggingface/diffusers `scripts/convert_mochi_to_diffusers.py` and `models/transformers/transformer_mochi.py`;
genmoai/mochi `src/genmo/mochi_preview/dit/joint_model/` (`asymm_models_joint.py`, `layers.py`) and `vae/models.py`.
Besides the names, these arrangements differ:

- Genmo fuses q, k and v of a stream into one matrix, in that order.
- Genmo's SwiGLU is `silu(first half) * second half`, Diffusers' is `first half * silu(second half)`.
- Genmo's final modulation is (shift, scale), Diffusers' is (scale, shift).
- The last block's text modulation is called `linear_1` in Diffusers, because that block only scales.

The order of a latent patch's values is the same in both: it is (row, column, channel) in the final layer, and the
embedding is a strided convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

from models.machine.errors import InputError

_ATTENTION = {"x": ("to_q", "to_k", "to_v"), "y": ("add_q_proj", "add_k_proj", "add_v_proj")}
# Positions of norms and convolutions in the `stack` of Genmo's residual block.
_RESIDUAL = {0: "norm1.norm_layer", 2: "conv1.conv", 3: "norm2.norm_layer", 5: "conv2.conv"}
DECODER_PREFIX = "decoder."
_T5_FIRST = "encoder.block.0.layer.0."
# Means and standard deviations of the latent channels. Source: genmoai/mochi `vae/vae_stats.py`, and the defaults of
# Diffusers' `AutoencoderKLMochi`.
LATENTS_MEAN = (
    -0.06730895953510081,
    -0.038011381506090416,
    -0.07477820912866141,
    -0.05565264470995561,
    0.012767231469026969,
    -0.04703542746246419,
    0.043896967884726704,
    -0.09346305707025976,
    -0.09918314763016893,
    -0.008729793427399178,
    -0.011931556316503654,
    -0.0321993391887285,
)
LATENTS_STD = (
    0.9263795028493863,
    0.9248894543193766,
    0.9393059390890617,
    0.959253732819592,
    0.8244560132752793,
    0.917259975397747,
    0.9294154431013696,
    1.3720942357788521,
    0.881393668867029,
    0.9168315692124348,
    0.9185249279345552,
    0.9274757570805041,
)
# What Genmo's files of the VAE do not say.
EXPANSIONS = {"temporal_expansions": [1, 2, 3], "spatial_expansions": [2, 2, 2]}
# Sizes of the decoder of Mochi 1 preview's VAE, with the names of Diffusers' configuration.
_PREVIEW_DECODER = {
    "latent_channels": 12,
    "out_channels": 3,
    "decoder_block_out_channels": (128, 256, 512, 768),
    "layers_per_block": (3, 3, 4, 6, 3),
    "temporal_expansions": (1, 2, 3),
    "spatial_expansions": (2, 2, 2),
}


def statistics() -> dict[str, Any]:
    """Return the statistics of Mochi's latents as a configuration has them."""
    return {"latents_mean": list(LATENTS_MEAN), "latents_std": list(LATENTS_STD), "scaling_factor": 1.0}


def is_preview_vae(config: Mapping[str, Any]) -> bool:
    """Return whether a VAE's configuration, with Diffusers' names, is that of Mochi 1 preview's VAE.

    It is if the decoder has its sizes and the latents have its statistics. The statistics were measured on that VAE, so
    a VAE trained anew has others, while copies and fine-tunes that keep the space of latents have these. What the
    configuration leaves out is the preview's, as in Diffusers.
    """

    def same(name: str, wanted: tuple[float, ...]) -> bool:
        found = config.get(name, wanted)
        return (
            isinstance(found, list | tuple)
            and len(found) == len(wanted)
            and all(isinstance(value, int | float) for value in found)
            and all(isclose(value, right, rel_tol=1e-5) for value, right in zip(found, wanted, strict=True))
        )

    def size(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    return (
        all(size(config.get(name, wanted)) == wanted for name, wanted in _PREVIEW_DECODER.items())
        and same("latents_mean", LATENTS_MEAN)
        and same("latents_std", LATENTS_STD)
    )


@dataclass(frozen=True)
class Piece:
    """The place of a canonical tensor in a stored one.

    It is rows `part` of `parts` of `key`, with its halves swapped if `swap` is set.
    """

    key: str
    part: int = 0
    parts: int = 1
    swap: bool = False

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the piece of a tensor of `shape`.

        Raises:
            ValueError: the rows cannot be divided.
        """
        divisor = 2 if self.swap else self.parts
        if not shape or shape[0] % divisor:
            raise InputError(f"{self.key} has {shape[0] if shape else 0} rows, which {divisor} parts do not divide")
        return (shape[0] // self.parts, *shape[1:])

    def take(self, tensor: Any) -> Any:
        """Return the piece of a host tensor."""
        if self.parts > 1:
            return tensor.chunk(self.parts, dim=0)[self.part]
        return tensor.roll(tensor.shape[0] // 2, dims=0) if self.swap else tensor


def linear(table: dict[str, Piece], ours: str, theirs: str, *, swap: bool = False) -> None:
    """Add a module with weight and bias to a table."""
    for kind in ("weight", "bias"):
        table[f"{ours}.{kind}"] = Piece(f"{theirs}.{kind}", swap=swap)


def transformer_names(layers: int) -> dict[str, Piece]:
    """Return canonical name -> piece of Genmo's AsymmDiT (`dit.safetensors`) with `layers` blocks."""
    table = {"pos_frequencies": Piece("pos_frequencies")}
    linear(table, "patch_embed.proj", "x_embedder.proj")
    linear(table, "time_embed.timestep_embedder.linear_1", "t_embedder.mlp.0")
    linear(table, "time_embed.timestep_embedder.linear_2", "t_embedder.mlp.2")
    for name in ("to_kv", "to_q", "to_out"):
        linear(table, f"time_embed.pooler.{name}", f"t5_y_embedder.{name}")
    linear(table, "time_embed.caption_proj", "t5_yproj")
    for index in range(layers):
        table |= _block(f"transformer_blocks.{index}.", f"blocks.{index}.", last=index == layers - 1)
    linear(table, "norm_out.linear", "final_layer.mod", swap=True)
    linear(table, "proj_out", "final_layer.linear")
    return table


def _block(ours: str, theirs: str, *, last: bool) -> dict[str, Piece]:
    table: dict[str, Piece] = {}
    linear(table, f"{ours}norm1.linear", f"{theirs}mod_x")
    linear(table, f"{ours}norm1_context.{'linear_1' if last else 'linear'}", f"{theirs}mod_y")
    for stream, names in _ATTENTION.items():
        for part, name in enumerate(names):
            table[f"{ours}attn1.{name}.weight"] = Piece(f"{theirs}attn.qkv_{stream}.weight", part, 3)
        added = "" if stream == "x" else "added_"
        for letter in "qk":
            table[f"{ours}attn1.norm_{added}{letter}.weight"] = Piece(f"{theirs}attn.{letter}_norm_{stream}.weight")
        if stream == "y" and last:
            continue
        linear(table, f"{ours}attn1.{'to_out.0' if stream == 'x' else 'to_add_out'}", f"{theirs}attn.proj_{stream}")
        feed_forward = f"{ours}{'ff' if stream == 'x' else 'ff_context'}.net."
        table[f"{feed_forward}0.proj.weight"] = Piece(f"{theirs}mlp_{stream}.w1.weight", swap=True)
        table[f"{feed_forward}2.weight"] = Piece(f"{theirs}mlp_{stream}.w2.weight")
    return table


def decoder_names(layers_per_block: tuple[int, ...]) -> dict[str, Piece]:
    """Return canonical name -> piece of Genmo's VAE decoder (`decoder.safetensors`).

    Args:
        layers_per_block: numbers of residual blocks, from the output side to the latent side as in Diffusers'
            configuration.
    """
    table: dict[str, Piece] = {}
    ups = layers_per_block[-2:0:-1]
    linear(table, f"{DECODER_PREFIX}conv_in", "blocks.0.0")
    for index in range(layers_per_block[-1]):
        residual(table, f"{DECODER_PREFIX}block_in.resnets.{index}", f"blocks.0.{index + 1}")
    for block, count in enumerate(ups):
        for index in range(count):
            residual(table, f"{DECODER_PREFIX}up_blocks.{block}.resnets.{index}", f"blocks.{block + 1}.blocks.{index}")
        linear(table, f"{DECODER_PREFIX}up_blocks.{block}.proj", f"blocks.{block + 1}.proj")
    for index in range(layers_per_block[0]):
        residual(table, f"{DECODER_PREFIX}block_out.resnets.{index}", f"blocks.{len(ups) + 1}.{index}")
    linear(table, f"{DECODER_PREFIX}proj_out", "output_proj")
    return table


def residual(table: dict[str, Piece], ours: str, theirs: str) -> None:
    """Add a residual block of the VAE to a table."""
    for position, name in _RESIDUAL.items():
        linear(table, f"{ours}.{name}", f"{theirs}.stack.{position}")


ShapeOf = Callable[[str], tuple[int, ...]]


def transformer_config(keys: set[str], shape: ShapeOf) -> dict[str, Any]:
    """Derive the configuration of an AsymmDiT in Genmo's form from its tensors, with Diffusers' names.

    Args:
        keys: names of all tensors.
        shape: function that returns the shape of a tensor.

    Raises:
        ValueError: a tensor that the configuration is derived from is missing.
    """
    wanted = ("pos_frequencies", "x_embedder.proj.weight", "t5_yproj.weight", "t_embedder.mlp.0.weight")
    missing = [key for key in wanted if key not in keys]
    layers = count(keys, "blocks.")
    if missing or not layers:
        raise InputError(f"not Mochi's transformer in Genmo's form: it lacks {', '.join(missing) or 'blocks.0'}")
    _, heads, half_head = shape("pos_frequencies")
    _, channels, patch, _ = shape("x_embedder.proj.weight")
    text, features = shape("t5_yproj.weight")
    return {
        "_class_name": "MochiTransformer3DModel",
        "patch_size": patch,
        "num_attention_heads": heads,
        "attention_head_dim": 2 * half_head,
        "num_layers": layers,
        "pooled_projection_dim": text,
        "in_channels": channels,
        "text_embed_dim": features,
        "time_embed_dim": shape("t_embedder.mlp.0.weight")[1],
    }


def decoder_config(keys: set[str], shape: ShapeOf) -> dict[str, Any]:
    """Derive the configuration of a VAE whose decoder is in Genmo's form; see `transformer_config`.

    Expansions and latent statistics are Mochi's own. The configuration has no fields for the encoder.

    Raises:
        ValueError: a tensor that the configuration is derived from is missing.
    """
    if not {"blocks.0.0.weight", "output_proj.weight"} <= keys:
        raise InputError("not Mochi's VAE decoder in Genmo's form: it lacks blocks.0.0.weight or output_proj.weight")
    last = count(keys, "blocks.") - 1
    counts = [count(keys, "blocks.0.") - 1]
    counts += [count(keys, f"blocks.{block}.blocks.") for block in range(1, last)]
    counts.append(count(keys, f"blocks.{last}."))
    inputs = shape("blocks.0.0.weight")
    widths = [inputs[0]] + [
        shape(f"blocks.{block}.blocks.0.stack.0.weight" if block < last else f"blocks.{last}.0.stack.0.weight")[0]
        for block in range(2, last + 1)
        if counts[block]
    ]
    if len(widths) != last or 0 in counts:
        raise InputError("not Mochi's VAE decoder in Genmo's form: its blocks are incomplete")
    return {
        "_class_name": "AutoencoderKLMochi",
        "decoder_block_out_channels": widths[::-1],
        "layers_per_block": counts[::-1],
        "latent_channels": inputs[1],
        "out_channels": shape("output_proj.weight")[0],
        **EXPANSIONS,
        **statistics(),
    }


def text_encoder_names(keys: set[str], layers: int) -> dict[str, Piece]:
    """Return canonical name -> piece of a T5 encoder with `layers` blocks in a single file, whose names are the same.

    The embedding may have either of its two names, or both.
    """
    shared, tied = "shared.weight", "encoder.embed_tokens.weight"
    table = {shared: Piece(shared if shared in keys or tied not in keys else tied)}
    if tied in keys and shared in keys:
        table[tied] = Piece(tied)
    names = ["encoder.final_layer_norm.weight", f"{_T5_FIRST}SelfAttention.relative_attention_bias.weight"]
    for block in (f"encoder.block.{index}.layer." for index in range(layers)):
        names += [f"{block}0.SelfAttention.{letter}.weight" for letter in "qkvo"]
        names += [f"{block}1.DenseReluDense.{name}.weight" for name in ("wi_0", "wi_1", "wo")]
        names += [f"{block}{part}.layer_norm.weight" for part in (0, 1)]
    return table | {name: Piece(name) for name in names}


def text_encoder_config(keys: set[str], shape: ShapeOf) -> dict[str, Any]:
    """Derive the configuration of a T5 v1.1 encoder from its tensors, with transformers' names.

    The largest distance and the epsilon are those of all T5 models.

    Raises:
        ValueError: a tensor that the configuration is derived from is missing.
    """
    embedding = "shared.weight" if "shared.weight" in keys else "encoder.embed_tokens.weight"
    bias, query = f"{_T5_FIRST}SelfAttention.relative_attention_bias.weight", f"{_T5_FIRST}SelfAttention.q.weight"
    gate = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    missing = [key for key in (embedding, bias, query, gate) if key not in keys]
    if missing:
        raise InputError(f"not a T5 v1.1 encoder: it lacks {', '.join(missing)}")
    vocabulary, width = shape(embedding)
    buckets, heads = shape(bias)
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shape(query)[0] // heads,
        "d_ff": shape(gate)[0],
        "num_layers": count(keys, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
    }


def count(keys: set[str], prefix: str) -> int:
    """Return how many different numbers follow `prefix`."""
    return len({key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)})


def strip_prefix(keys: set[str]) -> str:
    """Return the prefix that ComfyUI puts before the transformer's names, or "" if there is none."""
    return next((p for p in ("model.diffusion_model.", "diffusion_model.") if f"{p}pos_frequencies" in keys), "")


def genmo_lora_targets(layers: int) -> Mapping[str, list[tuple[str, Piece]]]:
    """Return Genmo module -> its canonical weights, for the modules that a LoRA in Genmo's form may change."""
    targets: dict[str, list[tuple[str, Piece]]] = {}
    for name, piece in transformer_names(layers).items():
        if name.endswith(".weight"):
            targets.setdefault(piece.key.removesuffix(".weight"), []).append((name, piece))
    return targets
