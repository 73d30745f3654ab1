"""Writing of the trained parts as a checkpoint in Diffusers layout, in bfloat16."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.machine.files import write_json
from models.mochi.defaults import DEFAULTS_FILE
from models.tiny.scenes import WIDE

DEFAULTS: dict[str, Any] = {
    "height": WIDE.height,
    "width": WIDE.width,
    "num_frames": WIDE.num_frames,
    "num_steps": 16,
    "guidance_scale": 4.5,
    "seed": 0,
    # The VAE was trained with Diffusers' modules, the transformer with zeros for a dropped caption.
    "first_frames": "diffusers",
    "empty_prompt": "zeros",
}
CARD = "README.md"


def set_latent_statistics(vae: Any, mean_C: torch.Tensor, std_C: torch.Tensor) -> None:
    """Write the mean and standard deviation of each latent channel to the VAE's configuration."""
    rows = {name: [round(float(x), 6) for x in values] for name, values in (("mean", mean_C), ("std", std_C))}
    vae.register_to_config(latents_mean=rows["mean"], latents_std=rows["std"])


def to_bfloat16_(module: Any) -> Any:
    """Round all parameters to bfloat16 in place, move them to the CPU, and return the module."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to("cpu", torch.bfloat16).contiguous()
    return module


def write_checkpoint(
    directory: Path,
    *,
    vae: Any,
    transformer: Any,
    text_encoder: Any,
    tokenizer: Path,
    curves: Mapping[str, Path],
    kept: Path | None = None,
) -> None:
    """Write all components to `directory`. Files of an earlier training are replaced; a model card is kept.

    Args:
        directory: the checkpoint.
        vae: an `AutoencoderKLMochi` whose configuration has the latents' statistics.
        transformer: a `MochiTransformer3DModel`.
        text_encoder: a `T5EncoderModel`.
        tokenizer: a directory written by `write_tokenizer`.
        curves: name of the trained part -> file of its loss curve.
        kept: a checkpoint whose other files, such as its curves, are copied.

    Raises:
        OSError: a file cannot be written; the old files still exist.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=directory.parent) as scratch:
        made = Path(scratch) / "new"
        shutil.copytree(tokenizer, made / "tokenizer")
        write_components(made, vae=vae, transformer=transformer, text_encoder=text_encoder, defaults=DEFAULTS)
        for name, curve in curves.items():
            shutil.copy(curve, made / f"{name}-{curve.name}")
        if (directory / CARD).exists():
            shutil.copy(directory / CARD, made / CARD)
        for path in kept.iterdir() if kept is not None else ():
            if path.is_file() and not (made / path.name).exists():
                shutil.copy(path, made / path.name)
        if directory.exists():
            directory.rename(Path(scratch) / "old")
        made.rename(directory)


def write_components(
    directory: Path,
    *,
    vae: Any,
    transformer: Any,
    text_encoder: Any,
    defaults: Mapping[str, Any],
    max_shard_size: str = "5GB",
) -> None:
    """Write all parts of a checkpoint except its tokenizer, each tensor in its own dtype.

    Args:
        directory: directory to write; it need not exist.
        vae: an `AutoencoderKLMochi`.
        transformer: a `MochiTransformer3DModel`.
        text_encoder: a `T5EncoderModel`.
        defaults: generation settings of the checkpoint; see `models.mochi.defaults`.
        max_shard_size: largest size of one of the transformer's files.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline
    from safetensors.torch import save_file

    transformer.save_pretrained(directory / "transformer", max_shard_size=max_shard_size)
    vae.save_pretrained(directory / "vae")
    scheduler: Any = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.save_pretrained(directory / "scheduler")
    # `save_pretrained` is not used, because transformers' version draws its own progress bar.
    text_encoder.config.architectures = [type(text_encoder).__name__]
    text_encoder.config.save_pretrained(directory / "text_encoder")
    tensors = {k: v for k, v in text_encoder.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(tensors, directory / "text_encoder" / "model.safetensors", {"format": "pt"})
    index = {
        "_class_name": MochiPipeline.__name__,
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", FlowMatchEulerDiscreteScheduler.__name__],
        "text_encoder": ["transformers", type(text_encoder).__name__],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", type(transformer).__name__],
        "vae": ["diffusers", type(vae).__name__],
    }
    write_json(index, directory / "model_index.json")
    write_json(defaults, directory / DEFAULTS_FILE)
