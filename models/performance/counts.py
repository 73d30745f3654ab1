"""Cost of one op on one chip: FLOPs, DRAM bytes and link bytes, from the shapes of the real call.

Conventions:

- FLOPs are those of matrix products (a multiply-add is two), on padded shapes, as the chip computes them.
- DRAM bytes: every tensor operand in DRAM is read once and every output in DRAM is written once, on padded shapes. For
  an op that uses only a part of an operand, that part counts. Re-reads inside an op are not counted, so this is a lower
  bound.
- L1 bytes: the same count for tensors in L1, spread over the cores.
- Link bytes: bytes over the busiest directed link. On a line of n chips the last link carries the shards of all other
  chips, n - 1 of them. On a ring each direction carries half as many.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ttnn

# This op returns no tensor.
SEND = "ttnn.experimental.send_async"
_BYTES = {
    ttnn.bfloat16: 2.0,
    ttnn.float32: 4.0,
    ttnn.bfloat8_b: 1088 / 1024,
    ttnn.bfloat4_b: 576 / 1024,
    ttnn.uint32: 4.0,
    ttnn.int32: 4.0,
    ttnn.uint16: 2.0,
    ttnn.uint8: 1.0,
}


@dataclass(frozen=True)
class Cost:
    """Cost of one call per chip.

    Attributes:
        flops: FLOPs of matrix products.
        dram_bytes: bytes read from and written to DRAM.
        l1_bytes: bytes read from and written to L1.
        link_bytes: bytes on the busiest directed link.
        exposed_link_bytes: the part of the link bytes that the op does not overlap with its own arithmetic.
        steps: for attention in chunks, number of pairs of a query chunk and a key chunk that the busiest core
            processes.
        step_tiles: number of 32 x 32 tiles of scores in one step, for a head of 128.
        step_keys: number of tiles of keys in one step, for a head of 128.
    """

    flops: float = 0.0
    dram_bytes: float = 0.0
    l1_bytes: float = 0.0
    link_bytes: float = 0.0
    exposed_link_bytes: float = 0.0
    steps: float = 0.0
    step_tiles: float = 0.0
    step_keys: float = 0.0


@dataclass(frozen=True)
class Call:
    """One call in the form that counting rules take.

    It has the tensor operands and outputs on the device, and the raw arguments.
    """

    name: str
    args: tuple
    kwargs: dict[str, Any]
    inputs: list[ttnn.Tensor]
    outputs: list[ttnn.Tensor]

    def chips(self) -> int:
        """Return the number of chips in the line or ring of a collective."""
        axis = self.kwargs.get("cluster_axis")
        mesh = self.outputs[0].device().shape
        return math.prod(mesh) if axis is None else mesh[axis]

    def hops(self) -> int:
        """Return the number of shards that pass the busiest link when every chip's shard reaches every chip."""
        others = self.chips() - 1
        return math.ceil(others / 2) if self.kwargs.get("topology") == ttnn.Topology.Ring else others


Rule = Callable[[Call], Cost]
_RULES: dict[str, Rule] = {}


def cost_rule(*names: str):
    """Register a counting rule for ops `names`. An op without a rule counts operands and outputs as memory traffic."""

    def decorator(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return decorator


def cost(call: Call) -> Cost:
    """Return the cost of one call."""
    return _RULES.get(call.name, elementwise)(call)


def element_bytes(dtype: ttnn.DataType) -> float:
    """Return the bytes of one element, including block exponents."""
    return _BYTES[dtype]


def nbytes(tensor: ttnn.Tensor) -> float:
    """Return the bytes of a device tensor on one chip, including padding."""
    return math.prod(tensor.padded_shape) * element_bytes(tensor.dtype)


def traffic(*tensors: ttnn.Tensor) -> float:
    """Return the DRAM bytes of several tensors, each moved once. Tensors in L1 do not count."""
    return sum(nbytes(tensor) for tensor in tensors if not _in_l1(tensor))


def moved(moves: Iterable[tuple[ttnn.Tensor, float]]) -> dict[str, float]:
    """Return DRAM bytes and L1 bytes, as arguments of `Cost`, of moves of (tensor, bytes)."""
    moves = list(moves)
    return {
        "dram_bytes": sum(count for tensor, count in moves if not _in_l1(tensor)),
        "l1_bytes": sum(count for tensor, count in moves if _in_l1(tensor)),
    }


def _in_l1(tensor: ttnn.Tensor) -> bool:
    return tensor.memory_config().buffer_type == ttnn.BufferType.L1


def elementwise(call: Call) -> Cost:
    """Count operands in and outputs out."""
    return Cost(**moved((tensor, nbytes(tensor)) for tensor in [*call.inputs, *call.outputs]))


def _exposed(link_bytes: float) -> dict[str, float]:
    return {"link_bytes": link_bytes, "exposed_link_bytes": link_bytes}


@cost_rule(
    "ttnn.linear",
    "ttnn.matmul",
    "ttnn.experimental.minimal_matmul",
    "ttnn.experimental.minimal_matmul_split",
)
def _matmul(call: Call) -> Cost:
    x, weight = call.inputs[:2]
    columns = weight.padded_shape[-2] if call.kwargs.get("transpose_b") else weight.padded_shape[-1]
    flops = 2 * math.prod(x.padded_shape) * columns
    return Cost(flops=flops, dram_bytes=traffic(*call.inputs, *call.outputs))


@cost_rule("ttnn.slice", "ttnn.Tensor.__getitem__", "ttnn.mesh_partition")
def _part(call: Call) -> Cost:
    size = nbytes(call.outputs[0])
    return Cost(**moved([(call.inputs[0], size), (call.outputs[0], size)]))


@cost_rule("ttnn.all_gather", "ttnn.experimental.all_gather_async")
def _all_gather(call: Call) -> Cost:
    shard, whole = nbytes(call.inputs[0]), nbytes(call.outputs[0])
    return Cost(dram_bytes=shard + whole, **_exposed(call.hops() * shard))


@cost_rule("ttnn.reduce_scatter", "ttnn.experimental.reduce_scatter_minimal_async")
def _reduce_scatter(call: Call) -> Cost:
    """Count a reduce-scatter: the partial sums that arrive are written to an intermediate buffer and read from there.

    Source: wheel, `ttnn/operations/experimental/ccl/reduce_scatter_minimal_async/device/kernels`, the reader of the
    ring and of the line.
    """
    whole, shard = nbytes(call.inputs[0]), nbytes(call.outputs[0])
    arriving = (call.chips() - 1) * shard
    return Cost(dram_bytes=whole + shard + 2 * arriving, **_exposed(call.hops() * shard))


@cost_rule(SEND)
def _send(call: Call) -> Cost:
    """Count a send: chips next to the cut read their tensor and send it over one link, whatever the number of links."""
    return Cost(dram_bytes=nbytes(call.inputs[0]), **_exposed(nbytes(call.inputs[0])))


@cost_rule("ttnn.experimental.recv_async")
def _receive(call: Call) -> Cost:
    """Count a receive: the data that arrives in the queue is written to memory."""
    return Cost(dram_bytes=nbytes(call.inputs[0]))


@cost_rule("ttnn.all_reduce")
def _all_reduce(call: Call) -> Cost:
    whole, chips = nbytes(call.outputs[0]), call.chips()
    return Cost(dram_bytes=2 * whole, **_exposed(2 * call.hops() * whole / chips))


@cost_rule("ttnn.experimental.all_gather_minimal_matmul_async")
def _gathered_matmul(call: Call) -> Cost:
    """Count a fused gather and product.

    The gathered input is written to its buffer beside the product, and read from there.
    """
    x, weight = call.inputs[:2]
    chips = call.chips()
    flops = 2 * chips * math.prod(x.padded_shape) * weight.padded_shape[-1]
    dram = traffic(*call.inputs, *call.outputs) + 2 * (chips - 1) * nbytes(x)
    return Cost(flops=flops, dram_bytes=dram, link_bytes=call.hops() * nbytes(x))


@cost_rule("ttnn.experimental.dit_fused_distributed_rmsnorm")
def _fused_norm(call: Call) -> Cost:
    """Count a fused norm: it sends one float32 statistic per row, between its two passes."""
    axis = call.args[1] if len(call.args) > 1 else call.kwargs.get("cluster_axis")
    if axis is None:
        return elementwise(call)
    chips = call.outputs[0].device().shape[axis]
    statistics = 4 * math.prod(list(call.outputs[0].padded_shape)[:-1])
    return Cost(dram_bytes=elementwise(call).dram_bytes, **_exposed((chips - 1) * statistics))


def _attention_work(call: Call, queries: list[int], keys: list[int]) -> dict[str, float]:
    """Return the FLOPs of attention between sequences of `queries` and `keys`.

    If the call has chunk sizes, the result includes its steps. The kernels' unit of work is one chunk of queries of one
    head against all keys, chunk by chunk. Whole units are distributed to the cores (upstream
    `sdpa/device/ring_joint_sdpa_program_factory.cpp`).
    """
    batch, heads, _, width = call.inputs[0].padded_shape
    heads *= batch
    work = {"flops": 4.0 * heads * width * sum(queries) * sum(keys)}
    config = call.kwargs.get("program_config")
    if config is None:
        return work
    grid, q_chunk, k_chunk = config.compute_with_storage_grid_size, config.q_chunk_size, config.k_chunk_size
    units = heads * sum(math.ceil(rows / q_chunk) for rows in queries)
    key_chunks = sum(math.ceil(rows / k_chunk) for rows in keys)
    step_keys = (k_chunk / 32) * (width / 128)
    steps = math.ceil(units / (grid.x * grid.y)) * key_chunks
    return work | {"steps": steps, "step_tiles": (q_chunk / 32) * step_keys, "step_keys": step_keys}


@cost_rule("ttnn.transformer.scaled_dot_product_attention", "ttnn.transformer.joint_scaled_dot_product_attention")
def _attention(call: Call) -> Cost:
    queries = [t.padded_shape[2] for t in call.inputs[0::3]]
    keys = [t.padded_shape[2] for t in call.inputs[1::3]]
    return Cost(dram_bytes=traffic(*call.inputs, *call.outputs), **_attention_work(call, queries, keys))


@cost_rule("ttnn.transformer.ring_joint_scaled_dot_product_attention")
def _ring_attention(call: Call) -> Cost:
    q, k, v = call.inputs[:3]
    joint = call.inputs[3:6] if len(call.inputs) >= 6 else []
    chips = call.chips()
    extra = [joint[0].padded_shape[2]] if joint else []
    work = _attention_work(call, [q.padded_shape[2], *extra], [k.padded_shape[2]] * chips + extra)
    moved = traffic(k, v) * (chips - 1)
    # Keys and values of the other chips are written to the persistent buffers as they arrive, and read from there.
    dram = traffic(q, k, v, *joint, *call.outputs[:2]) + 2 * moved
    return Cost(dram_bytes=dram, link_bytes=traffic(k, v) * call.hops(), **work)
