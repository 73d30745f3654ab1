"""docs/diffusers.md against the signatures of Diffusers' pipeline and of ours: nothing is left out."""

import inspect
import re
from pathlib import Path

import diffusers
import pytest
from diffusers.pipelines import pipeline_utils

from models.diffusers_api.components import OnMesh
from models.diffusers_api.loading import NOT_NEEDED, REFUSED
from models.diffusers_api.pipeline import MochiPipeline
from models.machine.errors import InputError

PAGE = Path(__file__).parents[2] / "docs" / "diffusers.md"
THEIRS = diffusers.MochiPipeline


def table(section):
    """Names in the first column of a section's first table, with the other two columns of their rows."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {name: row[1:] for row in rows for name in re.findall(r"`(\w+)`", row[0])}


def names_of(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]


def test_the_call_has_diffusers_arguments_in_their_order():
    theirs, ours = names_of(THEIRS.__call__), names_of(MochiPipeline.__call__)
    assert ours[: len(theirs)] == theirs
    assert list(table("The call")) == theirs


@pytest.mark.parametrize(
    "method",
    [
        "encode_prompt",
        "prepare_latents",
        "check_inputs",
        "load_lora_weights",
        "set_adapters",
        "delete_adapters",
        "fuse_lora",
        "unfuse_lora",
        "progress_bar",
        "enable_model_cpu_offload",
        "enable_sequential_cpu_offload",
        "enable_attention_slicing",
        "set_lora_device",
    ],
)
def test_methods_have_diffusers_arguments_in_their_order(method):
    theirs, ours = names_of(getattr(THEIRS, method)), names_of(getattr(MochiPipeline, method))
    assert ours[: len(theirs)] == theirs


def test_every_keyword_of_from_pretrained_is_known():
    source = inspect.getsource(pipeline_utils.DiffusionPipeline.from_pretrained)
    theirs = set(re.findall(r'kwargs\.pop\(\s*"(\w+)"', source))
    theirs |= set(inspect.signature(THEIRS.__init__).parameters) - {"self"}
    assert len(theirs) > 25
    listed = set(table("from_pretrained"))
    assert theirs <= listed, theirs - listed
    ours = set(inspect.signature(MochiPipeline.from_pretrained).parameters) | set(NOT_NEEDED) | set(REFUSED)
    assert listed <= ours, listed - ours


def test_every_attribute_of_diffusers_is_in_the_table():
    theirs = {name for name in dir(THEIRS) if not name.startswith("_")}
    rows = table("Methods and attributes")
    assert theirs <= set(rows), theirs - set(rows)
    for name in theirs:
        is_said_missing = "not there" in rows[name][1] and f"`{name}` is refused" not in rows[name][1]
        assert hasattr(MochiPipeline, name) != is_said_missing, name


# What the table says is refused, as a script would call it.
CALLS = {
    "save_pretrained": ("x",),
    "push_to_hub": ("x",),
    "save_config": ("x",),
    "save_lora_weights": ("x",),
    "from_pipe": (None,),
    "from_config": ({},),
    "register_modules": (),
    "enable_freeu": (),
}


@pytest.mark.parametrize("method", CALLS)
def test_what_is_refused_says_why(method):
    pipe = MochiPipeline.__new__(MochiPipeline)
    with pytest.raises(InputError, match=f"{method} is not taken"):
        getattr(pipe, method)(*CALLS[method])


def test_what_is_not_needed_says_so_once():
    pipe, lines = MochiPipeline.__new__(MochiPipeline), []
    pipe._told, pipe._on_message = set(), lines.append
    rows = table("Methods and attributes")
    methods = [
        name for name, row in rows.items() if row[1].startswith("not needed") and name.startswith(("enable", "set"))
    ]
    assert len(methods) > 6
    for method in methods:
        arguments = [None] * sum(
            parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            for parameter in inspect.signature(getattr(pipe, method)).parameters.values()
        )
        getattr(pipe, method)(*arguments)
        getattr(pipe, method)(*arguments)
    assert [line.split(" is not needed: ")[0] for line in lines] == methods
    assert pipe.to("cuda") is pipe
    assert len(lines) == len(methods) + 1


def test_components_say_what_they_are():
    lines = []
    part = OnMesh("transformer", object(), {"in_channels": 12}, lambda subject, line: lines.append(line))
    assert part.config.in_channels == part.config["in_channels"] == 12
    assert part.to("cuda") is part
    assert lines == ["pipe.transformer.to is not needed: the model stays on the mesh, in the pipeline's precision"]
    for call in (part, part.enable_cache, part.set_attn_processor, part.train):
        with pytest.raises(InputError, match=r"pipe\.transformer"):
            call(None)
    with pytest.raises(InputError, match="cannot be changed"):
        part.config["in_channels"] = 3
    with pytest.raises(AttributeError, match="has no 'in_channel'"):
        part.config.in_channel  # noqa: B018
    with pytest.raises(AttributeError, match="on the mesh and has no 'blocks'"):
        part.blocks  # noqa: B018
    assert not hasattr(part, "anything")
