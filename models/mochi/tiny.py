"""`tiny`: a small, complete Mochi checkpoint in Diffusers layout, made on first use.

Same classes, same files and same loading code as `genmo/mochi-1-preview`; the weights are random, so its
videos are moving noise. It exists to run the whole program where no checkpoint and no card is at hand. Like
the tests, and unlike the model code, it draws on `models.reference` for its random weights.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import string
import tempfile
from pathlib import Path
from typing import Any

from models.mochi.defaults import DEFAULTS_FILE

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
    "cfg_scale": 4.5,
}
MANIFEST = "files.json"


def tiny_checkpoint(cache_dir: str | Path | None = None) -> Path:
    """The directory of the `tiny` checkpoint, made there first if it is missing or damaged.

    It is built under a temporary name and renamed when complete; when two processes race, one of the equal
    results stays. The directory's name carries a hash of this recipe, so a changed recipe is made anew.

    Args:
        cache_dir: where to keep it; `mochi-tt` in the user's cache directory by default.

    Raises:
        OSError: the cache directory cannot be written.
    """
    if cache_dir is None:
        import platformdirs

        cache_dir = platformdirs.user_cache_path("mochi-tt")
    target = Path(cache_dir) / f"tiny-{recipe_version()}"
    if _is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tiny-", dir=target.parent) as scratch:
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
    for path in (__file__, random_weights.__file__):
        digest.update(Path(path).read_bytes())
    for module in (torch, diffusers, transformers):
        digest.update(f"{module.__name__}=={module.__version__};".encode())
    return digest.hexdigest()[:12]


def build(directory: Path) -> None:
    """Write the checkpoint into `directory` (made here), with a manifest of its files' hashes."""
    import torch
    from diffusers import (
        AutoencoderKLMochi,
        FlowMatchEulerDiscreteScheduler,
        MochiPipeline,
        MochiTransformer3DModel,
    )
    from safetensors.torch import save_file
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    from models.reference.random_weights import randomize_
    from models.reference.transformer import MODULATION_GAINS

    tokenizer_files = directory / "tokenizer"
    _write_tokenizer(tokenizer_files)
    tokenizer = T5Tokenizer.from_pretrained(tokenizer_files)

    transformer: Any = MochiTransformer3DModel(**TRANSFORMER)
    # A velocity of spread below one keeps latents near unit variance when guidance multiplies differences.
    randomize_(transformer, SEED, MODULATION_GAINS | {"proj_out.weight": 0.3})
    for parameter in transformer.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)

    vae: Any = AutoencoderKLMochi(**VAE)
    # Pictures are clamped to [-1, 1]: a last layer of this gain fills the range without sticking to its ends.
    randomize_(vae, SEED, {"decoder.proj_out.weight": 0.3})
    for block in vae.decoder.up_blocks:
        _smooth_upsampling_(block)

    text_encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **TEXT_ENCODER))
    # T5 does not divide attention scores by sqrt(d_kv): its query weights carry that factor.
    randomize_(text_encoder, SEED, {"SelfAttention.q.weight": TEXT_ENCODER["d_kv"] ** -0.5})

    # Sharded, and in bfloat16 as users have the big model, so that the loader's whole road is walked.
    transformer.save_pretrained(directory / "transformer", max_shard_size="8MB")
    vae.save_pretrained(directory / "vae")
    # Not save_pretrained: transformers' draws a progress bar of its own.
    text_encoder.config.architectures = [T5EncoderModel.__name__]
    text_encoder.config.save_pretrained(directory / "text_encoder")
    tensors = {k: v for k, v in text_encoder.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(tensors, directory / "text_encoder" / "model.safetensors", {"format": "pt"})
    scheduler: Any = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.save_pretrained(directory / "scheduler")
    index = {
        "_class_name": MochiPipeline.__name__,
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", FlowMatchEulerDiscreteScheduler.__name__],
        "text_encoder": ["transformers", T5EncoderModel.__name__],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", MochiTransformer3DModel.__name__],
        "vae": ["diffusers", AutoencoderKLMochi.__name__],
    }
    _write_json(directory / "model_index.json", index)
    _write_json(directory / DEFAULTS_FILE, DEFAULTS)
    _write_json(directory / MANIFEST, _hashes(directory))


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


def _write_tokenizer(directory: Path) -> None:
    """A SentencePiece Unigram tokenizer in T5's arrangement: pad 0, end 1, unknown 2, no start token."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_sentences()),
        model_writer=model,
        model_type="unigram",
        vocab_size=400,
        hard_vocab_limit=False,
        required_chars="".join(c for c in string.printable if not c.isspace()),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        num_threads=1,
        minloglevel=2,
    )
    directory.mkdir(parents=True)
    (directory / "spiece.model").write_bytes(model.getvalue())
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "T5Tokenizer",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_ids": 100,
            "model_max_length": 256,
        },
    )


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


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
