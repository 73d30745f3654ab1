"""Record kernel vectors: `python -m tests.mock.golden.record FAMILY FILE`, on a card or on the simulator.

A family is a set of cases whose inputs are made here. Each case runs once on one chip, and FILE gets its inputs, calls
and outputs in the form that `replay.py` reads. The relative errors against float64, which `vectors/errors.json` holds,
are printed.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.device import open_mesh
from models.machine.files import renamed_when_done
from tests.mock.golden.replay import run

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """Inputs of one case, its calls, and what they give in exact arithmetic.

    The inputs' types are those of the tensors, the layout is tiles, and the output is named `y`.
    """

    inputs: Tensors
    calls: list[dict[str, Any]]
    exact: Callable[[Tensors], torch.Tensor]


def compute(fidelity: str) -> dict[str, Any]:
    """The arithmetic with sums in float32, in the form of `replay.py`."""
    fields = {"math_fidelity": fidelity, "math_approx_mode": False, "fp32_dest_acc_en": True, "packer_l1_acc": True}
    return {"$compute": fields}


def call(op: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """A call that gives `y`."""
    return {"op": op, "args": list(args), "kwargs": kwargs, "out": ["y"]}


def named(name: str) -> dict[str, str]:
    """A named tensor as an argument."""
    return {"$tensor": name}


def values(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normally distributed values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def causal(
    frames: int, chunk: int, heads: int = 2, fidelity: str = "HiFi4", *, query_chunk: int | None = None
) -> Recipe:
    """Causal attention of heads of 32 channels, with queries and keys as the root-mean-square norm leaves them."""

    def normed(seed: int) -> torch.Tensor:
        x = values(seed, 2, heads, frames, 32).float()
        return (x * x.square().mean(-1, keepdim=True).rsqrt()).bfloat16()

    program = {
        "compute_with_storage_grid_size": [8, 8],
        "q_chunk_size": chunk if query_chunk is None else query_chunk,
        "k_chunk_size": chunk,
        "exp_approx_mode": False,
        "matmul_math_fidelity": None,
    }
    scale = 32**-1.5

    def exact(x: Tensors) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=True, scale=scale)

    return Recipe(
        {"q": normed(1), "k": normed(2), "v": values(3, 2, heads, frames, 32)},
        [
            call(
                "ttnn.transformer.scaled_dot_product_attention",
                named("q"),
                named("k"),
                named("v"),
                is_causal=True,
                scale={"$float32": scale},
                program_config={"$sdpa": program},
                compute_kernel_config=compute(fidelity),
            )
        ],
        exact,
    )


def heads_norm(frames: int) -> Recipe:
    """The norm of queries and keys in heads of 32 channels, without a weight."""
    return Recipe(
        {"x": values(4, 6, 3, frames, 32)},
        [call("ttnn.rms_norm", named("x"), epsilon=1e-10 / 32, compute_kernel_config=compute("HiFi4"))],
        lambda x: x["x"] * (x["x"].square().mean(-1, keepdim=True) + 1e-10 / 32).rsqrt(),
    )


def float32_bias(rows: int, inner: int, columns: int) -> Recipe:
    """A product in bfloat16 whose bias is float32."""
    return Recipe(
        {
            "x": values(5, 3, 1, rows, inner),
            "w": values(6, inner, columns),
            "b": values(7, 1, 1, 1, columns, dtype=torch.float32),
        },
        [
            call(
                "ttnn.linear",
                named("x"),
                named("w"),
                bias=named("b"),
                dtype={"$dtype": "bfloat16"},
                compute_kernel_config=compute("HiFi4"),
            )
        ],
        lambda x: x["x"] @ x["w"] + x["b"],
    )


def pixel_attention() -> dict[str, Recipe]:
    """What attention over time consists of: one chunk, several, frames that end within a tile, and one whole tile."""
    return {
        "causal_28_frames": causal(28, 32),
        "causal_32_frames": causal(32, 32),
        "causal_163_frames": causal(163, 192, heads=1),
        "causal_150_frames_3_chunks": causal(150, 64, heads=1),
        "causal_128_frames_2_chunks": causal(128, 64, heads=1),
        "causal_100_frames_hifi2": causal(100, 32, heads=1, fidelity="HiFi2"),
        "causal_150_frames_narrow_keys": causal(150, 32, heads=1, query_chunk=64),
        "causal_150_frames_wide_keys": causal(150, 64, heads=1, query_chunk=32),
        "rms_norm_heads_of_32": heads_norm(28),
        "linear_hifi4_float32_bias": float32_bias(28, 96, 96),
    }


FAMILIES = {"pixel_attention": pixel_attention}


def described(name: str, recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return a case's input tensors by their key in the file, and its description without outputs."""
    keys = {part: f"input.{name}.{part}" for part in recipe.inputs}
    given = {part: {"tensor": keys[part], "dtype": kind(value)} for part, value in recipe.inputs.items()}
    return {keys[part]: value for part, value in recipe.inputs.items()}, {"inputs": given, "calls": recipe.calls}


def kind(value: torch.Tensor) -> str:
    """Return the name of a tensor's type, which ttnn's is too."""
    return str(value.dtype).removeprefix("torch.")


def record(recipes: Mapping[str, Recipe], mesh: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Run recipes on `mesh`. Return tensors, cases, and each output's relative error against float64."""
    tensors, cases, errors = {}, {}, {}
    for name, recipe in recipes.items():
        inputs, spec = described(name, recipe)
        (out,) = run(spec, {part: [value] for part, value in recipe.inputs.items()}, ["y"], mesh)["y"]
        exact = recipe.exact({part: value.double() for part, value in recipe.inputs.items()})
        key = f"output.{name}.y"
        tensors |= {**inputs, key: out}
        cases[name] = {**spec, "outputs": {"y": {"tensor": key, "dtype": kind(out)}}}
        errors[name] = {"y": float(f"{(out.double() - exact).norm() / exact.norm():.6g}")}
    return tensors, cases, errors


def main(arguments: Iterable[str]) -> int:
    """Record a family."""
    parser = argparse.ArgumentParser(prog="python -m tests.mock.golden.record", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", required=True, help="what runs the kernels, and with which compiler, in words")
    chosen = parser.parse_args(list(arguments))
    with open_mesh("1x1", "auto") as opened:
        if opened.mode not in ("hardware", "simulator"):
            parser.error("there is neither a card nor a simulator, and vectors of golden execution would prove nothing")
        tensors, cases, errors = record(FAMILIES[chosen.family](), opened.device)
    common = {"ttnn": version("ttnn"), "mode": opened.mode, "device": chosen.device}
    with renamed_when_done(chosen.file) as scratch:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()},
            os.fspath(scratch),
            metadata={"common": json.dumps(common), "cases": json.dumps(cases)},
        )
    print(json.dumps(errors, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
