"""3D convolution of videos that are sharded over the mesh, and the blocks that its work is cut into.

Weights are replicated. Activations x_BTHWC are row-major (see `models.parallel.halo` for the legend). A block is the
work that one core holds at a time: `frames x rows x columns` output positions, and some of the input and output
channels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import ttnn

from models.conversion import CONV3D_BIAS, CONV3D_WEIGHT, Conversion, describe_packing
from models.layers import compute
from models.layers.module import Module, Parameter
from models.machine.errors import InputError
from models.parallel import TILE, Mesh, round_up

# Bytes that circular buffers may take: what the allocator leaves of the 1.5 MB of L1 of a Wormhole core. Code and stack
# take the rest.
L1_BUDGET = 1_300_000
_BF16, _FP32 = 2, 4
_TILE_BYTES = TILE * TILE * _BF16
# HiFi2 loses a bit of the activations and with it 0.2 to 0.3% of the contrast at every convolution. HiFi4 is no better.
_FIDELITY = ttnn.MathFidelity.HiFi3
# Rows of patches that are gathered while other rows are multiplied.
_GATHERED_ROWS = 2 * TILE


@dataclass(frozen=True)
class Blocking:
    """Sizes of a block. The channel blocks also set the order of the prepared weights."""

    in_channels: int
    out_channels: int
    frames: int = 1
    rows: int = 1
    columns: int = 1

    @property
    def positions(self) -> int:
        """Number of output positions of a block."""
        return self.frames * self.rows * self.columns


def l1_bytes(blocking: Blocking, in_channels: int, kernel: tuple[int, int, int]) -> int:
    """Return the bytes of L1 that a core's circular buffers take, including the inputs of the block.

    The buffers are those of upstream `conv3d_program_factory.cpp`: the gathered patches, one tiled row of them, the
    weights of the block, the partial sums, the result, the bias, and the inputs of the block with their halo. If the
    input channels are split, the partial sums are float32 and are held twice.
    """
    taps = math.prod(kernel)
    depth = math.ceil(taps * blocking.in_channels / TILE)
    wide = math.ceil(blocking.out_channels / TILE)
    tall = math.ceil(blocking.positions / TILE)
    is_split = blocking.in_channels < in_channels
    partial = (2 * _FP32 if is_split else _BF16) * TILE * TILE
    patches = depth * TILE * _BF16 * min(blocking.positions, _GATHERED_ROWS)
    sizes = (blocking.frames, blocking.rows, blocking.columns)
    inputs = math.prod(n + k - 1 for n, k in zip(sizes, kernel, strict=True)) * blocking.in_channels * _BF16
    tiles = depth + depth * wide + tall * wide + wide + 2
    return patches + tiles * _TILE_BYTES + partial * tall * wide + (inputs if taps > 1 else 0)


@lru_cache
def channel_blocking(in_channels: int, out_channels: int, kernel: tuple[int, int, int], cores: int) -> Blocking:
    """Choose the channel blocks. The choice is the same for all sizes of video.

    The rule considers the blocks whose weights leave half of L1 to the activations. It takes the block that reads every
    input the fewest times (output blocks first). Among equals it takes the one that splits the input channels least,
    because each split adds a sum over cores.

    Raises:
        ValueError: no block fits L1.
    """
    taps = math.prod(kernel)

    def weights(block: Blocking) -> int:
        return math.ceil(taps * block.in_channels / TILE) * math.ceil(block.out_channels / TILE) * _TILE_BYTES

    candidates = [
        block
        for split_in in _divisors(in_channels)
        for split_out in _divisors(round_up(out_channels, TILE))
        if in_channels // split_in <= cores
        for block in [Blocking(split_in, split_out, 1, 1, TILE)]
        if weights(block) <= L1_BUDGET // 2 and l1_bytes(block, in_channels, kernel) <= L1_BUDGET
    ]
    if not candidates:
        raise InputError(
            f"a convolution of {in_channels} to {out_channels} channels with kernel {kernel} does not fit the "
            f"{L1_BUDGET} bytes of L1 even in blocks of {TILE} channels"
        )
    passes = [(math.ceil(out_channels / c.out_channels) * (in_channels // c.in_channels), c) for c in candidates]
    best = min(passes, key=lambda pair: (pair[0], in_channels // pair[1].in_channels))[1]
    return Blocking(best.in_channels, best.out_channels)


@lru_cache
def choose_blocking(
    in_channels: int, out_channels: int, kernel: tuple[int, int, int], size: tuple[int, int, int], cores: int
) -> Blocking:
    """Cut an output of `size` (frames, rows, columns) into blocks.

    The rule, in this order: the block fits L1; the time of the busiest core is least; the block is larger. The time
    counts tile products (whole tiles of positions x depth x width) and the inputs gathered with their halo, for as many
    blocks as one core gets. `_READ_COST` converts inputs to tile products.
    """
    channels = channel_blocking(in_channels, out_channels, kernel, cores)
    taps = math.prod(kernel)
    depth = math.ceil(taps * channels.in_channels / TILE)
    wide = channels.out_channels // TILE
    channel_blocks = (in_channels // channels.in_channels) * math.ceil(out_channels / channels.out_channels)
    best: tuple[tuple[float, int], Blocking] | None = None
    for frames, rows, columns in _block_sizes(size):
        block = Blocking(channels.in_channels, channels.out_channels, frames, rows, columns)
        if l1_bytes(block, in_channels, kernel) > L1_BUDGET:
            continue
        blocks = channel_blocks * math.prod(
            math.ceil(n / b) for n, b in zip(size, (frames, rows, columns), strict=True)
        )
        inputs = math.prod(n + k - 1 for n, k in zip((frames, rows, columns), kernel, strict=True))
        work = math.ceil(block.positions / TILE) * depth * wide + _READ_COST * inputs * channels.in_channels
        cost = (math.ceil(blocks / cores) * work, -block.positions)
        if best is None or cost < best[0]:
            best = (cost, block)
    assert best is not None  # `channel_blocking` left room for 32 positions.
    return best[1]


# Number of tile products that take as long as one core needs to read one bfloat16 value with its share of the DRAM
# bandwidth. A tile product is 32^3 multiplications, about 48 cycles at HiFi3.
_READ_COST = 1 / 96


def _divisors(channels: int) -> list[int]:
    return [d for d in range(TILE, channels + 1, TILE) if channels % d == 0]


def _block_sizes(size: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    def powers(limit: int, most: int) -> list[int]:
        return [2**i for i in range(most) if 2**i < 2 * limit]

    for frames in powers(size[0], 6):
        for rows in powers(size[1], 6):
            for columns in powers(size[2], 6):
                if TILE <= frames * rows * columns <= 8 * TILE or frames * rows * columns >= math.prod(size):
                    yield frames, rows, columns


@dataclass(frozen=True)
class Fold:
    """A change that is made to a convolution's weight and bias on the host, before they are prepared.

    Attributes:
        function: of (weight, bias), both float32, giving both.
        weight: the kind of conversion that the weight then has.
        bias: the kind of conversion that the bias then has.
        packing: what the function depends on besides the two; see `Parameter`.
    """

    function: Callable
    weight: Conversion
    bias: Conversion
    packing: str


class Conv3d(Module):
    """Convolution without padding in time. In space it pads only on request.

    Args:
        mesh: the mesh.
        name: checkpoint module.
        in_channels, out_channels: channels in the checkpoint; inputs are padded to whole tiles.
        kernel: taps in time, rows and columns.
        fold: change of weight and bias that is made before they are prepared.
        shape: shape of the weight in the checkpoint if it is not [out, in, *kernel].
        bias: whether the module has a bias; one with a `fold` has.
    """

    def __init__(
        self,
        mesh: Mesh,
        name: str,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        *,
        fold: Fold | None = None,
        shape: tuple[int, ...] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(mesh)
        self.kernel = kernel
        self.in_channels = round_up(in_channels, TILE)
        self.out_channels = out_channels
        self.cores = mesh.grid[0] * mesh.grid[1]
        block = channel_blocking(self.in_channels, out_channels, kernel, self.cores).in_channels

        def prepare(weight):
            return prepare_weight(weight.reshape(out_channels, in_channels, *kernel), self.in_channels, block)

        weight_source: dict[str, tuple[int, ...]] = {f"{name}.weight": shape or (out_channels, in_channels, *kernel)}
        bias_source: dict[str, tuple[int, ...]] = {f"{name}.bias": (out_channels,)}
        packing = f"kernel {'x'.join(map(str, kernel))}; input channels in blocks of {block}"
        self.has_bias = bias
        if fold is None:
            self.weight = Parameter(weight_source, prepare, conversion=CONV3D_WEIGHT, packing=packing)
            if bias:
                self.bias = Parameter(bias_source, lambda bias: bias[None], conversion=CONV3D_BIAS)
        else:
            self.weight = Parameter(
                weight_source | bias_source,
                lambda weight, bias: prepare(fold.function(weight, bias)[0]),
                conversion=fold.weight,
                packing=describe_packing(packing, fold.packing),
            )
            self.bias = Parameter(
                weight_source | bias_source,
                lambda weight, bias: fold.function(weight, bias)[1][None],
                conversion=fold.bias,
                packing=fold.packing,
            )

    def __call__(self, x_BTHWC: ttnn.Tensor, *, space: tuple[int, int] = (0, 0)) -> ttnn.Tensor:
        """Convolve, after repeating the edge of x outward by `space` rows and columns on each side.

        Args:
            x_BTHWC: [1, T + kT - 1, H + kH - 1 - 2 space[0], W + kW - 1 - 2 space[1], C] per chip; C is whole tiles.
            space: (rows, columns) of padding.

        Returns:
            [1, T, H, W, out] per chip.
        """
        padding = (0, *space)
        size = tuple(n + 2 * p - k + 1 for n, p, k in zip(list(x_BTHWC.shape)[1:4], padding, self.kernel, strict=True))
        frames, rows, columns = size
        block = choose_blocking(self.in_channels, self.out_channels, self.kernel, (frames, rows, columns), self.cores)
        config = ttnn.Conv3dConfig(
            weights_dtype=ttnn.bfloat16,
            output_layout=ttnn.ROW_MAJOR_LAYOUT,
            T_out_block=block.frames,
            H_out_block=block.rows,
            W_out_block=block.columns,
            C_in_block=block.in_channels,
            C_out_block=block.out_channels,
            compute_with_storage_grid_size=ttnn.CoreCoord(*self.mesh.grid),
        )
        return ttnn.experimental.conv3d(
            input_tensor=x_BTHWC,
            weight_tensor=self.weight.tensor,
            bias_tensor=self.bias.tensor if self.has_bias else None,
            config=config,
            dtype=ttnn.bfloat16,
            output_channels=self.out_channels,
            kernel_size=self.kernel,
            padding=padding,
            padding_mode="replicate",
            device=self.mesh.device,
            compute_kernel_config=compute.matrix(_FIDELITY),
        )


def prepare_weight(weight_OIthw, in_channels: int, block: int):
    """Reorder a host weight [O, I, kT, kH, kW] to [blocks * kT * kH * kW * block, O], as the kernel reads it.

    Input channels are padded with zeros to `in_channels` and grouped in blocks. Within a block the rows are ordered kT,
    kH, kW, channel (upstream `prepare_conv3d_weights.cpp`).
    """
    out, inside, *taps = weight_OIthw.shape
    padded = weight_OIthw.new_zeros(out, in_channels, *taps)
    padded[:, :inside] = weight_OIthw
    grouped = padded.unflatten(1, (in_channels // block, block))
    return grouped.permute(1, 3, 4, 5, 2, 0).reshape(-1, out)
