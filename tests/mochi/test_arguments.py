"""Arguments of the Python API that are of another type: one line, before anything is loaded or computed."""

import numpy as np
import pytest
import torch

from models.device import open_mesh, parse_mesh
from models.machine.errors import InputError
from models.mochi import inputs
from models.mochi.defaults import Defaults
from models.mochi.geometry import Scales
from models.mochi.pipeline import MochiPipeline
from models.mochi.setup import Request, resolve

TEXTS = ["layout", "variant", "plain", "vae_split", "attention_chunks", "precision", "mode", "first_frames", "topology"]
WRONG = [(name, value) for name in [*TEXTS, "empty_prompt"] for value in (5, [5], b"x", {})]
WRONG += [(name, value) for name in ("base", "cache_dir", "profile") for value in (5, [5], b"x", {}, 1.5)]
WRONG += [("links", value) for value in ("x", 1.5, True, 0, [1])]
WRONG += [("mesh", value) for value in (None, 5, [], (1,), (0, 0), (1.0, 1), "1x1x1", {}, object())]
WRONG += [("progress", 5), ("on_message", "x"), ("capture", "yes"), ("loras", 5)]
WRONG += [("loras", value) for value in (None, b"", b"a", {}, {"a.safetensors": 0.5}, set(), {"a"}, np.array("a"))]
WRONG += [("mesh", value) for value in ({1, 2}, b"1x1", {1: 1, 2: 2})]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={str(value)[:9]}" for name, value in WRONG])
def test_loading_with_another_type_is_refused(name, value):
    with pytest.raises(InputError) as refused:
        MochiPipeline.from_pretrained("tiny", **{"mesh": "1x1", name: value})
    line = str(refused.value)
    assert name.removesuffix("s") in line.replace("split", "vae_split")
    assert "\n" not in line
    assert len(line) < 400


@pytest.mark.parametrize("model", [123, None, b"tiny", ["tiny"], {}, ""])
def test_a_model_of_another_type_is_refused(model):
    with pytest.raises(InputError, match=r"^model .*(path or text|name a|name one)"):
        MochiPipeline.from_pretrained(model)


def test_a_mesh_may_be_a_list():
    assert parse_mesh([1, 2]) == (1, 2)
    assert resolve(Request(mesh=[1, 1], mode="golden")).mesh_shape == (1, 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mesh 5 is not ROWSxCOLUMNS"):
        open_mesh(5)  # type: ignore[arg-type]


def run(**given):
    sizes = (32, 32, 7)
    callback = given.pop("callback_on_step_end", None)
    noise = (given.pop("latents", None), given.pop("generator", None))
    return inputs.Run.of(1, Defaults(), Scales(), None, sizes, 1, 1.0, noise, callback, **given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("callback_on_step_end", 5),
        ("callback_on_step_end", "x"),
        ("progress", 5),
        ("latents", "x"),
        ("latents", np.zeros((1, 12, 2, 4, 4), object)),
        ("latents", torch.tensor(1.0)),
        ("seed", "x"),
        *(
            (name, value)
            for name in ("sigmas", "guidance_interval", "reuse")
            for value in (b"\x01\x00", {0.5: 1, 0: 1}, {0, 0.5}, {0: 1}.values(), bytearray(2), memoryview(b"ab"))
        ),
        ("sigmas", np.array(1.0)),
        ("sigmas", torch.tensor([[1.0, 0.0]])),
        ("guidance_interval", np.array(0.5)),
        ("policy", 5),
        ("policy", object()),
        ("generator", {torch.Generator()}),
        ("generator", {0: torch.Generator()}),
        ("fingerprint", lambda: "a"),
        ("weights", 5),
        ("on_halves", True),
        ("defaults", 5),
    ],
)
def test_a_run_with_another_type_is_refused_before_its_first_step(name, value):
    with pytest.raises(InputError, match=name):
        run(**{name: value})


@pytest.mark.parametrize("wrong", [b"\x03", {3.0: 1}, {3.0}, "3", {0: 3.0}.values(), [b"a"], [{3.0}]])
def test_guidance_of_another_type_is_refused(wrong):
    with pytest.raises(InputError, match=r"^guidance.scale"):
        inputs.Run.of(1, Defaults(), Scales(), None, (32, 32, 7), 1, wrong, (None, None), None)


@pytest.mark.parametrize("wrong", [b"a ball", {"a ball": 1}, {"a ball"}, ("a ball", b"x"), [["a ball"]], [], 5])
def test_prompts_of_another_type_are_refused(wrong):
    with pytest.raises(InputError, match="prompt must be a string or a list of strings"):
        inputs.texts("prompt", wrong, None, None, 8)


@pytest.mark.parametrize(
    "values", [[1, 0.5, 0], (1, 0.5, 0), np.array([1, 0.5, 0]), torch.tensor([1, 0.5, 0]), iter([1, 0.5, 0])]
)
def test_what_has_an_order_is_a_list_of_numbers(values):
    assert inputs.Run.of(
        1, Defaults(), Scales(), None, (32, 32, 7), None, 1.0, (None, None), None, sigmas=values
    ).sigmas == [1, 0.5, 0]


@pytest.mark.parametrize("wrong", ["x", 5, [[1.0]], torch.tensor(1.0), np.zeros((1, 4, 8), object)])
def test_embeddings_of_another_type_are_refused(wrong):
    embeds, mask = torch.zeros(1, 4, 8), torch.ones(1, 4)
    with pytest.raises(InputError, match="prompt_embeds must be"):
        inputs.texts("prompt", None, wrong, mask, 8)
    with pytest.raises(InputError, match="prompt_attention_mask must be"):
        inputs.texts("prompt", None, embeds, wrong, 8)


def test_arrays_of_numpy_are_embeddings_too():
    (given,) = inputs.texts("prompt", None, np.zeros((1, 4, 8), np.float32), np.ones((1, 4)), 8)
    assert given.embeds.shape == (1, 4, 8)


@pytest.mark.parametrize("wrong", ["x", 5, None, [], ["x"], [None], torch.tensor(1.0)])
def test_latents_to_decode_of_another_type_are_refused(wrong):
    with pytest.raises(InputError, match="latents"):
        inputs.latents_list(wrong)


def test_latents_to_decode_are_one_per_video():
    latents = torch.zeros(2, 12, 2, 4, 4)
    assert [video.shape[0] for video in inputs.latents_list(latents)] == [1, 1]
    assert [video.shape[0] for video in inputs.latents_list([latents, latents[:1].numpy()])] == [1, 1, 1]


def test_numbers_name_their_rule_and_not_a_machines():
    for name in ("height", "fps"):
        with pytest.raises(InputError) as refused:
            Defaults().overridden({name: "64"})
        assert str(refused.value) == f"{name} '64' must be a whole number, like {getattr(Defaults(), name)}"
