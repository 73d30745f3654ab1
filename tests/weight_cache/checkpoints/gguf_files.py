"""GGUF files as ComfyUI's users have them, written and dequantised by the package `gguf`."""

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize

TYPES = gguf.GGMLQuantizationType


def write(path, state, kind, original=(), architecture="mochi"):
    """Write matrices whose rows are whole blocks in `kind`, and the rest in float16; return what it stands for."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_array("tokenizer.tokens", ["a", "b", "c"])
    meant = {}
    for name, tensor in state.items():
        values = tensor.float().numpy()
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        as_stored = kind if values.ndim == 2 and values.shape[-1] % block == 0 else TYPES.F16
        if name in original:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            values = values.reshape(1, -1)
        stored = quantize(np.ascontiguousarray(values), as_stored)
        writer.add_tensor(name, stored, raw_dtype=as_stored)
        meant[name] = torch.from_numpy(dequantize(stored, as_stored).copy()).reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant
