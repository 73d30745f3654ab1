"""Precisions of the stored weights: which kind of parameter is packed how.

This is the one place that says so. A kind is recognised by the canonical checkpoint names of a parameter's sources.

| kind | bf16 | bf8 |
|---|---|---|
| matrices of attention (q, k, v, output) and of the feed-forwards | bfloat16 | bfloat8_b |
| modulation, embeddings, caption pool, final layer, norms, biases, RoPE frequencies | as declared | as declared |

The matrices named are read in every step by every token, so their size is what memory and bandwidth feel. The
modulations are read once per video, and everything else is small; all of these act on the residual stream directly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ttnn

    from models.layers import Module, Parameter

PRECISIONS = ("bf16", "bf8")
_ATTENTION = r"attn1\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)\.weight"
_FEED_FORWARD = r"ff(_context)?\.net\.(0\.proj|2)\.weight"
_LARGE = re.compile(rf"transformer_blocks\.\d+\.(?:{_ATTENTION}|{_FEED_FORWARD})")


def check_precision(precision: str) -> str:
    """Return `precision`.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} does not exist: choose one of {', '.join(PRECISIONS)}")
    return precision


def is_large_matrix(parameter: Parameter, prefix: str) -> bool:
    """Whether a parameter, whose checkpoint names start with `prefix`, is a matrix that `bf8` packs."""
    return all(_LARGE.fullmatch(prefix + name) for name in parameter.sources)


def packed_dtype(parameter: Parameter, prefix: str, precision: str) -> ttnn.DataType:
    """The dtype that `precision` stores a parameter in."""
    import ttnn

    if check_precision(precision) == "bf8" and is_large_matrix(parameter, prefix):
        return ttnn.bfloat8_b
    return parameter.dtype


def set_precision(module: Module, precision: str) -> None:
    """Give every parameter of a freshly declared module the dtype of `precision`; weights may be loaded after it.

    Raises:
        ValueError: there is no such precision.
    """
    for _, prefix, parameter in module.parameters():
        parameter.dtype = packed_dtype(parameter, prefix, precision)
