"""Kinds of conversion: what turns checkpoint tensors into the stored bytes of a parameter, each with its version.

The store of converted weights tells its entries apart by these versions, never by source text. So code may be moved,
renamed and rewritten freely as long as the stored bytes stay as they are. Whoever changes the bytes of a kind raises
its version in the table below: `tests/weight_cache/test_conversions.py` fails until that is done.

Rounding to the stored dtype, tiling, sharding and the form of the files are the same for all kinds:
`weight_cache.manifest.FORMAT_VERSION` stands for them, and ttnn's own version for what ttnn does. How a checkpoint is
read has versions in `weight_cache.versions`.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Conversion:
    """One kind of conversion.

    Attributes:
        name: stands in the key of every stored set of weights that uses the kind. Never changed, never used again for
            another kind.
        version: 1 or more, raised whenever the kind gives other bytes.
        effect: what it does to the bytes. What it does differently from one parameter to the next is in the
            parameter's `packing`, shape and placement.
    """

    name: str
    version: int
    effect: str = field(compare=False)


def describe_packing(*facts: str) -> str:
    """Join facts for `Parameter.packing`; empty ones are left out."""
    return "; ".join(fact for fact in facts if fact)


# Words of the table: [out, in] is a matrix of the checkpoint. "Pads" means: fills up with zeros as a `Width` says.
COLUMN_PARALLEL_WEIGHT = Conversion(
    "column-parallel-weight",
    1,
    "cuts each [out, in] into its stacked outputs, transposes and pads each, and joins them so that the columns of one "
    "shard lie side by side; or interleaves the column tiles of gate and up",
)
COLUMN_PARALLEL_BIAS = Conversion(
    "column-parallel-bias", 1, "cuts, pads and joins the biases like the columns of their weight"
)
PATCH_EMBEDDING_WEIGHT = Conversion(
    "patch-embedding-weight",
    1,
    "reorders the kernel [out, channel, row, column] to [out, (row, column, channel)]; then as column-parallel-weight",
)
ROW_PARALLEL_WEIGHT = Conversion("row-parallel-weight", 1, "transposes [out, in] and pads both dims")
ROW_PARALLEL_BIAS = Conversion("row-parallel-bias", 1, "pads the bias; one row")
CONV3D_WEIGHT = Conversion(
    "conv3d-weight",
    1,
    "pads the input channels to whole tiles and groups them in blocks; rows are (block, time, row, column, channel), "
    "columns are output channels",
)
CONV3D_BIAS = Conversion("conv3d-bias", 1, "one row")
LATENT_CONV3D_WEIGHT = Conversion(
    "latent-conv3d-weight", 1, "multiplies each input channel by the latents' std / scale; then as conv3d-weight"
)
LATENT_CONV3D_BIAS = Conversion("latent-conv3d-bias", 1, "adds the weight times the latents' mean; then as conv3d-bias")
UPSAMPLING_CONV3D_WEIGHT = Conversion(
    "upsampling-conv3d-weight",
    1,
    "reorders output channels (channel, time, row, column) to (time, row, column, channel); then as conv3d-weight",
)
UPSAMPLING_CONV3D_BIAS = Conversion(
    "upsampling-conv3d-bias", 1, "reorders the bias like the output channels of its weight; then as conv3d-bias"
)
DOWNSAMPLING_CONV3D_WEIGHT = Conversion(
    "downsampling-conv3d-weight",
    1,
    "flattens the kernel [out, (channel, time, row, column)] to [out, (time, row, column, channel)]; then as "
    "conv3d-weight",
)
DOWNSAMPLING_CONV3D_BIAS = Conversion("downsampling-conv3d-bias", 1, "as conv3d-bias")
PIXEL_ATTENTION_WEIGHT = Conversion(
    "pixel-attention-weight", 1, "transposes each [out, in] and joins their columns; on every chip"
)
PIXEL_ATTENTION_BIAS = Conversion("pixel-attention-bias", 1, "one row; on every chip")
GROUP_NORM = Conversion("group-norm", 1, "one row, weight and bias alike")
HEAD_NORM_WEIGHT = Conversion(
    "head-norm-weight",
    1,
    "multiplies by the norm factor of the padded head, pads, and repeats it as often as the packing says",
)
TEXT_NORM_WEIGHT = Conversion("text-norm-weight", 1, "multiplies by the norm factor of the padded width, and pads")
TOKEN_EMBEDDING = Conversion("token-embedding", 1, "pads the features of the table [tokens, features]")
POSITION_BIAS = Conversion(
    "position-bias",
    1,
    "looks up the table [buckets, heads] for every pair of positions, [1, heads, query, key], and pads the heads",
)
ROTARY_FREQUENCIES = Conversion(
    "rotary-frequencies", 1, "repeats each frequency for both channels of its pair, and pads the head"
)

# The table by name.
CONVERSIONS = {kind.name: kind for kind in list(vars().values()) if isinstance(kind, Conversion)}
# Names of kinds that no parameter has any more: what was stored with one is outdated.
RETIRED: frozenset[str] = frozenset({"lora-merge"})
