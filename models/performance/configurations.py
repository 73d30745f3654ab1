"""Configurations of ops: what of a call decides which code of a kernel runs.

Two calls of one configuration differ in sizes, in values and in places only. So what a kernel did with one of them says
something about the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ttnn

from models.machine.ops import device_tensors, watching
from models.performance.trace import HOST_OPS

# Arguments that are read apart, or choose a place.
_IGNORED = frozenset(
    {"compute_kernel_config", "config", "device", "dtype", "memory_config", "mesh_device", "program_config"}
)
_SCRATCH = ("persistent", "semaphore", "grid_offset", "core_range")
# Whole numbers that choose code; all others are sizes or places.
_CHOICES = frozenset({"chunks", "dim"})
_DTYPES = {
    "BFLOAT16": "bf16",
    "BFLOAT8_B": "bf8",
    "FLOAT32": "f32",
    "UINT32": "u32",
    "INT32": "i32",
    "UINT16": "u16",
    "UINT8": "u8",
}


def configuration(name: str, args: tuple, kwargs: Mapping[str, Any], result: Any) -> str:
    """Describe one call: the op, its operands' types and layouts, its arithmetic, its flags, and classes of its sizes.

    Sizes count as classes where kernels have code for each: one or several blocks of the inner dimension, an operand
    whose rows or columns end within a tile, an axis of two chips (which has no chip between others) or of more.

    Args:
        name: qualified name of the op, such as ``ttnn.experimental.minimal_matmul``.
        args: arguments by position.
        kwargs: arguments by name.
        result: what the call returned.
    """
    words = [name.removeprefix("ttnn.")]
    words += [_operand(tensor) for tensor in device_tensors(list(args))]
    words += [
        "number" if _is_number(value) else _word(value) for value in args if _is_number(value) or _is_choice(value)
    ]
    for key in sorted(kwargs):
        value = kwargs[key]
        tensors = device_tensors(value)
        if any(word in key for word in _SCRATCH):
            continue
        if tensors:
            words.append(f"{key} {' '.join(map(_operand, tensors))}")
        elif key in ("num_links", "num_preferred_links"):
            words.append(f"links {_several(max(value) if isinstance(value, (list, tuple)) else value)}")
        elif key == "kernel_size":
            words.append(f"kernel {'x'.join(map(str, value))}")
        elif key in _CHOICES:
            words.append(f"{key} {value}")
        elif key not in _IGNORED and _is_choice(value) and value is not False:
            words.append(key if value is True else f"{key} {_word(value)}")
    words += _arithmetic(kwargs.get("compute_kernel_config"))
    words += _blocks(args, kwargs)
    outputs = device_tensors(result)
    words += ["->", *(_operand(tensor) for tensor in outputs)] if outputs else []
    if outputs and "cluster_axis" in kwargs and kwargs["cluster_axis"] is not None:
        chips = outputs[0].device().shape[kwargs["cluster_axis"]]
        words.append(f"over {chips if chips < 3 else '3+'} chips")
    return " ".join(words)


def _operand(tensor: ttnn.Tensor) -> str:
    dtype = _DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower())
    if tensor.layout != ttnn.TILE_LAYOUT:
        return f"{dtype}/rows"
    whole = tuple(tensor.shape) == tuple(tensor.padded_shape)
    return dtype if whole else f"{dtype}/part"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_choice(value: Any) -> bool:
    """Whether a value is a flag, a name or a member of an enumeration."""
    return isinstance(value, (bool, str)) or (not _is_number(value) and isinstance(getattr(value, "name", None), str))


def _word(value: Any) -> str:
    return value.name if hasattr(value, "name") else str(value)


def _several(count: int | None) -> str:
    return "1" if count in (None, 1) else "several"


def _arithmetic(config: Any) -> list[str]:
    if config is None:
        return []
    sums = "f32 sums" if config.fp32_dest_acc_en else "bf16 sums"
    return [config.math_fidelity.name, sums, *(["approximate"] if config.math_approx_mode else [])]


def _blocks(args: tuple, kwargs: Mapping[str, Any]) -> list[str]:
    """Classes of the block sizes that a program config chooses."""
    words = []
    config, program = kwargs.get("config"), kwargs.get("program_config")
    operands = device_tensors([*args, *kwargs.values()])
    if isinstance(config, ttnn.MinimalMatmulConfig):
        weight = operands[1]
        words.append(f"inner blocks {_several(math.ceil(weight.shape[-2] / ttnn.TILE_SIZE / config.K_block_size))}")
    if isinstance(config, ttnn.Conv3dConfig):
        words.append(f"channel blocks {_several(math.ceil(operands[0].shape[-1] / config.C_in_block))}")
        words.append(f"padding {'x'.join(map(str, kwargs.get('padding', ())))}")
    if isinstance(program, ttnn.SDPAProgramConfig):
        keys = operands[1]
        words.append(f"key chunks {_several(math.ceil(keys.shape[-2] / program.k_chunk_size))}")
        if program.matmul_math_fidelity is not None:
            words.append(f"products {program.matmul_math_fidelity.name}")
    return words


@contextmanager
def configurations() -> Iterator[dict[str, int]]:
    """Gather the configurations of the outermost device ops of this process while the block runs.

    Yields:
        The most chips of a mesh on which each configuration ran, by its description.
    """
    found: dict[str, int] = {}

    def record(name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        touched = device_tensors(result) or device_tensors([*args, *kwargs.values()])
        if touched and name not in HOST_OPS and not _is_view(name, args, result):
            described = configuration(name, args, kwargs, result)
            found[described] = max(found.get(described, 0), touched[0].device().get_num_devices())

    with watching(record):
        yield found


def _is_view(name: str, args: tuple, result: Any) -> bool:
    if name != "ttnn.reshape":
        return False
    return device_tensors(result)[0].buffer_unique_id() == args[0].buffer_unique_id()
