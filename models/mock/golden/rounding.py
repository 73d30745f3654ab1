"""Rounding of golden values to the dtype that the device stores.

Golden values are float32 (or int64 for integer dtypes). They are always numbers that the op's real output dtype can
represent.

Wormhole's packer converts to bfloat16 by rounding half away from zero (tt-isa-documentation
`WormholeB0/.../Packers/FormatConversion.md`, early conversion, with the settings of `cpack_common.h` in the wheel's
`tt_llk_wormhole_b0`), and so does the matrix engine. The vector unit rounds half to even where the kernel says so, as
PyTorch and the host do. The device also sets denormals to zero and turns NaN into infinity. Goldens keep both, NaN so
that it is noticed.
"""

import torch
import ttnn

_INTEGERS = {
    ttnn.uint8: (0, 2**8 - 1),
    ttnn.uint16: (0, 2**16 - 1),
    ttnn.uint32: (0, 2**32 - 1),
    ttnn.int32: (-(2**31), 2**31 - 1),
}
_BLOCK_FLOATS = (ttnn.bfloat8_b, ttnn.bfloat4_b)
_BLOCK = 16  # Values that share an exponent: a row of a tile's face.
_BLOCK_BITS = 7  # Bits of a value of bfloat8_b besides the sign.
_HALF = {dtype: torch.tensor(0.5, dtype=dtype) for dtype in (torch.float32, torch.float64)}


def is_integer(dtype: ttnn.DataType) -> bool:
    """Return whether `dtype` is one of ttnn's integer dtypes."""
    return dtype in _INTEGERS


def packed(value: torch.Tensor, dtype: ttnn.DataType) -> torch.Tensor:
    """Round `value` as the packer does when an op writes a tensor of `dtype`.

    Source: `tests/mock/golden/vectors`. A value of bfloat8_b is rounded twice, half away from zero: to 7 significant
    bits of its own, then to the exponent that 16 values share.

    Raises:
        ValueError: see `round_to`.
    """
    if dtype == ttnn.bfloat16:
        return significant(value.to(torch.float32), 8)
    if dtype == ttnn.bfloat8_b:
        return to_blocks(significant(value.to(torch.float32), _BLOCK_BITS))
    return round_to(value, dtype)


def to_blocks(value: torch.Tensor) -> torch.Tensor:
    """Round to bfloat8_b once, half away from zero, as `ttnn.typecast` does."""
    width = value.shape[-1]
    blocks = torch.nn.functional.pad(value, (0, -width % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    unit = power(torch.frexp(largest).exponent - _BLOCK_BITS)
    limit = 2**_BLOCK_BITS - 1
    out = half_away(blocks / unit).clamp(-limit, limit) * unit
    return torch.where(blocks.isfinite(), out, blocks).flatten(-2)[..., :width]


def power(exponent: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return 2 to whole exponents, which must be within the normal numbers of `dtype`."""
    if dtype == torch.float32:
        return ((exponent.to(torch.int32) + 127) << 23).view(dtype)
    return ((exponent.to(torch.int64) + 1023) << 52).view(dtype)


def half_away(value: torch.Tensor) -> torch.Tensor:
    """Round to whole numbers, half away from zero."""
    return torch.trunc(value + torch.copysign(_HALF[value.dtype], value))


def significant(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Round to `bits` significant bits, half away from zero: float32 or float64 values."""
    kind, stored = (torch.int32, 24) if value.dtype == torch.float32 else (torch.int64, 53)
    dropped = stored - bits
    pattern = value.contiguous().view(kind)  # Infinity and torch.nan keep theirs.
    return ((pattern + (1 << (dropped - 1))) & -(1 << dropped)).view(value.dtype)


def round_to(value: torch.Tensor, dtype: ttnn.DataType) -> torch.Tensor:
    """Round `value` to numbers that a tensor of `dtype` can hold, as the host and the vector unit do: half to even.

    Block floats (bfloat8_b, bfloat4_b) go through ttnn's own host packing, so the shared exponents are the real ones.

    Raises:
        ValueError: the dtype is unknown here, or a value does not fit an integer dtype.
    """
    if dtype == ttnn.bfloat16:
        return value.to(torch.bfloat16).to(torch.float32)
    if dtype == ttnn.float32:
        return value.to(torch.float32)
    if dtype in _BLOCK_FLOATS:
        packed = ttnn.from_torch(value.to(torch.float32), dtype=dtype, layout=ttnn.TILE_LAYOUT)
        return ttnn.to_torch(packed).to(torch.float32)
    if dtype in _INTEGERS:
        if value.is_floating_point() and not bool((value == value.trunc()).all()):
            raise ValueError(f"a value that is no whole number does not fit {dtype}")
        rounded = value.to(torch.int64)
        low, high = _INTEGERS[dtype]
        if rounded.numel() and (int(rounded.min()) < low or int(rounded.max()) > high):
            raise ValueError(f"a value lies outside {dtype}'s range [{low}, {high}]")
        return rounded
    raise ValueError(f"golden execution does not know dtype {dtype}")


def to_tf32(value: torch.Tensor) -> torch.Tensor:
    """Truncate float32 values to the 19 bits (1 + 8 + 10) of a float32 operand that Wormhole's matrix engine reads.

    Source: upstream tt-metal `tech_reports/matrix_engine/matrix_engine.md`, and tt-isa-documentation
    `WormholeB0/.../Unpackers/FormatConversion.md` (FP32 reaches SrcA and SrcB as TF32). The kernels' outputs show that
    the low bits are cut off and not rounded.
    """
    return (value.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def host_tensor(value: torch.Tensor, dtype: ttnn.DataType, layout: ttnn.Layout) -> ttnn.Tensor:
    """Pack one device's golden value as a real host tensor of `dtype` and `layout`."""
    if dtype in _INTEGERS:
        torch_dtype = {ttnn.uint8: torch.uint8, ttnn.int32: torch.int32}.get(dtype, torch.int64)
        value = value.to(torch.int32 if torch_dtype is torch.int64 else torch_dtype)
    return ttnn.from_torch(value, dtype=dtype, layout=layout)
