"""Precisions of the stored weights: the dtype of each kind of parameter.

This is the only place that decides them. A kind is recognised by the canonical checkpoint names of a parameter's
sources.

| component | kind | bf16 | mixed | bf8 |
|---|---|---|---|---|
| transformer | matrices of the feed-forwards | bfloat16 | bfloat8_b | bfloat8_b |
| transformer | matrices of attention (q, k, v, output) | bfloat16 | bfloat16 | bfloat8_b |
| transformer | modulation, embeddings, pool, final layer, norms, biases, RoPE tables | as declared | same | same |
| text encoder | all | as declared: matrices bfloat16, norms and position bias float32 | same | same |
| VAE decoder | all | as declared: convolutions bfloat16, norms float32 | same | same |

Every token reads the transformer's matrices of attention and feed-forward in every step, so their size determines
memory and bandwidth. Those of the feed-forwards are the larger half and lose the least in bfloat8_b; an error in q and
k is magnified by the scores. The transformer's modulations are read once per video, and everything else is small. All
of these act on the residual stream directly.

The text encoder runs once per prompt, so smaller weights would save hardly any time, and its output conditions every
step. The decoder is 2 % of all weights, and the kernel of its convolutions takes bfloat16.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from models.machine.errors import InputError

if TYPE_CHECKING:
    import ttnn

    from models.layers import Module, Parameter

PRECISIONS = ("bf16", "mixed", "bf8")
_ATTENTION = r"attn1\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)\.weight"
_FEED_FORWARD = r"ff(_context)?\.net\.(0\.proj|2)\.weight"
# Transformer parameters that each precision packs as bfloat8_b.
_PACKED = {
    "mixed": re.compile(rf"transformer_blocks\.\d+\.{_FEED_FORWARD}"),
    "bf8": re.compile(rf"transformer_blocks\.\d+\.(?:{_ATTENTION}|{_FEED_FORWARD})"),
}


def check_precision(precision: str) -> str:
    """Return `precision` after checking it.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} does not exist: choose one of {', '.join(PRECISIONS)}")
    return precision


def stored_precision(component: str, precision: str) -> str:
    """Return the precision that a component has in the store if `precision` is requested.

    Only the transformer's varies.

    Raises:
        ValueError: there is no such precision.
    """
    check_precision(precision)
    return precision if component == "transformer" else "bf16"


def packed_dtype(parameter: Parameter, prefix: str, precision: str) -> ttnn.DataType:
    """Return the dtype in which `precision` stores a parameter whose checkpoint names start with `prefix`."""
    import ttnn

    packed = _PACKED.get(check_precision(precision))
    if packed is not None and all(packed.fullmatch(prefix + name) for name in parameter.sources):
        return ttnn.bfloat8_b
    return parameter.dtype


def set_precision(module: Module, precision: str) -> None:
    """Set the dtype of every parameter of a newly declared module to that of `precision`. Load weights only after it.

    Raises:
        ValueError: there is no such precision.
    """
    for _, prefix, parameter in module.parameters():
        parameter.dtype = packed_dtype(parameter, prefix, precision)
