"""Golden rules of elementwise ops.

Values are float32 (int64 for integer dtypes). Results are packed to the real output's dtype afterwards. The matrix
engine adds and subtracts (`fidelity.plus`) unless both operands are float32. The vector unit computes the rest: it
rounds to bfloat16 half to even where its register is bfloat16. Scalars are packed in the tensor's dtype. The rules do
not model the SFPU's polynomial error, a few units in the last place of the output dtype (see each source).
"""

import numbers

import torch
import ttnn

from models.mock.golden.fidelity import plus
from models.mock.golden.rounding import is_integer, packed, round_to, to_blocks, to_tf32
from models.mock.golden.rules import local_rule

_BINARY_NG = "ttnn/operations/eltwise/binary_ng/device"
_BINARY_SOURCE = (
    f"{_BINARY_NG}/kernels/compute/eltwise_binary_no_bcast.cpp; which engine: upstream "
    "eltwise/binary_ng/device/binary_ng_device_operation.cpp is_binary_sfpu_op; scalars: upstream "
    "eltwise/binary_ng/device/binary_ng_utils.cpp pack_scalar_runtime_arg"
)
_SFPU = "tt_metal/hw/ckernels/wormhole_b0/metal/llk_api/llk_sfpu"
_LLK = "tt_metal/tt-llk/tt_llk_wormhole_b0/common/inc"


def _scalar(value, dtype: ttnn.DataType):
    """Return a Python number as the kernel receives it beside a tensor of `dtype`."""
    if is_integer(dtype):
        if value != int(value):
            raise ValueError(f"scalar {value} with a tensor of {dtype} is not covered by this golden")
        return int(value)
    if dtype == ttnn.float32:
        return torch.tensor(value, dtype=torch.float32)
    return torch.tensor(value, dtype=torch.float32).to(torch.bfloat16).to(torch.float32)


def _operands(a, b, dtypes: list) -> tuple:
    """Return both operands, a scalar in the tensor's dtype."""
    if isinstance(a, numbers.Number):
        return _scalar(a, dtypes[0]), b
    if isinstance(b, numbers.Number):
        return a, _scalar(b, dtypes[0])
    if dtypes[0] != dtypes[1] and any(map(is_integer, dtypes)):
        raise ValueError(f"operands of {dtypes[0]} and {dtypes[1]} are not covered by this golden")
    return a, b


def _sum(a, b, dtypes: list, sign: int = 1) -> torch.Tensor:
    """Return `a + sign * b`: in the vector unit for float32 or integers, else in the matrix engine."""
    a, b = _operands(a, b, dtypes)
    if is_integer(dtypes[0]) or all(dtype == ttnn.float32 for dtype in dtypes):
        return a + sign * b
    return plus(a, sign * b)


@local_rule(
    "ttnn.add",
    "ttnn.add_",
    source=f"{_BINARY_SOURCE}; activations on the sum: {_BINARY_NG}/kernels/compute/eltwise_utils.hpp",
    dtypes=True,
)
def add(input_tensor_a, input_tensor_b, *, activations=(), dtypes: list):
    """Return `a + b` with broadcasting. An optional SiLU is applied to the sum in the register.

    The register is float32 if an operand is, else bfloat16.
    """
    names = [activation.op_type if hasattr(activation, "op_type") else activation for activation in activations]
    if any(name != ttnn.UnaryOpType.SILU for name in names):
        raise ValueError(f"activations {names} are not covered by this golden")
    total = _sum(input_tensor_a, input_tensor_b, dtypes)
    if not names:
        return total
    return torch.nn.functional.silu(total if ttnn.float32 in dtypes else packed(total, ttnn.bfloat16))


@local_rule("ttnn.subtract", "ttnn.subtract_", source=_BINARY_SOURCE, dtypes=True)
def subtract(input_tensor_a, input_tensor_b, *, dtypes: list):
    """Return `a - b` with broadcasting."""
    return _sum(input_tensor_a, input_tensor_b, dtypes, -1)


@local_rule("ttnn.rsub", "ttnn.rsub_", source=_BINARY_SOURCE, dtypes=True)
def rsub(input_tensor_a, input_tensor_b, *, dtypes: list):
    """Return `b - a` with broadcasting."""
    return -_sum(input_tensor_a, input_tensor_b, dtypes, -1)


@local_rule("ttnn.multiply", "ttnn.multiply_", source=_BINARY_SOURCE, dtypes=True)
def multiply(input_tensor_a, input_tensor_b, *, fast_and_approximate_mode: bool | None = False, dtypes: list):
    """Return `a * b` with broadcasting. Only the fast mode multiplies mixed dtypes in the matrix engine."""
    a, b = _operands(input_tensor_a, input_tensor_b, dtypes)
    if fast_and_approximate_mode and len(set(dtypes)) > 1:
        return to_tf32(a) * to_tf32(b)
    return _vector_unit(a * b, dtypes)


def _vector_unit(value: torch.Tensor, dtypes: list) -> torch.Tensor:
    """Round as the vector unit does: half to even to bfloat16 where no operand is float32."""
    return round_to(value, ttnn.bfloat16) if not any(is_integer(d) or d == ttnn.float32 for d in dtypes) else value


@local_rule("ttnn.square", source=f"{_SFPU}/ckernel_sfpu_square.h", dtypes=True)
def square(input_tensor, *, dtypes: list):
    """Return `x * x`."""
    return _vector_unit(input_tensor * input_tensor, dtypes)


@local_rule("ttnn.abs", source=f"{_SFPU}/ckernel_sfpu_abs.h: clears the sign bit")
def abs_(input_tensor):
    """Return `|x|`."""
    return input_tensor.abs()


@local_rule("ttnn.where", source=f"{_LLK}/sfpu/ckernel_sfpu_where.h: selects, so that a NaN not taken leaves no trace")
def where(predicate, true_value, false_value):
    """Return the second operand where the first is not zero, else the third; either may be a scalar."""
    return torch.where(predicate != 0, true_value, false_value)


@local_rule("ttnn.silu", source=f"{_SFPU}/ckernel_sfpu_silu.h: x times a sigmoid")
def silu(input_tensor):
    """Return `x sigmoid(x)`."""
    return torch.nn.functional.silu(input_tensor)


@local_rule("ttnn.tanh", source=f"{_SFPU}/ckernel_sfpu_tanh.h")
def tanh(input_tensor, *, fast_and_approximate_mode: bool = False):
    """Return `tanh(x)`. The lookup-table variant, which has errors of whole bfloat16 digits, is refused."""
    if fast_and_approximate_mode:
        raise ValueError("the fast and approximate tanh is not covered by this golden")
    return torch.tanh(input_tensor)


@local_rule("ttnn.cos", source=f"{_SFPU}/ckernel_sfpu_trigonometry.h calculate_cosine")
def cos(input_tensor):
    """Return `cos(x)`. See `sin` for the largest error of the device's value."""
    return torch.cos(input_tensor)


@local_rule("ttnn.sin", source=f"{_SFPU}/ckernel_sfpu_trigonometry.h calculate_sine")
def sin(input_tensor):
    """Return `sin(x)`.

    For float32 the kernel reduces the argument by multiples of pi in four steps that are exact up to a few thousand.
    Then it evaluates a polynomial of degree 9. This sequence was run in numpy float32 on four million arguments per
    range, with and without fused multiply-add. It stays within 1.3e-7 of the exact value for |x| up to 4000.
    """
    return torch.sin(input_tensor)


@local_rule(
    "ttnn.typecast",
    source=f"{_SFPU}/ckernel_sfpu_typecast.h",
    dtypes=True,
)
def typecast(input_tensor, dtype, output_dtype=None, *, dtypes: list):
    """Return the value rounded once: half to even to bfloat16, half away from zero to bfloat8_b."""
    target = output_dtype if output_dtype is not None else dtype
    if is_integer(dtypes[0]) != is_integer(target):
        raise ValueError(f"typecast from {dtypes[0]} to {target} is not covered by this golden")
    if target == ttnn.bfloat16:
        return round_to(input_tensor, target)
    return to_blocks(input_tensor) if target == ttnn.bfloat8_b else input_tensor
