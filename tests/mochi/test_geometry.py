import pytest

from models.mochi.config import TransformerConfig
from models.mochi.geometry import Geometry, Scales
from models.mochi.vae.config import DecoderConfig


def test_the_full_size_video():
    geometry = Geometry(480, 848, 163)
    assert geometry.latent_shape == (1, 12, 28, 60, 106)
    assert geometry.token_grid == (28, 30, 53)
    assert geometry.num_tokens == 44520
    assert (geometry.decoded_frames, geometry.surplus_frames) == (168, 5)
    assert geometry.seconds() == pytest.approx(163 / 30)


def test_a_picture_is_one_latent_frame():
    geometry = Geometry(16, 32, 1)
    assert geometry.latent_shape == (1, 12, 1, 2, 4)
    assert (geometry.num_tokens, geometry.decoded_frames, geometry.surplus_frames) == (2, 6, 5)


def test_scales_come_from_the_configs():
    vae = DecoderConfig(temporal_expansions=(1, 2, 2), spatial_expansions=(2, 2, 1), latent_channels=8)
    scales = Scales.from_configs(TransformerConfig(in_channels=8, patch_size=4), vae)
    assert scales == Scales(temporal=4, spatial=4, patch=4, channels=8)
    assert Geometry(32, 16, 9, scales).latent_shape == (1, 8, 3, 8, 4)
    with pytest.raises(ValueError, match=r"height 24 .* multiple of 16"):
        Geometry(24, 16, 9, scales)


def test_configs_of_two_checkpoints_are_refused():
    with pytest.raises(ValueError, match="12 latent channels and the VAE 16"):
        Scales.from_configs(TransformerConfig(in_channels=12), DecoderConfig(latent_channels=16))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((480, 850, 163), "width 850 must be a positive multiple of 16: the nearest valid is 848 or 864"),
        ((8, 848, 163), "height 8 must be a positive multiple of 16: the nearest valid is 16"),
        ((-16, 848, 163), "height -16 .* the nearest valid is 16"),
        ((0, 848, 163), "height 0 .* the nearest valid is 16"),
        ((480, 848, 160), r"num_frames 160 must be 6k \+ 1 .* the nearest valid is 157 or 163"),
        ((480, 848, 0), "num_frames 0 .* the nearest valid is 1$"),
        ((480, 848, -5), "num_frames -5 .* the nearest valid is 1$"),
        ((480, 848.0, 163), "width 848.0 must be an integer"),
        ((480, 848, True), "num_frames True must be an integer"),
    ],
)
def test_sizes_that_break_a_rule_say_the_nearest_valid(sizes, message):
    with pytest.raises(ValueError, match=message):
        Geometry(*sizes)
