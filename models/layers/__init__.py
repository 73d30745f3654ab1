"""TTNN building blocks of the models. `models.layers.width` explains the shape suffixes."""

from models.layers.attention import Heads, attention_program, joint_attention
from models.layers.attention_chunks import Chunks
from models.layers.feed_forward import SwiGLUFeedForward
from models.layers.linear import ColumnParallelLinear, RowParallelLinear
from models.layers.module import Module, Parameter, TensorSource
from models.layers.normalization import HeadRMSNorm, layer_norm, rms_norm, split_heads
from models.layers.rotary import RotaryTable
from models.layers.width import Width

__all__ = [
    "Chunks",
    "ColumnParallelLinear",
    "HeadRMSNorm",
    "Heads",
    "Module",
    "Parameter",
    "RotaryTable",
    "RowParallelLinear",
    "SwiGLUFeedForward",
    "TensorSource",
    "Width",
    "attention_program",
    "joint_attention",
    "layer_norm",
    "rms_norm",
    "split_heads",
]
