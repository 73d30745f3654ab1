"""What a block adds to its streams, in each precision policy: the residual that it leaves as it was flatters no error.

On normal weights, on weights and activations such as training leaves them, and with sharp attention.
"""

import pytest

from models.mochi.precision import PRECISIONS
from models.reference.random_weights import heavy_tailed_
from tests.mochi.transformer.test_block import CONFIG, run_block, run_block_at_real_width
from tests.support import SMALL, reference

KINDS = {
    "normal": {},
    "heavy-tailed": {"fill": heavy_tailed_, "outliers": True},
    "sharp attention": {"sharpness": 4.0},
}
# Error of the update as a multiple of PyTorch's own bfloat16 error; `default` must stay within 3.
MARGINS = {"accurate": 1.5, "bf16": 1.9, "default": 3.0, "bf8": 3.6, "fast": 6.0}


@pytest.mark.full
@pytest.mark.alone
@pytest.mark.parametrize("mesh", ["2x4sp1tp0"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", PRECISIONS)
def test_update_at_real_width(mesh, policy, kind):
    run_block_at_real_width(
        mesh, precision=policy, of_update=True, min_pcc=0.99, max_rmse=0.2, margin=MARGINS[policy], **KINDS[kind]
    )


@pytest.mark.parametrize("mesh", ["2x4sp1tp0"], indirect=True)
@pytest.mark.parametrize("policy", ["bf16", "default"])
def test_update(mesh, policy):
    limits = {"min_pcc": 0.999, "max_rmse": 0.06, "margin": MARGINS[policy]}
    run_block(mesh, lambda dtype: reference(dtype, **SMALL), CONFIG, 0, 77, precision=policy, of_update=True, **limits)
