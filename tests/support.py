"""What the model tests share: weights from a reference module, inputs, and one way to compare."""

import functools
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.mochi.config import TransformerConfig
from models.reference.metrics import pcc, relative_rmse
from models.reference.transformer import random_transformer

# Ours may be this much worse than PyTorch's own bfloat16 on the same input: an absolute threshold alone would hide
# small mistakes.
BF16_MARGIN = 1.5


@dataclass
class StateDict:
    """A reference module's weights in the form the loader reads; ``prefix`` is put before every name."""

    module: torch.nn.Module
    prefix: str = ""

    @functools.cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        return {self.prefix + name: value for name, value in self.module.state_dict().items()}

    def keys(self):
        return self._weights.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._weights[key].shape)

    def tensor(self, key: str) -> torch.Tensor:
        return self._weights[key]


@functools.cache
def reference(dtype: torch.dtype = torch.float32, **sizes):
    """A random Diffusers transformer of the given sizes; the bfloat16 one has the same weights, rounded."""
    return random_transformer(**sizes).to(dtype)


SMALL = {
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "num_layers": 4,
    "pooled_projection_dim": 128,
    "text_embed_dim": 256,
    "time_embed_dim": 64,
}


def config_of(model) -> TransformerConfig:
    return TransformerConfig.from_dict(dict(model.config))


def pairs(*parameters: Sequence) -> list[tuple]:
    """Few combinations of several parameters' values, in which any two values of any two parameters meet.

    A test of three or more parameters takes these where a fault needs two of them at most. They are always the same.
    """

    def met(row: tuple[int, ...]) -> set:
        return set(itertools.combinations(enumerate(row), 2))

    rows = list(itertools.product(*(range(len(values)) for values in parameters)))
    missing = set().union(*map(met, rows))
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(met(row) & missing))
        missing -= met(best)
        chosen.append(best)
    return [tuple(values[i] for values, i in zip(parameters, row, strict=True)) for row in sorted(chosen)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Accuracy:
    """One comparison: the test it was made in, ours against float32, and PyTorch's bfloat16 against float32."""

    test: str
    pcc: float
    rmse: float
    bf16_rmse: float | None


# Filled by `check`, printed by pytest's --accuracy.
ACCURACY: list[Accuracy] = []


def check(
    actual: torch.Tensor,
    expected: torch.Tensor,
    bf16: torch.Tensor | None,
    *,
    min_pcc: float = 0.9995,
    max_rmse: float = 0.03,
    margin: float = BF16_MARGIN,
) -> None:
    """Compare with the float32 reference absolutely, and with PyTorch's own bfloat16 error relatively."""
    correlation, error = pcc(expected, actual), relative_rmse(expected, actual)
    own = None if bf16 is None else relative_rmse(expected, bf16.float())
    ACCURACY.append(Accuracy(os.environ.get("PYTEST_CURRENT_TEST", "").split("[")[0], correlation, error, own))
    assert correlation >= min_pcc, f"PCC {correlation:.6f} < {min_pcc} (relative RMSE {error:.5f})"
    assert error <= max_rmse, f"relative RMSE {error:.5f} > {max_rmse} (PCC {correlation:.6f})"
    if own is not None:
        assert error <= margin * own, f"relative RMSE {error:.5f} > {margin} x PyTorch's bfloat16 {own:.5f}"


def in_both(function, *inputs: torch.Tensor):
    """Run ``function(dtype, *inputs)`` in float32 and in bfloat16 without gradients."""
    with torch.no_grad():
        exact = function(torch.float32, *inputs)
        rounded = function(torch.bfloat16, *(x.bfloat16() if x.is_floating_point() else x for x in inputs))
    return exact, rounded
