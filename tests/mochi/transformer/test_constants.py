"""Constants that ordinary inputs hide: epsilons of norms are those of the reference's own modules."""

import inspect
from types import SimpleNamespace

import pytest

from models.layers import HeadRMSNorm, Width
from models.layers.group_norm import FrameGroupNorm
from models.mochi.text.t5 import T5Norm
from models.mochi.transformer import attention, block, model


@pytest.fixture(scope="module")
def reference():
    from diffusers import MochiTransformer3DModel

    return MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
    )


def epsilons(module):
    """Name -> epsilon of every part of a reference module that has one."""
    return {name: part.eps for name, part in module.named_modules() if getattr(part, "eps", None) is not None}


def test_the_block(reference):
    found = epsilons(reference.transformer_blocks[0])
    of_heads = {name: eps for name, eps in found.items() if name.startswith("attn1.")}
    assert len(of_heads) == 4
    assert set(of_heads.values()) == {attention._QK_EPS}
    others = [eps for name, eps in found.items() if name not in of_heads]
    assert len(others) >= 8
    assert set(others) == {block._EPS}


def test_the_final_layer(reference):
    assert set(epsilons(reference.norm_out).values()) == {model._EPS}


def test_the_decoder():
    from diffusers.models.autoencoders.autoencoder_kl_mochi import MochiChunkedGroupNorm3D

    ours = inspect.signature(FrameGroupNorm.__init__).parameters["eps"].default
    assert MochiChunkedGroupNorm3D(32).norm_layer.eps == ours


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_t5_takes_that_of_its_configuration(eps):
    assert T5Norm(None, "norm", Width.plain(32), eps).eps == eps


@pytest.mark.parametrize("width", [24, 32])
def test_a_padded_head(width):
    """The op divides by the padded width: mean and epsilon must both shrink by the same factor."""
    mesh = SimpleNamespace(tp=SimpleNamespace(size=1), fuses=lambda name: False)
    norm = HeadRMSNorm(mesh, "norm", 8, Width.heads(1, width), 1e-5)
    assert norm.eps == pytest.approx(1e-5 * width / 32)
