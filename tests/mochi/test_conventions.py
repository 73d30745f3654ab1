"""First frames and empty prompts: which convention a checkpoint has, and what a text then means."""

import json

import pytest
import torch

from models.machine.errors import InputError
from models.mochi.conventions import Conventions
from models.mochi.pipeline import MochiPipeline
from models.mochi.setup import Request, resolve
from models.reference.metrics import pcc, relative_rmse
from models.reference.text_encoder import HostTextEncoder
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.names import LATENTS_MEAN, LATENTS_STD

PROMPT = "a red ball rolls to the left"
PREVIEW = {
    "latent_channels": 12,
    "decoder_block_out_channels": [128, 256, 512, 768],
    "layers_per_block": [3, 3, 4, 6, 3],
    "latents_mean": list(LATENTS_MEAN),
    "latents_std": list(LATENTS_STD),
}


def change(path, **values):
    """Set keys of a JSON file; None takes a key away."""
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


@pytest.fixture
def unsaid(small_copy):
    """A checkpoint in Diffusers' layout that says nothing of conventions itself."""
    change(small_copy / "generation_defaults.json", first_frames=None, empty_prompt=None)
    change(small_copy / "model_index.json", force_zeros_for_empty_prompt=None)
    return small_copy


def test_the_tiny_model_says_its_own():
    tiny = Checkpoint.open("tiny")
    assert tiny.optional_json("generation_defaults.json")["first_frames"] == "diffusers"
    assert Conventions.of(tiny) == Conventions("diffusers", "zeros")


def test_a_vae_of_other_sizes_is_decoded_as_diffusers_does(unsaid):
    assert Conventions.of(Checkpoint(unsaid)) == Conventions("diffusers", "encoded")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "genmo"),
        ({"sample_height": 480, "scaling_factor": 1.0}, "genmo"),
        ({"latents_std": [round(value, 7) for value in LATENTS_STD]}, "genmo"),
        ({"latents_mean": [0.0] * 12}, "diffusers"),
        ({"latents_mean": None, "latents_std": None}, "genmo"),  # Absent: Diffusers fills in the preview's.
        ({"latents_std": ["a"] * 12}, "diffusers"),
        ({"layers_per_block": [3, 3, 4, 6, 4]}, "diffusers"),
        ({"temporal_expansions": [1, 1, 6]}, "diffusers"),
    ],
)
def test_the_vae_of_mochi_1_preview_is_known_by_sizes_and_statistics(unsaid, config, expected):
    """Whatever the directory is called and whatever its weights are stored in."""
    change(unsaid / "vae" / "config.json", **(PREVIEW | config))
    assert Conventions.of(Checkpoint(unsaid)).first_frames == expected


@pytest.mark.parametrize(("flag", "expected"), [(True, "zeros"), (False, "encoded")])
def test_diffusers_flag_for_empty_prompts_is_honoured(unsaid, flag, expected):
    change(unsaid / "model_index.json", force_zeros_for_empty_prompt=flag)
    assert Conventions.of(Checkpoint(unsaid)).empty_prompt == expected


def test_a_flag_that_is_none_is_refused(unsaid):
    change(unsaid / "model_index.json", force_zeros_for_empty_prompt="yes")
    with pytest.raises(InputError, match=r"force_zeros_for_empty_prompt 'yes' in .*model_index\.json"):
        Conventions.of(Checkpoint(unsaid))


def test_what_a_checkpoint_says_comes_first_and_a_request_before_it(unsaid):
    change(unsaid / "generation_defaults.json", first_frames="genmo", empty_prompt="zeros")
    assert resolve(Request(unsaid, mode="golden")).conventions == Conventions("genmo", "zeros")
    asked = Request(unsaid, mode="golden", first_frames="diffusers", empty_prompt="encoded")
    assert resolve(asked).conventions == Conventions("diffusers", "encoded")
    sizes = Request(None, model_config="preview", mode="dry-run")
    assert resolve(sizes).conventions == Conventions("genmo", "zeros")


@pytest.mark.parametrize("name", ["first_frames", "empty_prompt"])
def test_values_that_do_not_exist_are_refused(unsaid, name):
    with pytest.raises(InputError, match=f"^{name} 'both' must be"):
        resolve(Request(unsaid, mode="golden", **{name: "both"}))
    change(unsaid / "generation_defaults.json", **{name: "both"})
    with pytest.raises(InputError, match=rf"generation_defaults\.json: {name} 'both' must be"):
        Conventions.of(Checkpoint(unsaid))


@pytest.mark.parametrize("forces", [True, False])
def test_an_empty_prompt_on_the_host_is_that_of_diffusers(small_copy, forces):
    """With zeros the features differ, and nothing reads them: see `test_encoder`."""
    import diffusers

    options = {"transformer": None, "vae": None, "dtype": torch.float32, "force_zeros_for_empty_prompt": forces}
    theirs = diffusers.MochiPipeline.from_pretrained(small_copy, **options)
    embeds, mask = theirs._get_t5_prompt_embeds("", max_sequence_length=16)
    change(small_copy / "generation_defaults.json", empty_prompt=None)
    change(small_copy / "model_index.json", force_zeros_for_empty_prompt=forces)
    ours = HostTextEncoder.from_checkpoint(Checkpoint(small_copy)).encode("", 16)
    assert torch.equal(ours.mask, mask)
    assert ours.num_tokens == int(mask.sum()) == (0 if forces else 1)
    if not forces:
        torch.testing.assert_close(ours.embeds, embeds.detach(), atol=1e-4, rtol=1e-4)


# The name `mesh` is what the root conftest reads to choose this process's mock cluster.
@pytest.mark.parametrize("mesh", ["2x4sp0tp1"])
@pytest.mark.parametrize("empty_prompt", ["zeros", pytest.param("encoded", marks=pytest.mark.full)])
def test_an_empty_negative_prompt_on_the_mesh_is_that_of_diffusers(small_checkpoint, mesh, empty_prompt):
    """All masked or one end token; both are finite, and each is its own reference's."""
    import diffusers

    noise = torch.randn(1, 12, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    arguments = {"num_inference_steps": 4, "guidance_scale": 4.5, "output_type": "latent", "latents": noise}
    arguments |= {"height": 32, "width": 48, "num_frames": 7}
    forced = {way: way == "zeros" for way in ("zeros", "encoded")}
    expected = {}
    for way, forces in forced.items():
        reference = diffusers.MochiPipeline.from_pretrained(
            small_checkpoint, dtype=torch.float32, force_zeros_for_empty_prompt=forces
        )
        reference.set_progress_bar_config(disable=True)
        expected[way] = reference(PROMPT, **arguments).frames
    options = {"precision": "bf16", "empty_prompt": empty_prompt}
    with MochiPipeline.from_pretrained(small_checkpoint, "2x4", "sp0tp1", **options) as pipe:
        made = pipe(PROMPT, **arguments)
    assert made.negatives[0].num_tokens == (0 if empty_prompt == "zeros" else 1)
    errors = {way: relative_rmse(theirs - noise, made.frames - noise) for way, theirs in expected.items()}
    assert pcc(expected[empty_prompt] - noise, made.frames - noise) >= 0.999
    assert errors[empty_prompt] <= 0.03
    assert min(errors, key=lambda way: errors[way]) == empty_prompt, errors


@pytest.mark.parametrize("mesh", ["2x4sp0tp1"])
def test_a_mask_with_holes_is_its_kept_tokens_together(small_checkpoint, mesh):
    """Text tokens have no positions, so moving the kept ones together must change nothing, in either branch."""
    embeds = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(1))
    places = [1, 2, 6, 9, 10]
    apart, mask = torch.full((1, 12, 128), 7.0), torch.zeros(1, 12, dtype=torch.bool)
    apart[:, places], mask[:, places] = embeds, True

    def given(features, mask):
        return {
            "prompt_embeds": features,
            "prompt_attention_mask": mask,
            "negative_prompt_embeds": -features,
            "negative_prompt_attention_mask": mask,
        }

    arguments = {"height": 32, "width": 48, "num_frames": 7, "num_inference_steps": 2, "output_type": "latent"}
    with MochiPipeline.from_pretrained(small_checkpoint, "2x4", "sp0tp1") as pipe:
        together = pipe(**given(embeds, torch.ones(1, 5, dtype=torch.bool)), seed=0, **arguments).frames
        assert torch.equal(pipe(**given(apart, mask), seed=0, **arguments).frames, together)
        others = pipe(**given(apart, ~mask), seed=0, **arguments).frames
    assert not torch.equal(others, together), "the features of kept tokens matter"
