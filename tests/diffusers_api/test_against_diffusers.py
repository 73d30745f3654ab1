"""The same script on Diffusers' pipeline and on ours, from the same noise, with the reference's models in ours."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.diffusers_api.pipeline import MochiPipeline
from models.machine.errors import InputError
from models.mochi.geometry import Scales
from models.mochi.setup import Request, resolve
from models.reference.text_encoder import HostTextEncoder
from models.reference.vae import HostVaeDecoder
from weight_cache.checkpoints.checkpoint import Checkpoint

SIZE = dict(height=32, width=48, num_frames=7, num_inference_steps=3)
PROMPT, OTHER = "a red ball rolls to the left", "two horses in a forest"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def theirs(small_checkpoint):
    import diffusers

    pipe = diffusers.MochiPipeline.from_pretrained(small_checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass
class HostState:
    """What `models.mochi.sampling.state.StepState` promises to a callback that reads and replaces latents."""

    step: int
    now: torch.Tensor

    def latents(self):
        return self.now.clone()

    def replace(self, latents):
        self.now = latents


def host_sampler(
    transformer, latents, *, sigmas, guidance, prompt, negative, on_step, on_state=None, forwards=None, **_
):
    """What `models.mochi.sampling.denoise.denoise` promises, with the reference's transformer, in float32."""
    state = latents.clone()
    for i, scale in enumerate(guidance):
        time = torch.tensor([(1 - sigmas[i]) * 1000])
        velocity = transformer(state, prompt[0], time, prompt[1]).sample
        if scale != 1:
            without = transformer(state, negative[0], time, negative[1]).sample
            velocity = without + scale * (velocity - without)
        state = state + (sigmas[i] - sigmas[i + 1]) * velocity
        if on_state is not None:
            held = HostState(i + 1, state.clone())
            on_state(held)
            state = held.now
        if on_step(i + 1):
            break
    return state


@pytest.fixture
def lines():
    return []


@pytest.fixture
def ours(small_checkpoint, theirs, lines):
    checkpoint = Checkpoint(small_checkpoint)
    pipe = MochiPipeline(
        transformer=theirs.transformer,
        text_encoder=HostTextEncoder.from_checkpoint(checkpoint),
        vae=HostVaeDecoder.from_checkpoint(checkpoint.vae),
        scales=Scales(),
        mesh=SimpleNamespace(mode="golden", can_capture=False, close=lambda: None),
        layout=None,
        sampler=host_sampler,
        on_message=lines.append,
    )
    pipe._adopt(resolve(Request(model=checkpoint, mesh="1x1", mode="golden")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same(script, *pipes, atol=2e-3):
    first, second = (np.asarray(script(pipe), dtype=np.float32) for pipe in pipes)
    assert first.shape == second.shape
    np.testing.assert_allclose(first, second, atol=atol)


def one_video(pipe):
    return pipe(PROMPT, output_type="np", generator=seeded(), **SIZE).frames


def positional(pipe):
    return pipe(PROMPT, OTHER, 32, 48, 7, 3, None, 4.0, 1, seeded(3), output_type="np", return_dict=False)[0]


def no_guidance(pipe):
    return pipe(PROMPT, guidance_scale=0.5, output_type="latent", generator=seeded(), **SIZE)[0]


def batch(pipe):
    return pipe([PROMPT, OTHER], negative_prompt="red", output_type="np", generator=seeded(), **SIZE)["frames"]


def generators(pipe):
    return pipe([PROMPT, OTHER], output_type="latent", generator=[seeded(1), seeded(2)], **SIZE).frames


def two_of_one(pipe):
    return pipe(PROMPT, num_videos_per_prompt=2, output_type="pt", generator=seeded(), **SIZE).frames


def floored(pipe):
    return pipe(PROMPT, output_type="np", generator=seeded(), **{**SIZE, "num_frames": 12}).frames


def pictures(pipe):
    video = pipe(PROMPT, generator=seeded(), **SIZE).frames[0]
    return np.stack([np.asarray(picture) for picture in video]) / 255


def given_latents(pipe):
    noise = pipe.prepare_latents(1, pipe.transformer.config.in_channels, 32, 48, 7, torch.float32, "cpu", seeded(9))
    return pipe(PROMPT, latents=noise, output_type="latent", **SIZE).frames


def encoded_first(pipe):
    prompt, mask, negative, negative_mask = pipe.encode_prompt(prompt=PROMPT, negative_prompt=OTHER)
    return pipe(
        prompt_embeds=prompt,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask,
        generator=seeded(),
        output_type="latent",
        **SIZE,
    ).frames


def latents_changed(pipe):
    def halve(pipe, step, timestep, tensors):
        if step == 1:
            tensors["latents"] = tensors["latents"] * 0.5
        return tensors

    return pipe(PROMPT, callback_on_step_end=halve, output_type="latent", generator=seeded(), **SIZE).frames


def latents_changed_in_place(pipe):
    def halve(pipe, step, timestep, tensors):
        tensors["latents"] *= 0.9
        return {}

    return pipe(PROMPT, callback_on_step_end=halve, output_type="latent", generator=seeded(), **SIZE).frames


def seen_by_callback(pipe):
    seen = []

    def look(pipe, step, timestep, tensors):
        numbers = [step, timestep, pipe.current_timestep, pipe.num_timesteps, pipe.guidance_scale]
        means = [tensors["latents"].abs().mean(), len(tensors["prompt_embeds"]), pipe.do_classifier_free_guidance]
        seen.append([float(value) for value in (*numbers, *means)])
        return {}

    asked = ["latents", "prompt_embeds"]
    pipe(
        PROMPT,
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=asked,
        output_type="latent",
        generator=seeded(),
        **SIZE,
    )
    return seen


def interrupted(pipe):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return tensors

    return pipe(PROMPT, callback_on_step_end=stop, output_type="latent", generator=seeded(), **SIZE).frames


def decoded_by_hand(pipe):
    from diffusers.video_processor import VideoProcessor

    latents = pipe(PROMPT, output_type="latent", return_dict=False, generator=seeded(), **SIZE)[0]
    mean, std = (
        torch.tensor(v).view(1, 12, 1, 1, 1) for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    latents = latents * std / pipe.vae.config.scaling_factor + mean
    with torch.no_grad():
        video = pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]
    return VideoProcessor(vae_scale_factor=8).postprocess_video(video, output_type="np")


SCRIPTS = [
    one_video,
    positional,
    no_guidance,
    batch,
    generators,
    two_of_one,
    floored,
    given_latents,
    encoded_first,
    latents_changed,
    latents_changed_in_place,
    seen_by_callback,
    interrupted,
    decoded_by_hand,
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_script_gives_what_it_gives_on_diffusers(ours, theirs, script):
    same(script, theirs, ours)


def test_pictures_are_those_of_diffusers(ours, theirs):
    same(pictures, theirs, ours, atol=1.5 / 255)


def test_zeros_for_an_empty_prompt_are_those_of_diffusers(small_checkpoint, ours):
    import diffusers

    theirs = diffusers.MochiPipeline.from_pretrained(
        small_checkpoint, dtype=torch.float32, force_zeros_for_empty_prompt=True
    )
    assert ours.config.force_zeros_for_empty_prompt
    (_, _, embeds, mask), (_, _, expected, expected_mask) = (p.encode_prompt(PROMPT) for p in (ours, theirs))
    assert torch.equal(mask, expected_mask)
    assert not mask.any()
    assert embeds.shape == expected.shape


def test_features_are_those_of_diffusers(ours, theirs):
    for pipe_arguments in (dict(prompt=[PROMPT, OTHER], num_videos_per_prompt=2), dict(prompt=PROMPT)):
        arguments = dict(do_classifier_free_guidance=False, **pipe_arguments)
        (embeds, mask, *rest), (expected, expected_mask, *_) = (p.encode_prompt(**arguments) for p in (ours, theirs))
        assert rest == [None, None]
        count = len(expected_mask) // (2 if isinstance(pipe_arguments["prompt"], list) else 1)
        assert embeds.shape == expected.shape
        assert torch.equal(mask[:count][:1], expected_mask[:count][:1])
        torch.testing.assert_close(embeds[mask], expected[mask], atol=1e-3, rtol=1e-3)


def test_a_mask_stays_with_its_prompt(ours):
    """Diffusers repeats features as p, p, q, q and masks as p, q, p, q."""
    _, mask, _, _ = ours.encode_prompt([PROMPT, "a ball"], num_videos_per_prompt=2)
    assert torch.equal(mask[0], mask[1])
    assert torch.equal(mask[2], mask[3])
    assert not torch.equal(mask[0], mask[2])


def test_what_a_script_reads_is_there(ours, theirs):
    for name in ("vae_spatial_scale_factor", "vae_temporal_scale_factor", "patch_size", "tokenizer_max_length"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for part, names in {
        "vae": ("latents_mean", "latents_std", "scaling_factor", "latent_channels"),
        "transformer": ("in_channels", "num_layers", "num_attention_heads", "attention_head_dim"),
        "text_encoder": ("d_model", "num_layers", "vocab_size"),
        "scheduler": ("num_train_timesteps", "invert_sigmas", "shift"),
    }.items():
        for name in names:
            ours_has, theirs_has = (getattr(getattr(pipe, part).config, name) for pipe in (ours, theirs))
            assert ours_has == pytest.approx(theirs_has), (part, name)
    assert set(ours.components) == set(theirs.components)
    assert ours.tokenizer(PROMPT).input_ids == theirs.tokenizer(PROMPT).input_ids
    assert (ours.device, ours._execution_device, ours.dtype) == (theirs.device, theirs._execution_device, theirs.dtype)
    assert ours.vae.dtype == theirs.vae.dtype
    one_video(theirs)
    one_video(ours)
    torch.testing.assert_close(ours.scheduler.timesteps, theirs.scheduler.timesteps)
    torch.testing.assert_close(ours.scheduler.sigmas, theirs.scheduler.sigmas)


def test_the_output_is_read_in_four_ways(ours):
    output = ours(PROMPT, output_type="latent", generator=seeded(), **SIZE)
    assert output[0] is output.frames is output["frames"] is output.to_tuple()[0]
    assert dict(output.items()).keys() == {"frames"}
    assert list(output) == ["frames"]
    with pytest.raises(IndexError):
        output[1]


def test_diffusers_defaults_where_the_checkpoint_has_none(small_copy, ours):
    (small_copy / "generation_defaults.json").unlink()
    ours._adopt(resolve(Request(model=small_copy, mesh="1x1", mode="golden")))
    made = ours.defaults
    assert (made.height, made.width, made.num_frames, made.num_steps, made.guidance_scale) == (480, 848, 19, 64, 4.5)


def test_frames_are_floored_with_a_line(ours, lines):
    floored(ours)
    assert "num_frames 12 is not 6k + 1: the video has 7 frames" in lines


def test_a_bar_moves_by_the_steps(ours, capsys):
    ours.set_progress_bar_config(desc="making", ascii=True)
    no_guidance(ours)
    error = capsys.readouterr().err
    assert "making: 100%" in error
    assert "3/3" in error
    ours.set_progress_bar_config(disable=True)
    no_guidance(ours)
    assert capsys.readouterr().err == ""


def test_interrupt_is_asked_for_and_read(ours):
    assert not ours.interrupt
    ours.interrupt()
    assert ours.interrupt
    assert ours.interrupt == True  # noqa: E712
    ours._interrupt = False
    assert not ours.interrupt


def test_callback_classes_of_diffusers_name_their_tensors(ours, theirs):
    from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

    class Halve(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012

        def callback_fn(self, pipeline, step_index, timestep, tensors):
            tensors["latents"] = tensors["latents"] * 0.5
            return tensors

    def script(pipe):
        many = MultiPipelineCallbacks([Halve(), Halve()])
        return pipe(PROMPT, callback_on_step_end=many, output_type="latent", generator=seeded(), **SIZE).frames

    same(script, theirs, ours)


def returns(**tensors):
    return lambda pipe, step, timestep, given: tensors


def negates(pipe, step, timestep, tensors):
    return {"prompt_embeds": -tensors["prompt_embeds"]}


def guides_no_more(pipe, step, timestep, tensors):
    pipe._guidance_scale = 0.0
    return tensors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(timesteps=[1000, 500]), "sigmas="),
        (dict(attention_kwargs={"rope": 1}), "only scale"),
        (dict(callback_on_step_end_tensor_inputs=["noise"]), "must be a list of latents"),
        (dict(callback_on_step_end_tensor_inputs=5), "must be a list of latents"),
        (dict(callback_on_step_end_tensor_inputs="latents"), "must be a list of latents"),
        (dict(callback_on_step_end=returns(latents=torch.zeros(3))), "must return a tensor"),
        (dict(callback_on_step_end=returns(latents=torch.full((1, 12, 2, 4, 6), torch.nan))), "not finite"),
        (dict(callback_on_step_end=returns(noise=1)), "did not ask"),
        (dict(callback_on_step_end=returns(prompt_embeds=torch.zeros(1))), "did not ask"),
        (
            dict(callback_on_step_end=negates, callback_on_step_end_tensor_inputs=["prompt_embeds"]),
            "changed prompt_embeds",
        ),
        (dict(callback_on_step_end=lambda *_: 5), "must return a dict"),
        (dict(callback_on_step_end=guides_no_more), "guidance_interval="),
        (dict(callback_on_step_end=5), "callback_on_step_end"),
        (dict(num_videos_per_prompt=0), "num_videos_per_prompt"),
        (dict(output_type=None), "output_type"),
        (dict(guidance_scale="4"), "guidance_scale"),
        (dict(num_frames="7"), "num_frames"),
        (dict(num_frames=0), "num_frames"),
        (dict(height=40), "height"),
        (dict(strength=0.5), "give video= or image="),
        (dict(progress=3), "progress"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(ours, arguments, words):
    given = dict(output_type="latent", generator=seeded()) | SIZE | arguments
    with pytest.raises(InputError, match=words):
        ours(PROMPT, **given)
    # It is ready for the next call.
    assert no_guidance(ours).shape == (1, 12, 2, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(prompt=5), "prompt must be"),
        (dict(prompt=None), "one of the two"),
        (dict(prompt=[]), "prompt must be"),
        (dict(prompt="a", prompt_embeds=torch.zeros(1, 3, 128)), "one of the two"),
        (dict(prompt="a", negative_prompt=5), "negative_prompt must be"),
        (dict(prompt="a", negative_prompt=["b", "c"]), "2 negative prompts for 1"),
        (dict(prompt="a", max_sequence_length=0), "max_sequence_length"),
        (dict(prompt="a", num_videos_per_prompt=1.5), "num_videos_per_prompt"),
        (dict(prompt=None, prompt_embeds=torch.zeros(1, 3, 128)), "prompt_attention_mask"),
        (dict(prompt=None, prompt_embeds="x", prompt_attention_mask="y"), "must be a tensor"),
    ],
)
def test_prompts_that_cannot_be_encoded_are_refused(ours, arguments, words):
    with pytest.raises(InputError, match=words):
        ours.encode_prompt(**arguments)


def test_noise_of_no_size_is_refused(ours):
    for place, wrong in ((0, 0), (2, "32"), (4, None)):
        sizes = [1, 12, 32, 48, 7]
        sizes[place] = wrong
        with pytest.raises(InputError):
            ours.prepare_latents(*sizes)
    with pytest.raises(InputError, match="2 generators for 1"):
        ours.prepare_latents(1, 12, 32, 48, 7, generator=[seeded(), seeded()])


@pytest.mark.parametrize("part", ["scheduler", "vae", "transformer", "text_encoder", "tokenizer"])
def test_a_component_cannot_be_replaced_in_silence(ours, part):
    with pytest.raises(InputError, match=f"pipe.{part} cannot be replaced"):
        setattr(ours, part, object())


def test_numbers_stay_float32_under_autocast(ours):
    expected = no_guidance(ours)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(no_guidance(ours), expected)
