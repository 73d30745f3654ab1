"""The ops at the real shapes of a video, each once; the host computes some rows of the result."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import ttnn

from models.conformance.bench import NUMBERS, Bench, Output, Weights, case
from models.conformance.small import attention, heads, partial
from models.layers import Width, rms_norm
from models.layers.linear import ColumnParallelLinear
from models.mochi.config import CONFIGS
from models.mochi.transformer.rope import padded_tokens

_CONFIG = CONFIGS["preview"]
_SEEN = 16
_ROWS = "as the small case, on some rows of the real shape"


def _rows(bench: Bench) -> tuple[int, list[int]]:
    """Rows of all chips of SP, and those of a chip that are compared: first, last and some between.

    Shards that hold only padding are left out by comparing rows that every chip of the video has.
    """
    sp = bench.mesh.sp.size
    local = padded_tokens(bench.tokens, sp) // sp
    last = bench.tokens - (sp - 1) * local  # Real rows of the last chip.
    return local, sorted({0, last - 1, *range(0, last, max(last // _SEEN, 1))})


def _picked(x: torch.Tensor, local: int, seen: list[int]) -> torch.Tensor:
    return torch.cat([x[:, :, [start + row for row in seen]] for start in range(0, x.shape[2], local)], 2)


@case("q, k, v at the real shape", "ttnn.experimental.all_gather_minimal_matmul_async", _ROWS, 1e-2,
      avoid=("gathered-matmul",), kind="shape")  # fmt: skip
def _qkv(bench: Bench) -> list[Output]:
    return _products(bench, ["q", "k", "v"], _CONFIG.inner_dim, swiglu=False)


@case("feed-forward at the real shape", "ttnn.experimental.all_gather_minimal_matmul_async", _ROWS, 1.5e-2,
      avoid=("swiglu", "gathered-matmul"), kind="shape")  # fmt: skip
def _up(bench: Bench) -> list[Output]:
    return _products(bench, ["both"], _CONFIG.ff_inner_dim, swiglu=True)


def _products(bench: Bench, names: list[str], outside: int, *, swiglu: bool) -> list[Output]:
    mesh, tp, inside = bench.mesh, bench.mesh.tp.size, _CONFIG.inner_dim
    layer = ColumnParallelLinear(
        mesh,
        names,
        Width.sharded(inside, tp),
        Width.sharded(outside, tp),
        chunks=2 if swiglu else 1,
        swiglu=swiglu,
        fidelity=ttnn.MathFidelity.HiFi2,
    )
    weights = Weights(layer)
    layer.load(weights)
    local, seen = _rows(bench)
    x = bench.big(1, 1, local * mesh.sp.size, inside)
    outputs = layer.gathered(bench.up(x, sp=2, tp=3))

    def exact(name: str) -> torch.Tensor:
        y = _picked(x, local, seen).to(NUMBERS) @ weights.tensor(f"{name}.weight").to(NUMBERS).T
        if swiglu:
            up, gate = y.chunk(2, -1)
            y = up * F.silu(gate)
        return Width.sharded(outside, tp).pad(y, 3)

    return [
        Output(y, lambda name=name: exact(name), sp=2, tp=3, rows=seen)  # type: ignore[misc]
        for y, name in zip(outputs, names, strict=True)
    ]


@case("second product at the real shape", "ttnn.experimental.minimal_matmul", _ROWS, 1e-2,
      avoid=("matmul", "reduce-scatter"), kind="shape")  # fmt: skip
def _down(bench: Bench) -> list[Output]:
    local, seen = _rows(bench)
    return partial(bench, local, _CONFIG.ff_inner_dim, _CONFIG.inner_dim, seen)


@case("norm at the real shape", "ttnn.experimental.dit_fused_distributed_rmsnorm", _ROWS, 1e-2,
      avoid=("norm",), kind="shape")  # fmt: skip
def _norm(bench: Bench) -> list[Output]:
    local, seen = _rows(bench)
    width = _CONFIG.inner_dim
    x, w = bench.big(1, 1, local * bench.mesh.sp.size, width), bench.normal(1, 1, 1, width)
    made = Width.sharded(width, bench.mesh.tp.size)
    y = rms_norm(bench.up(x, sp=2, tp=3), bench.up(w, tp=3), bench.mesh, made, 1e-6)

    def exact() -> torch.Tensor:
        return F.rms_norm(_picked(x, local, seen).to(NUMBERS), (width,), w.flatten(), 1e-6)

    return [Output(y, exact, sp=2, tp=3, rows=seen)]


@case("heads at the real shape", "ttnn.experimental.dit_fused_distributed_rmsnorm", _ROWS, 1e-2,
      avoid=("rotation", "head-norm"), kind="shape")  # fmt: skip
def _heads(bench: Bench) -> list[Output]:
    local, seen = _rows(bench)
    return heads(bench, local, _CONFIG.num_attention_heads, _CONFIG.attention_head_dim, rotates=True, seen=seen)


@case("attention at the real shape", "ttnn.transformer.ring_joint_scaled_dot_product_attention", _ROWS, 6e-2,
      avoid=("ring-attention", "joint-attention"), kind="shape")  # fmt: skip
def _attention(bench: Bench) -> list[Output]:
    _, seen = _rows(bench)
    count, width = _CONFIG.num_attention_heads, _CONFIG.attention_head_dim
    return attention(bench, bench.tokens, 256, count, width, streaming=True, dtype=ttnn.bfloat8_b, seen=seen)
