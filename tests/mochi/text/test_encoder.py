import pytest
import torch

from models.reference.text_encoder import HostTextEncoder
from weight_cache.checkpoints.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def encoder(small_checkpoint):
    return HostTextEncoder.from_checkpoint(Checkpoint(small_checkpoint))


@pytest.fixture(scope="module")
def reference(small_checkpoint):
    from diffusers import MochiPipeline

    return MochiPipeline.from_pretrained(small_checkpoint, dtype=torch.float32, transformer=None, vae=None)


@pytest.mark.parametrize(("prompt", "length"), [("a red ball", 256), ("Ünknown: 42 %", 32), ("word " * 300, 256)])
def test_features_and_mask_are_those_of_diffusers(encoder, reference, prompt, length):
    ours = encoder.encode(prompt, length)
    embeds, mask = reference._get_t5_prompt_embeds(prompt, max_sequence_length=length)
    assert ours.embeds.shape == (1, length, encoder.width)
    assert ours.embeds.dtype == torch.float32
    assert torch.equal(ours.mask, mask)
    torch.testing.assert_close(ours.embeds, embeds.detach(), atol=1e-4, rtol=1e-4)
    assert ours.num_tokens == int(mask.sum())


def test_it_counts_what_is_cut(encoder):
    whole = encoder.encode("a red ball rolls to the left", 256)
    assert whole.num_truncated == 0
    cut = encoder.encode("a red ball rolls to the left", 4)
    assert cut.num_tokens == 4
    assert cut.num_truncated == whole.num_tokens - 4
    exact = encoder.encode("a red ball rolls to the left", whole.num_tokens)
    assert (exact.num_tokens, exact.num_truncated) == (whole.num_tokens, 0)


def test_an_empty_prompt_is_zeroed_without_t5(encoder, monkeypatch):
    monkeypatch.setattr(encoder, "model", None)
    monkeypatch.setattr(HostTextEncoder, "width", 128)
    empty = encoder.encode("", 16)
    assert empty.embeds.shape == (1, 16, 128)
    assert not empty.embeds.any()
    assert not empty.mask.any()
    assert empty.num_tokens == 0


@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_an_all_false_mask_makes_embeddings_irrelevant_in_the_reference():
    """What the empty prompt means: no text token takes part, whatever its features."""
    from models.reference.transformer import random_transformer

    model = random_transformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=8,
        text_embed_dim=8,
        time_embed_dim=8,
    )
    g = torch.Generator().manual_seed(0)
    noise, features = torch.randn(1, 12, 2, 4, 4, generator=g), torch.randn(1, 5, 8, generator=g)
    none = torch.zeros(1, 5, dtype=torch.bool)

    def predict(features_BLD, mask_BL):
        return model(noise, features_BLD, torch.tensor([300.0]), mask_BL).sample

    expected = predict(torch.zeros(1, 1, 8), none[:, :1])
    torch.testing.assert_close(predict(features, none), expected)
    assert (predict(features, ~none) - expected).abs().max() > 0.1
    pooler = model.time_embed.pooler
    torch.testing.assert_close(pooler(features, none)[0], pooler.to_out(pooler.to_kv.bias[8:]))


@pytest.mark.parametrize("length", [0, 257, 2.0, True])
def test_lengths_out_of_range_are_refused(encoder, length):
    with pytest.raises(ValueError, match="from 1 to 256"):
        encoder.encode("a", length)


def test_a_tokenizer_that_is_missing_or_damaged_is_named(small_copy):
    model = small_copy / "tokenizer" / "spiece.model"
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"tokenizer .* cannot be read"):
        HostTextEncoder.from_checkpoint(Checkpoint(small_copy))
    model.unlink()
    with pytest.raises(FileNotFoundError, match=r"neither spiece\.model"):
        HostTextEncoder.from_checkpoint(Checkpoint(small_copy))
