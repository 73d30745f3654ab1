"""Numbers that are none are refused where they enter, and no video of them is written."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.machine.errors import InputError
from models.mochi.components import Configs, Models
from models.mochi.defaults import Defaults
from models.mochi.geometry import Geometry, Scales
from models.mochi.pipeline import MochiPipeline
from models.mochi.sampling.schedule import MOST_GUIDANCE, guidance_schedule
from models.mochi.text.encoder import TextEmbeddings
from models.mochi.vae.config import DecoderConfig
from models.mochi.vae.frames import are_flat, check_frames, to_uint8
from models.parallel import Layout
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.lora import checked_source
from weight_cache.plan import NamedMesh

BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", [*BAD, 3.4e38])
@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_weights_that_are_no_numbers_are_refused_with_file_and_tensor(small_copy, component, value):
    checkpoint = Checkpoint(small_copy)
    models = Models.declare(Configs.of(checkpoint), NamedMesh(Layout.parse("1x2sp0tp1")))
    module, part = models.by_component()[component], getattr(checkpoint, component)
    _, prefix, parameter = list(module.parameters())[-1]
    name = prefix + next(iter(parameter.sources))
    file = small_copy / component / module.part_of(part).where(name).rpartition("/")[2]
    weights = load_file(file)
    weights[name] = weights[name].float()
    weights[name].view(-1)[-1] = value
    save_file(weights, file)
    source = checked_source(module, getattr(Checkpoint(small_copy), component))

    def read_all():
        for _, prefix, parameter in module.parameters():
            parameter.read(source, prefix)

    with pytest.raises(InputError, match="not finite") as caught:
        read_all()
    assert f"{file}: {name} holds values" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"scaling_factor": 0},
        {"scaling_factor": 1e-40},
        {"scaling_factor": 1e30},
        {"scaling_factor": -1.0},
        {"latents_std": [0.0] * 12, "latents_mean": [0.0] * 12},
        {"latents_std": [1e-320] * 12, "latents_mean": [0.0] * 12},
        {"latents_std": [1.0] * 12, "latents_mean": [1e30] * 12},
        {"latents_std": [float("nan")] * 12, "latents_mean": [0.0] * 12},
    ],
)
def test_scales_of_latents_that_no_decoder_has(change):
    with pytest.raises(InputError, match="vae config: "):
        DecoderConfig.from_dict(change)


@pytest.mark.parametrize("scale", [*BAD, 0, 0.99, -3, MOST_GUIDANCE * 1.01, 1e20, 10**400, "4", None, 1j, True])
def test_guidance_that_is_refused(scale):
    for given in (scale, [4.5, scale]):
        with pytest.raises(InputError, match="guidance scale"):
            guidance_schedule(given, 2)


@pytest.mark.parametrize("bad", BAD)
def test_frames_that_are_no_numbers_make_no_video(bad):
    frames = np.full((1, 3, 4, 4, 3), 0.5, np.float32)
    check_frames(frames)
    frames[0, 2, 3, 3, 2] = bad
    for check in (check_frames, to_uint8):
        with pytest.raises(InputError, match="not finite, so there is no video"):
            check(frames)


def test_a_video_of_one_colour_is_known():
    frames = np.full((3, 4, 4, 3), 7, np.uint8)
    assert are_flat(frames)
    frames[2, 3, 3, 2] = 8
    assert not are_flat(frames)


def pipeline(*, sampler=None, decode=None, features=0.0, mode="golden", **more):
    """A pipeline of stand-ins, which keep what they were called with in `seen`."""
    seen = {}

    def sample(transformer, latents, *, guidance, sigmas, **rest):
        seen.update(shape=tuple(latents.shape), guidance=guidance, steps=len(sigmas) - 1)
        return latents if sampler is None else sampler(latents)

    def frames(latents):
        seen["decoded"] = True
        made = np.full((1, 6 * latents.shape[2] - 5, 8 * latents.shape[3], 8 * latents.shape[4], 3), 0.5, np.float32)
        return made if decode is None else decode(made)

    def encode(prompt, length):
        return TextEmbeddings(torch.full((1, 4, 8), features), torch.ones(1, 4, dtype=torch.bool), 4)

    mesh = SimpleNamespace(mode=mode, can_capture=False, close=lambda: None, is_open=True)
    made = MochiPipeline(
        transformer=None,
        text_encoder=SimpleNamespace(width=8, encode=encode),
        vae=SimpleNamespace(decode=frames),
        scales=Scales(),
        mesh=mesh,
        layout=None,
        sampler=sample,
        **more,
    )
    return made, seen


SIZE = dict(height=32, width=48, num_frames=7)


@pytest.mark.parametrize("bad", [*BAD, 1e30])
def test_no_stage_hands_on_what_is_no_number(bad):
    pipe, seen = pipeline(sampler=lambda latents: latents * bad)
    with pytest.raises(InputError, match="the latents that denoising left"):
        pipe("x", output_type="latent", **SIZE)
    pipe, seen = pipeline(decode=lambda made: made * bad)
    if bad != 1e30:
        with pytest.raises(InputError, match="there is no video"):
            pipe("x", output_type="pil", **SIZE)
        pipe, seen = pipeline(features=bad)
        with pytest.raises(InputError, match="the text encoder's output"):
            pipe("x", **SIZE)
        assert not seen
    pipe, seen = pipeline()
    noise = torch.zeros(1, 12, 2, 4, 6)
    noise[0, 3, 1, 2, 5] = bad
    with pytest.raises(InputError, match="latents hold values"):
        pipe("x", latents=noise, **SIZE)
    assert not seen


def test_a_call_without_sizes_takes_the_checkpoints_own():
    own = Defaults(height=64, width=96, num_frames=13, num_steps=5, guidance_scale=3.5)
    pipe, seen = pipeline(defaults=own)
    pipe("x", output_type="latent")
    assert seen == {"shape": (1, 12, 3, 8, 12), "guidance": [3.5] * 5, "steps": 5}
    pipe("x", output_type="latent", height=32, num_inference_steps=np.int64(2), guidance_scale=np.float32(2))
    assert seen == {"shape": (1, 12, 3, 4, 12), "guidance": [2.0] * 2, "steps": 2}
    pipe("x", output_type="latent", sigmas=np.array([1.0, 0.5, 0.0]), guidance_scale=np.array([2.0, 1.0]))
    assert seen == {"shape": (1, 12, 3, 8, 12), "guidance": [2.0, 1.0], "steps": 2}


def test_the_command_line_and_the_api_take_the_same_defaults(tmp_path, monkeypatch):
    """`from_pretrained("tiny")("a red ball")` is `mochi-tt generate --model tiny "a red ball"`."""
    from models.jobs.generate import GenerateRequest, plan
    from models.mochi.setup import Request, VideoRequest, resolve

    monkeypatch.chdir(tmp_path)
    setup = resolve(Request(model="tiny", mode="golden", mesh="1x2"))
    pipe, seen = pipeline(defaults=setup.defaults)
    pipe("a red ball", output_type="latent")
    job = plan(GenerateRequest("a red ball", Request(mode="golden", mesh="1x2", video=VideoRequest())))
    assert seen["shape"] == job.video.geometry.latent_shape
    assert (seen["guidance"], seen["steps"]) == (job.video.guidance, job.video.settings.num_steps)


@pytest.mark.parametrize("use", ["call", "encode", "denoise", "decode"])
def test_a_closed_pipeline_says_so(use):
    pipe, _ = pipeline()
    encoded = pipe.encode("x")
    with pipe:
        pass
    calls = {
        "call": lambda: pipe("x", **SIZE),
        "encode": lambda: pipe.encode("x"),
        "denoise": lambda: pipe.denoise(encoded, **SIZE),
        "decode": lambda: pipe.decode(torch.zeros(1, 12, 1, 2, 2)),
    }
    with pytest.raises(InputError, match="the pipeline is closed"):
        calls[use]()
    pipe.close()


def test_a_pipeline_on_a_mesh_that_another_closed_says_so():
    pipe, _ = pipeline(owns_mesh=False)
    pipe.close()
    pipe.encode("x")
    pipe.mesh.is_open = False
    with pytest.raises(InputError, match="the pipeline is closed"):
        pipe("x", **SIZE)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint16, np.int8, torch.tensor])
def test_sizes_may_be_numbers_of_numpy_and_torch(kind):
    geometry = Geometry(kind(48), kind(32), kind(7))
    assert geometry == Geometry(48, 32, 7)
    assert all(type(value) is int for value in (geometry.height, geometry.width, geometry.num_frames))
    assert json.dumps(geometry.latent_shape) == "[1, 12, 2, 6, 4]"


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((480, 100_000_000, 7), "width 100000000 must be a positive multiple of 16, and at most 16880"),
        ((10**400, 848, 7), "height"),
        ((480, 848, 10**9 + 1), "num_frames 1000000001 must be 6k [+] 1 with k >= 0, and at most"),
        ((480, np.float32(848), 7), "must be an integer"),
        ((480, "848", 7), "must be an integer"),
        ((480, 848, -5), "num_frames -5 must be 6k"),
        ((np.array([480, 480]), 848, 7), "must be"),
    ],
)
def test_sizes_that_are_refused(size, words):
    with pytest.raises(InputError, match=words):
        Geometry(*size)


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_a_callers_autocast_changes_nothing(mesh):
    import ttnn

    left, right = (torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))

    def product():
        tensors = [
            ttnn.from_torch(
                x,
                dtype=ttnn.float32,
                layout=ttnn.TILE_LAYOUT,
                device=mesh.device,
                mesh_mapper=ttnn.ReplicateTensorToMesh(mesh.device),
            )
            for x in (left, right)
        ]
        return ttnn.to_torch(ttnn.get_device_tensors(ttnn.matmul(*tensors))[0])

    expected = product()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(product(), expected)
