"""The VAE's encoder in Genmo's form: `encoder.safetensors`, or the `encoder.` part of ComfyUI's files.

Source: genmoai/mochi `vae/models.py` (`Encoder`, `DownsampleBlock`), and huggingface/diffusers
`scripts/convert_mochi_to_diffusers.py`. Genmo numbers all layers of the outermost level in one row: the projection, the
blocks at full resolution, the downsamplings with their blocks, and the last blocks. It fuses q, k and v in that order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.machine.errors import InputError
from weight_cache.checkpoints.component import open_tensors
from weight_cache.checkpoints.forms import GenmoFile, RepackagedComponent
from weight_cache.checkpoints.names import EXPANSIONS, Piece, ShapeOf, count, linear, residual, statistics

ENCODER_PREFIX = "encoder."
_FIRST, _LAST = "layers.0.weight", "output_proj.weight"
_ATTENTION = "attn_block.attn"


def encoder_names(layers_per_block: tuple[int, ...], attends: tuple[bool, ...]) -> dict[str, Piece]:
    """Return canonical name -> piece of Genmo's VAE encoder.

    Args:
        layers_per_block: numbers of residual blocks, from the pixels to the latents as in Diffusers' configuration.
        attends: whether each of these stages has attention.
    """
    table: dict[str, Piece] = {}
    linear(table, f"{ENCODER_PREFIX}proj_in", "layers.0")
    first, *downs, last = layers_per_block
    for index in range(first):
        _block(table, "block_in", index, f"layers.{index + 1}", attends[0])
    for stage, count_ in enumerate(downs):
        outer = f"layers.{first + 1 + stage}.layers"
        linear(table, f"{ENCODER_PREFIX}down_blocks.{stage}.conv_in.conv", f"{outer}.0")
        for index in range(count_):
            _block(table, f"down_blocks.{stage}", index, f"{outer}.{index + 1}", attends[stage + 1])
    for index in range(last):
        _block(table, "block_out", index, f"layers.{first + 1 + len(downs) + index}", attends[-1])
    linear(table, f"{ENCODER_PREFIX}norm_out.norm_layer", "output_norm")
    table[f"{ENCODER_PREFIX}proj_out.weight"] = Piece(_LAST)
    return table


def _block(table: dict[str, Piece], stage: str, index: int, theirs: str, attends: bool) -> None:
    """Add a residual block, and its attention if it `attends`."""
    residual(table, f"{ENCODER_PREFIX}{stage}.resnets.{index}", theirs)
    if not attends:
        return
    ours = f"{ENCODER_PREFIX}{stage}.attentions.{index}"
    for part, name in enumerate(("to_q", "to_k", "to_v")):
        table[f"{ours}.{name}.weight"] = Piece(f"{theirs}.{_ATTENTION}.qkv.weight", part, 3)
    linear(table, f"{ours}.to_out.0", f"{theirs}.{_ATTENTION}.out")
    linear(table, f"{ENCODER_PREFIX}{stage}.norms.{index}.norm_layer", f"{theirs}.attn_block.norm")


def encoder_config(keys: set[str], shape: ShapeOf) -> dict[str, Any]:
    """Derive the configuration of a VAE whose encoder is in Genmo's form from its tensors, with Diffusers' names.

    Expansions and latent statistics are Mochi's own. The configuration has no fields for the decoder.

    Args:
        keys: names of all tensors.
        shape: function that returns the shape of a tensor.

    Raises:
        ValueError: a tensor that the configuration is derived from is missing.
    """
    if not {_FIRST, _LAST} <= keys:
        raise InputError(f"not Mochi's VAE encoder in Genmo's form: it lacks {_FIRST} or {_LAST}")
    outer = count(keys, "layers.")
    downs = [index for index in range(outer) if f"layers.{index}.layers.0.weight" in keys]
    if not downs or downs != list(range(downs[0], downs[0] + len(downs))):
        raise InputError("not Mochi's VAE encoder in Genmo's form: its downsampling layers are incomplete")
    counts = [downs[0] - 1, *(count(keys, f"layers.{index}.layers.") - 1 for index in downs), outer - 1 - downs[-1]]
    stages = ["layers.1", *(f"layers.{index}.layers.1" for index in downs), f"layers.{downs[-1] + 1}"]
    width, features = shape(_FIRST)[:2]
    return {
        "_class_name": "AutoencoderKLMochi",
        "in_channels": features,
        "encoder_block_out_channels": [width, *(shape(f"layers.{index}.layers.0.weight")[0] for index in downs)],
        "layers_per_block": counts,
        "add_attention_block": [f"{stage}.{_ATTENTION}.qkv.weight" in keys for stage in stages],
        "latent_channels": shape(_LAST)[0] // 2,
        **EXPANSIONS,
        **statistics(),
    }


def open_encoder(path: Path, prefix: str = "") -> RepackagedComponent:
    """Open the VAE's encoder of `encoder.safetensors`, `mochi_vae.safetensors`, or of a ComfyUI file with all models.

    Args:
        path: the file.
        prefix: of the encoder's names in the file; see `encoder_prefix`.

    Raises:
        ValueError: the file is something else, or incomplete; the message names tensors.
    """
    names = set(open_tensors(path).keys())
    others = tuple(sorted({name for name in names if prefix and not name.startswith(prefix)}))
    file = GenmoFile(path, prefix, others)
    try:
        config = encoder_config(file.keys, file.shape)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    table = encoder_names(tuple(config["layers_per_block"]), tuple(config["add_attention_block"]))
    return RepackagedComponent("vae", "genmo", file, table, config)


def encoder_prefix(path: Path) -> str | None:
    """Return the prefix of a VAE encoder's names in a file, or None if the file has no encoder in Genmo's form."""
    names = set(open_tensors(path).keys())
    return next((p for p in (f"vae.{ENCODER_PREFIX}", ENCODER_PREFIX, "") if f"{p}{_FIRST}" in names), None)
