"""LoRAs by name against Diffusers with PEFT: after the same calls the same weights are in effect."""

import errno
import json
import os
import random

import pytest
import torch
from safetensors.torch import save_file

from models.diffusers_api.adapters import Adapters
from models.machine.errors import InputError, MachineError, MissingInputError
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.lora import LoraSource

Q, K, PROJ = (f"transformer_blocks.0.{name}" for name in ("attn1.to_q", "attn1.to_k", "ff.net.2"))
ALL = (Q, K, PROJ)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint):
    return Checkpoint(small_checkpoint)


@pytest.fixture
def theirs(small_checkpoint):
    import diffusers

    transformer = diffusers.MochiTransformer3DModel.from_pretrained(
        small_checkpoint / "transformer", dtype=torch.float32
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    return diffusers.MochiPipeline(scheduler=scheduler, transformer=transformer, **parts)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def ours(checkpoint, lines):
    adapters = Adapters(checkpoint.transformer, lambda subject, line: lines.append(line))
    yield adapters
    adapters.close()


def lora(checkpoint, seed, modules=ALL, rank=4):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for module in modules:
        rows, columns = checkpoint.transformer.shape(f"{module}.weight")
        made[f"transformer.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / rank
        made[f"transformer.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return made


def in_effect(pipe, module):
    """The weight by which PEFT's layer multiplies."""
    layer = pipe.transformer.get_submodule(module)
    if not hasattr(layer, "base_layer"):
        return layer.weight.detach()
    layer(torch.zeros(1, layer.base_layer.in_features))  # A layer that is off takes out what is merged when it runs.
    weight = layer.base_layer.weight.detach().clone()
    if layer.disable_adapters or layer.merged:
        return weight
    for name in layer.active_adapters:
        if name in layer.lora_A:
            weight += layer.scaling[name] * layer.lora_B[name].weight @ layer.lora_A[name].weight
    return weight.detach()


def check(theirs, ours, checkpoint, scale=1.0):
    source = LoraSource(checkpoint.transformer, ours.requests(scale))
    for module in ALL:
        actual, expected = source.tensor(f"{module}.weight").float(), in_effect(theirs, module)
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5, msg=lambda text, m=module: f"{m}: {text}")
    # Of a pipeline that has had LoRAs and has none now, Diffusers keeps empty layers.
    assert ours.active == theirs.get_active_adapters()
    assert list(ours.loaded) == theirs.get_list_adapters().get("transformer", [])


def both(theirs, ours, call, *arguments, **named):
    mine = {
        "load_lora_weights": lambda source, name: ours.load(source, name),
        "set_adapters": ours.activate,
        "fuse_lora": lambda lora_scale=1.0, adapter_names=None: ours.fuse(["transformer"], lora_scale, adapter_names),
        "unfuse_lora": lambda: ours.unfuse(["transformer"]),
        "unload_lora_weights": ours.unload,
        "delete_adapters": ours.delete,
        "disable_lora": lambda: ours.enable(enabled=False),
        "enable_lora": lambda: ours.enable(enabled=True),
    }[call]
    getattr(theirs, call)(*arguments, **named)
    mine(*arguments, **named)


STORIES = {
    "one": [("load_lora_weights", 1, "a")],
    "weight": [("load_lora_weights", 1, "a"), ("set_adapters", "a", 0.3)],
    "two": [("load_lora_weights", 1, "a"), ("load_lora_weights", 2, "b"), ("set_adapters", ["a", "b"], [0.5, -2.0])],
    "last wins": [("load_lora_weights", 1, "a"), ("load_lora_weights", 2, "b")],
    "off": [("load_lora_weights", 1, "a"), ("disable_lora",)],
    "off and on": [("load_lora_weights", 1, "a"), ("set_adapters", "a", 0.3), ("disable_lora",), ("enable_lora",)],
    "gone": [("load_lora_weights", 1, "a"), ("unload_lora_weights",)],
    "fused for good": [("load_lora_weights", 1, "a"), ("fuse_lora", 0.7), ("unload_lora_weights",)],
    "fused, then another": [
        ("load_lora_weights", 1, "a"),
        ("fuse_lora",),
        ("unload_lora_weights",),
        ("load_lora_weights", 2, "b"),
        ("set_adapters", "b", 0.4),
    ],
    "fused and taken out": [("load_lora_weights", 1, "a"), ("fuse_lora", 0.7), ("unfuse_lora",)],
    "fused, off": [("load_lora_weights", 1, "a"), ("fuse_lora",), ("disable_lora",)],
    "one of two fused": [
        ("load_lora_weights", 1, "a"),
        ("load_lora_weights", 2, "b"),
        ("set_adapters", ["a", "b"]),
        ("fuse_lora", 1.0, ["a"]),
    ],
    "one after the other": [
        ("load_lora_weights", 1, "a"),
        ("load_lora_weights", 2, "b"),
        ("fuse_lora", 0.5, ["b"]),
        ("set_adapters", "a", 0.25),
        ("fuse_lora", 2.0),
        ("unload_lora_weights",),
    ],
    "deleted": [("load_lora_weights", 1, "a"), ("load_lora_weights", 2, "b"), ("delete_adapters", "b")],
    "fused, deleted": [
        ("load_lora_weights", 1, "a"),
        ("load_lora_weights", 2, "b"),
        ("fuse_lora",),
        ("delete_adapters", "a"),
    ],
    "loaded over fused": [("load_lora_weights", 1, "a"), ("fuse_lora",), ("load_lora_weights", 2, "b")],
    "weights by component": [("load_lora_weights", 1, "a"), ("set_adapters", "a", {"transformer": 0.6})],
}


def tell(theirs, ours, checkpoint, story):
    for call, *arguments in story:
        if call == "load_lora_weights":
            seed, name = arguments
            arguments = [lora(checkpoint, seed), name]
        if call == "fuse_lora":
            named = dict(zip(("lora_scale", "adapter_names"), arguments, strict=False))
            both(theirs, ours, call, **named)
        else:
            both(theirs, ours, call, *arguments)


@pytest.mark.parametrize("story", STORIES)
def test_the_weights_are_those_of_peft(theirs, ours, checkpoint, story):
    tell(theirs, ours, checkpoint, STORIES[story])
    check(theirs, ours, checkpoint)


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[] if seed < 3 else pytest.mark.full) for seed in range(20)])
def test_any_order_of_calls(theirs, ours, checkpoint, seed):
    """Weights of what is fused are left alone: PEFT would take out another product than it added."""
    draw = random.Random(seed)
    for _ in range(12):
        loaded, call = (
            list(ours.loaded),
            draw.choice(("load", "set", "fuse", "unfuse", "unload", "off", "on", "delete")),
        )
        free = [name for name in loaded if name not in ours._merged]
        if call == "load" and len(loaded) < len(NAMES):
            name = draw.choice([name for name in NAMES if name not in loaded])
            both(theirs, ours, "load_lora_weights", lora(checkpoint, draw.randrange(99)), name)
        elif call == "set" and free:
            names = draw.sample(free, draw.randint(1, len(free)))
            both(theirs, ours, "set_adapters", names, [draw.choice((0.5, 1.0, -1.5)) for _ in names])
        elif call == "fuse" and loaded and not set(ours.active) & set(ours._merged):
            both(theirs, ours, "fuse_lora", lora_scale=draw.choice((1.0, 0.5)))
        elif call in ("unfuse", "unload"):
            both(theirs, ours, {"unfuse": "unfuse_lora", "unload": "unload_lora_weights"}[call])
        elif call in ("off", "on") and loaded:
            both(theirs, ours, {"off": "disable_lora", "on": "enable_lora"}[call])
        elif call == "delete" and len(free) > 1 and not ours._merged:
            both(theirs, ours, "delete_adapters", draw.choice(free))
        check(theirs, ours, checkpoint)


def test_the_scale_of_a_call_is_that_of_attention_kwargs(theirs, ours, checkpoint):
    from diffusers.utils.peft_utils import scale_lora_layers

    tell(theirs, ours, checkpoint, STORIES["two"])
    scale_lora_layers(theirs.transformer, 0.25)
    check(theirs, ours, checkpoint, scale=0.25)


def test_files_folders_and_hot_swaps(theirs, ours, checkpoint, tmp_path):
    """Diffusers reads the same files."""
    single, folder = tmp_path / "mine.safetensors", tmp_path / "folder"
    folder.mkdir()
    save_file(lora(checkpoint, 5), single)
    save_file(lora(checkpoint, 6, (Q,)), folder / "pytorch_lora_weights.safetensors")
    save_file(lora(checkpoint, 7), folder / "other.safetensors")
    theirs.load_lora_weights(str(tmp_path), weight_name="mine.safetensors")
    ours.load(single, None)
    check(theirs, ours, checkpoint)
    theirs.load_lora_weights(str(folder), adapter_name="b")
    ours.load(folder, "b")
    check(theirs, ours, checkpoint)
    theirs.load_lora_weights(str(folder), adapter_name="c", weight_name="other.safetensors")
    ours.load(folder, "c", weight_name="other.safetensors")
    theirs.set_adapters("c", 0.5)
    ours.activate("c", 0.5)
    ours.load(lora(checkpoint, 8), "c", hotswap=True)
    theirs.load_lora_weights(lora(checkpoint, 8), adapter_name="c", hotswap=True)
    assert ours.loaded["c"].weight == 0.5
    # A swap in PEFT sets the weight back to 1.
    theirs.set_adapters("c", 0.5)
    check(theirs, ours, checkpoint)


def test_a_lora_stays_what_it_was_when_it_was_loaded(theirs, ours, checkpoint, tmp_path):
    """Its file may be overwritten and deleted meanwhile; PEFT's settings beside it count."""
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    names = {name.replace("transformer.", "base_model.model."): value for name, value in lora(checkpoint, 1).items()}
    save_file(names, file)
    settings.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 2}))
    ours.load(tmp_path, "a")
    first = ours.requests()
    save_file({name: value * 2 for name, value in names.items()}, file)
    settings.unlink()
    theirs.load_lora_weights(lora(checkpoint, 1), adapter_name="a")
    theirs.set_adapters("a", 0.5)  # alpha / rank
    check(theirs, ours, checkpoint)
    ours.delete("a")
    ours.load(file, "a")
    assert ours.requests() != first
    file.unlink()
    theirs.set_adapters("a", 4.0)  # both matrices are doubled
    check(theirs, ours, checkpoint)


def test_a_full_disk_is_the_machines_error(ours, checkpoint, tmp_path, monkeypatch):
    save_file(lora(checkpoint, 1), tmp_path / "a.safetensors")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        with pytest.raises(MachineError, match=r"No space left on device.*TMPDIR"):
            ours.load(tmp_path / "a.safetensors", "a")
    assert not ours.loaded
    ours.load(tmp_path / "a.safetensors", "a")


def test_a_fused_lora_closes_its_modules(ours, checkpoint, lines):
    ours.load(lora(checkpoint, 1, (Q,)), "q")
    ours.load(lora(checkpoint, 2, (K,)), "k")
    ours.load(lora(checkpoint, 3, (Q, K)), "both")
    ours.activate(["q"])
    ours.fuse(["transformer"])
    ours.activate(["k"])
    assert len(ours.requests()) == 2
    ours.activate(["q", "k"])
    assert len(ours.requests()) == 2
    ours.activate(["both"])
    with pytest.raises(InputError, match=r"unfuse_lora\(\) first"):
        ours.requests()
    ours.unfuse(["transformer"])
    assert len(ours.requests()) == 1
    assert not lines


def test_bad_input_is_refused_and_changes_nothing(ours, checkpoint, tmp_path):
    ours.load(lora(checkpoint, 1), "a")
    before = (dict(ours.loaded), list(ours.active))
    refusals = [
        (lambda: ours.load(lora(checkpoint, 1), "a"), "in use"),
        (lambda: ours.load(lora(checkpoint, 1), "b", hotswap=True), "hotswap"),
        (lambda: ours.load(lora(checkpoint, 1), ""), "adapter_name"),
        (lambda: ours.load({}, "b"), "empty"),
        (lambda: ours.load({"x": 3}, "b"), "state dict"),
        (lambda: ours.load({"transformer.nothing.lora_A.weight": torch.ones(2, 2)}, "b"), "lacks"),
        (lambda: ours.load(7, "b"), "a LoRA is a path"),
        (lambda: ours.load(tmp_path, "b"), "no LoRA file"),
        (lambda: ours.load("nobody/nothing", "b"), "no LoRA at"),
        (lambda: ours.activate("z"), "not loaded"),
        (lambda: ours.activate([]), "disable_lora"),
        (lambda: ours.activate(5), "adapter_names"),
        (lambda: ours.delete(None), "adapter_names"),
        (lambda: ours.load(tmp_path, "b", weight_name=3), "weight_name"),
        (lambda: ours.load(tmp_path, "b", weight_name="none.safetensors"), "no LoRA file"),
        (lambda: ours.activate(["a"], [1.0, 2.0]), "2 adapter_weights for 1"),
        (lambda: ours.activate("a", "strong"), "adapter_weights"),
        (lambda: ours.activate("a", float("nan")), "adapter_weights"),
        (lambda: ours.activate("a", {"transformer": {"blocks.0": 1.0}}), "by block"),
        (lambda: ours.fuse(["vae"]), "components"),
        (lambda: ours.fuse([]), "components"),
        (lambda: ours.fuse(3), "components"),
        (lambda: ours.fuse(["transformer"], "much"), "lora_scale"),
    ]
    for call, words in refusals:
        with pytest.raises(InputError, match=words):
            call()
        assert (dict(ours.loaded), list(ours.active)) == before
    with pytest.raises(MissingInputError):
        ours.load(tmp_path / "none.safetensors", "b")


def test_files_of_state_dicts_are_deleted(ours, checkpoint):
    ours.load(lora(checkpoint, 1), "a")
    path = ours.loaded["a"].path
    assert path.exists()
    ours.close()
    assert not path.exists()
