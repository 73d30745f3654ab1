"""Genmo's and ComfyUI's files against Diffusers' of the same weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from models.machine.errors import InputError
from tests.support import randn, reference
from tests.weight_cache.checkpoints.genmo import decoder_to_genmo, transformer_to_genmo
from tests.weight_cache.helpers import assert_same, declared, from_store, in_memory
from weight_cache.checkpoints.checkpoint import Checkpoint, Repackaged
from weight_cache.checkpoints.forms import open_decoder, open_transformer


def state_of(component) -> dict[str, torch.Tensor]:
    return {name: component.tensor(name).clone() for name in component}


@pytest.fixture(scope="module")
def original(small_checkpoint):
    return Checkpoint(small_checkpoint)


@pytest.fixture(scope="module")
def dit(original):
    return transformer_to_genmo(state_of(original.transformer))


@pytest.fixture(scope="module")
def decoder(original):
    state = {n.removeprefix("decoder."): t for n, t in state_of(original.vae).items() if n.startswith("decoder.")}
    return decoder_to_genmo(state)


@pytest.fixture
def genmo(tmp_path, dit, decoder):
    """A directory in Genmo's layout."""
    folder = tmp_path / "genmo"
    folder.mkdir()
    save_file(dit, folder / "dit.safetensors")
    save_file(decoder, folder / "decoder.safetensors")
    return folder


def quantised(state, scale_name, marker=True, vectors=False):
    """ComfyUI's fp8 form, and the values it stands for."""
    stored, meant = {}, {}
    for name, tensor in state.items():
        if tensor.ndim != 2:
            stored[name] = meant[name] = tensor
            continue
        scale = tensor.float().abs().amax(dim=1 if vectors else None) / 448
        wide = scale[:, None] if vectors else scale
        stored[name] = (tensor.float() / wide).to(torch.float8_e4m3fn)
        stored[f"{name.removesuffix('.weight')}.{scale_name}"] = scale
        stored[f"{name.removesuffix('.weight')}.{'scale_input' if 'scale_w' in scale_name else 'input_scale'}"] = (
            torch.ones(1)
        )
        meant[name] = stored[name].float() * wide
    if marker:
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return stored, meant


def test_genmo_files_give_diffusers_tensors(genmo, original):
    component = open_transformer(genmo / "dit.safetensors")
    component.check()
    assert component.keys() == original.transformer.keys()
    for name in original.transformer:
        assert component.shape(name) == original.transformer.shape(name), name
        assert torch.equal(component.tensor(name), original.transformer.tensor(name)), name
        assert component.dtype(name) == original.transformer.dtype(name)
    for setting, value in original.transformer.config.items():
        if setting in component.config and not setting.startswith("_"):
            assert component.config[setting] == value, setting
    with pytest.raises(KeyError, match="no tensor blocks"):
        component.tensor("blocks.0.mod_x.weight")


def test_the_arrangement_is_that_of_genmos_modules():
    """Genmo's feed-forward and final layer, written down from its source, against Diffusers' on mapped weights."""
    model = reference(
        num_attention_heads=8, attention_head_dim=8, num_layers=2, pooled_projection_dim=32, text_embed_dim=32
    )
    weights = transformer_to_genmo(model.state_dict())
    x = randn(3, 5, 64)
    first, second = F.linear(x, weights["blocks.0.mlp_x.w1.weight"]).chunk(2, dim=-1)
    expected = F.linear(F.silu(first) * second, weights["blocks.0.mlp_x.w2.weight"])
    torch.testing.assert_close(model.transformer_blocks[0].ff(x), expected)
    conditioning = randn(3, 64, seed=1)
    modulation = F.linear(F.silu(conditioning), weights["final_layer.mod.weight"], weights["final_layer.mod.bias"])
    shift, scale = modulation.chunk(2, dim=1)
    expected = F.layer_norm(x, (64,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(model.norm_out(x, conditioning), expected)


def test_diffusers_own_converter_agrees(tmp_path):
    """Its converter is written for 48 blocks."""
    from diffusers.loaders.single_file_utils import convert_mochi_transformer_checkpoint_to_diffusers

    model = reference(
        num_attention_heads=8, attention_head_dim=2, num_layers=48, pooled_projection_dim=8, text_embed_dim=8
    )
    weights = transformer_to_genmo(model.state_dict())
    save_file(weights, tmp_path / "dit.safetensors")
    component = open_transformer(tmp_path / "dit.safetensors")
    theirs = convert_mochi_transformer_checkpoint_to_diffusers(dict(weights))
    assert component.keys() == sorted(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(component.tensor(name), tensor), name


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_outputs_on_the_mesh_are_those_of_the_diffusers_form(mesh, genmo, original, tmp_path):
    from tests.weight_cache.test_store import predict

    direct = in_memory(mesh, original.transformer)
    component = open_transformer(genmo / "dit.safetensors")
    loaded, _ = from_store(mesh, component, tmp_path / "store")
    assert_same(loaded, direct)
    assert (predict(loaded) == predict(direct)).all()


def test_a_genmo_directory_is_a_whole_checkpoint_with_its_base(genmo, small_checkpoint, original):
    from models.reference.text_encoder import HostTextEncoder
    from models.reference.vae import HostVaeDecoder

    checkpoint = Checkpoint.open(genmo, base=small_checkpoint)
    assert isinstance(checkpoint, Repackaged)
    for component in checkpoint.components:
        component.check()
    latents = randn(1, 12, 2, 4, 6)
    ours, theirs = (HostVaeDecoder.from_checkpoint(c.vae).decode(latents) for c in (checkpoint, original))
    assert (ours == theirs).all()
    encoded = (HostTextEncoder.from_checkpoint(c).encode("a red ball", 16).embeds for c in (checkpoint, original))
    assert torch.equal(*encoded)
    from models.mochi.setup import check_configs

    assert check_configs(checkpoint) == check_configs(original), "scheduler included"
    assert checkpoint.identity()["transformer"]["class"] == "MochiTransformer3DModel"
    assert checkpoint.identity() == Checkpoint.open(genmo, base=small_checkpoint).identity()


def test_each_form_follows_the_code_it_was_made_for(genmo, small_checkpoint, tmp_path):
    """Genmo's layout, and its transformer's file alone; ComfyUI's single file, wherever its decoder comes from."""
    from models.mochi.conventions import Conventions
    from models.mochi.setup import Request, resolve

    for source in (genmo, genmo / "dit.safetensors"):
        assert Conventions.of(Checkpoint.open(source, base=small_checkpoint)) == Conventions("genmo", "zeros")
    single = tmp_path / "mochi_preview_bf16.safetensors"
    shutil.copy(genmo / "dit.safetensors", single)
    assert Conventions.of(Checkpoint.open(single, base=small_checkpoint)) == Conventions("genmo", "encoded")
    setup = resolve(Request(single, base=str(small_checkpoint), mode="golden", first_frames="diffusers"))
    assert setup.conventions == Conventions("diffusers", "encoded")
    (tmp_path / "generation_defaults.json").write_text('{"empty_prompt": "zeros", "num_steps": 8}')
    assert Conventions.of(Checkpoint.open(single, base=small_checkpoint)) == Conventions("genmo", "zeros")


def test_the_configuration_of_the_decoder_is_said_in_full(genmo, original):
    """Nothing that the decoder on the mesh reads may be left to a default."""
    from models.mochi.vae.config import DecoderConfig

    config = open_decoder(genmo / "decoder.safetensors").config
    assert config["latents_mean"]
    for setting, value in config.items():
        assert original.vae.config[setting] == value, setting
    assert DecoderConfig.from_dict(config) == DecoderConfig.from_dict(original.vae.config)


def test_folders_beside_the_files_come_first(genmo, small_checkpoint):
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(small_checkpoint / name, genmo / name)
    assert Checkpoint.open(genmo).tokenizer == genmo / "tokenizer"


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_comfyui_bf16(tmp_path, dit, small_checkpoint, original, prefix):
    path = tmp_path / "mochi_preview_bf16.safetensors"
    save_file({prefix + name: tensor for name, tensor in dit.items()}, path)
    checkpoint = Checkpoint.open(path, base=small_checkpoint)
    for name in original.transformer:
        assert torch.equal(checkpoint.transformer.tensor(name), original.transformer.tensor(name)), name
    assert checkpoint.vae.keys() == original.vae.keys(), "from the base"


def test_comfyui_all_in_one(tmp_path, dit, decoder, small_checkpoint, original):
    path = tmp_path / "all.safetensors"
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in dit.items()}
    tensors |= {f"vae.decoder.{name}": tensor for name, tensor in decoder.items()}
    text = state_of(original.text_encoder)
    prefix = "text_encoders.t5xxl."
    tensors |= {f"{prefix}transformer.{name}": tensor for name, tensor in text.items()}
    tensors |= {"vae.encoder.layers.0.weight": torch.ones(1), f"{prefix}logit_scale": torch.ones(())}
    save_file(tensors, path)
    checkpoint = Checkpoint.open(path, base=small_checkpoint)
    assert checkpoint.text_encoder.files == checkpoint.vae.files == checkpoint.transformer.files == [path]
    assert checkpoint.text_encoder.keys() == original.text_encoder.keys()
    for name in text:
        assert torch.equal(checkpoint.text_encoder.tensor(name), text[name])
    assert checkpoint.vae.keys() == [name for name in original.vae if name.startswith("decoder.")]
    for name in checkpoint.vae:
        assert torch.equal(checkpoint.vae.tensor(name), original.vae.tensor(name))
    tensors["something.else"] = torch.ones(1)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"nobody claims something\.else"):
        Checkpoint.open(path, base=small_checkpoint)
    del tensors["something.else"], tensors[f"{prefix}transformer.encoder.final_layer_norm.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"not a whole text_encoder .* fills encoder\.final_layer_norm\.weight"):
        Checkpoint.open(path, base=small_checkpoint)


@pytest.fixture
def split_files(tmp_path, dit, decoder, original):
    """ComfyUI's files of each kind in its folders, with the encoder of the VAE and both precisions of T5."""
    root = tmp_path / "models"
    for folder in ("diffusion_models", "vae", "text_encoders"):
        (root / folder).mkdir(parents=True)
    save_file(dit, root / "diffusion_models" / "mochi_preview_bf16.safetensors")
    vae = {f"decoder.{name}": tensor for name, tensor in decoder.items()} | {"encoder.layers.0.weight": torch.ones(1)}
    save_file(vae, root / "vae" / "mochi_vae.safetensors")
    text = {name: tensor.half() for name, tensor in state_of(original.text_encoder).items()}
    save_file(text, root / "text_encoders" / "t5xxl_fp16.safetensors")
    fp8 = {name: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for name, t in text.items()}
    save_file(fp8, root / "text_encoders" / "t5xxl_fp8_e4m3fn.safetensors")
    return root


@pytest.mark.parametrize("give", ["file", "folder", "flat", "split_files"])
def test_comfyui_split_files_are_a_whole_checkpoint(split_files, tmp_path, small_checkpoint, original, give):
    from models.reference.text_encoder import HostTextEncoder

    source = split_files / "diffusion_models" / "mochi_preview_bf16.safetensors"
    if give == "flat":
        for path in list(split_files.glob("*/*")):
            path.rename(split_files / path.name)
        source = split_files / "mochi_preview_bf16.safetensors"
    elif give == "split_files":
        split_files.rename(tmp_path / "split_files")
        source = tmp_path
    elif give == "folder":
        source = split_files
    # Only the tokenizer, which ComfyUI has in its program, is taken from the base.
    base = tmp_path / "base"
    shutil.copytree(small_checkpoint / "tokenizer", base / "tokenizer")
    checkpoint = Checkpoint.open(source, base=base)
    assert [component.form for component in checkpoint.components] == ["genmo", "genmo", "comfyui"]
    assert checkpoint.home == "comfyui"
    assert checkpoint.text_encoder.files[0].name == "t5xxl_fp16.safetensors"
    for component in checkpoint.components:
        component.check()
    for name in checkpoint.vae:
        assert torch.equal(checkpoint.vae.tensor(name), original.vae.tensor(name))
    assert HostTextEncoder.from_checkpoint(checkpoint).encode("a red ball", 16).embeds.isfinite().all()
    from models.mochi.text.config import T5Config

    config = T5Config.from_dict(checkpoint.text_encoder.config)
    assert config == T5Config.from_dict(original.text_encoder.config)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_text_encoder_in_fp8(tmp_path, original, scaled):
    from weight_cache.checkpoints.forms import open_text_encoder

    text = state_of(original.text_encoder)
    stored, meant = quantised(text, "scale_weight")
    if not scaled:
        stored = {name: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for name, t in text.items()}
        meant = stored
    save_file(stored, tmp_path / "t5xxl_fp8.safetensors")
    component = open_text_encoder(tmp_path / "t5xxl_fp8.safetensors")
    for name in text:
        assert torch.equal(component.tensor(name).float(), meant[name].float()), name


def test_the_wrong_one_of_comfyuis_files_is_named(split_files, small_checkpoint):
    for path, message in (
        (split_files / "vae" / "mochi_vae.safetensors", "it is a VAE: name the transformer's file"),
        (split_files / "text_encoders" / "t5xxl_fp16.safetensors", "it is a text encoder: name the transformer's"),
        (small_checkpoint / "vae" / "diffusion_pytorch_model.safetensors", "not Mochi's transformer"),
    ):
        with pytest.raises(ValueError, match=message):
            Checkpoint.open(path, base=small_checkpoint)
    shutil.copy(*[split_files / "diffusion_models" / f"mochi_preview_{kind}.safetensors" for kind in ("bf16", "fp8")])
    with pytest.raises(ValueError, match=r"mochi_preview_bf16\.safetensors, mochi_preview_fp8\.safetensors: name one"):
        Checkpoint.open(split_files, base=small_checkpoint)


def blocks(state):
    """Scales of blocks of 16 columns."""
    stored = quantised(state, "weight_scale")[0]
    return {n: torch.ones(16, 16) if n.endswith("weight_scale") else t for n, t in stored.items()}


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("vectors", [False, True])
def test_comfyui_fp8_is_multiplied_by_its_scales(tmp_path, dit, original, scale, vectors):
    stored, meant = quantised(dit, scale, vectors=vectors)
    prefix = "model.diffusion_model."
    save_file({prefix + name: tensor for name, tensor in stored.items()}, tmp_path / "fp8.safetensors")
    save_file(meant, tmp_path / "meant.safetensors")
    component, expected = (open_transformer(tmp_path / f"{name}.safetensors") for name in ("fp8", "meant"))
    assert component.keys() == original.transformer.keys()
    for name in component:
        assert torch.equal(component.tensor(name).float(), expected.tensor(name).float()), name
        error = (component.tensor(name).float() - original.transformer.tensor(name).float()).abs().max()
        assert error <= original.transformer.tensor(name).float().abs().max() / 16, name


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
@pytest.mark.parametrize("precision", ["bf16", "bf8"])
def test_fp8_is_stored_as_what_it_stands_for(mesh, tmp_path, dit, precision):
    stored, meant = quantised(dit, "scale_weight")
    save_file(stored, tmp_path / "fp8.safetensors")
    save_file(meant, tmp_path / "meant.safetensors")
    fp8, expected = (open_transformer(tmp_path / f"{name}.safetensors") for name in ("fp8", "meant"))
    loaded, _ = from_store(mesh, fp8, tmp_path / "store", precision=precision)
    assert_same(loaded, in_memory(mesh, expected, precision))


def test_fp8_without_scales_is_taken_as_it_is(tmp_path, dit):
    stored = {name: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for name, t in dit.items()}
    save_file(stored, tmp_path / "fp8.safetensors")
    component = open_transformer(tmp_path / "fp8.safetensors")
    name = "transformer_blocks.1.attn1.to_k.weight"
    assert torch.equal(component.tensor(name), stored["blocks.1.attn.qkv_x.weight"].float().chunk(3)[1])


def mark(text):
    """ComfyUI's JSON text of a layer's format, as a tensor."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_the_formats_that_are_read_may_be_marked(tmp_path, dit, kind):
    stored, meant = quantised(dit, "weight_scale", marker=False)
    name = "blocks.1.attn.qkv_x"
    if kind == "float8_e5m2":
        stored[f"{name}.weight"] = stored[f"{name}.weight"].to(torch.float8_e5m2)
        meant[f"{name}.weight"] = stored[f"{name}.weight"].float() * stored[f"{name}.weight_scale"]
    stored[f"{name}.comfy_quant"] = mark(f'{{"format": "{kind}", "full_precision_matrix_mult": true}}')
    layers = {"layers": {name: {"format": kind}, "text.of.another": {"format": "nvfp4"}}}
    save_file(stored, tmp_path / "fp8.safetensors", {"_quantization_metadata": json.dumps(layers)})
    component = open_transformer(tmp_path / "fp8.safetensors")
    assert torch.equal(
        component.tensor("transformer_blocks.1.attn1.to_k.weight"), meant[f"{name}.weight"].float().chunk(3)[1]
    )


X = "blocks.0.attn.qkv_x"


@pytest.mark.parametrize(
    ("scales", "change", "metadata", "message"),
    [
        (False, {"scaled_fp8": torch.zeros(2)}, None, r"no scale for the fp8 tensor .* although it has scaled_fp8"),
        (False, {f"{X}.comfy_quant": mark('{"format": "float8_e4m3fn"}')}, None, "no scale for the fp8 tensor"),
        (False, {f"{X}.scale_input": torch.ones(())}, None, rf"no scale for the fp8 tensor .* it has {X}\.scale_input"),
        (False, {}, {X: {"format": "float8_e4m3fn"}}, f"no scale for {X}.weight, and its mark says float8_e4m3fn"),
        (True, {}, {X: {"format": "nvfp4"}}, "in the format 'nvfp4', which is not read"),
        (True, {}, {X: {"format": "float8_e5m2"}}, "weight is F8_E4M3, and its mark says float8_e5m2"),
        (True, {}, {X: {"format": "float8_e4m3fn", "group_size": 128}}, "setting 'group_size'"),
        (True, {}, {X: 5}, "says 5 of"),
        (True, {}, [X], "no table of layers"),
        (True, {f"{X}.comfy_quant": mark('{"format": "mxfp8"}')}, None, "in the format 'mxfp8'"),
        (True, {f"{X}.comfy_quant": mark("{")}, None, "is not valid JSON"),
        (True, {f"{X}.comfy_quant": torch.ones(3)}, None, "is no JSON text"),
        (True, {"nowhere.comfy_quant": mark('{"format": "float8_e4m3fn"}')}, None, "nowhere.weight is not there"),
        (True, {f"{X}.weight_scale": torch.tensor(1.0)}, None, "two scales"),
        *[
            (True, {f"{X}.scale_weight": torch.tensor(value)}, None, "scales are above 0 and finite")
            for value in (0.0, -1.0, float("nan"), float("inf"))
        ],
        (True, {f"{X}.scale_weight": torch.tensor([1.0] * 5 + [0.0] + [1.0] * 762)}, None, "has the scale 0"),
    ],
)
def test_scaled_fp8_without_its_scales_is_refused(tmp_path, dit, scales, change, metadata, message):
    stored = {n: t for n, t in quantised(dit, "scale_weight", marker=False)[0].items() if scales or "scale" not in n}
    described = None if metadata is None else {"_quantization_metadata": json.dumps({"layers": metadata})}
    save_file(stored | change, tmp_path / "fp8.safetensors", described)
    with pytest.raises(InputError, match=message) as caught:
        open_transformer(tmp_path / "fp8.safetensors")
    assert "\n" not in str(caught.value)


def test_a_mark_of_scales_alone_is_refused(tmp_path, dit):
    save_file(dit | {"scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)}, tmp_path / "fp8.safetensors")
    with pytest.raises(InputError, match=r"says that it is scaled .* has no scales"):
        open_transformer(tmp_path / "fp8.safetensors")


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: without(s, "blocks.2.attn.qkv_x.weight"),
            r"nothing fills transformer_blocks\.2\.attn1\.to_k\.weight, .* \(expected blocks\.2\.attn\.qkv_x\.weight\)",
        ),
        (lambda s: s | {"blocks.0.extra": torch.ones(1)}, r"nobody claims blocks\.0\.extra"),
        (lambda s: without(s, "pos_frequencies"), "not Mochi's transformer .* lacks pos_frequencies"),
        (lambda s: {"a": torch.ones(1)}, "not Mochi's transformer"),
        (lambda s: s | {"nowhere.scale_weight": torch.ones(())}, r"a scale for nowhere\.weight, which it lacks"),
        (
            lambda s: without(quantised(s, "scale_weight")[0], "blocks.0.mlp_x.w1.scale_weight"),
            r"no scale for the fp8 tensor blocks\.0\.mlp_x\.w1\.weight",
        ),
        (blocks, r"scale has shape \[16, 16\] .* scales of blocks are not read"),
        (lambda s: s | {"blocks.0.mod_x.bias": torch.ones(3).bool()}, r"mod_x\.bias is of type BOOL"),
        (
            lambda s: s | {"blocks.0.mod_x.weight": s["blocks.0.mod_x.weight"].to(torch.int8)},
            r"mod_x\.weight is of type I8",
        ),
        (
            lambda s: s | {"blocks.1.attn.qkv_y.weight": torch.ones(7, 128)},
            "7 rows, which 3 parts do not divide",
        ),
    ],
)
def test_half_or_wrong_checkpoints_are_named(genmo, small_checkpoint, dit, change, message):
    save_file(change(dit), genmo / "dit.safetensors")
    with pytest.raises(ValueError, match=message):
        Checkpoint.open(genmo, base=small_checkpoint).transformer.check()


def test_missing_parts_are_named(genmo, small_checkpoint, tmp_path, decoder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"lacks text_encoder/.*genmo/mochi-1-preview.*copy the folder beside"):
        Checkpoint.open(genmo)
    (genmo / "decoder.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks vae/"):
        Checkpoint.open(genmo)
    assert Checkpoint.open(genmo, base=small_checkpoint).vae.directory == small_checkpoint / "vae"
    save_file(without(decoder, "blocks.1.proj.bias"), genmo / "decoder.safetensors")
    with pytest.raises(ValueError, match=r"nothing fills decoder\.up_blocks\.0\.proj\.bias"):
        open_decoder(genmo / "decoder.safetensors")
    save_file({"a": torch.ones(1)}, genmo / "decoder.safetensors")
    with pytest.raises(ValueError, match="not Mochi's VAE decoder"):
        Checkpoint.open(genmo, base=small_checkpoint)
    (genmo / "dit.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        Checkpoint.open(genmo, base=small_checkpoint)


@pytest.mark.parametrize(
    "name", ["decoder.safetensors", "vae/config.json", "text_encoder", "tokenizer", "scheduler/scheduler_config.json"]
)
def test_a_link_to_nothing_is_not_filled_from_the_base(genmo, small_checkpoint, name):
    if name != "decoder.safetensors" and name.startswith("vae"):
        (genmo / "decoder.safetensors").unlink()
    path = genmo / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=name.split("/")[-1]):
        _ = Checkpoint.open(genmo, base=small_checkpoint).scheduler


def test_arguments_that_do_not_go_with_a_form_are_refused(genmo, small_checkpoint):
    with pytest.raises(ValueError, match="base is for Genmo's"):
        Checkpoint.open(small_checkpoint, base=small_checkpoint)
    with pytest.raises(ValueError, match="variant 'bf16' is for Diffusers layouts"):
        Checkpoint.open(genmo, "bf16", base=small_checkpoint)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_the_two_forms_are_two_entries(mesh, genmo, original, tmp_path):
    from weight_cache.store import Store

    for component in (original.transformer, open_transformer(genmo / "dit.safetensors")):
        Store(tmp_path).build(declared(mesh, component), component)
    assert len(Store(tmp_path).entries()) == 2
