"""LoRAs: merged as their authors' own programs merge them, and refused where they do not fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

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
LAYERS, VISUAL, TEXT = 4, 256, 128


@pytest.fixture(scope="module")
def component(small_checkpoint):
    return Component(small_checkpoint / "transformer")


def pair(out, wide, seed, rank=RANK):
    return randn(rank, wide, seed=seed) / 8, randn(out, rank, seed=seed + 1) / 8


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
    """A LoRA as Diffusers writes it, on attention and feed-forward of block 1; alpha may stand beside it."""
    tensors, deltas = {}, {}
    base = "transformer_blocks.1."
    for index, (module, out, wide) in enumerate(
        [("attn1.to_k", VISUAL, VISUAL), ("attn1.add_q_proj", VISUAL, TEXT), ("ff.net.2", VISUAL, 682)]
    ):
        down, up = pair(out, wide, seed=1000 + 10 * index)
        tensors[f"{prefix}{base}{module}.lora_A.weight"] = down
        tensors[f"{prefix}{base}{module}.lora_B.weight"] = up
        if alpha is not None:
            tensors[f"{prefix}{base}{module}.alpha"] = torch.tensor(float(alpha))
        deltas[f"{base}{module}.weight"] = up @ down * (1 if alpha is None else alpha / RANK)
    if change is not None:
        change(tensors)
    save_file(tensors, path, metadata)
    return path, deltas


def check(component, requests, deltas):
    """Every tensor is its stored value plus the sum of what is expected."""
    source = LoraSource(component, requests, LAYERS)
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


def test_genmos_form(component, tmp_path):
    path, deltas = genmo_file(tmp_path / "lora.safetensors")
    check(component, [LoraRequest(path)], [(deltas, 1)])
    check(component, [LoraRequest(path, -0.5)], [(deltas, -0.5)])


def test_genmos_own_layer_says_the_same(component, tmp_path):
    """`LoraLinear` of genmoai/mochi: `W x + (x A^T) B^T * alpha / r`."""
    path, _ = genmo_file(tmp_path / "lora.safetensors")
    from safetensors.torch import load_file

    lora = load_file(path)
    down, up = lora["blocks.2.attn.qkv_x.lora_A"], lora["blocks.2.attn.qkv_x.lora_B"]
    names = [f"transformer_blocks.2.attn1.to_{part}.weight" for part in "qkv"]
    x = randn(3, VISUAL)
    fused = torch.cat([component.tensor(name).float() for name in names])
    expected = x @ fused.T + (x @ down.T) @ up.T * 8 / RANK
    source = LoraSource(component, [LoraRequest(path)], LAYERS)
    actual = torch.cat([x @ source.tensor(name).T for name in names], dim=1)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", ""])
@pytest.mark.parametrize("alpha", [None, 2])
def test_diffusers_form(component, tmp_path, prefix, alpha):
    path, deltas = peft_file(tmp_path / "lora.safetensors", prefix, alpha if prefix == "transformer." else None)
    check(component, [LoraRequest(path, 0.75)], [(deltas, 0.75)])


def test_diffusers_metadata_gives_alpha(component, tmp_path):
    settings = {"transformer.r": RANK, "transformer.lora_alpha": 12, "transformer.alpha_pattern": {"ff.net.2": 2}}
    path, deltas = peft_file(
        tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings), "format": "pt"}
    )
    deltas = {name: delta * (2 if "ff.net" in name else 12) / RANK for name, delta in deltas.items()}
    check(component, [LoraRequest(path)], [(deltas, 1)])


def test_several_are_added_up(component, tmp_path):
    first, one = genmo_file(tmp_path / "one.safetensors")
    second, two = peft_file(tmp_path / "two.safetensors")
    requests = [LoraRequest(first, 0.5), LoraRequest(second, 2.0), LoraRequest(first, 0.25)]
    check(component, requests, [(one, 0.5), (two, 2.0), (one, 0.25)])


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
@pytest.mark.parametrize("precision", ["bf16", "bf8"])
def test_a_merged_set_is_an_entry_of_its_own(mesh, component, tmp_path, precision):
    path, _ = genmo_file(tmp_path / "lora.safetensors")
    plain, _ = from_store(mesh, component, tmp_path, precision=precision)
    merged, _ = from_store(mesh, component, tmp_path, precision=precision, loras=[LoraRequest(path)])
    names = {entry.name for entry in Store(tmp_path).entries()}
    assert len(names) == 2
    assert sorted(e.about["loras"] for e in Store(tmp_path).entries()) == [[], ["lora.safetensors:1"]]
    assert_same(plain, in_memory(mesh, component, precision))

    from weight_cache.precision import set_precision

    direct = declared(mesh, component)
    set_precision(direct, precision)
    direct.load(LoraSource(component, [LoraRequest(path)], LAYERS))
    assert_same(merged, direct)
    changed = {
        name for name, parts in shards(merged).items() if not torch.equal(parts[0][1], shards(plain)[name][0][1])
    }
    assert changed
    assert all("attention.to_" in name or "attention.add_" in name for name in changed)


def rename(old, new):
    def change(tensors):
        tensors[new] = tensors.pop(old)

    return change


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
            "lora_A and lora_B for blocks|changes blocks.9",
        ),
        (
            lambda p: genmo_file(p, lambda t: t.update({"blocks.0.attn.proj_x.lora_A": torch.ones(RANK, 100)})),
            "another model",
        ),
        (lambda p: genmo_file(p, metadata={"kwargs": "["}), "not the JSON of a LoRA's settings"),
        (lambda p: genmo_file(p, metadata={"kwargs": "{}"}), "its metadata says None"),
        (lambda p: genmo_file(p, lambda t: t.update(other=torch.ones(1))), "holds other, which is neither"),
        (lambda p: peft_file(p, "transformer.unknown."), "which this model lacks"),
        (lambda p: peft_file(p, change=lambda t: t.update({"transformer.x.alpha": torch.ones(())})), "alpha for x"),
        (
            lambda p: peft_file(p, metadata={"lora_adapter_metadata": '{"transformer.lora_alpha": "many"}'}),
            "alpha 'many' is not a number",
        ),
        (lambda p: peft_file(p, metadata={"lora_adapter_metadata": '{"transformer.use_dora": true}'}), "DoRA"),
        (lambda p: peft_file(p, change=dict.clear), "it is not a LoRA"),
    ],
)
@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_what_does_not_fit_is_refused_and_the_store_unharmed(mesh, component, tmp_path, make, message):
    path, _ = make(tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=message):
        from_store(mesh, component, tmp_path / "store", loras=[LoraRequest(path)])
    assert not (tmp_path / "store").exists()


def test_a_request_is_a_file_and_a_strength(tmp_path):
    path = tmp_path / "a:b.safetensors"
    path.touch()
    assert LoraRequest.parse(str(path)) == LoraRequest(path, 1.0)
    assert LoraRequest.parse(f"{path}:-0.5") == LoraRequest(path, -0.5)
    for text, error, message in [
        (f"{path}:much", ValueError, "'much' is no strength"),
        (f"{path}:nan", ValueError, "finite"),
        (str(tmp_path / "nothing"), FileNotFoundError, "no LoRA file"),
        (str(tmp_path), FileNotFoundError, "no LoRA file"),
    ]:
        with pytest.raises(error, match=message):
            LoraRequest.parse(text)
