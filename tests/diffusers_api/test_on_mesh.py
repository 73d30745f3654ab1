"""The whole door on a mock mesh in mode golden: the documented examples, LoRAs that change, latents that change."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mochi_tt import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel, T5EncoderModel
from models.device import open_mesh
from models.machine.errors import InputError, MissingInputError
from models.reference.metrics import pcc, relative_rmse
from tests.diffusers_api.documented import EXAMPLES
from tests.weight_cache.checkpoints.genmo import transformer_to_genmo

pytestmark = pytest.mark.alone  # Meshes and pipelines leave memory behind.

SIZE = dict(height=32, width=32, num_frames=7, num_inference_steps=2)
PROMPT = "a red ball"
MODULE = "transformer.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def mesh():
    with open_mesh("1x1", "golden") as opened:
        yield opened


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint, tmp_path_factory):
    """The random checkpoint with small defaults, the VAE of variant bf16 alone."""
    copy = shutil.copytree(small_checkpoint, tmp_path_factory.mktemp("door") / "checkpoint")
    file = copy / "generation_defaults.json"
    own = json.loads(file.read_text())
    file.write_text(json.dumps(own | {"height": 32, "width": 32, "num_frames": 7, "num_steps": 2}))
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bf16.safetensors"))
    return copy


@pytest.fixture
def pipe(checkpoint, mesh):
    made = MochiPipeline.from_pretrained(checkpoint, mesh, on_message=(lines := []).append)
    made.lines = lines
    made.set_progress_bar_config(disable=True)
    yield made
    made.close()


def latents(pipe, **arguments):
    return pipe(PROMPT, output_type="latent", generator=torch.Generator().manual_seed(0), **SIZE | arguments).frames


# The changes that a user makes: the import lines, and generators, which cannot be on a GPU that is not there.
IMPORTS = {
    "from diffusers import MochiPipeline\n": "from mochi_tt import MochiPipeline\n",
    "from diffusers import MochiPipeline, MochiTransformer3DModel\n": (
        "from mochi_tt import MochiPipeline, MochiTransformer3DModel\n"
    ),
    "from diffusers import BitsAndBytesConfig as DiffusersBitsAndBytesConfig, MochiTransformer3DModel, MochiPipeline": (
        "from diffusers import BitsAndBytesConfig as DiffusersBitsAndBytesConfig\n"
        "from mochi_tt import MochiPipeline, MochiTransformer3DModel, T5EncoderModel"
    ),
    "import BitsAndBytesConfig as BitsAndBytesConfig, T5EncoderModel": "import BitsAndBytesConfig",
    'torch.Generator("cuda")': "torch.Generator()",
    'torch.Generator(device="cuda")': "torch.Generator()",
}


def shrunk(code, checkpoint, file):
    """An example as a user writes it, at a small size."""
    for there, here in IMPORTS.items():
        code = code.replace(there, here)
    for there, here in {
        '"genmo/mochi-1-preview"': repr(str(checkpoint)),
        "height=480": "height=32",
        "width=848": "width=32",
        "num_frames=163": "num_frames=7",
        "num_frames=85": "num_frames=7",
        "num_inference_steps=64": "num_inference_steps=2",
        "num_inference_steps=50": "num_inference_steps=2",
        "num_inference_steps=28": "num_inference_steps=2",
    }.items():
        code = code.replace(there, here)
    return "\n".join(
        f"ckpt_path = {str(file)!r}" if line.startswith("ckpt_path") else line for line in code.splitlines()
    )


@pytest.fixture(scope="module")
def comfy_file(checkpoint, tmp_path_factory):
    """The transformer under Genmo's names in one file."""
    shards = sorted((checkpoint / "transformer").glob("*.safetensors"))
    state = {name: value for shard in shards for name, value in load_file(shard).items()}
    file = tmp_path_factory.mktemp("comfy") / "mochi_preview_bf16.safetensors"
    save_file({name: value.contiguous() for name, value in transformer_to_genmo(state).items()}, file)
    return file


QUICK = ("variant", "as Genmo")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.full) for name in EXAMPLES]
)
def test_a_documented_example_runs(name, checkpoint, comfy_file, mesh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MochiPipeline.from_pretrained.__func__, "__defaults__", (mesh, None, "auto", None, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(shrunk(EXAMPLES[name], checkpoint, comfy_file), name, "exec"), {})
    (video,) = tmp_path.glob("*.mp4")
    import imageio_ffmpeg

    assert imageio_ffmpeg.count_frames_and_secs(str(video))[0] == 7


def lora(rank=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{MODULE}.lora_A.weight": torch.randn(rank, 256, generator=generator),
        f"{MODULE}.lora_B.weight": torch.randn(256, rank, generator=generator),
    }


def test_a_lora_is_merged_before_the_next_call(pipe, checkpoint, mesh, tmp_path):
    plain = latents(pipe)
    save_file(lora(), tmp_path / "a.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors", adapter_name="a")
    pipe.load_lora_weights(lora(seed=2), adapter_name="b")
    pipe.set_adapters(["a"], [0.5])
    assert not any("loaded again" in line for line in pipe.lines)
    changed = latents(pipe)
    assert not torch.allclose(changed, plain, atol=1e-2)
    assert torch.equal(latents(pipe), changed)
    assert [line for line in pipe.lines if "loaded again" in line] == [
        "the transformer is loaded again, because its LoRAs changed: a.safetensors:0.5 (merged on the host)"
    ]
    with MochiPipeline.from_pretrained(checkpoint, mesh, loras=[(tmp_path / "a.safetensors", 0.5)]) as other:
        assert torch.equal(latents(other), changed)
    pipe.set_adapters("a", 1.0)
    assert torch.equal(latents(pipe, attention_kwargs={"scale": 0.5}), changed)
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), plain)
    assert (pipe.get_list_adapters(), pipe.get_active_adapters(), pipe.num_fused_loras) == ({}, [], 0)


def test_latents_with_loras_are_those_of_diffusers(pipe, small_checkpoint):
    import diffusers

    theirs = diffusers.MochiPipeline.from_pretrained(
        small_checkpoint, dtype=torch.float32, force_zeros_for_empty_prompt=True
    )
    theirs.set_progress_bar_config(disable=True)
    plain = latents(theirs)
    for each in (theirs, pipe):
        each.load_lora_weights(lora(seed=3), adapter_name="a")
        each.load_lora_weights(lora(seed=4), adapter_name="b")
        each.set_adapters(["a", "b"], [0.5, -0.25])
    expected, actual = latents(theirs), latents(pipe)
    assert pcc(expected, actual) >= 0.999
    assert relative_rmse(expected, actual) <= 0.03
    assert relative_rmse(expected, actual) < 0.25 * relative_rmse(expected, plain)


def test_a_reload_that_fails_is_made_up_for(pipe, monkeypatch):
    from weight_cache.store import Store

    plain = latents(pipe)
    pipe.load_lora_weights(lora(), adapter_name="a")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "load", lambda *_, **__: (_ for _ in ()).throw(OSError("no space")))
        with pytest.raises(OSError, match="no space"):
            latents(pipe)
    pipe.disable_lora()
    assert torch.equal(latents(pipe), plain)


def test_lines_that_optimise_on_a_gpu_change_nothing(pipe):
    """Each is in scripts that people have: a call after them gives what it gave before."""
    before = latents(pipe)
    pipe.transformer = torch.compile(pipe.transformer, mode="max-autotune", fullgraph=True)
    pipe.vae = torch.compile(pipe.vae)
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    pipe.transformer.to(memory_format=torch.channels_last)
    pipe.vae.requires_grad_(False)
    pipe.transformer.eval()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    assert torch.equal(latents(pipe), before)
    for value in (torch.compile(torch.nn.Linear(2, 2)), torch.compile(lambda: 0), pipe.vae, lambda: 0):
        with pytest.raises(InputError, match=r"pipe\.transformer cannot be replaced"):
            pipe.transformer = value
    with pytest.raises(InputError, match="requires_grad_"):
        pipe.vae.requires_grad_(True)
    with pytest.raises(InputError, match=r"pipe\.scheduler cannot be replaced"):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, use_karras_sigmas=True)


def test_latents_make_a_generator_needless(pipe):
    noise = pipe.prepare_latents(1, 12, 32, 32, 7, generator=torch.Generator().manual_seed(3))
    given = {"output_type": "latent", "return_dict": False, "latents": noise}
    made = [pipe("a red ball", generator=each, **given)[0] for each in (None, torch.Generator().manual_seed(5))]
    assert torch.equal(*made)


def test_a_list_of_reused_steps_is_bound_to_the_loras_of_now(pipe):
    pipe.load_lora_weights(lora(), adapter_name="a")
    pipe._run(1, (32, 32, 7), 2, None, (None, None), None)
    assert [request.strength for request in pipe._weights.loras] == [1.0]


def test_latents_of_a_callback_are_those_on_the_mesh(pipe):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return tensors

    plain = latents(pipe)
    assert torch.equal(latents(pipe, callback_on_step_end=look), plain)
    assert torch.equal(seen[-1], plain)
    assert [line for line in pipe.lines if "downloaded after each step" in line]


@pytest.mark.parametrize(("shape", "layout"), [("1x1", None), ("1x2", "1x2cfg1sp0tp1")])
def test_latents_of_a_callback_take_the_place_of_those_on_the_mesh(checkpoint, mesh, shape, layout):
    given = []

    def replaces(pipe, step, timestep, tensors):
        given.append(torch.full_like(tensors["latents"], 0.25 + step))
        return {"latents": given[-1]}

    with MochiPipeline.from_pretrained(checkpoint, mesh if shape == "1x1" else shape, layout, "golden") as pipe:
        pipe.set_progress_bar_config(disable=True)
        assert torch.equal(latents(pipe, callback_on_step_end=replaces), torch.full((1, 12, 2, 4, 4), 1.25))
        # The first step's latents are what the second one begins with.
        first = latents(pipe, callback_on_step_end=lambda p, i, t, k: {"latents": given[0]} if i == 0 else None)
        assert not torch.allclose(first, latents(pipe), atol=0.05)


def test_parts_may_be_left_out(checkpoint, mesh, pipe):
    prompts = dict(negative_prompt="", prompt="a red ball")
    features = pipe.encode_prompt(**prompts)
    with MochiPipeline.from_pretrained(checkpoint, mesh, transformer=None, vae=None) as encoder:
        for ours, expected in zip(encoder.encode_prompt(**prompts), features, strict=True):
            assert torch.equal(ours, expected)
        assert encoder.vae is None
        with pytest.raises(InputError, match="without the transformer"):
            latents(encoder)
    with MochiPipeline.from_pretrained(checkpoint, mesh, text_encoder=None, vae=None) as sampler:
        with pytest.raises(InputError, match="without the text_encoder"):
            latents(sampler)
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
        given = dict(zip(names, features, strict=True), generator=torch.Generator().manual_seed(0), **SIZE)
        assert torch.equal(sampler(output_type="latent", **given)[0], latents(pipe))
        with pytest.raises(InputError, match="without the vae"):
            sampler(**given)


def test_components_of_other_places(checkpoint, comfy_file, mesh, pipe):
    import diffusers

    module = diffusers.MochiTransformer3DModel.from_pretrained(checkpoint / "transformer")
    sources = [
        MochiTransformer3DModel.from_pretrained(checkpoint, subfolder="transformer", torch_dtype=torch.bfloat16),
        MochiTransformer3DModel.from_pretrained(checkpoint / "transformer"),
        MochiTransformer3DModel.from_single_file(comfy_file),
        module,
    ]
    expected = latents(pipe)
    for source in sources:
        lines = []
        with MochiPipeline.from_pretrained(checkpoint, mesh, transformer=source, on_message=lines.append) as other:
            other.set_progress_bar_config(disable=True)
            assert torch.equal(latents(other), expected)
        assert any("are written to" in line for line in lines) == (source is module)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(transformer=3), "must be a MochiTransformer3DModel"),
        (dict(scheduler=3), "must be a FlowMatchEulerDiscreteScheduler"),
        (dict(tokenizer=3), "checkpoint's own is used"),
        (dict(torch_dtype=torch.int8), "torch_dtype"),
        (dict(use_safetensors=False), "pickles"),
        (dict(custom_pipeline="x"), "foreign"),
        (dict(force_zeros_for_empty_prompt=1), "force_zeros"),
        (dict(force_zeros_for_empty_prompt=True, empty_prompt="zeros"), "one of them"),
        (dict(spam=1), "no argument 'spam'"),
        (dict(variant="fp8"), "variant"),
    ],
)
def test_bad_arguments_are_refused_before_weights_are_read(checkpoint, arguments, words):
    with pytest.raises(InputError, match=words):
        MochiPipeline.from_pretrained(checkpoint, "1x1", **arguments)


def test_a_scheduler_of_another_kind_is_refused(checkpoint):
    import diffusers

    with pytest.raises(InputError, match="scheduler"):
        MochiPipeline.from_pretrained(checkpoint, "1x1", scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))


def test_classes_that_name_components_refuse_each_others(checkpoint):
    with pytest.raises(InputError, match="subfolder"):
        AutoencoderKLMochi.from_pretrained(checkpoint, subfolder="transformer")
    with pytest.raises(InputError, match="give it as text_encoder="):
        MochiPipeline.from_pretrained(checkpoint, "1x1", vae=T5EncoderModel.from_pretrained(checkpoint))
    with pytest.raises(MissingInputError):
        MochiTransformer3DModel.from_single_file("nothing.safetensors")
    with pytest.raises(MissingInputError):
        MochiPipeline.from_single_file("nothing.safetensors")


def test_a_single_file_takes_the_rest_from_its_base(checkpoint, comfy_file, mesh, pipe):
    arguments = dict(mesh=mesh, config=str(checkpoint), empty_prompt="zeros", first_frames="diffusers")
    with MochiPipeline.from_single_file(comfy_file, **arguments) as other:
        other.set_progress_bar_config(disable=True)
        assert torch.equal(latents(other), latents(pipe))


def test_frames_are_written_to_a_file(tmp_path):
    import imageio_ffmpeg
    from diffusers.utils import export_to_video as theirs
    from PIL import Image

    from mochi_tt import export_to_video

    arrays = [np.full((32, 48, 3), value, np.float32) for value in (0.0, 0.5, 1.0)]
    pictures = [Image.fromarray((array * 255).astype(np.uint8)) for array in arrays]
    for write in (export_to_video, theirs):
        for frames in (arrays, pictures):
            path = write(frames, str(tmp_path / "video.mp4"), fps=30)
            assert imageio_ffmpeg.count_frames_and_secs(path)[0] == 3
    assert export_to_video(np.stack(arrays)).endswith(".mp4")
    for arguments in (dict(quality=9), dict(bitrate=5), dict(fps=0), dict(macro_block_size=3)):
        with pytest.raises(InputError, match=next(iter(arguments))):
            export_to_video(arrays, tmp_path / "none.mp4", **arguments)
    for frames in ([], [1], [arrays[0], arrays[1][:16]], arrays[0]):
        with pytest.raises(InputError, match="video_frames"):
            export_to_video(frames, tmp_path / "none.mp4")
    assert not (tmp_path / "none.mp4").exists()
