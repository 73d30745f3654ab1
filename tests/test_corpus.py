"""Every mangled file at every command that reads it: success, or exit code 2 and one line; soon, and in little memory.

By default some of each are tried; with the long tests, many. What is accepted is read (weights, tokenizer), and makes
no video.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest
import torch

from models.jobs.latents import save_latents
from models.machine.profile import Profile
from models.mochi.preview import MOCHI, RGB_FILE
from models.mochi.reuse import Calibration
from models.mochi.sampling.schedule import linear_quadratic_schedule
from scripts.cli import main
from tests.mangling import kinds_for
from tests.weight_cache.checkpoints.genmo import transformer_to_genmo
from tests.weight_cache.checkpoints.gguf_files import TYPES, write
from weight_cache.checkpoints.checkpoint import Checkpoint

MOST_BYTES = 1 << 30
MOST_SECONDS = 20.0  # a hang, on a machine that is shared; a refusal takes a fraction of a second
SIZE = ["--width", "32", "--height", "32", "--num-frames", "7", "--num-steps", "1", "--mesh", "1x2", "--mode", "golden"]
# Files of a checkpoint.
CHECKPOINT = [
    "model_index.json",
    "generation_defaults.json",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/spiece.model",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
]


class Corpus:
    """Runs commands on mangled files, and collects what is neither success nor a line."""

    def __init__(self, capsys) -> None:  # type: ignore[no-untyped-def]
        self.capsys = capsys
        self.tried = {"accepted": 0, "refused": 0}
        self.faults: list[str] = []
        self.turn = 0

    def run(self, what: str, *arguments: object) -> None:
        reset_peak()
        before, start = peak_bytes(), monotonic()
        code = main([str(argument) for argument in arguments])
        seconds, grown = monotonic() - start, peak_bytes() - before
        captured = self.capsys.readouterr()
        lines = captured.err.splitlines()
        worse = code == 1 and "--compare" in arguments and not lines  # a changed figure may be a regression
        fine = code == 0 or worse or (code == 2 and len(lines) == 1 and lines[0].startswith("mochi-tt: error: "))
        self.tried["accepted" if code == 0 else "refused"] += 1
        if not fine or seconds > MOST_SECONDS or grown > MOST_BYTES or "Traceback" in captured.out + captured.err:
            self.faults.append(f"{what}: exit {code}, {seconds:.1f} s, {grown / 1e6:.0f} MB: {captured.err[-400:]}")

    def mangle(self, file: Path, drafts: int, run: Callable[[str], None]) -> None:
        """Damage a file in every way, `drafts` times each, and call `run` with what was done; then restore it.

        With 0 drafts, the files take turns: each is damaged in every fourth way, once.
        """
        whole, kinds = file.read_bytes(), list(kinds_for(file).items())
        if drafts == 0:
            kinds = kinds[self.turn % 4 :: 4]
            self.turn += 1
        for kind, mangle in kinds:
            for seed in range(drafts or 1):
                file.unlink()  # it may be a link to the original
                file.write_bytes(mangle(whole, random.Random(f"{file.name} {kind} {seed}")))
                run(f"{file.parent.name}/{file.name} {kind} {seed}")
        file.unlink()
        file.write_bytes(whole)

    def check(self) -> None:
        assert not self.faults, "\n".join([f"{len(self.faults)} of {self.tried}:", *self.faults[:20]])
        assert self.tried["refused"] > 0


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.fixture
def corpus(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Corpus(capsys)


@pytest.fixture
def checkpoint(small_checkpoint, tmp_path):
    """A copy. Links would change the times of the original, which other processes read at the same time."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "model"))


def stop_before_the_mesh(monkeypatch) -> None:
    """Jobs that pass their plan read the tokenizer and every weight, and end there: what is after is no reader."""
    from models.mochi.components import Models
    from models.mochi.text.tokenizer import load_tokenizer
    from weight_cache.checkpoints.lora import checked_source
    from weight_cache.plan import NamedMesh

    def read(job, *_):
        setup = job.setup
        models = Models.declare(setup.configs, NamedMesh(setup.layout.branch)).by_component()
        for component in setup.checkpoint.components:
            if component.name not in setup.request.components:
                continue
            if component.name == "text_encoder":
                load_tokenizer(setup.checkpoint)
            module = models[component.name]
            source = checked_source(module, component, setup.loras if component.name == "transformer" else ())
            for _, prefix, parameter in module.parameters():
                parameter.read(source, prefix)
        job.reservation.release()
        return job.out

    for command in ("generate", "decode"):
        monkeypatch.setattr(f"scripts.{command}.run", read)
    monkeypatch.setattr("scripts.sweep.run_sweep", lambda sweep, *_, **__: sweep.reservation.release())


def of_the_checkpoint(corpus: Corpus, checkpoint: Path, tmp_path: Path, drafts: int, files: list[str]) -> None:
    generate = ["generate", "a ball", "--out", "out.mp4", "--cache-dir", tmp_path / "cache", *SIZE]
    for name in files:
        corpus.mangle(checkpoint / name, drafts, lambda what: corpus.run(what, *generate, "--model", checkpoint))
    if "vae/config.json" in files:
        plan = ["cache", "build", "--plan", "--mesh", "1x2", "--model", checkpoint]
        corpus.mangle(checkpoint / "vae/config.json", drafts, lambda what: corpus.run(what, *plan))


def others(corpus: Corpus, checkpoint: Path, tmp_path: Path, drafts: int) -> None:
    generate = ["generate", "a ball", "--out", "out.mp4", *SIZE, "--model", checkpoint]
    latents, profile, reports = tmp_path / "x.safetensors", tmp_path / "machine.json", []
    save_latents(torch.zeros(1, 12, 2, 4, 4), latents, {"model": "tiny", "fps": 24, "vae_split": "h0w1"})
    decode = ["decode", latents, "--mode", "golden", "--mesh", "1x2", "--out", "out.mp4"]
    corpus.mangle(latents, drafts, lambda what: corpus.run(what, *decode))
    Profile(frozenset({"norm"}), links=1, topology="line", attention_chunks="256x384", capture=False).write(profile)
    corpus.mangle(profile, drafts, lambda what: corpus.run(what, *generate, "--profile", profile))
    reused = tmp_path / "reuse.json"
    fingerprint = Checkpoint.open(checkpoint).transformer.fingerprint()
    made_with = (tuple(linear_quadratic_schedule(8)), (4.5,) * 8, "euler", (32, 32, 7), "default")
    Calibration(fingerprint, 8, 0.1, (3, 4), *made_with, prompts=("a ball",)).write(reused, {"mode": "golden"})
    corpus.mangle(
        reused, drafts, lambda what: corpus.run(what, *generate, "--num-steps", 8, "--reuse", f"steps:{reused}")
    )
    source = Path(__file__).parent / "performance" / "baselines" / "quietbox.json"
    for name in ("a.json", "b.json"):
        reports.append(tmp_path / name)
        report = json.loads(source.read_text())
        report["counts"] = dict(list(report["counts"].items())[:1])
        reports[-1].write_text(json.dumps(report))
    compare = ["measure", "--compare", *reports]
    corpus.mangle(reports[1], drafts, lambda what: corpus.run(what, *compare))
    lora = tmp_path / "lora.safetensors"
    shutil.copyfile(latents, lora)
    corpus.mangle(lora, drafts, lambda what: corpus.run(what, *generate, "--lora", lora))


def of_sweeps_and_schedules(corpus: Corpus, checkpoint: Path, tmp_path: Path, drafts: int) -> None:
    generate = ["generate", "a ball", "--out", "out.mp4", *SIZE[:6], *SIZE[8:], "--model", checkpoint]
    steps, levels, look = tmp_path / "steps.json", tmp_path / "levels.txt", checkpoint / RGB_FILE
    steps.write_text('{"sigma_schedule": [1, 0.5, 0], "cfg_schedule": [3, 1]}')
    corpus.mangle(steps, drafts, lambda what: corpus.run(what, *generate, "--steps-file", steps))
    levels.write_text("1, 0.5, 0\n")
    corpus.mangle(levels, drafts, lambda what: corpus.run(what, *generate, "--sigmas", levels))
    look.write_text(json.dumps({"factors": MOCHI.factors, "bias": MOCHI.bias}))
    corpus.mangle(look, drafts, lambda what: corpus.run(what, *generate, "--num-steps", 1, "--preview", 1))
    size = {"height": 32, "width": 32, "num_frames": 7}
    lines = [{"prompt": "a ball", "seed": seed, "cfg_schedule": [2, 1], "num_steps": 2, **size} for seed in (1, 2)]
    rows, table = tmp_path / "s.jsonl", tmp_path / "s.csv"
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    table.write_text('prompt,seed,width,height,num_frames,sigmas\na ball,1,32,32,7,"1,0.5,0"\n')
    for file in (rows, table):
        sweep = ["sweep", file, "--out", tmp_path / "out", *SIZE[8:], "--model", checkpoint]
        corpus.mangle(file, drafts, lambda what, sweep=sweep: corpus.run(what, *sweep))
    opened = Checkpoint.open(checkpoint).transformer
    quantised = tmp_path / "model.gguf"
    write(quantised, transformer_to_genmo({name: opened.tensor(name).clone() for name in opened}), TYPES.Q8_0)
    generate = ["generate", "a ball", "--out", "out.mp4", *SIZE, "--base", checkpoint, "--model", quantised]
    corpus.mangle(quantised, drafts, lambda what: corpus.run(what, *generate))


def test_every_mangled_file_is_a_line_or_a_success(corpus, checkpoint, tmp_path, monkeypatch):
    stop_before_the_mesh(monkeypatch)
    of_the_checkpoint(corpus, checkpoint, tmp_path, 0, CHECKPOINT)
    others(corpus, checkpoint, tmp_path, 0)
    of_sweeps_and_schedules(corpus, checkpoint, tmp_path, 0)
    corpus.check()


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*CHECKPOINT, ""])
def test_many_mangled_files_are_a_line_or_a_success(corpus, checkpoint, tmp_path, monkeypatch, name):
    stop_before_the_mesh(monkeypatch)
    if name:
        of_the_checkpoint(corpus, checkpoint, tmp_path, 12, [name])
    else:
        others(corpus, checkpoint, tmp_path, 40)
        of_sweeps_and_schedules(corpus, checkpoint, tmp_path, 20)
    corpus.check()


@pytest.mark.parametrize("kind", ["directory", "pipe", "loop", "nothing"])
def test_what_is_no_file_is_a_line(corpus, checkpoint, tmp_path, monkeypatch, kind):
    stop_before_the_mesh(monkeypatch)
    make = {"directory": Path.mkdir, "pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path.name)}
    for name in CHECKPOINT[::3]:
        file = checkpoint / name
        file.rename(file.with_suffix(".kept"))
        if kind != "nothing":
            make[kind](file)
        corpus.run(f"{name} is {kind}", "generate", "a ball", "--out", "out.mp4", *SIZE, "--model", checkpoint)
        if kind != "nothing":
            file.rmdir() if kind == "directory" else file.unlink()
        file.with_suffix(".kept").rename(file)
    corpus.check()
