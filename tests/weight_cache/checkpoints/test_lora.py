"""LoRAs: every form merged as its authors' own programs merge it, and refused where it does not fit."""

import json
import os
from math import prod, sqrt

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.machine.errors import InputError
from tests.support import randn
from tests.weight_cache.helpers import assert_same, declared, from_store, in_memory, shards
from weight_cache.checkpoints.component import Component
from weight_cache.checkpoints.lora import LoraRequest, LoraSource
from weight_cache.store import Store

RANK = 4
KWARGS = {
    "qkv_proj_lora_rank": RANK,
    "qkv_proj_lora_alpha": 8,
    "qkv_proj_lora_dropout": 0.0,
    "out_proj_lora_rank": RANK,
    "out_proj_lora_alpha": 2,
    "out_proj_lora_dropout": 0.0,
}
LAYERS, VISUAL, TEXT, INNER = 4, 256, 128, 682
# Module in Genmo's names -> rows, columns, and canonical weights that are its rows in this order.
GENMO = {
    "blocks.1.attn.qkv_x": (3 * VISUAL, VISUAL, ["1.attn1.to_q", "1.attn1.to_k", "1.attn1.to_v"]),
    "blocks.1.attn.qkv_y": (3 * VISUAL, TEXT, ["1.attn1.add_q_proj", "1.attn1.add_k_proj", "1.attn1.add_v_proj"]),
    "blocks.2.attn.proj_x": (VISUAL, VISUAL, ["2.attn1.to_out.0"]),
    "blocks.0.attn.proj_y": (TEXT, VISUAL, ["0.attn1.to_add_out"]),
    "blocks.0.mlp_x.w2": (VISUAL, INNER, ["0.ff.net.2"]),
}
DIFFUSERS = {
    "1.attn1.to_k": (VISUAL, VISUAL),
    "1.attn1.add_q_proj": (VISUAL, TEXT),
    "2.attn1.to_out.0": (VISUAL, VISUAL),
    "1.ff.net.2": (VISUAL, INNER),
}


@pytest.fixture(scope="module")
def component(small_checkpoint):
    return Component(small_checkpoint / "transformer")


def pair(out, wide, seed, rank=RANK):
    return randn(rank, wide, seed=seed) / 8, randn(out, rank, seed=seed + 1) / 8


def named(modules, spell, down="lora_down.weight", up="lora_up.weight", alpha=None):
    """Tensors of a LoRA whose modules `spell` names, and what it adds to each canonical weight."""
    tensors, deltas = {}, {}
    for index, (module, (out, wide, *parts)) in enumerate(modules.items()):
        a, b = pair(out, wide, seed=1000 + 10 * index)
        stem = spell(module)
        tensors[f"{stem}{down}"], tensors[f"{stem}{up}"] = a, b
        if alpha is not None:
            tensors[f"{stem}alpha"] = torch.tensor(float(alpha))
        change = b @ a * (1 if alpha is None else alpha / RANK)
        names = parts[0] if parts else [module]
        for name, part in zip(names, change.chunk(len(names)), strict=True):
            deltas[f"transformer_blocks.{name}.weight"] = part
    return tensors, deltas


def genmo_file(path, change=None, metadata=None):
    """A LoRA as Genmo's trainer writes it, on qkv and output of both streams of all blocks."""
    tensors, deltas = {}, {}
    for layer in range(LAYERS):
        for index, (module, out, wide, alpha) in enumerate(
            [
                ("qkv_x", 3 * VISUAL, VISUAL, 8),
                ("qkv_y", 3 * VISUAL, TEXT, 8),
                ("proj_x", VISUAL, VISUAL, 2),
                ("proj_y", TEXT, VISUAL, 2),
            ]
        ):
            if layer == LAYERS - 1 and module == "proj_y":
                continue
            down, up = pair(out, wide, seed=100 * layer + 10 * index)
            tensors[f"blocks.{layer}.attn.{module}.lora_A"] = down
            tensors[f"blocks.{layer}.attn.{module}.lora_B"] = up
            delta = up @ down * alpha / RANK
            ours = f"transformer_blocks.{layer}.attn1."
            names = {
                "qkv_x": ["to_q", "to_k", "to_v"],
                "qkv_y": ["add_q_proj", "add_k_proj", "add_v_proj"],
                "proj_x": ["to_out.0"],
                "proj_y": ["to_add_out"],
            }[module]
            for name, part in zip(names, delta.chunk(len(names)), strict=True):
                deltas[f"{ours}{name}.weight"] = part
    if change is not None:
        change(tensors)
    save_file(tensors, path, {"kwargs": json.dumps(KWARGS)} if metadata is None else metadata)
    return path, deltas


def peft_file(path, prefix="transformer.", alpha=None, metadata=None, change=None):
    """A LoRA as Diffusers writes it; alpha may stand beside it."""
    tensors, deltas = named(
        DIFFUSERS, lambda m: f"{prefix}transformer_blocks.{m}.", "lora_A.weight", "lora_B.weight", alpha
    )
    if change is not None:
        change(tensors)
    save_file(tensors, path, metadata)
    return path, deltas


def check(component, requests, deltas):
    """Every tensor is its stored value plus the sum of what is expected."""
    source = LoraSource(component, requests)
    assert set(source.keys()) == set(component.keys())
    for name in component:
        stored = component.tensor(name)
        wanted = [strength * found[name] for found, strength in deltas if name in found]
        if not wanted:
            assert torch.equal(source.tensor(name), stored), name
            continue
        merged = source.tensor(name)
        assert merged.dtype == torch.float32
        torch.testing.assert_close(merged, stored.float() + sum(wanted), atol=1e-5, rtol=1e-5)
        assert torch.equal(component.tensor(name), stored), "the stored tensor stays"
        assert source.shape(name) == component.shape(name)
    return source


def test_genmos_form(component, tmp_path):
    path, deltas = genmo_file(tmp_path / "lora.safetensors")
    check(component, [LoraRequest(path)], [(deltas, 1)])
    check(component, [LoraRequest(path, -0.5)], [(deltas, -0.5)])


def test_genmos_own_layer_says_the_same(component, tmp_path):
    """`LoraLinear` of genmoai/mochi: `W x + (x A^T) B^T * alpha / r`."""
    path, _ = genmo_file(tmp_path / "lora.safetensors")
    lora = load_file(path)
    down, up = lora["blocks.2.attn.qkv_x.lora_A"], lora["blocks.2.attn.qkv_x.lora_B"]
    names = [f"transformer_blocks.2.attn1.to_{part}.weight" for part in "qkv"]
    x = randn(3, VISUAL)
    fused = torch.cat([component.tensor(name).float() for name in names])
    expected = x @ fused.T + (x @ down.T) @ up.T * 8 / RANK
    source = LoraSource(component, [LoraRequest(path)])
    actual = torch.cat([x @ source.tensor(name).T for name in names], dim=1)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def under(module):
    return module.replace(".", "_")


@pytest.mark.parametrize("alpha", [None, 2])
@pytest.mark.parametrize(
    ("modules", "spell", "down", "up"),
    [
        pytest.param(GENMO, "diffusion_model.{}.", "lora_A.weight", "lora_B.weight", id="comfyui"),
        pytest.param(GENMO, "diffusion_model.{}.", "lora_down.weight", "lora_up.weight", id="comfyui-down-up"),
        pytest.param(GENMO, "model.diffusion_model.{}.", "lora_down.weight", "lora_up.weight", id="comfyui-model"),
        pytest.param(GENMO, "{}.", "lora_A", "lora_B", id="genmo-without-metadata"),
        pytest.param(GENMO, "lora_unet_{_}.", "lora_down.weight", "lora_up.weight", id="kohya"),
        pytest.param(GENMO, "transformer.{}.", "lora_A.weight", "lora_B.weight", id="diffusion-pipe"),
        pytest.param(GENMO, "base_model.model.{}.", "lora_A.weight", "lora_B.weight", id="peft-on-genmo"),
        pytest.param(DIFFUSERS, "{}.", "lora_A.weight", "lora_B.weight", id="peft-bare"),
        pytest.param(DIFFUSERS, "transformer.{}.", "lora_A.weight", "lora_B.weight", id="diffusers"),
        pytest.param(DIFFUSERS, "transformer.{}.", "lora.down.weight", "lora.up.weight", id="diffusers-old"),
        pytest.param(
            DIFFUSERS, "transformer.{}.", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight", id="linear"
        ),
        pytest.param(DIFFUSERS, "transformer.{}.", "lora_A.mine.weight", "lora_B.mine.weight", id="adapter-name"),
        pytest.param(DIFFUSERS, "base_model.model.{}.", "lora_A.weight", "lora_B.weight", id="peft"),
        pytest.param(DIFFUSERS, "base_model.model.transformer.{}.", "lora_A.weight", "lora_B.weight", id="peft-deep"),
        pytest.param(DIFFUSERS, "lora_unet_{_}.", "lora_down.weight", "lora_up.weight", id="musubi-tuner"),
        pytest.param(DIFFUSERS, "lora_transformer_{_}.", "lora_down.weight", "lora_up.weight", id="onetrainer"),
        pytest.param(DIFFUSERS, "transformer$${$}.", "lora_down.weight", "lora_up.weight", id="ai-toolkit-old"),
        pytest.param(DIFFUSERS, "diffusion_model.{}.", "lora_A.weight", "lora_B.weight", id="ai-toolkit"),
    ],
)
def test_every_naming_form(component, tmp_path, modules, spell, down, up, alpha):
    def name(module):
        whole = module if modules is GENMO else f"transformer_blocks.{module}"
        return spell.replace("{_}", under(whole)).replace("{$}", whole.replace(".", "$$")).replace("{}", whole)

    tensors, deltas = named(modules, name, down, up, alpha)
    save_file(tensors, tmp_path / "lora.safetensors")
    source = check(component, [LoraRequest(tmp_path / "lora.safetensors", 0.75)], [(deltas, 0.75)])
    assumed = alpha is None and (spell.startswith("base_model") or down == "lora_A")
    assert bool(source.notes) == assumed
    assert all("states no alpha" in note for note in source.notes)


def test_processors_of_older_diffusers(component, tmp_path):
    modules = {name: DIFFUSERS[name] for name in ("1.attn1.to_k", "2.attn1.to_out.0")}

    def name(module):
        return f"transformer.transformer_blocks.{module.replace('attn1.', 'attn1.processor.').removesuffix('.0')}_lora."

    tensors, deltas = named(modules, name, "down.weight", "up.weight")
    save_file(tensors, tmp_path / "lora.safetensors")
    check(component, [LoraRequest(tmp_path / "lora.safetensors")], [(deltas, 1)])


@pytest.mark.parametrize("form", ["diffusers", "genmo"])
def test_a_convolution_and_the_swapped_halves(component, tmp_path, form):
    """The patch embedding is a convolution; SwiGLU's halves lie the other way round in Genmo's form."""
    embedding = component.shape("patch_embed.proj.weight")
    inner = component.shape("transformer_blocks.0.ff.net.0.proj.weight")[0]
    names = {
        "diffusers": ("transformer.patch_embed.proj", "transformer.transformer_blocks.0.ff.net.0.proj"),
        "genmo": ("diffusion_model.x_embedder.proj", "diffusion_model.blocks.0.mlp_x.w1"),
    }[form]
    down, up = pair(embedding[0], prod(embedding[1:]), seed=5)
    a, b = pair(inner, VISUAL, seed=7)
    tensors = {
        f"{names[0]}.lora_down.weight": down.view(RANK, *embedding[1:]).contiguous(),
        f"{names[0]}.lora_up.weight": up[:, :, None, None].contiguous(),
        f"{names[1]}.lora_down.weight": a,
        f"{names[1]}.lora_up.weight": b,
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    change = b @ a
    deltas = {
        "patch_embed.proj.weight": (up @ down).view(embedding),
        "transformer_blocks.0.ff.net.0.proj.weight": change if form == "diffusers" else change.roll(inner // 2, 0),
    }
    check(component, [LoraRequest(tmp_path / "lora.safetensors")], [(deltas, 1)])


def test_diffusers_metadata_gives_alpha(component, tmp_path):
    settings = {"transformer.r": RANK, "transformer.lora_alpha": 12, "transformer.alpha_pattern": {"ff.net.2": 2}}
    path, deltas = peft_file(
        tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings), "format": "pt"}
    )
    deltas = {name: delta * (2 if "ff.net" in name else 12) / RANK for name, delta in deltas.items()}
    check(component, [LoraRequest(path)], [(deltas, 1)])


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"lora_alpha": 16}, id="alpha"),
        pytest.param({"lora_alpha": 6, "use_rslora": True}, id="rslora"),
        pytest.param({"rank_pattern": {"ff.net.2": 2}, "alpha_pattern": {"to_k": 3}}, id="patterns"),
        pytest.param({"alpha_pattern": {r"blocks\.\d+\.attn1\.to_[kv]": 3, "attn1.to_k": 5}}, id="first-wins"),
        pytest.param({"alpha_pattern": {r".*\.(to_k|add_q_proj)": 3, "^to_k": 9}}, id="alternatives"),
        pytest.param(
            {"alpha_pattern": {"^transformer_blocks.1.attn1.to_k": 3, "o_k": 7}, "use_rslora": True}, id="anchor"
        ),
    ],
)
@pytest.mark.parametrize("give", ["folder", "file", "diffusers"])
def test_peft_itself_merges_the_same(component, tmp_path, settings, give):
    from diffusers import MochiTransformer3DModel
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    targets = ["to_k", "add_q_proj", "ff.net.2", "to_out.0"]
    config = LoraConfig(**{"r": RANK, "target_modules": targets, "init_lora_weights": False} | settings)

    def model():
        return MochiTransformer3DModel.from_pretrained(component.directory, dtype=torch.float32)

    adapted = get_peft_model(model(), config)
    adapted.save_pretrained(tmp_path)
    if give == "diffusers":
        from peft.utils import get_peft_model_state_dict

        metadata = {f"transformer.{name}": value for name, value in config.to_dict().items()}
        metadata |= {f"transformer.{n}": sorted(v) for n, v in config.to_dict().items() if isinstance(v, set)}
        state = {n.replace("base_model.model", "transformer"): t for n, t in get_peft_model_state_dict(adapted).items()}
        given = tmp_path / "pytorch_lora_weights.safetensors"
        save_file(
            {n: t.contiguous() for n, t in state.items()},
            given,
            {"lora_adapter_metadata": json.dumps(metadata, default=str)},
        )
    else:
        given = tmp_path if give == "folder" else tmp_path / "adapter_model.safetensors"
    expected = PeftModel.from_pretrained(model(), tmp_path).merge_and_unload().state_dict()
    source = LoraSource(component, [LoraRequest.of(given)])
    assert source.notes == []
    assert len(source.changed()) >= 4 * LAYERS - 1
    for name in component:
        torch.testing.assert_close(source.tensor(name).float(), expected[name], atol=2e-6, rtol=1e-5)
    assert not torch.equal(source.tensor("transformer_blocks.1.attn1.to_k.weight"), component.tensor(name))


def test_absent_settings_are_pefts_defaults():
    from dataclasses import MISSING, fields

    from peft import LoraConfig

    from weight_cache.checkpoints import lora_scale

    defaults = {f.name: f.default for f in fields(LoraConfig)}
    assert (defaults["r"], defaults["lora_alpha"]) == (lora_scale.DEFAULT_RANK, lora_scale.DEFAULT_ALPHA)
    assert defaults["use_rslora"] is False
    # A configuration of defaults is a plain LoRA, whatever is in it.
    plain = {k: v for k, v in LoraConfig().to_dict().items() if v is not MISSING}
    settings = lora_scale.PeftSettings.read(json.loads(json.dumps(plain, default=str)), "here", "")
    assert settings.scale("x", 8) == 1


@pytest.mark.parametrize(
    "key", ["a", "a.b", "b", "^a.b", "a.b$", r"a\.b", r"x\.\d+\.b", ".*b", "[ac]+.b", "(a|c).b", "c|b"]
)
def test_patterns_fit_what_pefts_own_rule_fits(key):
    from peft.utils.other import get_pattern_key

    from weight_cache.checkpoints.patterns import Patterns

    patterns = Patterns.read({key: 1}, "here", lambda name, value: value)
    for name in (
        "a",
        "b",
        "a.b",
        "axb",
        "x.a.b",
        "xa.b",
        "x.0.b",
        "x.10.b",
        "x.y.b",
        "c.b",
        "ac.b",
        "x.ca.b",
        "c",
        "a.b.c",
    ):
        assert patterns.first(name, 0) == (get_pattern_key([key], name) != name or key == name), name


def test_several_are_added_up(component, tmp_path):
    first, one = genmo_file(tmp_path / "one.safetensors")
    second, two = peft_file(tmp_path / "two.safetensors")
    requests = [LoraRequest(first, 0.5), LoraRequest(second, 2.0), LoraRequest(first, 0.25)]
    check(component, requests, [(one, 0.5), (two, 2.0), (one, 0.25)])


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
@pytest.mark.parametrize("precision", ["bf16", pytest.param("bf8", marks=pytest.mark.full)])
def test_strengths_share_one_entry(mesh, component, tmp_path, precision):
    """What is loaded is what a conversion of merged weights gives, and no strength is written to the disk."""
    from weight_cache.precision import set_precision

    path, _ = genmo_file(tmp_path / "lora.safetensors")
    store = tmp_path / "store"
    plain, _ = from_store(mesh, component, store, precision=precision)
    files = {p: p.stat().st_mtime_ns for p in store.rglob("*.tensorbin")}
    merged, _ = from_store(mesh, component, store, precision=precision, loras=[LoraRequest(path)])
    weaker, _ = from_store(mesh, component, store, precision=precision, loras=[LoraRequest(path, 0.25)])
    none, _ = from_store(mesh, component, store, precision=precision, loras=[LoraRequest(path, 0.0)])
    assert len(Store(store).entries()) == 1
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*.tensorbin")} == files
    assert_same(plain, in_memory(mesh, component, precision))
    assert_same(none, plain)
    for loaded, strength in ((merged, 1.0), (weaker, 0.25)):
        direct = declared(mesh, component)
        set_precision(direct, precision)
        direct.load(LoraSource(component, [LoraRequest(path, strength)]))
        assert_same(loaded, direct)
    changed = {
        name for name, parts in shards(merged).items() if not torch.equal(parts[0][1], shards(plain)[name][0][1])
    }
    assert changed
    assert all("attention.to_" in name or "attention.add_" in name for name in changed)


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_a_checkpoint_that_changes_while_it_is_merged(mesh, small_checkpoint, tmp_path, monkeypatch):
    import shutil

    from weight_cache.merge import Merge

    path, _ = genmo_file(tmp_path / "lora.safetensors")
    copy = Component(shutil.copytree(small_checkpoint / "transformer", tmp_path / "transformer"))
    put = Merge.put

    def replaced(self, prefix, parameter):
        copy.files[0].touch()
        put(self, prefix, parameter)

    monkeypatch.setattr(Merge, "put", replaced)
    with pytest.raises(InputError, match="changed while it was in use"):
        from_store(mesh, copy, tmp_path / "store", loras=[LoraRequest(path)])


def rename(old, new):
    def change(tensors):
        tensors[new.replace("__", ".")] = tensors.pop(old.replace("__", "."))

    return change


def add(**tensors):
    return lambda held: held.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})


def settings(**values):
    return {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in ({"r": RANK} | values).items()})}


K = "transformer__transformer_blocks__1__attn1__to_k__"
ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: genmo_file(p, lambda t: t.pop("blocks.0.attn.qkv_x.lora_B")), "only one of lora_A and lora_B"),
        (
            lambda p: genmo_file(p, lambda t: t.update({"blocks.0.attn.qkv_x.lora_A": torch.ones(5, VISUAL)})),
            r"lora_A \[5, 256\] and lora_B \[768, 4\] .* differ in rank",
        ),
        (
            lambda p: genmo_file(
                p,
                lambda t: t.update(
                    {
                        "blocks.0.attn.qkv_x.lora_A": torch.ones(5, VISUAL),
                        "blocks.0.attn.qkv_x.lora_B": torch.ones(3 * VISUAL, 5),
                    }
                ),
            ),
            "has rank 5, its metadata says 4",
        ),
        (
            lambda p: genmo_file(p, rename("blocks.3.attn.proj_x.lora_A", "blocks.9.attn.proj_x.lora_A")),
            "changes blocks.9",
        ),
        (
            lambda p: genmo_file(p, lambda t: t.update({"blocks.0.attn.proj_x.lora_A": torch.ones(RANK, 100)})),
            "another model",
        ),
        (lambda p: genmo_file(p, metadata={"kwargs": "["}), "JSON of a LoRA's settings"),
        (lambda p: genmo_file(p, metadata={"kwargs": "[" * 100000}), "JSON of a LoRA's settings"),
        (lambda p: genmo_file(p, metadata={"kwargs": "{}"}), "its metadata says null"),
        (lambda p: genmo_file(p, lambda t: t.update(other=ONE)), "holds other, which is neither"),
        (lambda p: peft_file(p, "transformer.unknown."), "which this model lacks"),
        (lambda p: peft_file(p, change=add(transformer__proj_out__alpha=ONE)), "alpha for transformer.proj_out"),
        (lambda p: peft_file(p, metadata=settings(lora_alpha="many")), "lora_alpha 'many' must be a number"),
        (lambda p: peft_file(p, metadata=settings(lora_alpha=10**400)), "lora_alpha"),
        (lambda p: peft_file(p, metadata=settings(lora_alpha=float("inf"))), "lora_alpha|JSON"),
        (lambda p: peft_file(p, metadata=settings(lora_alpha=[1])), "lora_alpha"),
        (lambda p: peft_file(p, metadata=settings(r=0)), "r 0 must be from 1"),
        (lambda p: peft_file(p, metadata=settings(r="x")), "r 'x' must be a whole number"),
        (lambda p: peft_file(p, metadata=settings(r=5)), "says rank 5 .* have rank 4"),
        (lambda p: peft_file(p, metadata=settings(rank_pattern=["to_k"])), "rank_pattern is a list"),
        (lambda p: peft_file(p, metadata=settings(alpha_pattern="to_k")), "alpha_pattern is a str"),
        (lambda p: peft_file(p, metadata=settings(alpha_pattern={"to_k": None})), "alpha_pattern: to_k None must be"),
        (lambda p: peft_file(p, metadata=settings(alpha_pattern={"([a-z0-9_.]+)+!": 1})), "regular expression"),
        (lambda p: peft_file(p, metadata=settings(alpha_pattern={"(a*)*b": 1})), "regular expression"),
        (lambda p: peft_file(p, metadata=settings(alpha_pattern={"(a|b)" * 60: 1})), "regular expression"),
        (lambda p: peft_file(p, metadata=settings(use_dora=True)), "DoRA"),
        (lambda p: peft_file(p, metadata=settings(peft_type="LOKR")), "adapter of type 'LOKR'"),
        (lambda p: peft_file(p, metadata=settings(bias="all")), "biases"),
        (lambda p: peft_file(p, metadata=settings(modules_to_save=["proj_out"])), "modules_to_save"),
        (lambda p: peft_file(p, metadata=settings(init_lora_weights="pissa")), "pissa.* changes the base model"),
        (lambda p: peft_file(p, metadata=settings(layer_replication=[[0, 4]])), "layer_replication"),
        (lambda p: peft_file(p, metadata=settings(use_rslora="yes")), "use_rslora"),
        (
            lambda p: peft_file(p, metadata=settings(lora_alpha=4), alpha=2),
            "says alpha/rank 0.5 .* lora_adapter_metadata .* 1:",
        ),
        (lambda p: peft_file(p, alpha=float("nan")), "not finite"),
        (lambda p: peft_file(p, alpha=0), "alpha is 0"),
        (lambda p: peft_file(p, alpha=3e38, change=lambda t: [v.mul_(99) for v in t.values() if v.ndim]), "not finite"),
        (lambda p: peft_file(p, change=add(**{f"{K}alpha": torch.ones(2)})), r"shape \[2\], but must be one number"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_A__weight": torch.full((4, 256), torch.nan)})), "not finite"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_A__weight": torch.ones(0, 256)})), "rank 1 or more"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_A__weight": torch.ones(256)})), "must be a matrix"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_A__weight": torch.ones(())})), "must be a matrix"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_A__weight": torch.ones(4, 256).int()})), "of type I32"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_magnitude_vector": ONE})), "is a DoRA"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_magnitude_vector__weight": ONE})), "is a DoRA"),
        (lambda p: peft_file(p, change=add(**{f"{K}dora_scale": ONE})), "is a DoRA"),
        (lambda p: peft_file(p, change=add(**{f"{K}hada_w1_a": ONE})), "is a LoHa"),
        (lambda p: peft_file(p, change=add(**{f"{K}lokr_w1": ONE})), "is a LoKr"),
        (lambda p: peft_file(p, change=add(**{f"{K}oft_R__weight": ONE})), "is a OFT"),
        (lambda p: peft_file(p, change=add(**{f"{K}oft_blocks": ONE})), "is a OFT"),
        (lambda p: peft_file(p, change=add(**{f"{K}ia3_l": ONE})), "is a IA3"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_mid__weight": ONE})), "lora_mid"),
        (lambda p: peft_file(p, change=add(**{f"{K}diff": ONE})), "whole differences"),
        (lambda p: peft_file(p, change=add(**{f"{K}diff_b": ONE})), "whole differences"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_B__bias": ONE})), "LoRA with biases"),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_B__default__bias": ONE})), "LoRA with biases"),
        (lambda p: peft_file(p, change=add(transformer__proj_out__weight=ONE)), "modules_to_save"),
        (lambda p: peft_file(p, change=add(text_encoder__x__lora_A__weight=ONE)), "LoRA of a text encoder"),
        (lambda p: peft_file(p, change=add(lora_te1_x__lora_down__weight=ONE)), "LoRA of a text encoder"),
        (
            lambda p: peft_file(p, change=add(lora_unet_down_blocks_0_to_k__lora_down__weight=ONE)),
            "changes lora_unet_down_blocks_0_to_k, which this model lacks",
        ),
        (lambda p: peft_file(p, change=add(**{f"{K}lora_A__second__weight": torch.ones(4, 256)})), "several LoRAs"),
        (
            lambda p: peft_file(p, change=rename(f"{K}lora_B__weight", f"{K}lora_B__other__weight")),
            "matrices of 'other' and of '' .* several LoRAs",
        ),
        (
            lambda p: peft_file(
                p,
                change=lambda t: t.update(
                    {n.replace("A.w", "A.a.w").replace("B.w", "B.b.w"): t.pop(n) for n in list(t) if "to_k" in n}
                ),
            ),
            "several LoRAs",
        ),
        (
            lambda p: peft_file(p, change=rename(f"{K}lora_B__weight", f"{K}lora_up__weight")),
            "two matrices of .* in different spellings",
        ),
        (
            lambda p: genmo_file(
                p, metadata={"kwargs": json.dumps(KWARGS), "lora_adapter_metadata": json.dumps({"r": 4})}
            ),
            "lora_adapter_metadata .* says alpha/rank 2 for .* kwargs .* says 0.5",
        ),
        (lambda p: peft_file(p, change=add(**{f"diffusion_model__{K}lora_A__weight": torch.ones(4, 256)})), "twice"),
        (lambda p: peft_file(p, change=add(**{"x" * 100000 + "__lora_A__weight": ONE})), "neither a lora_A"),
        (lambda p: peft_file(p, change=dict.clear), "it is not a LoRA"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(component, tmp_path, make, message):
    path, _ = make(tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        LoraSource(component, [LoraRequest(path)]).tensor("transformer_blocks.1.attn1.to_k.weight")
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_the_store_is_unharmed_by_a_bad_one(mesh, component, tmp_path):
    path, _ = peft_file(tmp_path / "lora.safetensors", "transformer.unknown.")
    with pytest.raises(ValueError, match="another model"):
        from_store(mesh, component, tmp_path / "store", loras=[LoraRequest(path)])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON of a LoRA's settings"),
        ("5", "not an object"),
        ('{"peft_type": "IA3"}', "adapter of type 'IA3'"),
        ('{"r": 4, "lora_alpha": {}}', "lora_alpha"),
        ('{"r": 4, "alpha_pattern": 5}', "alpha_pattern is a int"),
        ("[" * 100000, "JSON of a LoRA's settings"),
        ("\udcff", "JSON of a LoRA's settings"),
    ],
)
def test_a_bad_adapter_config_is_named(component, tmp_path, content, message):
    peft_file(tmp_path / "adapter_model.safetensors", "base_model.model.")
    (tmp_path / "adapter_config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        LoraSource(component, [LoraRequest.of(tmp_path)])
    assert "adapter_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def adapter(folder, name, content='{"r": 4, "lora_alpha": 16}', prefix="base_model.model."):
    """A LoRA without an alpha of its own, beside PEFT's settings."""
    path, deltas = peft_file(folder / name, prefix)
    (folder / "adapter_config.json").write_text(content)
    return path, deltas


@pytest.mark.parametrize("prefix", ["base_model.model.", "transformer.", ""])
@pytest.mark.parametrize("name", ["my.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.safetensors"])
def test_settings_beside_a_file_of_any_name_are_read(component, tmp_path, name, prefix):
    path, deltas = adapter(tmp_path, name, prefix=prefix)
    check(component, [LoraRequest(path)], [(deltas, 4.0)])
    link = tmp_path / "elsewhere" / "x.safetensors"
    link.parent.mkdir()
    link.symlink_to(path)
    check(component, [LoraRequest(link)], [(deltas, 4.0)])


def test_settings_that_may_be_anothers_are_not_guessed_at(component, tmp_path):
    path, _ = adapter(tmp_path, "my.safetensors")
    peft_file(tmp_path / "adapter_model.safetensors", "base_model.model.")
    with pytest.raises(InputError, match=r"states no alpha, and .*adapter_config\.json may be of another"):
        LoraSource(component, [LoraRequest(path)])
    # One that says its scale itself does not need them.
    stated, deltas = peft_file(tmp_path / "own.safetensors", alpha=2)
    check(component, [LoraRequest(stated)], [(deltas, 1.0)])
    stated, deltas = peft_file(tmp_path / "own.safetensors", metadata=settings(lora_alpha=8))
    check(component, [LoraRequest(stated)], [(deltas, 2.0)])


@pytest.mark.parametrize("name", ["my.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
        (lambda path: path.mkdir(), "cannot be read"),
        (os.mkfifo, "is no plain file"),
        (lambda path: (path.touch(), os.truncate(path, 3 << 30)), "has more than 17 MB"),
    ],
    ids=["dangling", "folder", "pipe", "huge"],
)
def test_settings_that_cannot_be_read_are_not_called_absent(component, tmp_path, name, make, message):
    path, _ = peft_file(tmp_path / name, "base_model.model.")
    make(tmp_path / "adapter_config.json")
    with pytest.raises(InputError, match=f"adapter_config.json {message}"):
        LoraSource(component, [LoraRequest(path)])


def test_settings_that_contradict_each_other_are_refused(component, tmp_path):
    path, _ = peft_file(tmp_path / "my.safetensors", alpha=2)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 16}')
    with pytest.raises(InputError, match=r"alpha says alpha/rank 0\.5 for .*, .*adapter_config\.json says 4"):
        LoraSource(component, [LoraRequest(path)])


def test_rank_stabilised_scale(component, tmp_path):
    path, deltas = peft_file(tmp_path / "lora.safetensors", metadata=settings(lora_alpha=3, use_rslora=True))
    check(component, [LoraRequest(path)], [(deltas, 3 / sqrt(RANK))])


def test_a_request_is_a_file_and_a_strength(tmp_path):
    path = tmp_path / "a:b.safetensors"
    path.touch()
    assert LoraRequest.parse(str(path)) == LoraRequest(path, 1.0)
    assert LoraRequest.parse(f"{path}:-0.5") == LoraRequest(path, -0.5)
    assert LoraRequest.parse(str(LoraRequest(path, 0.25))) == LoraRequest(path, 0.25)
    pickle = tmp_path / "x.bin"
    pickle.touch()
    for text, error, message in [
        (f"{path}:much", ValueError, "strength 'much' must be a number"),
        *[
            (f"{path}:{text}", ValueError, "must be a number such as 0.8")
            for text in ("1_0", "\u0663", "0x1", "\uff11", "")
        ],
        (f"{path}:nan", ValueError, "finite"),
        (f"{path}:1e999", ValueError, "finite"),
        (str(tmp_path / "nothing"), FileNotFoundError, "no LoRA file"),
        (str(tmp_path), FileNotFoundError, "no LoRA file"),
        (str(pickle), ValueError, "pickle"),
    ]:
        with pytest.raises(error, match=message):
            LoraRequest.parse(text)


def test_what_python_callers_give(tmp_path):
    path = tmp_path / "a.safetensors"
    path.touch()
    one = (LoraRequest(path, 1.0),)
    half = (LoraRequest(path, 0.5),)
    assert LoraRequest.all_of(str(path)) == LoraRequest.all_of([path]) == LoraRequest.all_of(path) == one
    assert LoraRequest.all_of((str(path), 0.5)) == LoraRequest.all_of([(path, torch.tensor(0.5))]) == half
    assert LoraRequest.all_of([f"{path}:0.5", LoraRequest(path)]) == half + one
    assert LoraRequest.all_of((path, path)) == one + one
    assert LoraRequest.all_of(()) == ()
    for bad, message in [
        (5, "must be a list"),
        (None, "must be a list"),
        ([5], "must be a path"),
        ([(path, "x", 1)], "must be a path"),
        ([(path, float("nan"))], "finite"),
        ([(path, True)], "must be a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            LoraRequest.all_of(bad)
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors"):
        (folder / name).touch()
        if name.startswith("adapter"):
            assert LoraRequest.of(folder) == LoraRequest(folder / name)
    with pytest.raises(ValueError, match="name one of them"):
        LoraRequest.of(folder)


def test_a_bad_lora_fails_before_the_mesh_opens(small_checkpoint, tmp_path, monkeypatch):
    from models.mochi import pipeline

    monkeypatch.setattr(pipeline, "open_mesh", lambda *a, **k: pytest.fail("the mesh was opened"), raising=False)
    path, _ = peft_file(tmp_path / "lora.safetensors", "transformer.unknown.")
    (tmp_path / "log.txt").write_text("nothing of the kind")
    for lora, message in [
        (str(path), "another model"),
        ((path, 0.5), "another model"),
        (tmp_path / "log.txt", "log.txt"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipeline.MochiPipeline.from_pretrained(small_checkpoint, mesh="1x1", mode="golden", loras=[lora])
