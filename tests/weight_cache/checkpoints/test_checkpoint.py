import errno
import inspect
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from models.machine.errors import InputError
from weight_cache.checkpoints.checkpoint import Checkpoint, resolve
from weight_cache.checkpoints.component import Component
from weight_cache.host import load_module


def edit(path, **changes):
    """Set keys of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


@pytest.fixture
def component(tmp_path):
    """A made-up sharded component of three tensors."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "Thing"}')
    save_file({"a": torch.arange(6.0).view(2, 3)}, folder / "one.safetensors")
    save_file({"b": torch.ones(4, dtype=torch.bfloat16), "c.d": torch.zeros(1)}, folder / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c.d": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_every_tensor_is_what_diffusers_loads(small_checkpoint):
    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel

    checkpoint = Checkpoint(small_checkpoint)
    for part, reference_class in (
        (checkpoint.transformer, MochiTransformer3DModel),
        (checkpoint.vae, AutoencoderKLMochi),
    ):
        reference = reference_class.from_pretrained(part.directory, dtype=torch.float32).state_dict()
        assert part.keys() == sorted(reference)
        for key, expected in reference.items():
            assert part.shape(key) == tuple(expected.shape)
            assert torch.equal(part.tensor(key).float(), expected), key
    assert checkpoint.transformer.dtype("proj_out.weight") == "BF16"
    assert checkpoint.scheduler["invert_sigmas"] is True


def test_a_sharded_component_is_read_by_name(component):
    part = Component(component)
    assert list(part) == ["a", "b", "c.d"]
    assert "b" in part
    assert "e" not in part
    assert (part.shape("a"), part.dtype("b")) == ((2, 3), "BF16")
    assert torch.equal(part.tensor("a"), torch.arange(6.0).view(2, 3))
    with pytest.raises(KeyError, match=r"transformer has no tensor e"):
        part.tensor("e")


def test_opening_reads_no_weights(component):
    for shard in component.glob("*.safetensors"):
        shard.write_text("not safetensors")
    part = Component(component)
    assert part.class_name == "Thing"
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        part.check()


def test_a_missing_shard_is_named(component):
    (component / "two.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the shard two\.safetensors"):
        Component(component).check()


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_truncated_file_is_named(component, kept):
    path = component / "one.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"one\.safetensors .* is truncated"):
        Component(component).check()


def test_an_index_that_does_not_fit_its_shards_is_refused(component):
    index = component / "model.safetensors.index.json"
    edit(index, weight_map={"a": "two.safetensors"})
    with pytest.raises(ValueError, match=r"places a in two\.safetensors, which lacks it"):
        Component(component).check()
    edit(index, weight_map={"a": "../one.safetensors"})
    with pytest.raises(ValueError, match="outside its folder"):
        Component(component).check()
    edit(index, weight_map=None)
    with pytest.raises(ValueError, match="no weight_map"):
        Component(component).check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("5", "not an object"),
        ("null", "not an object"),
        ("[]", "not an object"),
        ("[" * 100000, "not valid JSON"),
        ('{"weight_map": 5}', "no weight_map"),
        ('{"weight_map": ["one.safetensors"]}', "no weight_map"),
        ('{"weight_map": {"a": 5}}', "weight_map has '5' for a"),
        ('{"weight_map": {"a": ["one.safetensors"]}}', "weight_map has .* for a"),
        ('{"weight_map": {"a": null}}', "weight_map has 'None' for a"),
        ('{"weight_map": {"a": ""}}', "lacks the shard|outside"),
        ('{"weight_map": {"a": "."}}', "lacks the shard|outside"),
    ],
)
def test_a_mangled_index_is_one_line(component, content, message):
    (component / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        Component(component).check()
    assert "\n" not in str(caught.value)


def test_tensors_that_the_index_does_not_list_are_refused(component):
    index = component / "model.safetensors.index.json"
    edit(index, weight_map={"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(ValueError, match=r"shard two\.safetensors .* holds c\.d, which the index does not place there"):
        Component(component).check()
    # One tensor in two shards: the index has to say which, and the other is a stray.
    save_file({"a": torch.zeros(2, 3), "x": torch.ones(1)}, component / "one.safetensors")
    save_file({"a": torch.ones(2, 3)}, component / "two.safetensors")
    edit(index, weight_map={"x": "one.safetensors", "a": "two.safetensors"})
    with pytest.raises(ValueError, match=r"shard one\.safetensors .* holds a, which"):
        Component(component).check()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64])
def test_weights_of_other_types_are_refused(component, dtype):
    save_file({"a": torch.ones(2, 3).to(dtype)}, component / "one.safetensors")
    with pytest.raises(ValueError, match=r"one\.safetensors: a is of type .*, but weights must be one of"):
        Component(component).check()


@pytest.mark.parametrize("name", ["one.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_file_that_may_not_be_read_is_called_so(component, name, monkeypatch):
    import io
    import os

    def refusing(opened):
        def refuse(path, *arguments, **options):
            if os.path.basename(path) == name:
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(path, *arguments, **options)

        return refuse

    monkeypatch.setattr(io, "open", refusing(io.open))  # what `Path.open` calls
    monkeypatch.setattr(os, "open", refusing(os.open))
    with pytest.raises(ValueError, match=rf"{name} cannot be read \(Permission denied\)") as caught:
        Component(component).check()
    assert "truncated" not in str(caught.value)


def test_a_whole_t5_is_read_as_its_encoder(small_copy, small_checkpoint):
    from transformers import T5Config, T5ForConditionalGeneration

    from models.reference.text_encoder import HostTextEncoder

    folder = small_copy / "text_encoder"
    config = T5Config.from_dict(json.loads((folder / "config.json").read_text()))
    config.num_decoder_layers = 1
    torch.manual_seed(1)
    whole = T5ForConditionalGeneration(config)
    before = Checkpoint(small_checkpoint).text_encoder
    state = {name: before.tensor(name) for name in before}
    whole.load_state_dict(state, strict=False)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    whole.save_pretrained(folder)
    read = Checkpoint(small_copy)
    assert read.text_encoder.class_name == "T5ForConditionalGeneration"
    assert set(read.text_encoder.keys()) <= set(before.keys()) | {"encoder.embed_tokens.weight"}
    for name in before:
        if name in read.text_encoder:
            assert torch.equal(read.text_encoder.tensor(name).float(), before.tensor(name).float()), name
    ours, theirs = (
        HostTextEncoder.from_checkpoint(c).encode("a red ball", 16) for c in (read, Checkpoint(small_checkpoint))
    )
    assert torch.equal(ours.embeds, theirs.embeds)


def defaults_of(function):
    return {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in inspect.signature(function).parameters.items()
        if p.default is not p.empty
    }


def test_absent_keys_mean_what_the_libraries_mean():
    """Key by key: a configuration without it is read as one with the library's own default."""
    from dataclasses import fields

    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
    from transformers import T5Config as TheirT5

    from models.mochi.config import TransformerConfig
    from models.mochi.text.config import T5Config
    from models.mochi.vae.config import DecoderConfig

    for ours, theirs, needed in (
        (TransformerConfig, MochiTransformer3DModel, {}),
        (DecoderConfig, AutoencoderKLMochi, {}),
        (T5Config, TheirT5, {"feed_forward_proj": "gated-gelu"}),
    ):
        defaults = defaults_of(theirs.__init__)
        whole = defaults | needed
        assert ours.from_dict(needed) == ours.from_dict(whole)
        for name in whole:
            if name not in needed:
                assert ours.from_dict({k: v for k, v in whole.items() if k != name}) == ours.from_dict(whole), name
        for field in fields(ours):
            assert field.name in defaults, "every field has the library's name"


def test_null_is_null_and_nothing_else():
    from models.mochi.vae.config import DecoderConfig

    none = DecoderConfig.from_dict({"latents_mean": None, "latents_std": None})
    assert (none.latents_mean, none.latents_std) == ((), ())
    for name in ("scaling_factor", "latent_channels", "layers_per_block", "act_fn"):
        with pytest.raises(ValueError, match=name):
            DecoderConfig.from_dict({name: None})
    with pytest.raises(ValueError, match="both have 12 entries"):
        DecoderConfig.from_dict({"latents_mean": None})


def test_statistics_that_a_config_omits_are_used_by_both_decoders(small_copy, small_checkpoint):
    from models.mochi.conventions import Conventions
    from models.mochi.vae.config import DecoderConfig
    from models.reference.vae import HostVaeDecoder

    edit(small_copy / "vae" / "config.json", latents_mean=None, latents_std=None)
    vae = Checkpoint(small_copy).vae
    assert "latents_mean" not in vae.config
    theirs = HostVaeDecoder.from_checkpoint(vae).config
    assert list(DecoderConfig.from_dict(vae.config).latents_mean) == list(theirs["latents_mean"])
    assert Conventions.of(Checkpoint(small_copy)) == Conventions.of(Checkpoint(small_checkpoint))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dit.pt", "dit.pt, Genmo's weights as a pickle"),
        ("adapter_config.json", "it is a LoRA: give it with --lora"),
        ("config.json", "it is one component"),
    ],
)
@pytest.mark.parametrize("base", [None, "tiny"])
def test_a_directory_of_another_kind_says_what_it_is(tmp_path, name, message, base):
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=message):
        Checkpoint.open(tmp_path, base=base)


def test_a_variant_is_read_where_there_is_one(small_copy):
    vae = small_copy / "vae"
    plain = vae / "diffusion_pytorch_model.safetensors"
    plain.rename(vae / "diffusion_pytorch_model.bf16.safetensors")
    only = Checkpoint(small_copy).vae
    only.check()
    assert [p.name for p in only.files] == ["diffusion_pytorch_model.bf16.safetensors"], "the only one there is"
    shutil.copy(vae / "diffusion_pytorch_model.bf16.safetensors", vae / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=r"variants bf16, fp16 .* choose one with --variant"):
        Checkpoint(small_copy).vae.check()
    checkpoint = Checkpoint(small_copy, variant="bf16")
    assert [p.name for p in checkpoint.vae.files] == ["diffusion_pytorch_model.bf16.safetensors"]
    checkpoint.transformer.check()
    with pytest.raises(ValueError, match=r"no component .* variant 'fp8'"):
        Checkpoint(small_copy, variant="fp8")


@pytest.mark.parametrize(
    "index",
    ["diffusion_pytorch_model.safetensors.index.bf16.json", "diffusion_pytorch_model.bf16.safetensors.index.json"],
)
def test_both_spellings_of_a_variant_index_are_known(component, index):
    shard = "diffusion_pytorch_model.bf16-00001-of-00001.safetensors"
    save_file({"a": torch.ones(1)}, component / shard)
    (component / index).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert Component(component, "bf16").keys() == ["a"]
    assert Component(component).keys() == ["a", "b", "c.d"]


def test_what_is_missing_is_named(small_copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        Checkpoint(tmp_path / "nowhere")
    (small_copy / "vae").rename(small_copy / "elsewhere")
    with pytest.raises(FileNotFoundError, match="lacks its component folder vae/"):
        Checkpoint(small_copy)
    (small_copy / "model_index.json").unlink()
    (small_copy / "dit.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json \(it looks like Genmo's"):
        Checkpoint(small_copy)


def test_another_model_is_refused(small_copy):
    edit(small_copy / "transformer" / "config.json", _class_name="WanTransformer3DModel")
    with pytest.raises(ValueError, match="a WanTransformer3DModel, not a MochiTransformer3DModel"):
        Checkpoint(small_copy)
    edit(small_copy / "model_index.json", _class_name="WanPipeline")
    with pytest.raises(ValueError, match="a checkpoint of WanPipeline"):
        Checkpoint(small_copy)
    (small_copy / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json is not valid JSON"):
        Checkpoint(small_copy)


@pytest.mark.parametrize("end", ["safetensors.index.json", "safetensors", "bf16.safetensors"])
def test_a_link_to_nothing_is_no_reason_to_read_another_file(component, end):
    """The component's own index is there, and would be taken without a word."""
    name = f"diffusion_pytorch_model.{end}"
    (component / name).symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=rf"{name} does not exist"):
        Component(component, "bf16" if "bf16" in end else None).check()


@pytest.mark.parametrize("name", ["generation_defaults.json", "model_index.json"])
def test_a_setting_that_cannot_be_read_is_not_called_absent(small_copy, name):
    (small_copy / name).unlink(missing_ok=True)
    (small_copy / name).symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=name):
        Checkpoint(small_copy).optional_json(name)


@pytest.mark.parametrize(
    ("part", "stated"),
    [
        ("scheduler", ["diffusers", "DDIMScheduler"]),
        ("tokenizer", ["transformers", "CLIPTokenizer"]),
        ("text_encoder", ["transformers", "UMT5EncoderModel"]),
        ("vae", ["diffusers", "AutoencoderKLWan"]),
        ("transformer", [None, None]),
        ("transformer", "MochiTransformer3DModel"),
        ("vae", 5),
    ],
)
def test_an_index_of_other_parts_is_refused(small_copy, part, stated):
    index = json.loads((small_copy / "model_index.json").read_text())
    (small_copy / "model_index.json").write_text(json.dumps(index | {part: stated}))
    with pytest.raises(InputError, match=rf"model_index\.json says .* of {part}, but Mochi's is"):
        Checkpoint(small_copy)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_quantised_weights_are_refused_by_their_config(small_copy, part):
    edit(small_copy / part / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InputError, match=r"config\.json says that the weights are quantised"):
        Checkpoint(small_copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dense_act_fn", "relu"),
        ("dense_act_fn", "gelu"),
        ("dense_act_fn", None),
        ("is_gated_act", False),
        ("is_gated_act", 1),
        ("model_type", "umt5"),
        ("model_type", None),
        ("feed_forward_proj", ["gated-gelu"]),
        ("pruned_heads", {"0": [1]}),
    ],
)
def test_another_form_of_t5_is_refused(key, value):
    from models.mochi.text.config import T5Config

    with pytest.raises(InputError, match=f"text encoder config: {key}"):
        T5Config.from_dict({"feed_forward_proj": "gated-gelu", key: value})


@pytest.mark.parametrize("alias", ["hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim"])
def test_other_names_of_sizes_mean_what_transformers_means(alias):
    from transformers import T5Config as TheirT5

    from models.mochi.text.config import T5Config

    whole = T5Config().__dict__ | {"feed_forward_proj": "gated-gelu"}
    name = TheirT5.attribute_map[alias]
    assert set(TheirT5.attribute_map) == {"hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim"}
    for config in (
        whole | {alias: 96},
        {alias: 96} | whole,
        {n: v for n, v in whole.items() if n != name} | {alias: 96},
    ):
        ours, theirs = T5Config.from_dict(config), TheirT5.from_dict(dict(config))
        assert getattr(ours, name) == getattr(theirs, name) == 96


def test_the_identity_changes_with_a_weight(small_copy):
    before = Checkpoint(small_copy).identity()
    assert Checkpoint(small_copy).identity() == before
    path = small_copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    after = Checkpoint(small_copy).identity()
    assert after["vae"] != before["vae"]
    assert after["transformer"] == before["transformer"]


def test_names_that_users_give(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert resolve("some/model").is_dir()
    with pytest.raises(FileNotFoundError, match="mochi-tt download nobody/such-model-here"):
        resolve("nobody/such-model-here")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at \./nowhere"):
        resolve("./nowhere")


def test_an_id_in_the_hub_cache_is_found(small_checkpoint, tmp_path, monkeypatch):
    from huggingface_hub import constants

    revision = "0" * 40
    repository = tmp_path / "models--someone--mochi"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / revision).symlink_to(small_checkpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert Checkpoint.open("someone/mochi").identity()["source"] == "someone/mochi"


def test_a_module_is_loaded_strictly(component):
    class Thing(torch.nn.Module):
        def __init__(self, **shapes):
            super().__init__()
            for name, shape in shapes.items():
                self.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device="meta")))

    (component / "two.safetensors").unlink()
    (component / "model.safetensors.index.json").unlink()
    save_file({"x.a": torch.ones(2), "x.b": torch.ones(3), "y": torch.ones(1)}, component / "model.safetensors")
    part = Component(component)
    loaded = load_module(Thing(a=2, b=3), part, prefix="x.")
    assert torch.equal(loaded.b, torch.ones(3))
    assert not loaded.b.requires_grad
    with pytest.raises(ValueError, match=r"lacks x\.c"):
        load_module(Thing(a=2, b=3, c=1), part, prefix="x.")
    with pytest.raises(ValueError, match=r"has unexpected x\.b"):
        load_module(Thing(a=2), part, prefix="x.")
    with pytest.raises(ValueError, match=r"x\.b of shape \[3\], .* \[4\]"):
        load_module(Thing(a=2, b=4), part, prefix="x.")
    tied = load_module(Thing(a=2, b=3, c=3), part, prefix="x.", aliases={"c": "b"})
    assert torch.equal(tied.c, tied.b)
