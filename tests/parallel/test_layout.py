"""Layouts: parsing, defaults and their errors."""

import pytest

from models.parallel import Layout


@pytest.mark.parametrize(
    ("text", "mesh", "sp", "tp"),
    [
        ("2x4sp0tp1", None, 2, 4),
        ("sp1tp0", (2, 4), 4, 2),
        ("4x8sp1tp0", (4, 8), 8, 4),
        (" 1x1SP0TP1 ", None, 1, 1),
        ("4x8cfg1sp1tp0", None, 4, 4),
        ("cfg0sp1tp0fsdp", (2, 4), 4, 1),
    ],
)
def test_parse(text, mesh, sp, tp):
    layout = Layout.parse(text, mesh)
    assert (layout.sp, layout.tp) == (sp, tp)
    assert Layout.parse(str(layout)) == layout


def test_a_branch_has_half_of_the_mesh():
    layout = Layout.parse("4x8cfg1sp1tp0fsdp")
    assert str(layout.branch) == "4x4sp1tp0fsdp"
    assert layout.branch.branch == layout.branch


@pytest.mark.parametrize(
    ("text", "mesh", "message"),
    [
        ("sp0tp0", (2, 4), "need different mesh axes"),
        ("sp2tp0", (2, 4), "'sp2tp0' is not a layout: write it as"),
        ("tp1sp0", (2, 4), "is not a layout"),
        ("", (2, 4), "is not a layout"),
        ("sp0tp1", None, "names no mesh"),
        ("4x8sp0tp1", (2, 4), "is for mesh 4x8, but the mesh is 2x4"),
        ("0x4sp0tp1", None, "both sides must be at least 1"),
        ("1x4cfg0sp0tp1", None, "axis 0 of mesh 1x4 has 1 chips, which do not halve"),
        ("2x4sp0tp1cfg0", None, "is not a layout"),
        ("\u0662x4sp0tp1", None, "is not a layout"),
        ("9" * 5000 + "x1sp0tp1", None, "is not a layout"),
    ],
)
def test_parse_errors(text, mesh, message):
    with pytest.raises(ValueError, match=message):
        Layout.parse(text, mesh)


@pytest.mark.parametrize(
    ("mesh", "heads", "expected"),
    [
        ((2, 4), 24, "2x4sp1tp0"),
        ((4, 8), 24, "4x8sp1tp0"),
        ((1, 4), 24, "1x4sp0tp1"),
        ((1, 8), 8, "1x8sp0tp1"),
        ((1, 2), 24, "1x2sp0tp1"),
        ((2, 4), 6, "2x4sp1tp0"),
        ((3, 4), 4, "3x4sp0tp1"),
        ((4, 2), 24, "4x2sp0tp1"),
    ],
)
def test_default(mesh, heads, expected):
    assert str(Layout.default(mesh, heads)) == expected


def test_heads_must_divide():
    Layout.parse("2x4sp0tp1").check_heads(24)
    with pytest.raises(ValueError, match=r"TP=4 does not divide 6 attention heads on mesh 2x4; layout 2x4sp1tp0 does"):
        Layout.parse("2x4sp0tp1").check_heads(6)
    with pytest.raises(ValueError, match="choose another mesh"):
        Layout.parse("2x4sp0tp1").check_heads(5)
