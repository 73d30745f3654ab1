"""A small, complete Mochi checkpoint with random weights, for tests of arithmetic and of loading.

Same classes, same files and same loading code as `genmo/mochi-1-preview`; its videos are moving noise, and no
parameter has a neutral value. It is kept between runs, and made anew when this recipe changes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from models.machine.files import write_json
from models.tiny import export, tokenizer
from models.tiny.export import to_bfloat16_, write_components
from models.tiny.tokenizer import write_tokenizer

SEED = 0
# 8 heads divide over every TP up to 8; the visual width is 8 x 32 = 256.
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "num_layers": 4,
    "pooled_projection_dim": 128,
    "text_embed_dim": 128,
    "time_embed_dim": 64,
}
# GroupNorm has 32 groups, so channels are multiples of 32. Scale factors (6 in time, 8 in space), the 12
# latent channels and their mean and std are the true model's, by Diffusers' defaults.
VAE: dict[str, Any] = {
    "encoder_block_out_channels": (32, 32, 32, 32),
    "decoder_block_out_channels": (32, 32, 64, 64),
    "layers_per_block": (1, 1, 1, 1, 1),
    "add_attention_block": (False, False, False, False, False),
}
TEXT_ENCODER: dict[str, Any] = {
    "d_model": 128,
    "d_kv": 32,
    "num_heads": 4,
    "d_ff": 256,
    "num_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}
DEFAULTS: dict[str, Any] = {
    "height": 64,
    "width": 96,
    "num_frames": 13,
    "num_steps": 8,
    "guidance_scale": 4.5,
    "first_frames": "diffusers",
    "empty_prompt": "zeros",
}
MANIFEST = "files.json"


def random_checkpoint(cache_dir: Path) -> Path:
    """The directory of the checkpoint, made in `cache_dir` first if it is missing or damaged.

    It is built under a temporary name and renamed when complete; when two processes race, one of the equal
    results stays. The directory's name carries a hash of this recipe, so a changed recipe is made anew.
    """
    target = cache_dir / f"random-{recipe_version()}"
    if _is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".random-", dir=target.parent) as scratch:
        made = Path(scratch) / "new"
        build(made)
        if target.exists() and not _is_complete(target):
            target.rename(Path(scratch) / "damaged")
        try:
            made.rename(target)
        except OSError:
            # Another process was first; its result is as good as ours.
            if not _is_complete(target):
                raise
    return target


def recipe_version() -> str:
    """12 hex digits that change whenever the files made here would."""
    import diffusers
    import torch
    import transformers

    from models.reference import random_weights

    digest = hashlib.sha256()
    for path in (__file__, random_weights.__file__, export.__file__, tokenizer.__file__):
        digest.update(Path(path).read_bytes())
    for module in (torch, diffusers, transformers):
        digest.update(f"{module.__name__}=={module.__version__};".encode())
    return digest.hexdigest()[:12]


def build(directory: Path) -> None:
    """Write the checkpoint into `directory` (made here), with a manifest of its files' hashes."""
    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    from models.reference.random_weights import randomize_
    from models.reference.transformer import MODULATION_GAINS

    tokenizer_files = directory / "tokenizer"
    write_tokenizer(tokenizer_files, _sentences())
    vocabulary = len(T5Tokenizer.from_pretrained(tokenizer_files))

    transformer: Any = MochiTransformer3DModel(**TRANSFORMER)
    # A velocity of spread below one keeps latents near unit variance when guidance multiplies differences.
    randomize_(transformer, SEED, MODULATION_GAINS | {"proj_out.weight": 0.3})

    vae: Any = AutoencoderKLMochi(**VAE)
    # Pictures are clamped to [-1, 1]: a last layer of this gain fills the range without sticking to its ends.
    randomize_(vae, SEED, {"decoder.proj_out.weight": 0.3})
    for block in vae.decoder.up_blocks:
        _smooth_upsampling_(block)

    text_encoder = T5EncoderModel(T5Config(vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, **TEXT_ENCODER))
    # T5 does not divide attention scores by sqrt(d_kv): its query weights carry that factor.
    randomize_(text_encoder, SEED, {"SelfAttention.q.weight": TEXT_ENCODER["d_kv"] ** -0.5})

    # Sharded, and in bfloat16 as users have the big model, so that the loader's whole road is walked.
    write_components(
        directory,
        vae=vae,
        transformer=to_bfloat16_(transformer),
        text_encoder=text_encoder,
        defaults=DEFAULTS,
        max_shard_size="8MB",
    )
    write_json(_hashes(directory), directory / MANIFEST)


def _smooth_upsampling_(block: Any) -> None:
    """Make the frames and pixels that come of one latent pixel resemble each other (not equal).

    An upsampling is a linear layer whose output channels [C, t, h, w] are laid out in time and space;
    independent rows would make every pixel noise of its own.
    """
    import torch

    with torch.no_grad():
        for parameter in block.proj.parameters():
            copies = block.temporal_expansion * block.spatial_expansion**2
            rows = parameter.view(-1, copies, *parameter.shape[1:])
            shared = rows.mean(1, keepdim=True) * copies**0.5
            parameter.copy_((0.95 * shared + 0.3 * rows).view_as(parameter))


def _sentences() -> list[str]:
    """The tokenizer's training text: short scene descriptions."""
    sizes = ("a", "a small", "the", "one bright", "two")
    colours = ("red", "blue", "green", "yellow", "white", "silver")
    things = ("ball", "car", "bird", "river", "cloud", "dancer", "robot", "lantern", "horse", "leaf")
    motions = ("rolls", "turns slowly", "moves", "drifts", "runs", "falls", "glides", "shines")
    places = ("to the left", "to the right", "over the water", "through a forest", "in soft evening light")
    scenes = itertools.product(sizes, colours, things, motions, places)
    # Every 7th keeps all words (7 shares no factor with the lists' lengths) and the training short.
    sentences = [" ".join(words) for words in itertools.islice(scenes, 0, None, 7)]
    return [
        *sentences,
        "The camera follows from behind, close to the ground, and then rises above the city.",
        "A slow, cinematic shot; high resolution, natural colours, shallow depth of field.",
    ]


def _hashes(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _is_complete(directory: Path) -> bool:
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and _hashes(directory) == manifest
    except (OSError, ValueError):
        return False
