"""The oracle's own tools: metrics that can tell, weights that matter."""

import pytest
import torch

from models.reference.metrics import pcc, relative_rmse
from models.reference.random_weights import randomize_
from models.reference.transformer import random_transformer

SIZES = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    pooled_projection_dim=8,
    text_embed_dim=8,
    time_embed_dim=8,
)


def test_metrics_of_known_tensors():
    a = torch.tensor([1.0, 2.0, 3.0])
    assert pcc(a, 2 * a + 5) == pytest.approx(1.0)
    assert pcc(a, -a) == pytest.approx(-1.0)
    assert pcc(torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])) == pytest.approx(0.0)
    assert relative_rmse(a, 1.1 * a) == pytest.approx(0.1)
    assert relative_rmse(torch.ones(4), torch.zeros(4)) == 1.0


def test_metrics_of_zeros_are_exact_or_refused():
    zeros = torch.zeros(3)
    assert (pcc(zeros, zeros), relative_rmse(zeros, zeros)) == (1.0, 0.0)
    with pytest.raises(ValueError, match="undefined"):
        pcc(zeros, torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="all zeros"):
        relative_rmse(zeros, torch.ones(3))


@pytest.mark.parametrize("metric", [pcc, relative_rmse])
def test_metrics_refuse_shapes_that_differ_and_nan(metric):
    with pytest.raises(ValueError, match="shapes differ"):
        metric(torch.ones(2, 3), torch.ones(6))
    with pytest.raises(ValueError, match="not finite"):
        metric(torch.ones(2), torch.tensor([1.0, float("nan")]))


def test_no_parameter_is_left_neutral_and_a_seed_repeats():
    model = random_transformer(**SIZES, seed=3)
    again = random_transformer(**SIZES, seed=3)
    other = random_transformer(**SIZES, seed=4)
    for (name, a), b, c in zip(model.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c), name
        assert a.std() > 0.01, name


def test_a_layer_more_does_not_change_the_others():
    short, long = (
        torch.nn.Sequential(torch.nn.Linear(4, 4)),
        torch.nn.Sequential(*[torch.nn.Linear(4, 4)] * 1),
    )
    long.append(torch.nn.Linear(4, 4))
    randomize_(short, 1)
    randomize_(long, 1)
    assert torch.equal(short[0].weight, long[0].weight)


def test_every_block_changes_the_output():
    model = random_transformer(**SIZES, seed=0)
    g = torch.Generator().manual_seed(0)
    inputs = dict(
        hidden_states=torch.randn(1, 12, 2, 4, 4, generator=g),
        encoder_hidden_states=torch.randn(1, 5, 8, generator=g),
        timestep=torch.tensor([300.0]),
        encoder_attention_mask=torch.ones(1, 5, dtype=torch.bool),
    )
    expected = model(**inputs).sample
    assert 0.3 < expected.std() < 3
    for index in range(2):
        for part in (model.transformer_blocks[index].attn1.to_v, model.transformer_blocks[index].ff.net[2]):
            kept = part.weight.clone()
            part.weight.zero_()
            assert relative_rmse(expected, model(**inputs).sample) > 0.1
            part.weight.copy_(kept)


def test_sizes_the_reference_cannot_run_are_refused():
    with pytest.raises(ValueError, match="text_embed_dim 12"):
        random_transformer(**{**SIZES, "text_embed_dim": 12})
