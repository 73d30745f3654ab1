"""Limits of kernels that ttnn's host code does not check.

With arguments beyond them, a kernel computes wrong values, never ends or does not compile. A mock mesh runs no kernel,
so nothing else would notice them: golden execution would compute the intended values, and a dry run would pass.
Therefore every op on a mock mesh, with numbers or without, is first checked against these limits. Each limit names
the kernel that it was read from. Paths are relative to `ttnn/ttnn/cpp/ttnn/operations` of the wheel of ttnn 0.81.1.
The wheel has kernels alone: what runs on the host (`..._program_factory.cpp`) is in tt-metal at the same tag.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from models.machine.ops import add_hook, remove_hook
from models.mock.golden.errors import call_site

if TYPE_CHECKING:
    import ttnn

_TILE = 32
# Bytes that the fused norm puts into L1 besides whole rows, and bytes of L1 that it has (upstream
# dit_fused_distributed_rmsnorm_program_factory.cpp, decide_block_major_post): 1,499,136 bytes less 112,640.
_NORM_OTHER_BYTES, _NORM_L1_BYTES = 225_000, 1_386_496
# Number of rows of tiles from which on the fused norm uses more than one core for each link (same file,
# kMuxRowsThreshold).
_NORM_SINGLE_WORKER = 4
_NORM = "experimental/ccl/dit_fused_distributed_rmsnorm/device/kernels"
_ATTENTION = "transformer/sdpa"
_SOCKETS = "experimental/ccl/send_recv_async"

_LIMITS: dict[str, Callable[..., str | None]] = {}
_attached: list[bool] = []


class KernelLimit(RuntimeError):
    """Error for an op whose arguments ttnn's host code accepts but its kernel cannot handle."""


def limit(*names: str) -> Callable:
    """Register a limit of the ops `names`: a function of their arguments that returns what is wrong, or None."""

    def decorator(function: Callable[..., str | None]) -> Callable[..., str | None]:
        _LIMITS.update(dict.fromkeys(names, function))
        return function

    return decorator


def attach() -> None:
    """Check every op of this process against the limits."""
    if not _attached:
        add_hook(_checked)
        _attached.append(True)


def detach() -> None:
    """Stop checking."""
    if _attached:
        remove_hook(_checked)
        _attached.clear()


def _checked(call: Callable[..., Any], operation: Any, *args: Any, **kwargs: Any) -> Any:
    check(operation.python_fully_qualified_name, args, kwargs)
    return call(operation, *args, **kwargs)


def check(op: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Check one call against the limits.

    Raises:
        KernelLimit: the kernel would compute wrong values, never end, or not compile.
    """
    wrong = _LIMITS[op](*args, **kwargs) if op in _LIMITS else None
    if wrong is not None:
        raise KernelLimit(f"{op} at {call_site()}: {wrong}")


@limit("ttnn.experimental.dit_fused_distributed_rmsnorm")
def _fused_norm(
    input_tensor: ttnn.Tensor,
    cluster_axis: int | None = None,
    mesh_device: ttnn.MeshDevice | None = None,
    *_: Any,
    per_head_norm: bool = False,
    num_heads_per_device: int = 1,
    weight: ttnn.Tensor | None = None,
    rope_cos: ttnn.Tensor | None = None,
    num_preferred_links: int | None = None,
    dtype: ttnn.DataType | None = None,
    compute_kernel_config: Any = None,
    **__: Any,
) -> str | None:
    rows, width = list(input_tensor.shape)[-2:]
    # A destination register holds 8 tiles of float32 in full synchronization, else 4; twice as many of bfloat16.
    block = 4 if getattr(compute_kernel_config, "fp32_dest_acc_en", True) else 8
    block *= 2 if getattr(compute_kernel_config, "dst_full_sync_en", False) else 1
    if per_head_norm and (width // _TILE) % block:
        return (
            f"it never ends: {width // _TILE} tiles of heads on a chip are no multiple of the {block} that it takes at "
            f"a time ({_NORM}/compute/dit_rmsnorm_fused_compute.cpp: 539 to 556 give a head's tiles, 929 to 933 wait "
            "for whole blocks); use the separate ops"
        )
    if rope_cos is not None and rows % _TILE:
        return (
            f"its rotation would be wrong: {rows} rows are not whole tiles, and it finds a row's cosines by the whole "
            f"tiles alone ({_NORM}/dataflow/dit_rmsnorm_fused_reader.cpp: 456 and 489, rope_seqlen_tiles); pad the "
            "rows and the tables"
        )
    if per_head_norm:
        tiles, head = width // _TILE, width // _TILE // num_heads_per_device
        outside = _tile_bytes(input_tensor.dtype) + _tile_bytes(dtype or input_tensor.dtype)
        kept = tiles * (2 * 4096 + 2 * outside + (0 if weight is None else _tile_bytes(weight.dtype)))
        by_head = kept + _NORM_OTHER_BYTES > _NORM_L1_BYTES
        if by_head and head % block:
            return (
                f"it never ends: {tiles} tiles of heads do not fit L1, so it works head by head, and a head's {head} "
                f"tiles are no multiple of the {block} that it takes at a time "
                f"({_NORM}/compute/dit_rmsnorm_fused_compute.cpp: 566 to 714); use the separate ops"
            )
        if by_head and rope_cos is not None and rope_cos.shape[1] > 1:
            return (
                f"its rotation would be wrong, and then it never ends: {tiles} tiles of heads do not fit L1, so it "
                "works head by head, frees each head's rows of the tables and still counts from the first one's "
                f"({_NORM}/compute/dit_rmsnorm_fused_compute.cpp: 675 to 714); rotate in an op of its own"
            )
    chips = 1 if cluster_axis is None or mesh_device is None else mesh_device.shape[cluster_axis]
    if not per_head_norm and chips > 1 and chips % 2:
        return (
            f"it does not compile for {chips} chips: it adds their sums in pairs "
            f"({_NORM}/compute/dit_rmsnorm_fused_compute.cpp: 413); use the separate ops"
        )
    if chips > 1 and not per_head_norm:
        tiles, links = -(-rows // _TILE) * input_tensor.shape[1], num_preferred_links or 1
        if tiles >= _NORM_SINGLE_WORKER and -(-tiles // links) * (links - 1) >= tiles:
            return (
                f"it does not compile for {tiles} rows of tiles over {links} links: groups of "
                f"{-(-tiles // links)} leave nothing for the last link (experimental/ccl/dit_fused_norm_common/kernels/"
                "dataflow/dit_fused_norm_forwarder.cpp: 66, 91 and 92); ask for fewer links"
            )
    return None


def _tile_bytes(dtype: ttnn.DataType) -> int:
    name = str(dtype).split(".")[-1]
    return {"FLOAT32": 4096, "BFLOAT16": 2048, "BFLOAT8_B": 1088}[name]


@limit("ttnn.slice")
def _slice(
    input_tensor: ttnn.Tensor,
    slice_start: Any = None,
    slice_end: Any = None,
    slice_step: Any = None,
    *_: Any,
    **__: Any,
) -> str | None:
    step = slice_step or ()
    if str(input_tensor.layout) != "Layout.ROW_MAJOR" or slice_start is None or any(s != 1 for s in step):
        return None  # Another kernel takes steps.
    shape = list(input_tensor.shape)
    starts, ends = (
        [at + size if at < 0 else at for at, size in zip(list(bound), shape, strict=True)]
        for bound in (slice_start, slice_end)
    )
    sizes = [min(end, size) - start for start, end, size in zip(starts, ends, shape, strict=True)]
    if sizes == shape:
        return None  # It gives the tensor itself back.
    return _moved_rows(sizes, input_tensor, "data_movement/slice/device/slice_program_factory_rm.cpp: 128, 274 and 352")


@limit("ttnn.experimental.slice_write")
def _slice_write(input_tensor: ttnn.Tensor, *_: Any, **__: Any) -> str | None:
    if str(input_tensor.layout) != "Layout.ROW_MAJOR":
        return None
    source = "experimental/slice_write/device/slice_write_rm_interleaved_program_factory.cpp"
    return _moved_rows(list(input_tensor.shape), input_tensor, source)


def _moved_rows(sizes: list[int], x: ttnn.Tensor, source: str) -> str | None:
    """Simulate how a core with fewer rows moves them through its buffer, whose size fits the cores with more rows.

    Returns what is wrong if the core would write past the end of the buffer, else None.
    """
    grid = x.device().compute_with_storage_grid_size()
    cores, stride = grid.x * grid.y, -(-sizes[-1] * x.element_size() // 32) * 32
    rows = math.prod(sizes[:-1])

    def group(share: int) -> int:
        padded = -(-share // 32) * 32
        return next(size for size in range(max(4096 // stride, 1), 0, -1) if padded % size == 0)

    fewer, more = rows // cores, -(-rows // cores)
    if fewer in (0, more):
        return None
    buffer, step, place = 2 * group(more), group(fewer), 0
    for _ in range(0, fewer, step):
        if place + step > buffer:
            return (
                f"it would write over L1: of {rows} rows of {stride} bytes some cores get {fewer}, which they move in "
                f"groups of {step} through a buffer of {buffer} ({source}); copy in two parts"
            )
        place = (place + step) % buffer
    return None


@limit("ttnn.transformer.ring_joint_scaled_dot_product_attention")
def _ring_attention(
    input_tensor_q: ttnn.Tensor,
    *_: Any,
    cluster_axis: int,
    mesh_device: ttnn.MeshDevice,
    topology: ttnn.Topology,
    **__: Any,
) -> str | None:
    rows = input_tensor_q.shape[2]
    if rows % _TILE:
        return (
            f"it would leave out the last of {rows} rows: it counts a chip's whole tiles "
            f"({_ATTENTION}/device/ring_joint_sdpa_program_factory.cpp: q_local_padded_Nt); pad the rows"
        )
    if mesh_device.shape[cluster_axis] == 2 and str(topology).endswith("Ring"):
        return (
            "it never ends on a ring of two chips: its gather expects one write fewer than there are chips that way, "
            "of which there are none (experimental/ccl/ring_attention_all_gather_async/device/kernels/"
            "ring_attention_all_gather_reader.cpp: 342 and 345); take a line"
        )
    return None


@limit("ttnn.experimental.send_direct_async", "ttnn.experimental.recv_direct_async")
def _direct_sockets(*_: Any, **__: Any) -> str | None:
    return (
        "on Wormhole it writes to wrong cores: it addresses DRAM as its own core's NOC sees it, and the router that "
        f"writes uses the other ({_SOCKETS}/send_direct_async/device/kernels/sender_direct_writer.cpp: 145, 157, 170 "
        "and 182); use send_async and recv_async"
    )
