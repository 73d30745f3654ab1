"""Conformance: what the device path's ops compute on a machine, case by case, beside the exact result."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.conformance.bench import Case


def cases() -> dict[str, Case]:
    """Return all cases by name, small ones first, then the real shapes, then whole pieces."""
    from models.conformance import shapes, small, video, whole
    from models.conformance.bench import CASES

    assert all((small, video, shapes, whole))
    order = {"small": 0, "shape": 1, "whole": 2}
    return dict(sorted(CASES.items(), key=lambda item: order[item[1].kind]))
