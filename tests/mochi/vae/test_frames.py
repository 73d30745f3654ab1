"""Values on the host around the decoder: pictures, and normalised latents with a scaling factor that acts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.mochi.vae.decoder import MochiVaeDecoder, check_latents
from models.mochi.vae.frames import denormalise, to_uint8

CHANNELS = 3
MEAN, STD = [0.5, -1.0, 2.0], [2.0, 0.25, 1.5]


def test_pictures_are_those_of_diffusers():
    from diffusers.image_processor import VaeImageProcessor

    values = np.linspace(0, 1, 48 * 3 * 7, dtype=np.float32).reshape(1, 48, 7, 3)
    (expected,) = VaeImageProcessor.numpy_to_pil(values)
    assert (to_uint8(values)[0] == np.asarray(expected)).all()
    assert to_uint8(np.float32([0, 0.5 / 255 + 1e-4, 1])).tolist() == [0, 1, 255]


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("statistics", [True, False])
def test_latents_are_denormalised_as_in_diffusers(scale, statistics):
    """Source: Diffusers `MochiPipeline.__call__`: `latents * std / scaling_factor + mean`, else divided alone."""
    x = torch.arange(CHANNELS, dtype=torch.float32).view(1, CHANNELS, 1, 1, 1) + 1
    config = {"scaling_factor": scale} | ({"latents_mean": MEAN, "latents_std": STD} if statistics else {})
    expected = [(c + 1) * STD[c] / scale + MEAN[c] if statistics else (c + 1) / scale for c in range(CHANNELS)]
    assert denormalise(x, config).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("statistics", [True, False])
def test_the_first_convolution_denormalises(scale, statistics):
    mean, std = (MEAN, STD) if statistics else (None, None)
    config = SimpleNamespace(latent_channels=CHANNELS, scaling_factor=scale, latents_mean=mean, latents_std=std)
    draw = torch.Generator().manual_seed(15)
    weight, bias = torch.randn(5, CHANNELS, 1, 1, 1, generator=draw), torch.randn(5, generator=draw)
    x = torch.randn(1, CHANNELS, 2, 3, 4, generator=draw)
    folded = MochiVaeDecoder._fold_normalisation(SimpleNamespace(config=config), weight, bias)
    plain = {"scaling_factor": scale, "latents_mean": mean, "latents_std": std}
    expected = torch.nn.functional.conv3d(denormalise(x, plain), weight, bias)
    torch.testing.assert_close(torch.nn.functional.conv3d(x, *folded), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_refused(value):
    latents = torch.zeros(1, CHANNELS, 1, 2, 2)
    check_latents(latents, CHANNELS)
    latents[0, 1, 0, 1, 0] = value
    with pytest.raises(ValueError, match="not finite"):
        check_latents(latents, CHANNELS)


def test_frames_are_mapped_from_minus_one_and_one():
    video = torch.tensor([-3.0, -1.0, -0.5, 0.0, 1.0, 2.0]).view(1, 1, 1, 2, 3)
    stub = SimpleNamespace(
        first_frames="genmo",
        config=SimpleNamespace(latent_channels=CHANNELS),
        raw_frames=lambda latents, chunk: video,
        _without_surplus=lambda frames, count: frames,
    )
    frames = MochiVaeDecoder.decode(stub, torch.zeros(1, CHANNELS, 1, 2, 2))
    assert frames.flatten().tolist() == [0, 0, 0.25, 0.5, 1, 1]
