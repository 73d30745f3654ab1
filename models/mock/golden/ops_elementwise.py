"""Golden rules of elementwise ops.

Values are float32 (int64 for integer dtypes). Results are rounded to the real output's dtype afterwards. Besides the
formula, the rules model operands that the matrix engine reads as TF32, and scalars packed in the tensor's dtype. They
do not model the SFPU's polynomial error, a few units in the last place of the output dtype (see each source).
"""

import numbers

import torch
import ttnn

from models.mock.golden.rounding import is_integer, to_tf32
from models.mock.golden.rules import local_rule

_BINARY_NG = "ttnn/operations/eltwise/binary_ng/device"
_BINARY_SOURCE = (
    f"{_BINARY_NG}/kernels/compute/eltwise_binary_no_bcast.cpp; which engine: upstream "
    "eltwise/binary_ng/device/binary_ng_device_operation.cpp is_binary_sfpu_op; scalars: upstream "
    "eltwise/binary_ng/device/binary_ng_utils.cpp pack_scalar_runtime_arg"
)
_SFPU = "tt_metal/hw/ckernels/wormhole_b0/metal/llk_api/llk_sfpu"


def _scalar(value, dtype: ttnn.DataType):
    """Return a Python number as the kernel receives it beside a tensor of `dtype`."""
    if is_integer(dtype):
        if value != int(value):
            raise ValueError(f"scalar {value} with a tensor of {dtype} is not covered by this golden")
        return int(value)
    if dtype == ttnn.float32:
        return torch.tensor(value, dtype=torch.float32)
    return torch.tensor(value, dtype=torch.float32).to(torch.bfloat16).to(torch.float32)


def _operands(a, b, dtypes: list, *, matrix_engine: bool) -> tuple:
    """Return both operands as the compute kernel reads them.

    Two float32 tensors are computed in the vector engine at full precision. A sum of float32 and another dtype is
    computed in the matrix engine, which reads float32 as TF32. Scalars have the tensor's dtype.
    """
    if isinstance(a, numbers.Number):
        return _scalar(a, dtypes[0]), b
    if isinstance(b, numbers.Number):
        return a, _scalar(b, dtypes[0])
    mixed = dtypes[0] != dtypes[1]
    if mixed and any(map(is_integer, dtypes)):
        raise ValueError(f"operands of {dtypes[0]} and {dtypes[1]} are not covered by this golden")
    if mixed and matrix_engine:
        return to_tf32(a), to_tf32(b)
    return a, b


@local_rule(
    "ttnn.add",
    "ttnn.add_",
    source=f"{_BINARY_SOURCE}; activations on the sum: {_BINARY_NG}/kernels/compute/eltwise_utils.hpp",
    dtypes=True,
)
def add(input_tensor_a, input_tensor_b, *, activations=(), dtypes: list):
    """Return `a + b` with broadcasting. An optional SiLU is applied to the float32 sum before it is rounded."""
    names = [activation.op_type if hasattr(activation, "op_type") else activation for activation in activations]
    if any(name != ttnn.UnaryOpType.SILU for name in names):
        raise ValueError(f"activations {names} are not covered by this golden")
    a, b = _operands(input_tensor_a, input_tensor_b, dtypes, matrix_engine=True)
    return torch.nn.functional.silu(a + b) if names else a + b


@local_rule("ttnn.subtract", "ttnn.subtract_", source=_BINARY_SOURCE, dtypes=True)
def subtract(input_tensor_a, input_tensor_b, *, dtypes: list):
    """Return `a - b` with broadcasting."""
    a, b = _operands(input_tensor_a, input_tensor_b, dtypes, matrix_engine=True)
    return a - b


@local_rule("ttnn.rsub", "ttnn.rsub_", source=_BINARY_SOURCE, dtypes=True)
def rsub(input_tensor_a, input_tensor_b, *, dtypes: list):
    """Return `b - a` with broadcasting."""
    a, b = _operands(input_tensor_a, input_tensor_b, dtypes, matrix_engine=True)
    return b - a


@local_rule("ttnn.multiply", "ttnn.multiply_", source=_BINARY_SOURCE, dtypes=True)
def multiply(input_tensor_a, input_tensor_b, *, fast_and_approximate_mode: bool | None = False, dtypes: list):
    """Return `a * b` with broadcasting. Only the fast mode multiplies mixed dtypes in the matrix engine."""
    engine = bool(fast_and_approximate_mode)
    a, b = _operands(input_tensor_a, input_tensor_b, dtypes, matrix_engine=engine)
    return a * b


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
    """Return the value itself; the engine rounds it to the output's dtype."""
    target = output_dtype if output_dtype is not None else dtype
    if is_integer(dtypes[0]) != is_integer(target):
        raise ValueError(f"typecast from {dtypes[0]} to {target} is not covered by this golden")
    return input_tensor
