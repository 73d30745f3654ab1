"""The VAE's encoder in Genmo's and ComfyUI's files against Diffusers' of the same weights."""

import pytest
import torch
from safetensors.torch import save_file

from models.machine.errors import InputError, MissingInputError
from models.mochi.vae.config import EncoderConfig
from models.mochi.vae.encoder import MochiVaeEncoder
from models.parallel import Layout
from tests.mochi.vae.encoder_support import ATTENDING, reference
from tests.weight_cache.checkpoints.genmo import encoder_to_genmo
from tests.weight_cache.checkpoints.test_forms import (  # noqa: F401 (fixtures)
    decoder,
    dit,
    genmo,
    original,
    split_files,
)
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.download import wanted_files
from weight_cache.checkpoints.encoder_form import open_encoder
from weight_cache.checkpoints.lora import checked_source
from weight_cache.plan import NamedMesh


@pytest.fixture(scope="module")
def state():
    return dict(reference().encoder.state_dict())


@pytest.fixture(scope="module")
def encoder(state):
    return encoder_to_genmo(state)


def same(component, state):
    """The component has the encoder's tensors under Diffusers' names, and the configuration that they need."""
    assert component.keys() == sorted(f"encoder.{name}" for name in state)
    for name, tensor in state.items():
        assert component.shape(f"encoder.{name}") == tuple(tensor.shape)
        assert torch.equal(component.tensor(f"encoder.{name}"), tensor), name
    config = EncoderConfig.from_dict(component.config)
    assert config == EncoderConfig.from_dict(ATTENDING), "statistics and expansions are Mochi's, the defaults"
    checked_source(MochiVaeEncoder(config, NamedMesh(Layout.parse("2x4sp0tp1"))), component)


def test_genmos_file(tmp_path, encoder, state):
    save_file(encoder, tmp_path / "encoder.safetensors")
    same(open_encoder(tmp_path / "encoder.safetensors"), state)


def test_genmos_layout(genmo, small_checkpoint, encoder, state):  # noqa: F811
    """The file beside the decoder's; without it the message names it, and only when the encoder is asked for."""
    checkpoint = Checkpoint.open(genmo, base=small_checkpoint)
    with pytest.raises(MissingInputError, match=r"lacks encoder\.safetensors"):
        _ = checkpoint.vae_encoder
    save_file(encoder, genmo / "encoder.safetensors")
    same(Checkpoint.open(genmo, base=small_checkpoint).vae_encoder, state)


def test_comfyuis_file_of_the_vae(split_files, small_checkpoint, decoder, encoder, state):  # noqa: F811
    both = {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    both |= {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    save_file(both, split_files / "vae" / "mochi_vae.safetensors")
    source = split_files / "diffusion_models" / "mochi_preview_bf16.safetensors"
    checkpoint = Checkpoint.open(source, base=small_checkpoint)
    same(checkpoint.vae_encoder, state)
    assert all(key.startswith("decoder.") for key in checkpoint.vae.keys())  # noqa: SIM118


def test_comfyui_all_in_one(tmp_path, dit, decoder, small_checkpoint, encoder, state):  # noqa: F811
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in dit.items()}
    tensors |= {f"vae.decoder.{name}": tensor for name, tensor in decoder.items()}
    tensors |= {f"vae.encoder.{name}": tensor for name, tensor in encoder.items()}
    save_file(tensors, tmp_path / "all.safetensors")
    same(Checkpoint.open(tmp_path / "all.safetensors", base=small_checkpoint).vae_encoder, state)


def test_diffusers_folder(original, small_copy):  # noqa: F811
    assert original.vae_encoder is original.vae
    kept = {name: original.vae.tensor(name) for name in original.vae.keys() if name.startswith("decoder.")}  # noqa: SIM118
    for path in (small_copy / "vae").glob("*.safetensors"):
        path.unlink()
    save_file(kept, small_copy / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(MissingInputError, match="has no encoder, which reads videos"):
        _ = Checkpoint(small_copy).vae_encoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.2.layers.1.attn_block.attn.qkv.weight": None}, "nobody claims layers.2.layers.1.attn_block"),
        ({"layers.0.weight": None}, "it lacks layers.0.weight or output_proj.weight"),
        ({"layers.1.stack.5.bias": None}, "nothing fills encoder.block_in.resnets.0.conv2.conv.bias"),
        ({"more": torch.ones(1)}, "nobody claims more"),
        ({"layers.2.layers.0.weight": None}, "its downsampling layers are incomplete|nobody claims"),
    ],
)
def test_damaged_files(tmp_path, encoder, change, message):
    damaged = {name: tensor for name, tensor in (encoder | change).items() if tensor is not None}
    save_file(damaged, tmp_path / "encoder.safetensors")
    with pytest.raises(InputError, match=message):
        open_encoder(tmp_path / "encoder.safetensors")


def test_download_takes_the_encoder_where_there_is_one():
    files = ["dit.safetensors", "decoder.safetensors", "text_encoder/model.safetensors", "text_encoder/config.json"]
    files += ["tokenizer/spiece.model", "scheduler/scheduler_config.json"]
    assert "encoder.safetensors" in wanted_files([*files, "encoder.safetensors"], genmo=True)
    assert wanted_files(files, genmo=True)
