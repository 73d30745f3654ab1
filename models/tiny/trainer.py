"""The whole training: tokenizer, VAE, latents, transformer with text encoder, checkpoint. Every part resumes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models.machine.errors import InputError
from models.mochi.text.words import Words
from models.tiny import transformer_training, vae_training
from models.tiny.captions import caption
from models.tiny.export import set_latent_statistics, to_bfloat16_, write_checkpoint
from models.tiny.scenes import random_scene, render
from models.tiny.tokenizer import write_tokenizer
from models.tiny.training import CURVE, mixed_precision

# Called as progress(stage, done, total, text).
Progress = Callable[[str, int, int, str], None]
ENCODED_TOGETHER = 8


@dataclass(frozen=True)
class Training:
    """Settings of a training.

    Attributes:
        work: folder of states and loss curves; an existing training is continued.
        out: the checkpoint's directory.
        vae_steps: number of steps of the VAE.
        transformer_steps: number of steps of the transformer and the text encoder.
        scenes: number of scenes that are encoded for the transformer's training.
        device: device of torch, such as "cpu" or "cuda".
        compiled: whether to speed up the models with torch.compile (it needs a C++ compiler).
    """

    work: Path
    out: Path
    vae_steps: int = vae_training.SCHEDULE.steps
    transformer_steps: int = transformer_training.SCHEDULE.steps
    scenes: int = 4096
    device: str = "cpu"
    compiled: bool = False


def run(job: Training, progress: Progress) -> None:
    """Train the parts of `job` that are not trained yet, and write the checkpoint.

    Raises:
        ValueError: a number of steps or scenes is below 1.
        OSError: a folder cannot be written.
    """
    for name in ("vae_steps", "transformer_steps", "scenes"):
        if getattr(job, name) < 1:
            raise InputError(f"{name} {getattr(job, name)} must be at least 1")
    tokenizer_files = tokenizer(job.work)
    vae: Any = vae_training.train_vae(
        job.work / "vae",
        replace(vae_training.SCHEDULE, steps=job.vae_steps),
        job.device,
        lambda done, total, text: progress("vae", done, total, text),
    )
    scenes = scene_bank(job.scenes)
    latents = encode(vae, scenes, job, progress)
    set_latent_statistics(vae, latents)
    mean, std = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    from transformers import T5Tokenizer

    model = transformer_training.train_transformer(
        transformer_training.Bank(scenes, (latents - mean) / std),
        T5Tokenizer.from_pretrained(tokenizer_files),
        job.work / "transformer",
        replace(transformer_training.SCHEDULE, steps=job.transformer_steps),
        job.device,
        job.compiled,
        lambda done, total, text: progress("transformer", done, total, text),
    )
    parts = {"vae": vae, "transformer": model.transformer, "text_encoder": model.text_encoder}
    curves = {name: job.work / name / CURVE for name in ("vae", "transformer")}
    write_checkpoint(
        job.out,
        tokenizer=tokenizer_files,
        curves=curves,
        **{name: to_bfloat16_(part) for name, part in parts.items()},
    )


def tokenizer(work: Path) -> Path:
    """Return the directory of the tokenizer. The first call trains it on captions of random scenes."""
    directory = work / "tokenizer"
    if not directory.exists():
        rng = random.Random("tokenizer")
        captions = [caption(random_scene(rng), rng) for _ in range(20000)]
        words = sorted({word for text in captions for word in text.replace(",", "").split()})
        write_tokenizer(directory, [*captions, *(f"{word}, {word}." for word in words)])
        Words(tuple(words)).write(directory)
    return directory


def scene_bank(count: int) -> list[Any]:
    """Return the scenes that the transformer is trained on."""
    rng = random.Random("bank")
    return [random_scene(rng) for _ in range(count)]


@torch.no_grad()
def encode(vae: Any, scenes: list[Any], job: Training, progress: Progress) -> torch.Tensor:
    """Encode whole scenes to mean latents, float32 [N, 12, T', H / 8, W / 8].

    The work folder keeps them for the same numbers of VAE steps and scenes.
    """
    file, key = job.work / "latents.pt", (job.vae_steps, len(scenes))
    if file.exists():
        kept = torch.load(file)
        if kept["key"] == key:
            return kept["latents"]
    found = []
    for start in range(0, len(scenes), ENCODED_TOGETHER):
        frames = render(scenes[start : start + ENCODED_TOGETHER])
        frames = frames.to(job.device, memory_format=torch.channels_last_3d)
        with mixed_precision(torch.device(job.device)):
            found.append(vae.encoder(frames)[0].chunk(2, dim=1)[0].float().cpu())
        progress("encode", min(start + ENCODED_TOGETHER, len(scenes)), len(scenes), "")
    latents = torch.cat(found)
    torch.save({"key": key, "latents": latents}, file.with_suffix(".part"))
    os.replace(file.with_suffix(".part"), file)
    return latents
