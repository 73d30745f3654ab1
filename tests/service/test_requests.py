"""A client's fields become a set-up by the rules of `generate`."""

import io
from dataclasses import fields

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from models.jobs.media import Limits
from models.mochi.setup import Request, VideoRequest
from models.service.errors import ServiceError
from models.service.inputs import Inputs
from models.service.requests import RENAMED, Planner
from models.service.schemas import VideoCreate

# What a request of the service cannot have, and why.
LEFT_OUT: set[str] = set()


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    model = Planner(Request("tiny", mesh="1x1", mode="golden"), None)
    width = model.setup.configs.transformer.inner_dim
    name = "transformer_blocks.0.attn1.to_q"
    weights = {f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(width, 2)}
    save_file(weights, folder / "style.safetensors")
    (folder / "peft").mkdir()
    save_file(weights, folder / "peft" / "pytorch_lora_weights.safetensors")
    (folder.parent / "secret.safetensors").write_bytes((folder / "style.safetensors").read_bytes())
    return Planner(Request("tiny", mesh="1x1", mode="golden"), folder)


def test_every_setting_of_generate_is_a_field():
    renamed = {there: here for here, there in RENAMED.items()}
    names = {renamed.get(field.name, field.name) for field in fields(VideoRequest)}
    assert names - set(VideoCreate.model_fields) == LEFT_OUT


@pytest.mark.parametrize(
    ("seconds", "frames"), [(4, 121), (1, 31), (0.01, 1), (0.1, 1), (0.14, 7), (0.2, 7), (5.4, 163), (2, 61)]
)
def test_seconds_become_the_nearest_frames_of_the_grid(planner, seconds, frames):
    assert planner.plan({"prompt": "a red ball", "seconds": seconds}).about["num_frames"] == frames


def test_size_and_defaults(planner):
    planned = planner.plan({"prompt": "a red ball", "size": "848x480", "solver": None})
    assert (planned.about["width"], planned.about["height"], planned.about["num_frames"]) == (848, 480, 25)
    assert planned.fields == {"prompt": "a red ball", "size": "848x480"}
    assert planned.messages == []


def test_forwards_are_counted_for_estimates(planner):
    def forwards(**values):
        return planner.plan({"prompt": "a red ball", "num_inference_steps": 8, **values}).about["forwards"]

    assert (forwards(), forwards(guidance_scale=1.0), forwards(reuse="steps:3,4")) == (16, 8, 12)


def test_encoding_and_inversion_are_counted_for_estimates(tmp_path):
    inputs = Inputs(tmp_path / "inputs", Limits())
    planner = Planner(Request("tiny", mesh="1x1", mode="golden"), inputs=inputs)
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "PNG")
    start = {"image": inputs.keep(content.getvalue()).id, "size": "64x64", "num_frames": 7}

    def counted(**values):
        about = planner.plan({"prompt": "a red ball", "num_inference_steps": 8, **values}).about
        return about["is_encoded"], about["inversions"], about["forwards"]

    assert counted() == (False, 0, 16)
    assert counted(**start, strength=0.5) == (True, 0, 8)
    assert counted(**start, strength=1) == (False, 0, 16)
    assert counted(**start, edit=True) == (True, 8, 16)


def test_loras_are_found_by_name_only(planner):
    assert set(planner.loras()) == {"style", "peft"}

    def merged(lora):
        return [(each.path.name, each.strength) for each in planner.plan({"prompt": "a", "lora": lora}).setup.loras]

    assert merged("style") == [("style.safetensors", 1.0)]
    assert merged("style:0.5,peft") == [("style.safetensors", 0.5), ("pytorch_lora_weights.safetensors", 1.0)]
    assert merged(["peft:-1"]) == [("pytorch_lora_weights.safetensors", -1.0)]
    for bad in (
        "../secret",
        "secret",
        "../loras0/style",
        "/etc/passwd",
        "style.safetensors",
        "style:x",
        "",
        ["style"] * 9,
    ):
        with pytest.raises(ServiceError) as error:
            planner.plan({"prompt": "a", "lora": bad})
        assert (error.value.status, error.value.param) == (422, "lora")
        assert "secret.safetensors" not in error.value.message


def test_a_preset_of_another_precision_is_said(planner):
    told = planner.plan({"prompt": "a red ball", "preset": "draft"}).messages
    assert any("precision fast, this service runs in default" in line for line in told)
    assert planner.plan({"prompt": "a red ball", "preset": "draft"}).setup.precision.name == "default"


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"])
def test_text_that_is_no_unicode_is_refused(planner, text):
    with pytest.raises(ServiceError) as error:
        planner.plan({"prompt": text})
    assert error.value.param == "prompt"
