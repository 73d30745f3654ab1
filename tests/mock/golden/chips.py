"""What the tests of golden execution share: other data on every chip, and the comparison chip by chip."""

import zlib
from collections.abc import Callable, Sequence

import torch
import ttnn

ROWS, COLS = 2, 4


def bf16(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(torch.float32)


def tf32(x: torch.Tensor) -> torch.Tensor:
    """Float32 with 10 bits of mantissa, the rest cut off."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.trunc(mantissa * 2**11) / 2**11, exponent)


def group(chip: int, axis: int) -> list[int]:
    """The chips of the line along ``axis`` that ``chip`` lies on, in order. Chips count row by row."""
    row, col = divmod(chip, COLS)
    return [r * COLS + col for r in range(ROWS)] if axis == 0 else [row * COLS + c for c in range(COLS)]


def position(chip: int, axis: int) -> int:
    return divmod(chip, COLS)[axis]


class Chips:
    """A 2x4 mesh seen as eight chips."""

    def __init__(self, device: ttnn.MeshDevice) -> None:
        self.device = device

    def random(self, *shape: int, seed: object = 0, dtype=ttnn.bfloat16) -> list[torch.Tensor]:
        """Other normal numbers for each chip, exact in ``dtype``."""
        generator = torch.Generator().manual_seed(zlib.crc32(repr((shape, seed)).encode()))
        values = torch.randn(ROWS * COLS, *shape, generator=generator)
        return list(values if dtype == ttnn.float32 else bf16(values))

    def put(self, values: Sequence[torch.Tensor], dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, **options):
        """Upload one rank-4 value per chip."""
        first, second = values[0].shape[:2]
        rest = values[0].shape[2:]
        grid = torch.stack(list(values)).reshape(ROWS, COLS, first, second, *rest)
        whole = grid.permute(0, 2, 1, 3, 4, 5).reshape(ROWS * first, COLS * second, *rest)
        mapper = ttnn.ShardTensor2dMesh(self.device, mesh_shape=(ROWS, COLS), dims=(0, 1))
        return ttnn.from_torch(whole, device=self.device, dtype=dtype, layout=layout, mesh_mapper=mapper, **options)

    def same(self, value: torch.Tensor, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT):
        """Upload one value to all chips."""
        mapper = ttnn.ReplicateTensorToMesh(self.device)
        return ttnn.from_torch(value, device=self.device, dtype=dtype, layout=layout, mesh_mapper=mapper)

    def get(self, tensor: ttnn.Tensor) -> list[torch.Tensor]:
        """Each chip's value."""
        parts = ttnn.get_device_tensors(ttnn.from_device(tensor))
        return [ttnn.to_torch(part).float() for part in parts]

    def check(
        self,
        output: ttnn.Tensor,
        reference: Callable[..., torch.Tensor],
        *inputs: Sequence[torch.Tensor],
        dtype=None,
        atol: float = 0.0,
    ) -> None:
        """Compare each chip's output with ``reference`` of its inputs, rounded once to the output's dtype.

        One unit in the last place is allowed where ``atol`` is given, none otherwise.
        """
        if dtype is not None:
            assert output.dtype == dtype
        rtol = {ttnn.bfloat16: 2**-8, ttnn.float32: 2**-22}.get(output.dtype, 0.0) if atol else 0.0
        for chip, actual in enumerate(self.get(output)):
            expected = reference(*(values[chip] for values in inputs)).float()
            expected = bf16(expected) if output.dtype == ttnn.bfloat16 else expected
            torch.testing.assert_close(
                actual, expected, rtol=2 * rtol, atol=atol, msg=lambda m, c=chip: f"chip {c}: {m}"
            )
