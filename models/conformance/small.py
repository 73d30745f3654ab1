"""Small cases: each op of the device path, with the arguments that the layers give it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import ttnn

from models.conformance.bench import NUMBERS, Bench, Output, Weights, case, needs_sp, needs_tp, without_sp, without_tp
from models.layers import HeadRMSNorm, Heads, RotaryTable, Width, compute, joint_attention, rms_norm
from models.layers.conv3d import Conv3d
from models.layers.group_norm import FrameGroupNorm, GroupSums
from models.layers.linear import ColumnParallelLinear, RowParallelLinear
from models.layers.normalization import layer_norm
from models.parallel import Halves, Layout, Replay, all_reduce, gather, reduce_scatter
from models.parallel.halo import HEIGHT, Border, Extent, HaloExchange, ShardedDim, upload
from models.parallel.rows import copy_rows

_ROUND = "rounded once to bfloat16"
_MOVES = "moves bits"
_FUSED = "sums in float32; products at the fidelity's bits"
_HIFI2 = ttnn.MathFidelity.HiFi2


@case("transfer", "ttnn.to_device", _MOVES, 0)
def _transfer(bench: Bench) -> list[Output]:
    x, y = bench.normal(1, 1, 64, 96), bench.normal(1, 1, 64, 96, dtype=torch.float32)
    return [Output(bench.up(x), lambda: x), Output(bench.up(y, ttnn.float32), lambda: y)]


def _binary(name: str, op: Callable[..., Any], exact: Callable[..., torch.Tensor]) -> None:
    @case(name, f"ttnn.{name}", _ROUND, 4e-3)
    def run(bench: Bench) -> list[Output]:
        x, y, row = bench.normal(1, 1, 64, 256), bench.normal(1, 1, 64, 256), bench.normal(1, 1, 1, 256)
        a = bench.up(x)
        return [Output(op(a, bench.up(y)), lambda: exact(x, y)), Output(op(a, bench.up(row)), lambda: exact(x, row))]


def _unary(name: str, op: Callable[..., Any], exact: Callable[..., torch.Tensor], dtype: ttnn.DataType) -> None:
    @case(name, f"ttnn.{name}", "within some units of the last place", 6e-3)
    def run(bench: Bench) -> list[Output]:
        x = bench.normal(1, 1, 64, 256).abs() + 0.125
        return [Output(op(bench.up(x, dtype)), lambda: exact(x))]


_binary("add", ttnn.add, torch.add)
_binary("subtract", ttnn.subtract, torch.sub)
_binary("multiply", ttnn.multiply, torch.mul)
_unary("silu", ttnn.silu, F.silu, ttnn.bfloat16)
_unary("tanh", ttnn.tanh, torch.tanh, ttnn.bfloat16)
_unary("rsqrt", ttnn.rsqrt, torch.rsqrt, ttnn.bfloat16)
_unary("sin", ttnn.sin, torch.sin, ttnn.float32)
_unary("cos", ttnn.cos, torch.cos, ttnn.float32)
_unary("gelu", lambda x: ttnn.gelu(x), F.gelu, ttnn.bfloat16)


@case("abs", "ttnn.abs", "exact", 1e-6)
def _abs(bench: Bench) -> list[Output]:
    x = bench.normal(1, 1, 64, 256)
    return [Output(ttnn.abs(bench.up(x, ttnn.float32)), x.abs)]


@case("where", "ttnn.where", "exact; a NaN that is not taken leaves no trace", 1e-6)
def _where(bench: Bench) -> list[Output]:
    x, taken = bench.normal(1, 1, 64, 96), (bench.normal(1, 1, 64, 96) > 0).float()
    hidden = x.masked_fill(taken == 0, torch.nan)
    y = ttnn.where(bench.up(taken, ttnn.float32), bench.up(hidden, ttnn.float32), 0.0)
    return [Output(y, lambda: x * taken)]


@case("typecast", "ttnn.typecast", "float32 and bfloat16 to nearest; bfloat8_b half away from zero", 1e-2)
def _typecast(bench: Bench) -> list[Output]:
    x, y = bench.normal(1, 1, 64, 256, dtype=torch.float32), bench.normal(1, 1, 64, 256)
    eight = ttnn.typecast(ttnn.typecast(bench.up(y), ttnn.bfloat8_b), ttnn.bfloat16)
    return [Output(ttnn.typecast(bench.up(x, ttnn.float32), ttnn.bfloat16), lambda: x), Output(eight, lambda: y)]


@case("layouts", "ttnn.concat", _MOVES, 0)
def _layouts(bench: Bench) -> list[Output]:
    x, y = bench.normal(1, 2, 40, 64), bench.normal(1, 2, 24, 64)
    a, b = bench.up(x), bench.up(y)
    joined = ttnn.concat([a, b], dim=2)
    return [
        Output(joined, lambda: torch.cat([x, y], 2)),
        Output(ttnn.slice(joined, [0, 0, 32, 0], [1, 2, 64, 64]), lambda: torch.cat([x, y], 2)[:, :, 32:64]),
        Output(ttnn.experimental.nlp_concat_heads(b), lambda: y.transpose(1, 2).flatten(2)[:, None]),
        Output(ttnn.permute(b, (0, 1, 3, 2)), lambda: y.mT),
    ]


@case("copies of rows", "ttnn.slice", _MOVES, 0)
def _rows(bench: Bench) -> list[Output]:
    x = bench.normal(3, 7, 9, 32)
    up = bench.up(x, layout=ttnn.ROW_MAJOR_LAYOUT)
    part = copy_rows(up, [1, 2, 3, 0], [3, 7, 8, 32])
    return [Output(part, lambda: x[1:3, 2:7, 3:8])]


@case("embedding", "ttnn.embedding", _MOVES, 0)
def _embedding(bench: Bench) -> list[Output]:
    table, ids = bench.normal(96, 64), torch.tensor([[5, 0, 95, 7] * 8])
    up = bench.mesh.upload(ids, dtype=ttnn.uint32, layout=ttnn.ROW_MAJOR_LAYOUT)
    weight = bench.up(table, layout=ttnn.ROW_MAJOR_LAYOUT)
    return [Output(ttnn.embedding(up, weight, layout=ttnn.TILE_LAYOUT), lambda: table[ids])]


@case("softmax", "ttnn.softmax", "in float32", 1e-2)
def _softmax(bench: Bench) -> list[Output]:
    x = bench.normal(1, 2, 64, 96)
    y = ttnn.softmax(bench.up(x, ttnn.float32), dim=-1, compute_kernel_config=compute.accurate(), numeric_stable=True)
    return [Output(y, lambda: x.softmax(-1))]


@case("sum", "ttnn.sum", "in float32", 4e-3)
def _sum(bench: Bench) -> list[Output]:
    x = bench.normal(1, 1, 64, 96).abs()
    return [Output(ttnn.sum(bench.up(x, ttnn.float32), dim=-1, keepdim=True), lambda: x.sum(-1, keepdim=True))]


@case("linear", "ttnn.linear", _FUSED, 1e-2)
def _linear(bench: Bench) -> list[Output]:
    x, w, b = bench.normal(1, 1, 64, 256), bench.normal(256, 128), bench.normal(1, 1, 1, 128)
    y = ttnn.linear(
        bench.up(x), bench.up(w), bias=bench.up(b), dtype=ttnn.bfloat16, compute_kernel_config=compute.matrix()
    )
    return [Output(y, lambda: x @ w + b)]


def _column(bench: Bench, rows: int, inside: int, outside: int, *, swiglu: bool) -> list[Output]:
    """A product of gathered inputs as attention (three outputs and a bias) or feed-forward (SwiGLU) has it."""
    mesh, tp = bench.mesh, bench.mesh.tp.size
    names = ["both"] if swiglu else ["q", "k", "v"]
    layer = ColumnParallelLinear(
        mesh,
        names,
        Width.sharded(inside, tp),
        Width.sharded(outside, tp),
        chunks=2 if swiglu else 1,
        bias=not swiglu,
        swiglu=swiglu,
        fidelity=_HIFI2,
    )
    weights = Weights(layer)
    layer.load(weights)
    x = bench.normal(1, 1, rows, inside)
    outputs = layer.gathered(bench.up(x, tp=3))

    def product(name: str) -> torch.Tensor:
        return x @ weights.tensor(f"{name}.weight").to(NUMBERS).T

    if swiglu:

        def gated() -> torch.Tensor:
            up, gate = product("both").chunk(2, -1)
            return up * F.silu(gate)

        return [Output(outputs[0], gated, tp=3)]
    return [
        Output(y, lambda name=name: product(name) + weights.tensor(f"{name}.bias").to(NUMBERS), tp=3)  # type: ignore[misc]
        for y, name in zip(outputs, names, strict=True)
    ]


_GATHERED = "ttnn.experimental.all_gather_minimal_matmul_async"


@case("gathered product", _GATHERED, _FUSED, 1e-2, avoid=("gathered-matmul",), needs=needs_tp)
def _gathered(bench: Bench) -> list[Output]:
    return _column(bench, 64, 128 * bench.mesh.tp.size, 64 * bench.mesh.tp.size, swiglu=False)


@case("gathered product with SwiGLU", _GATHERED, _FUSED, 1.5e-2, avoid=("swiglu", "gathered-matmul"), needs=needs_tp)
def _gathered_swiglu(bench: Bench) -> list[Output]:
    return _column(bench, 64, 128 * bench.mesh.tp.size, 64 * bench.mesh.tp.size, swiglu=True)


@case(
    "product in several outputs",
    "ttnn.experimental.minimal_matmul_split",
    _FUSED,
    1e-2,
    avoid=("matmul",),
    needs=without_tp,
)
def _split(bench: Bench) -> list[Output]:
    return _column(bench, 64, 128, 32, swiglu=False)


@case(
    "product with SwiGLU",
    "ttnn.experimental.minimal_matmul",
    _FUSED,
    1.5e-2,
    avoid=("swiglu", "matmul"),
    needs=without_tp,
)
def _swiglu(bench: Bench) -> list[Output]:
    return _column(bench, 64, 128, 64, swiglu=True)


@case("partial product", "ttnn.experimental.minimal_matmul", _FUSED, 1e-2, avoid=("matmul",))
def _partial(bench: Bench) -> list[Output]:
    return partial(bench, 64, 256 * bench.mesh.tp.size, 128 * bench.mesh.tp.size)


def partial(bench: Bench, rows: int, inside: int, outside: int, seen: list[int] | None = None) -> list[Output]:
    """The second product of a feed-forward, summed over TP."""
    tp = bench.mesh.tp.size
    layer = RowParallelLinear(
        bench.mesh, "down", Width.sharded(inside, tp), Width.sharded(outside, tp), fidelity=_HIFI2
    )
    weights = Weights(layer)
    layer.load(weights)
    x = bench.normal(1, 1, rows, inside)
    y = layer.fractured(bench.up(x, tp=3))
    part = x if seen is None else x[:, :, seen]
    return [Output(y, lambda: part @ weights.tensor("down.weight").to(NUMBERS).T, tp=3, rows=seen)]


_NORM = "ttnn.experimental.dit_fused_distributed_rmsnorm"


@case("norm", _NORM, "statistics in float32", 1e-2, avoid=("norm",))
def _norm(bench: Bench) -> list[Output]:
    width = 128 * bench.mesh.tp.size
    x, w = bench.normal(1, 1, 96, width), bench.normal(1, 1, 1, width)
    y = rms_norm(bench.up(x, tp=3), bench.up(w, tp=3), bench.mesh, Width.sharded(width, bench.mesh.tp.size), 1e-6)
    return [Output(y, lambda: F.rms_norm(x, (width,), w.flatten(), 1e-6), tp=3)]


@case("layer norm", "ttnn.layer_norm_post_all_gather", "statistics in float32", 1e-2)
def _layer_norm(bench: Bench) -> list[Output]:
    width = 128 * bench.mesh.tp.size
    x, w, b = bench.normal(1, 1, 64, width), bench.normal(1, 1, 1, width), bench.normal(1, 1, 1, width)
    y = layer_norm(
        bench.up(x, tp=3),
        bench.up(w, tp=3),
        bench.up(b, tp=3),
        bench.mesh,
        Width.sharded(width, bench.mesh.tp.size),
        1e-6,
    )
    return [Output(y, lambda: F.layer_norm(x, (width,), w.flatten(), b.flatten(), 1e-6), tp=3)]


def heads(
    bench: Bench, rows: int, count: int, width: int, *, rotates: bool, seen: list[int] | None = None
) -> list[Output]:
    """Norm of the heads of every chip, with or without the rotation."""
    mesh = bench.mesh
    layer = HeadRMSNorm(mesh, "norm", count, Width.heads(1, width), 1e-6)
    weights = Weights(layer)
    layer.load(weights)
    x = bench.normal(1, 1, rows, count * width)
    table, cos, sin = None, None, None
    if rotates:
        angles = bench.normal(1, count, rows, width // 2).repeat_interleave(2, -1)
        cos, sin = (f(angles).bfloat16().to(NUMBERS) for f in (torch.cos, torch.sin))
        rotate = torch.zeros(1, 1, 32, 32)
        even = torch.arange(0, 32, 2)
        rotate[0, 0, even, even + 1], rotate[0, 0, even + 1, even] = 1, -1
        table = RotaryTable(bench.up(cos, tp=1), bench.up(sin, tp=1), bench.up(rotate))
    y = layer(bench.up(x, tp=3), table)

    def exact() -> torch.Tensor:
        part = x if seen is None else x[:, :, seen]
        split = part.unflatten(-1, (count, width))[0].transpose(1, 2)
        normed = F.rms_norm(split, (width,), weights.tensor("norm.weight").to(NUMBERS), 1e-6)
        if cos is None or sin is None:
            return normed
        c, s = (t if seen is None else t[:, :, seen] for t in (cos, sin))
        turned = torch.stack([-normed[..., 1::2], normed[..., 0::2]], -1).flatten(-2)
        return normed * c + turned * s

    return [Output(y, exact, tp=1, rows=seen)]


@case("norm of heads", _NORM, "statistics in float32", 1e-2, avoid=("head-norm",))
def _head_norm(bench: Bench) -> list[Output]:
    return heads(bench, 96, 4 * bench.mesh.tp.size, 64, rotates=False)


@case("norm and rotation of heads", _NORM, "statistics in float32", 1e-2, avoid=("rotation", "head-norm"))
def _head_rotation(bench: Bench) -> list[Output]:
    return heads(bench, 96, 4 * bench.mesh.tp.size, 64, rotates=True)


def attention(
    bench: Bench,
    tokens: int,
    text: int,
    count: int,
    width: int,
    *,
    streaming: bool,
    dtype: ttnn.DataType = ttnn.bfloat16,
    seen: list[int] | None = None,
) -> list[Output]:
    """Joint attention of `tokens` visual rows, padded to whole tiles of SP, and `text` rows."""
    mesh = bench.mesh
    stored = -(-tokens // (32 * mesh.sp.size)) * 32 * mesh.sp.size
    x = [F.pad(bench.normal(1, count, tokens, width), (0, 0, 0, stored - tokens)) for _ in range(3)]
    y = [bench.normal(1, count, text, width) for _ in range(3)]
    visual, joint = joint_attention(
        Heads(*(bench.up(part, dtype, sp=2, tp=1) for part in x)),
        Heads(*(bench.up(part, dtype, tp=1) for part in y)) if text else None,
        mesh,
        tokens=tokens,
        scale=width**-0.5,
        fidelity=_HIFI2,
        streaming=streaming,
        chunks=bench.chunks,
    )

    def queries(q: torch.Tensor) -> torch.Tensor:
        k, v = (torch.cat([a[:, :, :tokens], b], 2) for a, b in zip(x[1:], y[1:], strict=True))
        each = zip(q.split(1, 1), k.split(1, 1), v.split(1, 1), strict=True)
        return torch.cat([((a @ b.mT) * width**-0.5).softmax(-1) @ c for a, b, c in each], 1)

    def seen_rows() -> torch.Tensor:
        # A chip's last rows may be padding, whose outputs have no meaning.
        if seen is None:
            return queries(x[0])
        local = stored // mesh.sp.size
        picked = [chip * local + row for chip in range(mesh.sp.size) for row in seen]
        return queries(x[0][:, :, picked])

    outputs = [Output(visual, seen_rows, sp=2, tp=1, rows=seen)]
    if joint is not None and seen is None:
        outputs.append(Output(joint, lambda: queries(y[0]), tp=1))
    return outputs


def _attention_case(name: str, op: str, limit: float, streaming: bool, text: int, **options: Any) -> None:
    @case(name, op, "scores in float32, or bfloat16 between steps (streaming)", limit, **options)
    def run(bench: Bench) -> list[Output]:
        tokens = 96 * bench.mesh.sp.size
        return attention(bench, tokens, text, 2 * bench.mesh.tp.size, 64, streaming=streaming)


_SDPA = "ttnn.transformer.scaled_dot_product_attention"
_JOINT = "ttnn.transformer.joint_scaled_dot_product_attention"
_RING = "ttnn.transformer.ring_joint_scaled_dot_product_attention"
_attention_case("attention", _SDPA, 3e-2, False, 0, needs=without_sp)
_attention_case("attention, streaming", _SDPA, 6e-2, True, 0, needs=without_sp)
_attention_case("joint attention", _JOINT, 4e-2, False, 45, needs=without_sp, avoid=("joint-attention",))
_attention_case("ring attention", _RING, 4e-2, False, 45, needs=needs_sp, avoid=("ring-attention",))
_attention_case("ring attention, streaming", _RING, 6e-2, True, 45, needs=needs_sp, avoid=("ring-attention",))


@case("all_gather", "ttnn.all_gather", _MOVES, 0, needs=needs_tp)
def _all_gather(bench: Bench) -> list[Output]:
    x = bench.normal(1, 1, 64, 64 * bench.mesh.tp.size)
    return [Output(gather(bench.up(x, tp=3), dim=3, over=bench.mesh.tp), lambda: x)]


@case("all_gather over SP", "ttnn.all_gather", _MOVES, 0, needs=needs_sp)
def _all_gather_sp(bench: Bench) -> list[Output]:
    x = bench.normal(1, 1, 64 * bench.mesh.sp.size, 64)
    return [Output(gather(bench.up(x, sp=2), dim=2, over=bench.mesh.sp), lambda: x)]


@case("all_gather on all links", "ttnn.all_gather", _MOVES, 0, needs=needs_tp, avoid=("links",))
def _all_links(bench: Bench) -> list[Output]:
    """Enough pages that every link has some."""
    x = bench.normal(1, 1, 256, 128 * bench.mesh.tp.size)
    return [Output(gather(bench.up(x, tp=3), dim=3, over=bench.mesh.tp), lambda: x)]


@case("reduce_scatter", "ttnn.reduce_scatter", _ROUND, 1e-2, needs=needs_tp, avoid=("reduce-scatter",))
def _reduce_scatter(bench: Bench) -> list[Output]:
    tp = bench.mesh.tp.size
    x = bench.normal(tp, 1, 64, 64 * tp)
    y = reduce_scatter(bench.up(x, tp=0), dim=3, over=bench.mesh.tp)
    return [Output(y, lambda: x.sum(0, keepdim=True), tp=3)]


@case("all_reduce", "ttnn.all_reduce", _ROUND, 4e-3, needs=needs_tp, avoid=("all-reduce",))
def _all_reduce(bench: Bench) -> list[Output]:
    x = bench.normal(bench.mesh.tp.size, 1, 64, 64)
    y = all_reduce(bench.up(x, ttnn.float32, tp=0), over=bench.mesh.tp)
    return [Output(y, lambda: x.sum(0, keepdim=True))]


def _video(bench: Bench, frames: int, local: int, columns: int, channels: int) -> tuple[torch.Tensor, Extent]:
    """A video whose rows are split over the longer mesh axis."""
    axis = max((bench.mesh.sp, bench.mesh.tp), key=lambda axis: axis.size)
    x = bench.normal(1, frames, local * axis.size, columns, channels)
    return x, Extent(
        ShardedDim.split(frames, None), ShardedDim.split(local * axis.size, axis), ShardedDim.split(columns, None)
    )


def _put_up(bench: Bench, x: torch.Tensor, extent: Extent) -> tuple[ttnn.Tensor, dict[int, int]]:
    dims = {extent.height.axis.index: HEIGHT} if extent.height.axis is not None else {}
    return upload(bench.mesh, x.bfloat16(), dims), dims


def _several(layout: Layout) -> str | None:
    return None if layout.sp * layout.tp > 1 else "needs several chips"


@case("halo", "ttnn.experimental.neighbor_pad_async", _MOVES, 0, needs=_several, avoid=("halo",))
def _halo(bench: Bench) -> list[Output]:
    x, extent = _video(bench, 2, 4, 6, 32)
    halo, border = HaloExchange(bench.mesh), Border(height=(1, 1))
    shards = extent.height.shards
    inside = F.pad(x[0].unflatten(1, (shards, 4)), (0, 0, 0, 0, 1, 1))  # [T, shards, 6, W, C]
    dims = {extent.height.axis.index: HEIGHT - 1}  # type: ignore[union-attr]
    room = upload(bench.mesh, inside.flatten(1, 2).bfloat16(), dims)
    halo.fill(room, extent, border)

    def exact() -> torch.Tensor:
        edged = F.pad(x[0].permute(0, 3, 1, 2), (0, 0, 1, 1), "replicate").permute(0, 2, 3, 1)
        return torch.cat([edged[:, 4 * i : 4 * i + 6] for i in range(shards)], 1)

    return [Output(room, exact, axes=dims)]


@case("conv3d", "ttnn.experimental.conv3d", "partial sums in float32", 1e-2)
def _conv3d(bench: Bench) -> list[Output]:
    layer = Conv3d(bench.mesh, "conv", 64, 64)
    weights = Weights(layer)
    layer.load(weights)
    x = bench.normal(1, 4, 6, 7, 64)
    up = upload(bench.mesh, x.bfloat16(), {})

    def exact() -> torch.Tensor:
        padded = F.pad(x.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 0, 0), "replicate")
        w, b = (weights.tensor(f"conv.{name}").to(NUMBERS) for name in ("weight", "bias"))
        return F.conv3d(padded, w, b).permute(0, 2, 3, 4, 1)

    return [Output(layer(up, space=(1, 1)), exact)]


@case("group norm", "ttnn.sum", "sums in bfloat16 over 1024 positions, then float32", 1.5e-2)
def _group_norm(bench: Bench) -> list[Output]:
    x, extent = _video(bench, 2, 4, 6, 64)
    layer = FrameGroupNorm(bench.mesh, "norm", 64, GroupSums(bench.mesh))
    weights = Weights(layer)
    layer.load(weights)
    up, dims = _put_up(bench, x, extent)
    room = HaloExchange(bench.mesh).room(extent, Border(), 64)
    layer(up, extent, room)

    def exact() -> torch.Tensor:
        w, b = (weights.tensor(f"norm.{name}").to(NUMBERS) for name in ("weight", "bias"))
        return F.silu(F.group_norm(x[0].permute(0, 3, 1, 2), 32, w, b, 1e-5)).permute(0, 2, 3, 1)

    return [Output(room, exact, axes={axis: dim - 1 for axis, dim in dims.items()})]


def _halves(layout: Layout) -> str | None:
    return None if any(size % 2 == 0 for size in layout.mesh_shape) else "needs an even mesh axis"


@case("halves", "ttnn.experimental.send_async", _MOVES, 0, needs=_halves, avoid=("sockets",))
def _swap(bench: Bench) -> list[Output]:
    shape = bench.mesh.layout.mesh_shape
    axis = max(range(2), key=lambda axis: (shape[axis] % 2 == 0, shape[axis]))
    halves = Halves(bench.mesh.device, Layout(shape, bench.mesh.sp.index, bench.mesh.tp.index, axis))
    rows = 32 * halves.conditional.sp.size
    x, y = bench.normal(1, 1, rows, 48), bench.normal(1, 1, rows, 48)
    got_y, got_x = halves.swap(
        halves.conditional.upload(x.float(), dtype=ttnn.float32, sp=2),
        halves.unconditional.upload(y.float(), dtype=ttnn.float32, sp=2),
    )
    here, there = halves.conditional.download(got_y, sp=2), halves.unconditional.download(got_x, sp=2)
    halves.release()
    return [Output(here, lambda: y), Output(there, lambda: x)]


@case("capture and replay", "ttnn.execute_trace", "the same ops again", 4e-3, avoid=("capture",))
def _replay(bench: Bench) -> list[Output]:
    """Where a mesh cannot capture, ops are sent every time."""
    x = bench.normal(1, 1, 64, 256)
    up = bench.up(x)
    replay: Replay[ttnn.Tensor] = Replay(bench.mesh.device, capture=bench.opened.can_capture)
    for _ in range(3):
        y = replay(lambda: ttnn.multiply(up, up))
    replay.finish()
    return [Output(y, lambda: x * x)]
