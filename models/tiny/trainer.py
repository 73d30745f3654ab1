"""The whole training: tokenizer, VAE, latents, decoder, transformer with text encoder, wordings, checkpoint.

Every part resumes.

On CUDA the decoder and the transformer are trained at the same time, in two processes: small models leave a GPU idle.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import torch

from models.machine.checks import json_file
from models.machine.errors import InputError
from models.machine.files import write_json
from models.mochi.text.words import Words
from models.tiny import bank, transformer_training, vae_training, wording
from models.tiny.bank import Bank
from models.tiny.captions import caption, english, mistyped
from models.tiny.export import set_latent_statistics, to_bfloat16_, write_checkpoint
from models.tiny.hints import hints_of
from models.tiny.prompts import SETS, prompts
from models.tiny.sampling import Sampler, accuracy, judge
from models.tiny.scenes import random_scene
from models.tiny.tokenizer import write_tokenizer
from models.tiny.training import AVERAGE, CURVE, STATE, Schedule
from models.tiny.transformer_training import Captions, Source

# Called as progress(stage, done, total, text).
Progress = Callable[[str, int, int, str], None]
ENCODED_TOGETHER = 32
# The decoder is refined on at most one group of clips for so many scenes.
CLIPS_SHARE = 32
PARTS = ("transformer", "text_encoder", "vae")
LATENTS, CAPTIONS, EVALUATION = "latents.pt", "captions.pt", "evaluation.json"
# What the training of a work folder began from.
BEGAN_FROM = "began_from.json"
# Lengths of captions that a CPU trains on together; on a GPU each length would be compiled for itself.
BUCKETS = (16, 24)
# Shares of a training's minutes, until the end of each part.
SHARES = {"vae": 0.15, "decoder": 0.6, "refining": 0.65, "text": 0.2, "transformer": 0.87, "wording": 0.95}
# The same without a GPU, where the parts follow one another.
SHARES_IN_TURN = {"vae": 0.15, "decoder": 0.35, "refining": 0.4, "text": 0.5, "transformer": 0.92, "wording": 0.96}
# The same for a checkpoint whose VAE is kept.
SHARES_AGAIN = {"text": 0.15, "transformer": 0.9, "wording": 0.96}
# Parts that can be trained on alone, in a trained checkpoint, and the share of the minutes.
SHARE_ALONE = 0.95
ALONE = ("refining", "wording")
SCHEDULES = {
    "vae": vae_training.SCHEDULE,
    "decoder": vae_training.DECODER_SCHEDULE,
    "refining": vae_training.REFINING,
    "text": transformer_training.TEXT_SCHEDULE,
    "transformer": transformer_training.SCHEDULE,
    "wording": wording.SCHEDULE,
}


@dataclass(frozen=True)
class Job:
    """Settings of a training.

    Attributes:
        work: folder of states and loss curves; an existing training is continued.
        out: the checkpoint's directory.
        vae_steps: largest number of steps of encoder and decoder together.
        decoder_steps: largest number of steps of the decoder alone.
        refining_steps: largest number of steps of the decoder on small things.
        text_steps: largest number of steps of the text encoder alone.
        transformer_steps: largest number of steps of the transformer and the text encoder.
        wording_steps: largest number of steps of the text encoder on other wordings, after all else.
        scenes: number of scenes of the large size; there are a third as many of the small one.
        captions: number of captions of a scene.
        batch: number of scenes of a step of the transformer.
        vae_batch: number of scenes of a step of the VAE.
        minutes: time for all; the parts then end by time, and the numbers of steps are bounds. None for no limit.
        device: device of torch, such as "cpu" or "cuda".
        compiled: whether to speed up the models with torch.compile (it needs a C++ compiler).
        judged: how many prompts of each set are judged at the end; None for all.
        start: a checkpoint of this training whose VAE is kept, and whose transformer and text encoder are trained on;
            None to begin from nothing.
        only: the one part of `start` that is trained on, one of `ALONE`; None for all.
    """

    work: Path
    out: Path
    vae_steps: int = vae_training.SCHEDULE.steps
    decoder_steps: int = vae_training.DECODER_SCHEDULE.steps
    refining_steps: int = vae_training.REFINING.steps
    text_steps: int = transformer_training.TEXT_SCHEDULE.steps
    transformer_steps: int = transformer_training.SCHEDULE.steps
    wording_steps: int = wording.SCHEDULE.steps
    scenes: int = 49152
    captions: int = bank.CAPTIONS
    batch: int = transformer_training.BATCH
    vae_batch: int = vae_training.BATCH
    minutes: float | None = None
    device: str = "cpu"
    compiled: bool = False
    judged: int | None = None
    start: Path | None = None
    only: str | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return torch.device(self.device).type == "cuda"

    @property
    def at_once(self) -> bool:
        """Whether the decoder and the transformer are trained at the same time."""
        return self.on_gpu

    def schedule(self, part: str, began: float) -> Schedule:
        """Return the schedule of a part that begins now.

        Args:
            part: one of `SCHEDULES`.
            began: `perf_counter` at the start of the whole training.
        """
        schedule = replace(SCHEDULES[part], steps=getattr(self, f"{part}_steps"))
        if self.minutes is None:
            return schedule
        shares = SHARES_AGAIN if self.start is not None else SHARES if self.at_once else SHARES_IN_TURN
        end = began + 60 * self.minutes * (SHARE_ALONE if self.only else shares[part])
        return replace(schedule, seconds=max(1.0, end - perf_counter()))


def run(job: Job, progress: Progress) -> dict[str, Any]:
    """Train the parts of `job` that are not trained yet, write the checkpoint, and return what its videos show.

    Raises:
        InputError: a number of steps or scenes is below 1, `only` is no part, has no start or would replace it, the
            start has not all parts of this training, or the work folder's training began from something else.
        OSError: a folder cannot be written.
        RuntimeError: the transformer's process ended with an error.
    """
    for name in (*(f"{part}_steps" for part in SCHEDULES), "scenes", "captions", "batch", "vae_batch"):
        if getattr(job, name) < 1:
            raise InputError(f"{name} {getattr(job, name)} must be at least 1")
    if job.only is not None:
        _check_only(job)
    began = perf_counter()
    _check_start(job)
    tokenizer(job.work, job.start)
    if job.only is not None:
        return _only(job, began, progress)
    (job.work / LATENTS).unlink(missing_ok=True)  # they are made again, maybe of another VAE or of other scenes
    child: Any = None
    if job.at_once:
        child = get_context("spawn").Process(target=train_apart, args=(job, perf_counter() - began), daemon=False)
        child.start()
    try:
        vae = _vae(job, began, progress)
        if child is None:
            train_apart(job, perf_counter() - began, progress)
    except BaseException:
        if child is not None:
            child.terminate()
        raise
    if child is not None:
        child.join()
        if child.exitcode:
            raise RuntimeError(f"the transformer's process ended with {child.exitcode}")
    return finish(job, vae, began, progress)


def _check_only(job: Job) -> None:
    if job.only not in ALONE:
        raise InputError(f"only {job.only} must be one of {', '.join(ALONE)}")
    if job.start is None:
        raise InputError(f"only {job.only} trains a part of a checkpoint: give that as start")
    if job.out.resolve() == job.start.resolve():
        raise InputError(f"out {job.out} is the start, which would be replaced: give another out")


def _only(job: Job, began: float, progress: Progress) -> dict[str, Any]:
    """Train one part of a checkpoint on, and write it with the others as they are."""
    assert job.start is not None
    vae = vae_training.load_vae(job.start, job.device)
    model = transformer_training.fast_model(_rows(job), job.device)
    transformer_training.load_weights(model, job.start)
    if job.only == "refining":
        _refine(vae, job, began, progress)
    else:
        _reword(model, job, began, progress)
    return _write(job, model.eval(), vae, progress)


def _refine(vae: Any, job: Job, began: float, progress: Progress) -> None:
    forget_others(job.work / "refining", vae)
    vae_training.refine_decoder(
        vae,
        job.work / "refining",
        job.schedule("refining", began),
        lambda done, total, text: progress("refining", done, total, text),
        max(1, job.scenes // CLIPS_SHARE),
    )


def _reword(model: Any, job: Job, began: float, progress: Progress) -> None:
    forget_others(job.work / "wording", model.text_encoder)
    model.text_encoder = wording.teach(
        model.text_encoder,
        bank.load(tokenizer(job.work)),
        job.work / "wording",
        job.schedule("wording", began),
        lambda done, total, text: progress("wording", done, total, text),
    )


def forget_others(folder: Path, module: torch.nn.Module) -> None:
    """Remove the training of a folder if it began from other weights than those of `module`."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    note, now = folder / BEGAN_FROM, {"weights": digest.hexdigest()}
    if not (note.exists() and json_file(note, "note of a training", "remove it") == now):
        for name in (STATE, AVERAGE, CURVE):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(now, note)


def _check_start(job: Job) -> None:
    """Note in the work folder what its training begins from, or check that it is what `job` names.

    Raises:
        InputError: the work folder's training began from something else, or its note or the start cannot be used.
        OSError: the checkpoint or the work folder cannot be read or written.
    """
    now: dict[str, str] = {}
    if job.start is not None:
        for part in sorted(job.start.glob("*/*.safetensors")):
            with part.open("rb") as file:
                now[part.parent.name] = hashlib.file_digest(file, "sha256").hexdigest()
        if not now:
            raise InputError(f"start {job.start} has no weights: give the directory of a checkpoint")
        for name in (*(f"{part}/config.json" for part in PARTS), "tokenizer/spiece.model"):
            if not (job.start / name).is_file():
                raise InputError(f"start {job.start} has no {name}: give a checkpoint that this training wrote")
    if job.only is not None:
        now["only"] = job.only
    note, before = job.work / BEGAN_FROM, now
    if note.exists():
        before = json_file(note, "note of a training", "give another --work")
    elif any(job.work.glob(f"*/{STATE}")):
        before = {}  # earlier versions wrote no note, and began from nothing unless they were told otherwise
    if before != now:
        was = "nothing" if not before else "other weights" if _parts(before) != _parts(now) else "another part"
        raise InputError(f"the training in {job.work} began from {was}: give another --work, or the same --start")
    job.work.mkdir(parents=True, exist_ok=True)
    write_json(now, note)


def _parts(note: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in note.items() if name != "only"}


def finish(job: Job, vae: Any, began: float, progress: Progress) -> dict[str, Any]:
    """Teach the trained text encoder other wordings, write the checkpoint, and return what its videos show."""
    model = transformer_training.fast_model(_rows(job), job.device)
    transformer_training.start_training(model, job.work / "transformer").averaged().eval()
    _reword(model, job, began, progress)
    return _write(job, model, vae, progress)


def _write(job: Job, model: Any, vae: Any, progress: Progress) -> dict[str, Any]:
    """Write the checkpoint of trained parts, and return what its videos show, which is written too."""
    parts = {"vae": vae, "transformer": model.transformer, "text_encoder": model.text_encoder}
    curves = {name: job.work / name / CURVE for name in SCHEDULES}
    write_checkpoint(
        job.out,
        tokenizer=tokenizer(job.work),
        curves={name: curve for name, curve in curves.items() if curve.exists()},
        kept=job.start if job.only is not None else None,
        **{name: to_bfloat16_(deepcopy(part)) for name, part in parts.items()},
    )
    progress("evaluate", 0, 1, "")
    # The copy of the VAE is not compiled: it sees batches of other sizes.
    sampler = Sampler(_rounded(model), _rounded(deepcopy(vae)), bank.load(tokenizer(job.work)))
    found = evaluate(sampler, job.judged)
    write_json(found, job.work / EVALUATION)
    progress("evaluate", 1, 1, str({name: found[name]["accuracy"] for name in SETS}))
    return found


def _rounded(module: Any) -> Any:
    """Round all parameters to bfloat16, as they are written, and keep them in float32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return module


def evaluate(sampler: Sampler, limit: int | None = None) -> dict[str, Any]:
    """Return, for the first prompts of each set, what the videos show: shares, and each prompt."""
    found = {}
    for name in SETS:
        asked = prompts(name)[:limit]
        seen = judge(asked, sampler.answer(asked))
        verdicts = [
            {"prompt": one.prompt.text, "asked": _rows_of(one.prompt.asked), "seen": _rows_of(one.sights)}
            for one in seen
        ]
        found[name] = {"accuracy": accuracy(seen), "verdicts": verdicts}
    return found


def _rows_of(sights: Any) -> list[dict[str, Any]]:
    return [asdict(sight) for sight in sights]


def _vae(job: Job, began: float, progress: Progress) -> Any:
    """Train the VAE, encode the bank, and train the decoder. Return the whole VAE."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    made = Bank.drawn(job.scenes, job.device)
    if job.start is not None:
        vae: Any = vae_training.load_vae(job.start, job.device)
        encode(vae, made, job, progress)
        return vae
    vae = vae_training.train_vae(
        made,
        job.work / "vae",
        job.schedule("vae", began),
        job.device,
        job.compiled,
        lambda done, total, text: progress("vae", done, total, text),
        job.vae_batch,
    )
    encode(vae, made, job, progress)
    vae = vae_training.train_decoder(
        vae,
        made,
        job.work / "decoder",
        job.schedule("decoder", began),
        lambda done, total, text: progress("decoder", done, total, text),
        job.vae_batch,
    )
    _refine(vae, job, began, progress)
    # The text encoder and the transformer take latents of this mean and spread.
    mean, std = made.wide.latents.float().mean((0, 2, 3, 4)), made.wide.latents.float().std((0, 2, 3, 4))
    set_latent_statistics(vae, mean, std)
    return vae


@torch.no_grad()
def encode(vae: Any, made: Bank, job: Job, progress: Progress) -> None:
    """Fill the bank with latents, rounded as the encoder's bfloat16 weights make them, and write them for others."""
    _rounded(vae.encoder)
    for index, part in enumerate(made.parts()):
        count, found = len(part.drawing.shapes), []
        for start in range(0, count, ENCODED_TOGETHER):
            # The last group is filled up, so that all have one size.
            chosen = torch.arange(start, start + ENCODED_TOGETHER, device=job.device).clamp(max=count - 1)
            frames = part.frames(chosen).contiguous(memory_format=torch.channels_last_3d)
            found.append([value.half() for value in vae_training.encode(vae, frames)])
            if start % (64 * ENCODED_TOGETHER) == 0:
                progress("encode", index * count + start, 2 * count, "")
        part.latents, part.spreads = (torch.cat(values)[:count] for values in zip(*found, strict=True))
    latents = [part.latents.cpu() for part in made.parts()]
    torch.save(latents, job.work / f"{LATENTS}.part")
    os.replace(job.work / f"{LATENTS}.part", job.work / LATENTS)


def train_apart(job: Job, late: float, progress: Progress | None = None) -> None:
    """Train the text encoder, and with it the transformer as soon as the latents are written.

    Args:
        job: the training.
        late: seconds since the start of the whole training.
        progress: called with each message; None prints them.
    """
    began = perf_counter() - late
    report = progress or (lambda stage, done, total, text: print(f"{stage} {done}/{total} {text}", flush=True))
    torch.backends.cuda.matmul.allow_tf32 = True
    captions = _captions(job)
    report("tokens", 1, 1, f"{perf_counter() - began:.0f} s after the start")
    model = transformer_training.fast_model(_rows(job), job.device, job.compiled)
    statistics = None
    if job.start is not None:
        transformer_training.load_weights(model, job.start)
        statistics = vae_training.load_vae(job.start, "cpu").config
    lengths = () if job.on_gpu else BUCKETS
    transformer_training.train_text(
        model,
        Source.of(torch.zeros(0, device=job.device), captions[0], lengths),
        job.work / "text",
        job.schedule("text", began),
        lambda done, total, text: report("text", done, total, text),
        graphs=job.on_gpu,
    )
    training = transformer_training.start_training(model, job.work / "transformer", graphs=job.on_gpu)
    if job.on_gpu:
        for part, own in zip(Bank.drawn(1, job.device).parts(), captions, strict=True):
            latents = torch.randn(part.latent_shape(8), device=job.device)
            source = Source.of(latents, own.each(lambda value: value[:8]))
            training.prepare(transformer_training.make_batch(source, 0, job.batch))
    report("ready", 1, 1, f"{perf_counter() - began:.0f} s after the start")
    parent = os.getppid()
    while not (job.work / LATENTS).exists():
        sleep(0.2)
        if os.getppid() != parent:
            raise SystemExit("the first process ended")
    encoded = [own.to(job.device) for own in torch.load(job.work / LATENTS)]
    training.schedule = job.schedule("transformer", began)
    mean, std = (_statistic(encoded[0], name, statistics) for name in ("mean", "std"))
    sources = [
        Source.of((own.float() - mean) / std, these, lengths) for own, these in zip(encoded, captions, strict=True)
    ]
    transformer_training.run_training(
        training, sources, lambda done, total, text: report("transformer", done, total, text), job.batch
    )


def _statistic(latents: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    """Return the mean or std of each channel: of a VAE's configuration, or else of the latents."""
    values = config[f"latents_{name}"] if config else getattr(latents.float(), name)((0, 2, 3, 4))
    return torch.tensor([round(float(value), 6) for value in values], device=latents.device).view(1, -1, 1, 1, 1)


def _captions(job: Job) -> list[Captions]:
    """Return of both sizes the captions' tokens, which thing each names, and the hints; the work folder keeps them."""
    file, made = job.work / CAPTIONS, None
    if file.exists():
        made = torch.load(file)
    if made is None or made[0][0].shape[:2] != (job.scenes, job.captions):
        files, made = tokenizer(job.work), []
        for frame, count in (bank.WIDE, job.scenes), (bank.SMALL, max(1, job.scenes // 3)):
            hints = hints_of(bank.scenes(frame, count), job.device)
            made.append((*bank.tokens(frame, count, files, job.captions), *(hint.cpu() for hint in hints)))
        torch.save(made, file)
    return [Captions(*own).each(lambda value: value.to(job.device)) for own in made]


def _rows(job: Job) -> int:
    return len(bank.load(tokenizer(job.work)))


def tokenizer(work: Path, start: Path | None = None) -> Path:
    """Return the directory of the tokenizer. The first call copies it from `start`, or trains it on random captions.

    It also sees sentences with typing errors and common English words, so that unknown words are a few pieces. The list
    of known words is always that of the captions.
    """
    directory = work / "tokenizer"
    if directory.exists():
        return directory
    rng = random.Random("tokenizer")
    captions = [caption(random_scene(rng), rng) for _ in range(20000)]
    pieces = sorted({piece for text in captions for piece in text.replace(",", "").split()})
    if start is not None:
        shutil.copytree(start / "tokenizer", directory)
    else:
        wrong = [mistyped(text, rng) for text in captions[:4000]]
        single = [f"{word}, {word}. {word}" for word in (*pieces, *english())]
        write_tokenizer(directory, [*captions, *wrong, *single * 20])
    # The captions have the plain form, in which an apostrophe is a space.
    words = {word for text in captions for word in text.replace(",", "").replace("n t ", "n't ").split()}
    Words(tuple(sorted(words))).write(directory)
    return directory
