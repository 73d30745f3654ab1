"""3D convolution on the mesh against torch's, and the rule that cuts it into blocks."""

import math

import pytest
import torch

from models.layers.conv3d import L1_BUDGET, Conv3d, channel_blocking, choose_blocking, l1_bytes
from tests.layers.test_group_norm import extent_of, gather, scatter
from tests.support import StateDict, check, in_both, pairs, randn

KERNELS = [((3, 3, 3), (0, 1)), ((3, 3, 3), (0, 0)), ((3, 3, 3), (1, 0)), ((1, 1, 1), (0, 0))]  # with padding in space


def layer(inside: int, outside: int, kernel) -> torch.nn.Conv3d:
    torch.manual_seed(5)
    return torch.nn.Conv3d(inside, outside, kernel)


@pytest.mark.parametrize(
    ("mesh", "kernel", "channels"),
    [
        *pairs(["1x1sp0tp1", "2x4sp0tp1"], KERNELS, [(32, 64), (12, 96), (160, 32), (64, 3), (256, 64)]),
        # What the models run most: several blocks of channels, and halos for padding.
        ("1x1sp0tp1", ((3, 3, 3), (0, 0)), (256, 32)),
    ],
    ids=str,
    indirect=["mesh"],
)
def test_conv3d(mesh, kernel, channels):
    (inside, outside), (kernel, space) = channels, kernel
    x = randn(1, 5, 6, 7, inside, seed=2)

    def run(dtype, x):
        padded = torch.nn.functional.pad(
            x.permute(0, 4, 1, 2, 3), (space[1],) * 2 + (space[0],) * 2 + (0, 0), "replicate"
        )
        return layer(inside, outside, kernel).to(dtype)(padded).permute(0, 2, 3, 4, 1)

    exact, rounded = in_both(run, x)
    ours = Conv3d(mesh, "conv", inside, outside, kernel)
    ours.load(StateDict(layer(inside, outside, kernel), "conv."))
    whole = torch.nn.functional.pad(x, (0, ours.in_channels - inside))
    out = ours(scatter(mesh, whole, extent_of(mesh, "", 5, 6, 7)), space=space)
    check(gather(mesh, out, extent_of(mesh, "", *exact.shape[1:4])), exact, rounded, max_rmse=0.01)


WIDTHS = [(768, 768), (512, 512), (256, 256), (128, 128), (160, 96)]


@pytest.mark.parametrize(
    ("channels", "size", "cores"),
    pairs(WIDTHS, [(2, 1, 1), (7, 1, 2), (1, 8, 14), (14, 15, 106), (84, 120, 848)], [64, 72, 56]),
    ids=str,
)
def test_blocking_fits(channels, size, cores):
    """Any size gets a block that fits L1, in channel blocks that the size has no say in."""
    block = choose_blocking(*channels, (3, 3, 3), size, cores)
    assert l1_bytes(block, channels[0], (3, 3, 3)) <= L1_BUDGET
    fixed = channel_blocking(*channels, (3, 3, 3), cores)
    assert (block.in_channels, block.out_channels) == (fixed.in_channels, fixed.out_channels)
    assert channels[0] % block.in_channels == 0 == channels[1] % block.out_channels
    assert channels[0] // block.in_channels <= cores
    assert math.prod(size) < 32 or block.positions % 32 == 0


def test_blocking_of_what_cannot_fit():
    with pytest.raises(ValueError, match="does not fit"):
        channel_blocking(128, 128, (33, 33, 33), 64)
