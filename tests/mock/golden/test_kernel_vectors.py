"""Golden execution beside the real kernels: the same ops on the same inputs (see ``vectors/README.md``).

Where the matrix engine computes, golden is equal bit by bit, in attention with the exact exponential too. It is not for
activations of the vector unit, which are PyTorch's in golden, nor for the approximate exponential, which rounds once
more in the kernel. There, and in the fast form of sums that golden takes outside this file, its distance to the kernel
is held to a fraction of the kernel's own error. So its error is that of the kernel within the same fraction.
"""

import contextlib
import json

import pytest
import torch

from models.mock.golden.sums import exact_sums
from models.mock.limits import KernelLimit
from tests.mock.golden.record import FAMILIES, described
from tests.mock.golden.replay import VECTORS, Case, cases

ERRORS: dict[str, dict[str, float]] = json.loads((VECTORS / "errors.json").read_text())
"""Relative error of the kernels against float64, by case and output."""

ONE_CHIP = {case.name: case for case in cases("one_chip")}
SEVERAL_CHIPS = {case.name: case for case in cases("several_chips")}

LIMITED = {"dit_head_rope": "its rotation would be wrong", "dit_head_rope_out8": "its rotation would be wrong"}
"""What the kernel computes wrongly, and golden execution refuses."""

NOT_COVERED = {
    "rms_norm_noconfig": "everything is bfloat16; the project always gives a config",
    "layer_norm_noconfig": "the project has no such op; ttnn's own golden function stands for it",
}

# Distances to the kernel in parts of the kernel's own error, with exact sums. All that is not named here is equal.
_FLOAT32 = (1.6, "both within one unit in the last place of float32")
_BFLOAT16 = (0.4, "one unit of bfloat16 where a function's last bits decide the rounding")
APART = {
    **dict.fromkeys(("silu_f32", "tanh_f32", "sin_f32", "cos_f32", "rsqrt_f32", "sum_f32_last_noconfig"), _FLOAT32),
    **dict.fromkeys(("silu_bf16", "gelu_bf16", "add_rm_bf16_silu", "linear_hifi4_bias_silu"), _BFLOAT16),
    "exp_bf16": (1e-6, "differs where the result is next to nothing"),
    "tanh_bf16": (1.3, "the kernel is one unit of bfloat16 off in 15% of the values"),
    "rotary_llama_40rows": (0.05, "the sum of phases in a bfloat16 register"),
    **dict.fromkeys(
        (name for name in ONE_CHIP if name.startswith("sdpa_stream")),
        (0.16, "the approximate exponential is multiplied and added with one rounding or two"),
    ),
    "ring_joint_scaled_dot_product_attention_1": (0.16, "the streaming kernel's approximate exponential"),
}

# The same in the fast form of sums, by the start of a case's name; the first that fits holds.
FAST = [
    ("layer_norm_pre", 0.95, "the noise of a row's sum is the kernel's whole error"),
    ("linear_default", 0.75, "sums in bfloat16: rounding within groups moves the sum that is rounded at each step"),
    ("linear_hifi4_bf16acc", 0.75, "the same"),
    ("linear_hifi2_bf16acc", 0.75, "the same"),
    ("minimal_hifi2_bf16acc", 0.75, "the same"),
    ("linear_k96_bf16acc", 0.75, "the same"),
    ("linear_hifi4_f32out", 1.1, "the noise of the groups, 3.5e-4, is the kernel's whole error"),
    ("linear_hifi3_f32out", 1.1, "the same"),
    ("t5_scores", 1.1, "the same"),
    ("linear_hifi4_bias_f32out", 0.9, "the same, beside a bias's rounding to 11 bits"),
    ("minimal_hifi4_f32out", 0.9, "the same, beside the cut to TF32"),
    ("minimal_1block_hifi4_f32out", 0.9, "the same"),
    ("joint", 0.75, "the noise moves scores and sums across roundings to bfloat16"),
    ("sdpa_exact", 1.1, "the same"),
    ("causal", 0.5, "the same, in fewer products"),
    ("sdpa_stream", 0.55, "sums in bfloat16"),
    ("ring_joint", 0.7, "sums in bfloat16, or scores across roundings"),
    ("", 0.85, "noise of 3.5e-4 moves 10 to 15% of the values by one unit of bfloat16"),
]


@contextlib.contextmanager
def form(name: str):
    """Make golden sum in the exact or the fast form."""
    with exact_sums() if name == "exact" else contextlib.nullcontext():
        yield


def compare(case: Case, mesh, sums: str) -> None:
    """Run a case and hold each output to the kernel's."""
    with form(sums):
        ours = case.run(mesh)
    for name, kernel in case.outputs.items():
        golden, kernel = torch.stack(ours[name]).double(), torch.stack(kernel).double()
        limit = allowed(case, name, sums)
        distance = float((golden - kernel).norm() / kernel.norm())
        equal = float((golden == kernel).double().mean())
        assert distance <= limit, f"{case.name} {name}: {distance:.2e} of {limit:.2e}, {equal:.1%} equal"
        if limit == 0:
            assert torch.equal(golden, kernel)
        else:  # Noise may move values either way; a bias would show in the projection on the kernel's.
            slope = float(((golden - kernel) * kernel).sum() / kernel.square().sum())
            assert abs(slope) < 2e-4 + 0.2 * limit, f"{case.name} {name}: slope {slope:.1e}"


def allowed(case: Case, output: str, sums: str) -> float:
    """The largest distance to the kernel, relative to the result."""
    fraction = APART.get(case.name, (0.0, ""))[0]
    error = ERRORS.get(case.name, {}).get(output, 0.0)
    if sums == "fast" and multiplies(case):
        fraction = max(fraction, next(part for start, part, _ in FAST if case.name.startswith(start)))
    return fraction * error


def multiplies(case: Case) -> bool:
    """Whether the matrix engine sums products in one of the case's ops."""
    ops = " ".join(call["op"] for call in case.spec["calls"])
    return any(word in ops for word in ("linear", "matmul", "conv3d", "norm", "attention", "softmax", "sum", "mean"))


@pytest.fixture(scope="module")
def meshes(open_layout):
    """A mesh for each number of chips."""
    from models.mock import golden

    opened = {1: open_layout("1x1sp0tp1").device, 2: open_layout("1x2sp0tp1").device}
    if golden.active() is None:
        pytest.skip("this machine has cards: there is no golden execution on them")
    return opened


# With exact sums these take seconds each; of each kind a shorter case stays in the default run.
LONG = {
    "linear_hifi4_bias_f32out",
    "linear_hifi4_bias_silu",
    "sdpa_stream_bf16_hifi4",
    "sdpa_exact_hifi4_k200",
    "joint_bf16_hifi2",
    "joint_bf16_hifi4",
    "conv_k3_64_2blocks_nobias",
    "conv_k3_64_1block",
    "conv_k3_1block_hifi4_nobias",
}


@pytest.mark.parametrize(
    ("name", "sums"),
    [
        pytest.param(name, sums, marks=[pytest.mark.full] if sums == "exact" and name in LONG else [])
        for name in ONE_CHIP
        if name not in LIMITED | NOT_COVERED
        for sums in ("exact", "fast")
    ],
)
def test_one_chip(meshes, name, sums):
    compare(ONE_CHIP[name], meshes[1], sums)


@pytest.mark.parametrize("sums", ["exact", "fast"])
@pytest.mark.parametrize("name", list(SEVERAL_CHIPS))
def test_several_chips(meshes, name, sums):
    compare(SEVERAL_CHIPS[name], meshes[2], sums)


@pytest.mark.parametrize("name", list(LIMITED))
def test_what_the_kernel_gets_wrong_is_refused(meshes, name):
    with pytest.raises(KernelLimit, match=LIMITED[name]):
        ONE_CHIP[name].run(meshes[1])


def test_a_norm_without_a_config_is_refused(meshes):
    with pytest.raises(RuntimeError, match="without a compute config"):
        ONE_CHIP["rms_norm_noconfig"].run(meshes[1])


def test_recorded_cases_are_those_of_the_recipes():
    """Who runs `tests.mock.golden.record` on a card gets outputs for the same inputs and calls."""
    for family, recipes in FAMILIES.items():
        assert set(recipes()) == {case.name for case in ONE_CHIP.values() if case.file.stem == family}
        for name, recipe in recipes().items():
            tensors, spec = described(name, recipe)
            case = ONE_CHIP[name]
            assert {key: case.spec[key] for key in spec} == spec
            for part, (value,) in case.inputs.items():
                assert torch.equal(value, tensors[spec["inputs"][part]["tensor"]])


def test_every_exception_is_a_case():
    assert set(APART) | set(LIMITED) | set(NOT_COVERED) <= ONE_CHIP.keys() | SEVERAL_CHIPS.keys()


def test_text_after_ring_attention_is_each_chips_own(meshes):
    """Each chip starts with its own keys, so the same text queries get other outputs, as in the kernels."""
    for name, case in SEVERAL_CHIPS.items():
        if name.startswith("ring_joint"):
            with form("exact"):
                ours = case.run(meshes[2])["y1"]
            for first, second in (ours, case.outputs["y1"]):
                assert 1e-3 < float((first.double() - second.double()).norm() / first.double().norm()) < 3e-2


@pytest.mark.parametrize("name", ["linear_hifi4_f32out", "linear_hifi2_f32out", "t5_scores_f32"])
def test_distance_of_the_fast_form(meshes, name):
    """3.5e-4 of the result, which is what golden leaves out of sums in float32."""
    case = ONE_CHIP[name]
    results = {}
    for sums in ("exact", "fast"):
        with form(sums):
            results[sums] = case.run(meshes[1])["y"][0].double()
    difference = results["fast"] - results["exact"]
    assert 3e-4 < float(difference.norm() / results["exact"].norm()) < 4e-4
