"""The AsymmDiT in TTNN."""

from models.mochi.transformer.conditioning import StepTable
from models.mochi.transformer.model import Grid, MochiTransformer, PreparedPrompt

__all__ = ["Grid", "MochiTransformer", "PreparedPrompt", "StepTable"]
