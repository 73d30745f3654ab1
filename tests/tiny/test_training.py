import json
import random
import shutil
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from models.machine.errors import InputError
from models.mochi.sampling.schedule import linear_quadratic_schedule, model_times
from models.tiny.bank import TOKENS, Bank, encode_tagged, load, scenes, tokens
from models.tiny.captions import tagged_sentence, tags_of, untagged
from models.tiny.hints import Heads, hints_of
from models.tiny.scenes import SHAPES, SMALL, Drawing, Scene, Thing, random_scene, render
from models.tiny.trainer import BEGAN_FROM, SCHEDULES, Job, forget_others, run, tokenizer
from models.tiny.training import CURVE, Schedule, Training
from models.tiny.transformer_training import (
    BatchedAttention,
    Captions,
    Source,
    TextToVelocity,
    load_weights,
    make_batch,
    train_text,
    velocity_losses,
)
from models.tiny.vae_modules import Edges, replace_modules_
from models.tiny.vae_training import hard_scenes, new_vae, vae_losses, weights_near
from weight_cache.checkpoints import TINY
from weight_cache.checkpoints.checkpoint import Checkpoint


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    from models.reference.random_weights import randomize_

    randomize_(module)
    return module.eval()


@torch.no_grad()
def test_the_faster_modules_are_diffusers_modules():
    vae = randomised(new_vae())
    frames = torch.randn(1, 3, 7, 16, 16, generator=torch.Generator().manual_seed(0))
    expected, names = vae.encoder(frames)[0], set(vae.state_dict())
    decoded = vae.decoder(expected[:, :12])[0]
    replace_modules_(vae)
    torch.testing.assert_close(vae.encoder(frames)[0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.decoder(expected[:, :12])[0], decoded, atol=1e-4, rtol=1e-4)
    assert set(vae.state_dict()) == names


@pytest.mark.parametrize("pads", [(2, 1, 1), (0, 2, 1), (1, 0, 0)])
def test_the_gradient_of_the_edges_is_torchs(pads):
    first, rows, columns = pads
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    expected = torch.nn.functional.pad(x, (columns, columns, rows, rows, first, 0), mode="replicate")
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (wanted,) = torch.autograd.grad((expected * weight).sum(), x)
    (found,) = torch.autograd.grad((Edges.apply(x, *pads) * weight).sum(), x)
    torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_the_batched_attention_is_diffusers_attention():
    model = randomised(TextToVelocity(50))
    g = torch.Generator().manual_seed(0)
    latents, ids = torch.randn(3, 12, 2, 4, 4, generator=g), torch.randint(3, 50, (3, 6), generator=g)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    sigma = torch.tensor([0.1, 0.5, 0.9])
    expected = model(latents, sigma, ids, mask)
    for block in model.transformer.transformer_blocks:
        block.attn1.processor = BatchedAttention()
    torch.testing.assert_close(model(latents, sigma, ids, mask), expected, atol=1e-3, rtol=1e-3)


def test_the_exact_velocity_leads_the_sampler_to_the_latents():
    """Sign, time and noise of the training are the sampler's: its Euler steps along the target end at z0."""
    target = []

    class Exact(torch.nn.Module):
        heads, visual, text = Heads(8, 8), torch.zeros(1, 8, 8), torch.zeros(1, 1, 8)

        def forward(self, noisy, sigma, ids, mask):
            target.append((noisy, sigma))
            return z0 - eps

    z0, eps = torch.randn(2, 1, 12, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sigmas = linear_quadratic_schedule(8)
    z = eps.clone()
    for now, after in pairwise(sigmas):
        hints = torch.zeros(1, 8), torch.zeros(1, 2, 3), torch.zeros(1, 1)
        losses = velocity_losses(Exact(), z0, eps, torch.tensor([now]), torch.zeros(1, 1), torch.ones(1, 1), *hints)
        assert losses["velocity"] < 1e-6
        torch.testing.assert_close(target[-1][0], z, atol=1e-5, rtol=1e-5)
        z = z + (now - after) * (z0 - eps)
    torch.testing.assert_close(z, z0, atol=1e-5, rtol=1e-5)


def test_the_model_is_told_the_samplers_time(monkeypatch):
    sigmas, seen = linear_quadratic_schedule(8), []
    model = TextToVelocity(10)

    def forward(latents, embeds, time, mask):
        seen.append(time)
        return SimpleNamespace(sample=latents)

    monkeypatch.setattr(model.transformer, "forward", forward)
    tokens = torch.ones(8, 1)
    model(torch.zeros(8, 12, 1, 2, 2), torch.tensor(sigmas[:-1]), tokens.long(), tokens.bool())
    torch.testing.assert_close(seen[0], torch.tensor(model_times(sigmas)), atol=1e-3, rtol=1e-5)


def linear(folder, schedule, stop_at=None):
    """Train a layer; stop at a step as if by the keyboard."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)

    def batch_of(step):
        if step == stop_at:
            raise KeyboardInterrupt
        return (torch.randn(8, 4, generator=torch.Generator().manual_seed(step)),)

    def loss(x):
        return {"loss": (model(x) - x).square().mean()}

    training = Training(model, loss, schedule, folder)
    return training, training.run(batch_of, lambda *_: None)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr("models.tiny.training.SAVE_EVERY", 2)
    schedule = Schedule(steps=6, rate=1e-2, warmup=2)
    _, whole = linear(tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        linear(tmp_path / "broken", schedule, stop_at=5)
    for name, value in linear(tmp_path / "broken", schedule)[1].state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name])


def test_a_training_ends_when_its_time_is_over(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("models.tiny.training.perf_counter", lambda: next(clock))
    training, _ = linear(tmp_path, Schedule(steps=10**6, rate=1e-2, warmup=1, fall=0.5, seconds=8))
    assert (training.step, training.seconds) == (8, 8)
    rates = [training.schedule.learning_rate(step, seconds) for step, seconds in ((0, 0), (4, 4), (6, 6), (8, 8))]
    assert rates == [1e-2, 1e-2, 5e-3, 0.0]
    assert json.loads((tmp_path / CURVE).read_text().splitlines()[-1])["step"] == 8


def test_a_few_steps_make_the_vae_better():
    vae = new_vae()
    replace_modules_(vae)
    optimiser = torch.optim.Adam(vae.parameters(), 2e-5)  # it starts as the mean colour: larger first steps leave that
    rng, losses = random.Random(0), []
    frames = render([random_scene(rng, SMALL) for _ in range(2)])
    for _ in range(12):
        loss = vae_losses(vae, frames, torch.zeros(2, 12, 3, 8, 8))["loss"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def source_of(tmp_path, count: int, lengths: tuple[int, ...] = ()) -> Source:
    ids, named = tokens(SMALL, count, tokenizer(tmp_path), captions=2)
    assert ids.shape[:2] == named.shape[:2] == (count, 2)
    latents = torch.randn(Bank.drawn(4, "cpu").small.latent_shape(count))
    return Source.of(latents, Captions(ids, named, *hints_of(scenes(SMALL, count))), lengths)


def test_a_batch_is_the_same_each_time_and_hides_some_captions(tmp_path):
    source = source_of(tmp_path, 3)
    made, again = (make_batch(source, 7, 400) for _ in range(2))
    for first, second in zip(made, again, strict=True):
        assert torch.equal(first, second)
    _, _, sigma, tokens_, mask, shown, things, named = made
    hidden = ~mask.any(1)
    assert 0.05 < hidden.float().mean() < 0.16
    assert torch.equal(mask[~hidden], tokens_[~hidden] != 0)
    assert not named[hidden].any()
    assert named[~hidden].any(1).all()
    assert shown.shape == (400, 3 * 4 * 4)
    assert things.shape == (400, 2, 3)
    assert 0 < sigma.min() < 0.05
    assert (sigma > 0.75).float().mean() > 0.45


def test_captions_of_one_length_are_trained_together(tmp_path):
    source = source_of(tmp_path, 8, (12, 16))
    lengths = {make_batch(source, step, 4)[3].shape[1] for step in range(20)}
    assert len(lengths) > 1
    assert lengths <= {12, 16, TOKENS}
    for step in range(20):
        _, _, _, ids, *_ = make_batch(source, step, 4)
        assert (ids == 1).any(1).all()  # the end of each caption is there


def test_each_word_is_said_to_name_its_thing():
    red, blue = Thing("ball", "red", "left", 20, 20, 8), Thing("cross", "blue", "up", 70, 40, 8)
    rng, colours = random.Random(2), {"red": 1, "crimson": 1, "scarlet": 1, "blue": 2}
    for _ in range(50):
        text = tagged_sentence(Scene((red, blue), "grey"), rng)
        for word, tag in zip(untagged(text).split(), tags_of(text), strict=True):
            assert colours.get(word.strip(",."), tag) == tag, text
        assert set(tags_of(text)) >= {1, 2}


def test_the_tags_of_words_are_those_of_their_pieces(tmp_path):
    loaded, text = load(tokenizer(tmp_path)), "a\u2460 rxd\u2460 ball\u2460, then qqq\u2461"
    (ids,), (named,) = encode_tagged(loaded, [text])
    pieces = loaded.convert_ids_to_tokens(ids.tolist())
    first = [piece for piece, tag in zip(pieces, named.tolist(), strict=True) if tag == 1]
    assert "".join(first).replace("\u2581", " ").split() == ["a", "rxd", "ball,"]
    assert named.max() == 2


def test_tokens_are_said_to_show_the_thing_that_covers_them():
    ball = Thing("ball", "red", "still", 24, 24, 8)  # within the second token of the second row
    square = Thing("square", "blue", "right", 72, 40, 8, travel=16)
    shown, things = hints_of([Scene((ball, square), "grey"), Scene((ball,), "grey")])
    grid = shown.view(2, 5, 4, 6)
    assert (grid[:, :, 1, 1] == 1).all()
    assert (grid[0, 0, 2] == 2).nonzero()[:, 0].tolist() == [3, 4]
    assert (grid[0, -1, 2] == 2).nonzero()[:, 0].tolist() == [4, 5]  # its centre is at 78
    assert set(grid[1].unique().tolist()) == {0, 1}
    assert things[1, 0].tolist() == things[1, 1].tolist() == [0, 0, 6]


def test_captions_alone_teach_which_words_name_what(tmp_path):
    """A few steps lower the error, and the transformer's training starts from them."""
    torch.manual_seed(0)
    source = source_of(tmp_path, 8)
    model = TextToVelocity(int(source.captions.ids.max()) + 1)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    train_text(model, source, tmp_path / "text", Schedule(steps=20, rate=3e-3, warmup=1, ema=0.5))
    curve = [json.loads(line)["loss"] for line in (tmp_path / "text" / CURVE).read_text().splitlines()]
    assert curve[-1] < 0.9 * curve[0]
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])}
    assert changed == {"text_encoder", "heads"}


def changed_parts(first, second):
    """Return the components whose weights differ between two checkpoints."""
    files = [path.relative_to(first) for path in first.glob("*/*.safetensors")]
    assert len(files) == 3
    return {str(file.parent) for file in files if (first / file).read_bytes() != (second / file).read_bytes()}


@pytest.mark.alone
def test_the_whole_road_ends_in_a_checkpoint_that_the_loader_takes(tmp_path):
    out, small = tmp_path / "checkpoint", {"scenes": 3, "batch": 2, "vae_batch": 1, "judged": 1}
    once = {f"{part}_steps": 1 for part in SCHEDULES}
    job = Job(tmp_path / "work", out, **once | {"transformer_steps": 2}, **small)
    assert set(run(job, lambda *_: None)) == {"held-out", "free", "edits"}
    checkpoint = Checkpoint.open(out)
    for component in checkpoint.components:
        component.check()
    assert len(checkpoint.vae.config["latents_mean"]) == 12
    assert {path.name for path in out.glob("*.jsonl")} == {f"{part}-{CURVE}" for part in SCHEDULES}
    curve = (out / "transformer-losses.jsonl").read_text().splitlines()
    assert json.loads(curve[-1])["step"] == 2
    # Another training takes its VAE and goes on with the rest.
    later = Job(tmp_path / "later", tmp_path / "second", start=out, **once, **small)
    run(later, lambda *_: None)
    assert changed_parts(out, tmp_path / "second") == {"transformer", "text_encoder"}
    # Each of two parts can be trained alone.
    for only, part in (("refining", "vae"), ("wording", "text_encoder")):
        alone = Job(tmp_path / only, tmp_path / f"{only}-out", start=out, only=only, **once, **small)
        run(alone, lambda *_: None)
        assert changed_parts(out, alone.out) == {part}
        assert {path.name for path in alone.out.glob("*.jsonl")} == {f"{part}-{CURVE}" for part in SCHEDULES}
    with pytest.raises(InputError, match=r"refining began from another part: give another --work"):
        run(replace(alone, work=tmp_path / "refining"), lambda *_: None)
    # More steps of the transformer are a text encoder of other weights, which is taught anew.
    run(replace(later, transformer_steps=2), lambda *_: None)
    assert changed_parts(tmp_path / "second", out) >= {"text_encoder"}
    # A work folder goes on with the training that it holds and no other.
    with pytest.raises(InputError, match=r"later began from other weights: give another --work"):
        run(replace(later, start=tmp_path / "second"), lambda *_: None)
    with pytest.raises(InputError, match=r"later began from other weights"):
        run(replace(later, start=None), lambda *_: None)
    with pytest.raises(InputError, match=r"work began from nothing"):
        run(replace(job, start=out), lambda *_: None)
    with pytest.raises(InputError, match=r"start .*none has no weights"):
        run(replace(job, start=tmp_path / "none"), lambda *_: None)
    (job.work / BEGAN_FROM).write_text("{")
    with pytest.raises(InputError, match=r"note of a training .* is not valid JSON .*: give another --work"):
        run(job, lambda *_: None)


def test_a_wrong_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="scenes 0 must be at least 1"):
        run(Job(tmp_path, tmp_path / "out", scenes=0), lambda *_: None)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"only": "refining"}, "only refining trains a part of a checkpoint: give that as start"),
        ({"only": "vae", "start": TINY}, "only vae must be one of refining, wording"),
        ({"only": "wording", "start": TINY, "out": TINY}, "is the start, which would be replaced: give another out"),
    ],
)
def test_a_part_that_cannot_be_trained_alone_is_refused(tmp_path, job, message):
    with pytest.raises(InputError, match=message):
        run(Job(**{"work": tmp_path / "work", "out": tmp_path / "out"} | job), lambda *_: None)
    assert not list(tmp_path.iterdir())


def copied(folder, without=""):
    """Return a copy of the built-in checkpoint without one file."""
    shutil.copytree(TINY, folder)
    if without:
        (folder / without).unlink()
    return folder


@pytest.mark.parametrize("name", ["vae/config.json", "tokenizer/spiece.model"])
def test_a_start_that_lacks_a_part_is_refused(tmp_path, name):
    start = copied(tmp_path / "start", name)
    with pytest.raises(InputError, match=f"has no {name}: give a checkpoint that this training wrote"):
        run(Job(tmp_path / "work", tmp_path / "out", start=start, only="wording"), lambda *_: None)
    assert not (tmp_path / "work").exists()


def test_weights_of_another_model_are_refused_in_one_line(tmp_path):
    model = TextToVelocity(len(load(TINY / "tokenizer")) + 1)
    with pytest.raises(InputError, match=r"text_encoder/model\.safetensors cannot be trained on \(size mismatch"):
        load_weights(model, TINY)
    file = copied(tmp_path / "start") / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"transformer/diffusion_pytorch_model\.safetensors cannot be trained on"):
        load_weights(model, tmp_path / "start")


def test_a_training_that_began_from_other_weights_is_forgotten(tmp_path):
    folder, module = tmp_path / "wording", torch.nn.Linear(2, 2)
    forget_others(folder, module)
    (folder / "state.pt").touch()
    (folder / "mine.txt").touch()
    forget_others(folder, module)
    assert (folder / "state.pt").exists()
    with torch.no_grad():
        module.bias += 1
    forget_others(folder, module)
    assert not (folder / "state.pt").exists()
    assert (folder / "mine.txt").exists()


def test_small_things_weigh_as_much_as_large_ones():
    small, large = (Thing("ball", "red", "still", x, 32, radius) for x, radius in ((20, 5.0), (70, 10.0)))
    drawing = Drawing.of([Scene((small, large), "grey"), Scene((large,), "grey")])
    weights = weights_near(drawing)
    assert weights.shape == (2, 1, 25, 64, 96)
    assert weights.mean() == pytest.approx(1)
    background = weights[0, 0, 0, 0, 0]
    extra = [float((weights[0, 0, 0, :, part] / background - 1).sum()) for part in (slice(48), slice(48, 96))]
    assert extra[0] == pytest.approx(extra[1], rel=0.15)  # boxes have whole pixels
    assert weights[1, 0, 0, 32, 20] == weights[1, 0, 0, 0, 0]


def test_scenes_to_refine_on_have_small_crosses():
    found = hard_scenes(60, random.Random(0))
    small = [{thing.shape for thing in scene.things if thing.radius < 8} for scene in found]
    assert 0.4 < sum("cross" in shapes for shapes in small) / 60 < 0.9
    assert {shape for shapes in small for shape in shapes} == set(SHAPES)
    assert any(not shapes for shapes in small)
