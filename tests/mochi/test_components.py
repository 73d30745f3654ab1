"""The default layout: weights over SP too only where a chip's memory asks for it."""

import pytest

from models.mochi.components import Configs, choose_layout
from models.mochi.precision import PRECISIONS


@pytest.mark.parametrize(
    ("mesh", "precision", "expected"),
    [
        ((2, 4), "default", "2x4sp1tp0"),
        ((2, 4), "fast", "2x4sp1tp0"),
        ((2, 4), "bf16", "2x4sp1tp0fsdp"),
        ((2, 4), "accurate", "2x4sp1tp0fsdp"),
        ((4, 8), "default", "4x8sp1tp0"),
        ((4, 8), "accurate", "4x8sp1tp0"),
        ((1, 2), "accurate", "1x2sp0tp1"),
    ],
)
def test_default_layout_of_the_full_model(mesh, precision, expected):
    assert str(choose_layout(Configs(), mesh, PRECISIONS[precision])) == expected


def test_what_is_asked_for_is_taken():
    assert str(choose_layout(Configs(), (2, 4), PRECISIONS["accurate"], "sp0tp1")) == "2x4sp0tp1"
    with pytest.raises(ValueError, match="TP=5 does not divide 24 attention heads"):
        choose_layout(Configs(), (1, 5), PRECISIONS["default"], "sp0tp1")
