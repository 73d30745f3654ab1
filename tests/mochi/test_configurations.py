"""Numbers of a checkpoint's configurations are judged in the plan, in one line, before anything of them is built."""

import json
import tracemalloc
from dataclasses import fields

import pytest
from safetensors.torch import load_file, save_file

from models.machine.checks import typed
from models.machine.errors import InputError
from models.mochi.components import Configs
from models.mochi.config import TransformerConfig
from models.mochi.setup import Request, VideoRequest, resolve
from models.mochi.text.config import T5Config
from models.mochi.vae.config import DecoderConfig

HUGE = 10**18
TRANSFORMER, VAE, TEXT = "transformer/config.json", "vae/config.json", "text_encoder/config.json"
CASES = [
    (TRANSFORMER, "num_layers", 1_000_000, "num_layers is 1000000, but must be at most 128"),
    (TRANSFORMER, "num_layers", 100, "it says 100 blocks transformer_blocks.*, the weights have 4"),
    (TRANSFORMER, "num_layers", 3, "it says 3 blocks transformer_blocks.*, the weights have 4"),
    (TRANSFORMER, "num_attention_heads", 10**9, "but must be at most 256"),
    (TRANSFORMER, "attention_head_dim", HUGE, "but must be at most 1024"),
    (TRANSFORMER, "text_embed_dim", "128", "text_embed_dim is '128', but must be a whole number"),
    (TRANSFORMER, "text_embed_dim", 127, "text_embed_dim 127 is no multiple of 8"),
    (TRANSFORMER, "time_embed_dim", 63, "time_embed_dim 63 is odd"),
    (TRANSFORMER, "time_embed_dim", 66, "weights do not fit the model"),
    (TRANSFORMER, "pooled_projection_dim", HUGE, "but must be at most"),
    (TRANSFORMER, "patch_size", 10**9, "but must be at most 16"),
    (VAE, "temporal_expansions", None, "temporal_expansions is None, but must be a list"),
    (VAE, "temporal_expansions", [0, 2, 3], "is 0, but must be at least 1"),
    (VAE, "spatial_expansions", [2, 2, HUGE], "but must be at most 16"),
    (VAE, "spatial_expansions", [2] * 10_000, "has 10000 entries, but must have at most 256"),
    (VAE, "layers_per_block", [1_000_000] * 5, "is 1000000, but must be at most 64"),
    (VAE, "layers_per_block", [1, 1, 60, 1, 1], "it says 60 blocks decoder.up_blocks.1.resnets.*, the weights have 1"),
    (VAE, "layers_per_block", [1, 1, 1, 1, 0], "it says 0 blocks decoder.block_in.resnets.*, the weights have 1"),
    (VAE, "decoder_block_out_channels", [], "decoder_block_out_channels has 0 entries"),
    (VAE, "decoder_block_out_channels", [32] * 200, "decoder_block_out_channels has 200 entries"),
    (VAE, "out_channels", 4, "out_channels 4 must be 3"),
    (VAE, "latent_channels", None, "latent_channels is None"),
    (TEXT, "relative_attention_num_buckets", 1, "is 1, but must be at least 4"),
    (TEXT, "relative_attention_max_distance", 8, "relative_attention_max_distance 8 must be above 8"),
    (TEXT, "vocab_size", HUGE, "but must be at most 1048576"),
    (TEXT, "num_layers", 3, "it says 3 blocks encoder.block.*, the weights have 2"),
    (TEXT, "d_kv", 31, "weights do not fit the model"),
    (TEXT, "layer_norm_epsilon", 1e6, "layer_norm_epsilon is 1000000.0, but must be at most 0.01"),
    (TEXT, "layer_norm_epsilon", HUGE, "but must be at most 0.01"),
    ("tokenizer/words.json", "words", None, "must hold a list of words"),
]


def plan(model):
    return resolve(Request(model, mesh="1x1", mode="golden", video=VideoRequest(32, 32, 7, 1)))


@pytest.mark.parametrize(("file", "name", "value", "words"), CASES, ids=[f"{c[1]}={str(c[2])[:12]}" for c in CASES])
def test_a_number_that_cannot_be_is_a_line_of_the_plan(small_copy, file, name, value, words):
    path = small_copy / file
    held = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(held | {name: value}))
    tracemalloc.start()
    with pytest.raises(InputError) as refused:
        plan(small_copy)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert most < 128 << 20


@pytest.mark.parametrize("record", [TransformerConfig, DecoderConfig, T5Config])
def test_no_number_of_a_configuration_is_without_a_limit(record):
    true = {field.name: field.default for field in fields(record)}
    for name, default in true.items():
        if name.startswith("latents"):
            continue
        for value in (HUGE, 10**400, 1e300):
            wrong = [value] * len(default) if isinstance(default, tuple) else value
            with pytest.raises(InputError, match=name):
                typed(record, true | {name: wrong}, "config")


@pytest.mark.parametrize("weights", ["none", "one missing", "one more"])
def test_weights_that_lack_a_tensor_are_refused_in_the_plan(small_copy, weights):
    path = small_copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    if weights == "none":
        tensors = {}
    elif weights == "one missing":
        del tensors["decoder.conv_in.weight"]
    else:
        tensors["decoder.conv_in.scale"] = tensors["decoder.conv_in.weight"].clone()
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"the weights have 0|weights do not fit the model: 1 (missing|unexpected)"):
        plan(small_copy)


def test_the_blocks_of_the_preview_are_those_of_its_configuration():
    preview = Configs()
    assert preview.transformer.blocks == {"transformer_blocks.": 48}
    assert preview.text_encoder.blocks == {"encoder.block.": 24}
    assert preview.vae.blocks == {
        "decoder.block_in.resnets.": 3,
        "decoder.up_blocks.0.resnets.": 6,
        "decoder.up_blocks.1.resnets.": 4,
        "decoder.up_blocks.2.resnets.": 3,
        "decoder.block_out.resnets.": 3,
    }
