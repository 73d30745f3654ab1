"""Ways around what fails on a machine: single ops in place of fused ones, fewer links, lines in place of rings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from models.machine.errors import InputError


@dataclass(frozen=True)
class Alternative:
    """What replaces an op: the names that ttnn gives the op, and the ops that compute the same."""

    ops: tuple[str, ...]
    instead: str


_NORM = "ttnn.experimental.dit_fused_distributed_rmsnorm"

ALTERNATIVES = {
    "gathered-matmul": Alternative(
        ("ttnn.experimental.all_gather_minimal_matmul_async",), "all_gather, then the product of one chip"
    ),
    "matmul": Alternative(
        ("ttnn.experimental.minimal_matmul", "ttnn.experimental.minimal_matmul_split"), "linear, slice"
    ),
    "swiglu": Alternative((), "two outputs of the product, then silu and multiply"),
    "norm": Alternative((_NORM,), "rms_norm_pre_all_gather, all_gather, rms_norm_post_all_gather"),
    "head-norm": Alternative((_NORM,), "nlp_create_qkv_heads, rms_norm, rotary_embedding_llama"),
    "rotation": Alternative((), "rotary_embedding_llama after the norm of the heads"),
    "ring-attention": Alternative(
        ("ttnn.transformer.ring_joint_scaled_dot_product_attention",),
        "all_gather of keys and values, concat, scaled_dot_product_attention",
    ),
    "joint-attention": Alternative(
        ("ttnn.transformer.joint_scaled_dot_product_attention",), "concat, scaled_dot_product_attention, slice"
    ),
    "reduce-scatter": Alternative(("ttnn.reduce_scatter",), "all_gather, add, mesh_partition"),
    "all-reduce": Alternative(("ttnn.all_reduce",), "all_gather, add"),
    "halo": Alternative(("ttnn.experimental.neighbor_pad_async",), "all_gather of the edges, concat, mesh_partition"),
}
"""Ops that can be avoided, by the name that a user gives."""

NO_ALTERNATIVE = {
    "all-gather": "all that chips exchange can be made of it and of nothing simpler; mesh 1x1 does without",
    "attention": "scaled_dot_product_attention is what the other kinds of attention fall back to",
    "conv3d": "ttnn has no other 3D convolution",
    "sockets": "halves of a mesh exchange by them; a layout without cfg does without",
}
"""Ops that cannot be avoided, and why."""

# A Wormhole chip has 16 Ethernet cores (tt-metal `soc_descriptors/wormhole_b0_80_arch.yaml`).
MOST_LINKS = 16
_ONLY = {"ttnn.all_gather": "all-gather", "ttnn.experimental.conv3d": "conv3d"}


@dataclass(frozen=True)
class Ways:
    """How a mesh is used where it fails in part.

    Attributes:
        plain: names of `ALTERNATIVES` whose single ops are taken.
        links: most Ethernet links to use between two chips; all if None.
        lines: whether axes that are rings are used as lines.
    """

    plain: frozenset[str] = frozenset()
    links: int | None = None
    lines: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: a name has no alternative, or no chip has so many links.
        """
        for name in sorted(self.plain):
            if name in NO_ALTERNATIVE:
                raise InputError(f"plain op {name!r} has no alternative: {NO_ALTERNATIVE[name]}")
            if name not in ALTERNATIVES:
                raise InputError(f"plain op {name!r} does not exist: choose from all, {', '.join(ALTERNATIVES)}")
        if self.links is not None and not 1 <= self.links <= MOST_LINKS:
            raise InputError(f"links {self.links} must be from 1 to {MOST_LINKS}")


FUSED = Ways()
ALL_PLAIN = Ways(frozenset(ALTERNATIVES))


def parse_plain(text: str) -> frozenset[str]:
    """Read names of ops such as `norm,halo`; `all` stands for every op that has an alternative, `none` for no op.

    Raises:
        InputError: a name is not one of `ALTERNATIVES`.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return ALL_PLAIN.plain
    if names == ["none"]:
        return frozenset()
    if not names:
        raise InputError(f"plain ops {text!r} name nothing: give names with commas, all, or none")
    return Ways(frozenset(names)).plain


@cache
def names_of(op: str) -> tuple[str, ...]:
    """Return the names under which ttnn's `op` can be avoided; empty if it cannot."""
    return tuple(name for name, found in ALTERNATIVES.items() if op in found.ops)


def advice(op: str) -> str:
    """Say in a clause how ttnn's `op` is avoided."""
    names = names_of(op)
    if names:
        return f"avoid it with --plain {','.join(names)}"
    return NO_ALTERNATIVE.get(_ONLY.get(op, ""), "no other op computes this")
