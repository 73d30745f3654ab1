"""Metrics of how close two tensors are: correlation and relative error, both in float64."""

from __future__ import annotations

import torch


def pcc(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the Pearson correlation coefficient over all elements (1.0 is a perfect match up to scale and offset).

    Args:
        expected: the reference, any shape.
        actual: the tensor under test, the same shape.

    Raises:
        ValueError: shapes differ, a value is not finite, or one side is constant (correlation undefined) while the two
            are not equal. Equal constants give 1.0.
    """
    e, a = _pair(expected, actual)
    e_centred, a_centred = e - e.mean(), a - a.mean()
    norms = e_centred.norm() * a_centred.norm()
    if norms == 0:
        if torch.equal(e, a):
            return 1.0
        raise ValueError(
            f"correlation is undefined: one side is constant (means {e.mean():g}, {a.mean():g}); "
            "compare constants with relative_rmse"
        )
    return float((e_centred @ a_centred) / norms)


def relative_rmse(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return `rms(actual - expected) / rms(expected)`, with the rms about zero (no unit; 0.0 is a perfect match).

    For an expected tensor of zero mean this is the error in units of its standard deviation.

    Raises:
        ValueError: shapes differ, a value is not finite, or the expected tensor is all zeros while the actual one is
            not.
    """
    e, a = _pair(expected, actual)
    error, scale = (a - e).square().mean().sqrt(), e.square().mean().sqrt()
    if scale == 0:
        if error == 0:
            return 0.0
        raise ValueError(f"relative error is undefined: expected is all zeros, rms(actual)={float(error):g}")
    return float(error / scale)


def _pair(expected: torch.Tensor, actual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if expected.shape != actual.shape:
        raise ValueError(f"shapes differ: expected {tuple(expected.shape)}, actual {tuple(actual.shape)}")
    e = expected.detach().to("cpu", torch.float64).flatten()
    a = actual.detach().to("cpu", torch.float64).flatten()
    for name, tensor in (("expected", e), ("actual", a)):
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise ValueError(f"{name} has {bad} of {tensor.numel()} values that are not finite")
    return e, a
