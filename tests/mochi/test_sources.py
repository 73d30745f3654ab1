"""Videos from videos and images: the meaning of strength, and a float32 loop on Diffusers' modules beside the mesh."""

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from models.machine.errors import InputError
from models.mochi.geometry import Geometry, Scales
from models.mochi.pipeline import MochiPipeline
from models.mochi.sampling.schedule import first_step, linear_quadratic_schedule
from models.mochi.sources import Source, noised
from tests.mochi.vae.encoder_support import frames
from tests.support import check

SIZE = {"height": 32, "width": 48, "num_frames": 7}
PROMPT = "a red ball rolls to the left"
ASKED = {"prompt": PROMPT, "num_inference_steps": 6, "guidance_scale": 3.0, "seed": 4, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe(small_checkpoint):
    with MochiPipeline.from_pretrained(small_checkpoint, "1x2", precision="bf16") as opened:
        yield opened


@functools.cache
def clip() -> np.ndarray:
    return frames(7, 32, 48).numpy()


def test_strength_one_is_text_to_video_of_the_seed(pipe):
    plain = pipe(**ASKED, **SIZE).frames
    assert torch.equal(pipe(**ASKED, height=32, width=48, video=clip(), strength=1).frames, plain)


def test_strength_zero_is_the_reconstruction(pipe):
    made = pipe(**ASKED, height=32, width=48, video=clip(), strength=0)
    assert torch.equal(made.frames, pipe.encode_video(clip()))
    assert made.is_complete
    assert made.sigmas == [0.0]
    assert made.guidance == []


@pytest.fixture(scope="module")
def modules(small_checkpoint):
    """Diffusers' models by type."""
    import diffusers

    types = (torch.float32, torch.bfloat16)
    return {dtype: diffusers.MochiPipeline.from_pretrained(small_checkpoint, dtype=dtype) for dtype in types}


def encoded_by(models, video: np.ndarray) -> torch.Tensor:
    """Normalised latents of Diffusers' encoder, whose Fourier features are of pixels in float32."""
    vae, config = models.vae, models.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    features = vae.encoder.fourier_features
    with torch.no_grad():
        made = features(torch.from_numpy(video).float().permute(3, 0, 1, 2)[None] / 127.5 - 1)
        vae.encoder.fourier_features = torch.nn.Identity()
        try:
            moments = vae.encoder(made.to(vae.dtype))[0].float()
        finally:
            vae.encoder.fourier_features = features
    return (moments.chunk(2, dim=1)[0] - mean) / std * config.scaling_factor


def velocities(models):
    """The conditional and the unconditional velocity of a state at a noise level, float32, as a function."""
    with torch.no_grad():
        texts = [models.encode_prompt(text, do_classifier_free_guidance=False)[:2] for text in (PROMPT, "")]
    texts[1] = tuple(torch.zeros_like(part) for part in texts[1])  # the checkpoint's convention of an empty prompt

    def run(state: torch.Tensor, sigma: float) -> list[torch.Tensor]:
        time, given = torch.tensor([(1 - sigma) * 1000]), state.to(models.transformer.dtype)
        with torch.no_grad():
            return [models.transformer(given, text, time, mask).sample.float() for text, mask in texts]

    return run


def expected(models, video: np.ndarray, strength: float, sigmas: list[float], scale: float) -> torch.Tensor:
    """The loop, written out: the last steps of the schedule from the noised latents, Euler, in float32."""
    start, velocity = encoded_by(models, video), velocities(models)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(4))
    n = len(sigmas) - 1
    first = max(n - int(n * strength), 0)
    state = (1 - sigmas[first]) * start + sigmas[first] * noise
    for now, after in pairwise(sigmas[first:]):
        one, none = velocity(state, now)
        state = state + (now - after) * (none + scale * (one - none))
    return state


@pytest.mark.parametrize(("strength", "steps"), [(0.7, 4), (0.4, 2), (0.2, 1)])
def test_against_a_loop_of_diffusers_modules(pipe, modules, strength, steps):
    """Within 1.5 times the error of the same loop in bfloat16."""
    made = pipe(**ASKED, height=32, width=48, video=clip(), strength=strength)
    sigmas = linear_quadratic_schedule(6, pipe.defaults.threshold_noise)
    assert len(made.guidance) == steps
    assert made.sigmas == sigmas[-steps - 1 :]
    exact, rounded = (expected(models, clip(), strength, sigmas, 3.0) for models in modules.values())
    for frame in range(2):
        check(made.frames[:, :, frame], exact[:, :, frame], rounded[:, :, frame], min_pcc=0.999, max_rmse=0.04)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "unipc"},
        {"solver": "ab2", "guidance_reuse": 2},
        {"sigmas": [1.0, 0.8, 0.5, 0.3, 0.1, 0.0], "num_inference_steps": None},
        {"reuse": "steps:2"},
        {"guidance_interval": "0:0.6"},
    ],
    ids=str,
)
def test_any_schedule_solver_and_reuse(pipe, options):
    """A run that is cut is that of the cut schedule from the noised latents."""
    asked = ASKED | options
    made = pipe(**asked, height=32, width=48, video=clip(), strength=0.7)
    given = {name: value for name, value in asked.items() if name not in ("sigmas", "num_inference_steps")}
    given = {name: value for name, value in given.items() if name not in ("guidance_interval", "seed")}
    noise = torch.randn(made.frames.shape, generator=torch.Generator().manual_seed(4))
    start = noised(pipe.encode_video(clip()), noise, made.sigmas[0])
    again = pipe(**given | {"guidance_scale": made.guidance, "sigmas": made.sigmas}, **SIZE, latents=start)
    assert torch.equal(made.frames, again.frames)


def test_stages(pipe):
    """The same run by its stages, and both arguments or none."""
    whole = pipe(**ASKED, height=32, width=48, video=clip(), strength=0.5).frames
    start = pipe.encode_video(clip())
    asked = {name: ASKED[name] for name in ("num_inference_steps", "guidance_scale", "seed")} | SIZE
    encoded = pipe.encode(PROMPT)
    assert torch.equal(pipe.denoise(encoded, **asked, start_latents=start, strength=0.5).latents, whole)
    with pytest.raises(InputError, match="strength and start_latents go together"):
        pipe.denoise(encoded, **asked, strength=0.5)
    with pytest.raises(InputError, match=r"start_latents \[1, 12, 2, 4, 5\] must be \[1, 12, 2, 4, 6\]"):
        pipe.denoise(encoded, **asked, start_latents=start[..., :5], strength=0.5)


def test_an_image_is_a_video_that_stands_still(pipe):
    picture = Image.fromarray(clip()[0])
    still = np.repeat(clip()[:1], 7, axis=0)
    made = pipe(**ASKED, **SIZE, image=picture, strength=0.5).frames
    assert torch.equal(made, pipe(**ASKED, **SIZE, video=still, strength=0.5).frames)


def test_several_prompts_start_from_one_video(pipe):
    asked = ASKED | {"prompt": [PROMPT, "a blue square"], "seed": None}
    generators = [torch.Generator().manual_seed(4), torch.Generator().manual_seed(5)]
    both = pipe(**asked, height=32, width=48, video=clip(), strength=0.3, generator=generators).frames
    assert both.shape == (2, 12, 2, 4, 6)
    assert torch.equal(both[:1], pipe(**ASKED, height=32, width=48, video=clip(), strength=0.3).frames)


def test_steps_of_a_strength():
    """Diffusers' `get_timesteps`: `min(int(n strength), n)` steps."""
    assert [first_step(10, strength) for strength in (1, 0.99, 0.95, 0.5, 0.09, 0)] == [0, 1, 1, 5, 10, 10]


GEOMETRY = Geometry(32, 48, 7, Scales())


def test_forms_of_pictures():
    """All forms of the same pictures are the same frames; others are filled and cut."""
    exact = Source.of(clip(), None, None).frames(GEOMETRY)
    assert torch.equal(exact, torch.from_numpy(clip()))
    pictures = [Image.fromarray(frame) for frame in clip()]
    tensor = torch.from_numpy(clip()).permute(0, 3, 1, 2)
    for form in (pictures, [pictures], list(clip()), tensor, tensor[None]):
        assert torch.equal(Source.of(form, None, 0.5).frames(GEOMETRY), exact)
    for form in (clip() / 255, torch.from_numpy(clip() / 255).permute(0, 3, 1, 2)):
        torch.testing.assert_close(
            Source.of(form, None, None).frames(GEOMETRY), exact.float() / 127.5 - 1, rtol=0, atol=1e-6
        )
    wide = np.zeros((7, 32, 96, 3), np.uint8)
    wide[:, :, 24:72] = clip()
    assert torch.equal(Source.of(wide, None, None).frames(GEOMETRY), exact)
    assert Source.of(np.zeros((9, 8, 8, 3), np.uint8), None, None).num_frames(Scales()) == 7
    large = Source.of(np.ones((7, 64, 96, 3)), None, None).frames(GEOMETRY)
    assert large.shape == (7, 32, 48, 3)
    assert (large == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "give video= or image="),
        ({"video": 0, "image": 0}, "both given"),
        ({"video": "a.mp4"}, "video 'a.mp4' must be PIL images"),
        ({"video": []}, "must be pictures"),
        ({"video": np.zeros((7, 32, 48, 4), np.uint8)}, r"\[7, 32, 48, 4\], and must be"),
        ({"video": np.zeros((7, 32, 48, 3), np.int32)}, "int32"),
        ({"video": np.full((7, 32, 48, 3), 255.0)}, "values from 255 to 255: floats must be from 0 to 1"),
        ({"video": np.full((7, 32, 48, 3), np.nan)}, "floats must be from 0 to 1"),
        ({"video": np.zeros((7, 32, 48, 3), np.uint8), "num_frames": 13}, "has 7 frames, and num_frames is 13"),
        ({"video": np.zeros((7, 32, 48, 3), np.uint8), "strength": 1.5}, "strength 1.5 must be from 0"),
        ({"video": np.zeros((7, 32, 48, 3), np.uint8), "strength": "x"}, "strength 'x' must be a number"),
        ({"image": np.zeros((2, 32, 48, 3), np.uint8)}, "image has 2 pictures"),
    ],
)
def test_what_is_refused(pipe, options, message):
    with pytest.raises(InputError, match=message):
        pipe(**ASKED, height=32, width=48, **options)
