"""Digests of stored bytes: how they are measured, compared with the committed ones, and renewed.

`python -m tests.weight_cache.conversions` renews `conversion_digests.json`, and refuses to overwrite a digest whose
version was not raised.

Every kind of conversion is measured on whole models of small sizes, converted from weights that a formula gives. The
formula works with integers and the numbers have few bits, so that sums are exact in any order: no digest depends on
torch's random numbers, on its version or on the processor. Hashed are, parameter by parameter:

- the values in the tensor file as they lie on the disk. ttnn's header before them is left out: its length and fields
  are ttnn's affair, and ttnn's version is part of every key;
- what each chip would hold, chip by chip. So a change of which chip gets which shard is seen as well, which the header
  alone says.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ttnn
from safetensors.torch import save_file

from models.conversion import CONVERSIONS
from models.layers.module import Module, Parameter
from models.machine.ways import ALL_PLAIN, FUSED
from models.mochi.components import Configs, Models
from models.mochi.config import TransformerConfig
from models.mochi.text.t5 import T5Config
from models.mochi.vae.config import DecoderConfig, EncoderConfig
from models.mochi.vae.encoder import MochiVaeEncoder
from models.parallel import Layout
from tests.weight_cache.checkpoints.genmo import decoder_to_genmo, encoder_to_genmo, transformer_to_genmo
from tests.weight_cache.checkpoints.gguf_files import TYPES, write
from weight_cache.checkpoints.component import Component
from weight_cache.checkpoints.encoder_form import open_encoder
from weight_cache.checkpoints.forms import open_decoder, open_transformer
from weight_cache.convert import convert
from weight_cache.entry import Entry
from weight_cache.key import parameter_fields, stored_parameters
from weight_cache.manifest import FORMAT_VERSION
from weight_cache.plan import NamedMesh, data_bytes
from weight_cache.precision import set_precision
from weight_cache.versions import FORMS, ttnn_version, versions

FILE = Path(__file__).with_name("conversion_digests.json")
COMMAND = "python -m tests.weight_cache.conversions"
# The kind that stands for what all parameters have in common: rounding, tiling, sharding, files.
FORMAT = "format"
# kind -> case -> {"bytes": digest, and for parameters "declared": digest}
Digests = dict[str, dict[str, dict[str, str]]]

# Widths that need padding, in whole heads and in features; tiles that SP=2 divides; several blocks of channels.
CONFIGS = Configs(
    T5Config(
        vocab_size=50,
        d_model=96,
        d_kv=16,
        d_ff=160,
        num_layers=1,
        num_heads=6,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
    ),
    DecoderConfig(
        decoder_block_out_channels=(32, 32, 64, 128),
        layers_per_block=(1, 1, 1, 1, 1),
        scaling_factor=0.5,
        latents_mean=tuple(index / 8 for index in range(-6, 6)),
        latents_std=tuple(1 + index / 4 for index in range(12)),
    ),
    TransformerConfig(
        num_attention_heads=8,
        attention_head_dim=20,
        num_layers=2,
        pooled_projection_dim=96,
        text_embed_dim=64,
        time_embed_dim=64,
    ),
)
ENCODER = EncoderConfig(
    encoder_block_out_channels=(32, 32, 64, 96),
    layers_per_block=(1, 1, 1, 1, 1),
)
PLAIN = "-plain"


def numbers(shape: tuple[int, ...], seed: str, bits: int = 11) -> torch.Tensor:
    """Float32 multiples of 1 / 256 with at most `bits` significant bits, another sequence for each `seed`."""
    index = np.arange(prod(shape), dtype=np.int64)
    mixed = (index + zlib.crc32(seed.encode())) * 2654435761 % (1 << 32) >> 9
    values = mixed % (1 << bits) - (1 << bits - 1)
    return torch.from_numpy((values / 256).astype(np.float32)).reshape(shape)


@dataclass(frozen=True)
class Formula:
    """The weights of a model by `numbers`; answers like a checkpoint component."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype

    @classmethod
    def of(cls, module: Module, dtype: torch.dtype) -> Formula:
        return cls({prefix + n: s for _, prefix, p in module.parameters() for n, s in p.sources.items()}, dtype)

    def keys(self):
        return self.shapes.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self.shapes[key]

    def tensor(self, key: str) -> torch.Tensor:
        return numbers(self.shapes[key], key).to(self.dtype)


class EveryFile(Module):
    """Parameters that are stored as they are read, in every dtype, arrangement and placement."""

    def __init__(self, mesh: NamedMesh) -> None:
        super().__init__(mesh)
        parameters = {
            "first": Parameter({"first": (256, 256)}, tp=1, moves_only=True),
            # Of the same kind as the first, so that it is not ttnn that writes it.
            "second": Parameter({"second": (256, 256)}, tp=1, moves_only=True),
            "rows": Parameter({"rows": (256, 64)}, tp=0, moves_only=True),
            "both": Parameter({"both": (256, 256)}, sp=0, tp=1, moves_only=True),
            "replicated": Parameter({"replicated": (64, 64)}, moves_only=True),
            "rounded": Parameter({"rounded": (64, 256)}, tp=1),
            "parts_of_tiles": Parameter({"parts_of_tiles": (48, 160)}, tp=1),
            "four_dims": Parameter({"four_dims": (8, 1, 33, 64)}, sp=0),
            "row_major": Parameter({"row_major": (50, 64)}, tp=1, layout=ttnn.ROW_MAJOR_LAYOUT, moves_only=True),
            "float32": Parameter({"float32": (64, 256)}, tp=1, dtype=ttnn.float32),
            "bfloat8": Parameter({"bfloat8": (64, 256)}, sp=0, tp=1, dtype=ttnn.bfloat8_b),
        }
        vars(self).update(parameters)


def declared(component: str, layout: str) -> Module:
    """A model on a mesh in name only; `-plain` behind the layout for one without fused ops."""
    mesh = NamedMesh(Layout.parse(layout.removesuffix(PLAIN)))
    mesh.ways = ALL_PLAIN if layout.endswith(PLAIN) else FUSED
    if component == "vae_encoder":
        return MochiVaeEncoder(ENCODER, mesh)
    return EveryFile(mesh) if component == "files" else getattr(Models.declare(CONFIGS, mesh), component)


def stored(component: str, layout: str, precision: str, dtype: torch.dtype) -> Digests:
    """Convert a model and hash what is stored, kind by kind."""
    module = declared(component, layout)
    set_precision(module, precision)
    case = f"{component} {layout} {precision} of {str(dtype).removeprefix('torch.')}"
    hashes: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        entry = Entry(Path(folder))
        manifest = convert(entry, module, Formula.of(module, dtype), key="", key_fields={}, about={})
        parameters = {name: parameter for name, _, parameter in stored_parameters(module)}
        for record in sorted(manifest.tensors, key=lambda record: record.name):
            parameter = parameters[record.name]
            kind = FORMAT if parameter.conversion is None else parameter.conversion.name
            hashed = hashes.setdefault(kind, hashlib.sha256())
            size = data_bytes(parameter, module.mesh)
            hashed.update(entry.file(record).read_bytes()[-size:])
            for part in ttnn.get_device_tensors(ttnn.load_tensor(entry.file(record))):
                hashed.update(_bytes(ttnn.to_torch(part)))
            fields.setdefault(kind, {})[record.name] = parameter_fields(module)[record.name]
    return {
        kind: {
            case: {"declared": _short(json.dumps(fields[kind], sort_keys=True).encode()), "bytes": h.hexdigest()[:32]}
        }
        for kind, h in hashes.items()
    }


def read() -> Iterator[tuple[str, str, str]]:
    """Read checkpoints in every form, and merge LoRAs; yields (kind, case, digest of all tensors as they are read)."""
    transformer = _state(declared("transformer", "1x1sp0tp1"))
    vae = _state(declared("vae", "1x1sp0tp1"))
    encoder = encoder_to_genmo(
        {name.removeprefix("encoder."): t for name, t in _state(declared("vae_encoder", "1x1sp0tp1")).items()}
    )
    dit, decoder = (
        transformer_to_genmo(transformer),
        decoder_to_genmo({name.removeprefix("decoder."): tensor for name, tensor in vae.items()}),
    )
    matrices = {name for name, tensor in dit.items() if tensor.ndim == 2}
    fp8 = {
        name: numbers(tuple(t.shape), name, 4).to(torch.float8_e4m3fn) if name in matrices else t
        for name, t in dit.items()
    }
    modules = {name: name.removesuffix(".weight") for name in matrices}
    one = {f"{module}.scale_weight": torch.tensor(0.75) for module in modules.values()}
    rows = {f"{m}.weight_scale": numbers((len(dit[n]),), m, 3).abs() + 1 / 256 for n, m in modules.items()}
    comfyui = FORMS["comfyui"].name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"

        def written(tensors: dict[str, torch.Tensor], prefix: str = "") -> Path:
            save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, path)
            return path

        directory = Path(folder) / "transformer"
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        save_file({n: t.bfloat16() for n, t in transformer.items()}, directory / "model.safetensors")
        component = Component(directory)
        yield FORMS["diffusers"].name, "transformer", _all(component)
        yield FORMS["genmo"].name, "transformer", _all(open_transformer(written(dit)))
        yield FORMS["genmo"].name, "transformer in fp8", _all(open_transformer(written(fp8)))
        yield FORMS["genmo"].name, "vae", _all(open_decoder(written(decoder)))
        yield FORMS["genmo"].name, "vae encoder", _all(open_encoder(written(encoder)))
        prefix = "model.diffusion_model."
        yield comfyui, "transformer with prefix", _all(open_transformer(written(dit, prefix)))
        yield comfyui, "transformer in fp8, one scale", _all(open_transformer(written(fp8 | one)))
        yield comfyui, "transformer in fp8, scale per row", _all(open_transformer(written(fp8 | rows, prefix)))
        for kind in (TYPES.Q8_0, TYPES.Q4_0):
            write(path.with_suffix(".gguf"), dit, kind)
            yield FORMS["gguf"].name, f"transformer in {kind.name}", _all(open_transformer(path.with_suffix(".gguf")))


def _state(module: Module) -> dict[str, torch.Tensor]:
    source = Formula.of(module, torch.float32)
    return {name: source.tensor(name) for name in source.shapes}


def _all(source: Any) -> str:
    """Digest of all tensors of a source: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(source.keys()):
        tensor = source.tensor(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:32]


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


BF16, FLOAT32 = torch.bfloat16, torch.float32
# The first case of a component is the one that a test of the tests changes.
CASES = {
    "transformer": [
        ("2x4sp0tp1", "bf16", BF16),
        ("1x1sp0tp1", "bf16", FLOAT32),
        ("2x4sp1tp0fsdp", "bf8", BF16),
        ("2x4sp0tp1" + PLAIN, "mixed", BF16),
    ],
    "text_encoder": [("1x1sp0tp1", "bf16", BF16), ("2x4sp0tp1", "bf16", FLOAT32)],
    "vae": [("1x1sp0tp1", "bf16", BF16), ("2x2sp0tp1", "bf16", FLOAT32)],
    "vae_encoder": [("1x1sp0tp1", "bf16", BF16), ("2x2sp0tp1", "bf16", FLOAT32)],
    "files": [
        (layout, "bf16", dtype) for layout in ("1x1sp0tp1", "2x4sp0tp1", "2x4sp1tp0") for dtype in (BF16, FLOAT32)
    ],
}


def measure() -> Digests:
    """Measure all cases; some mesh must be open, on cards or not."""
    found: Digests = {}
    for component, cases in CASES.items():
        for case in map(partial(stored, component), *zip(*cases, strict=True)):
            for kind, digests in case.items():
                found.setdefault(kind, {}).update(digests)
    for kind, case, digest in read():
        found.setdefault(kind, {})[case] = {"bytes": digest}
    return found


def present_versions() -> dict[str, int]:
    """Versions of all kinds, the format's among them."""
    return versions() | {FORMAT: FORMAT_VERSION}


def table(kind: str) -> str:
    """Where the version of a kind is declared."""
    if kind == FORMAT:
        return "weight_cache/manifest.py (FORMAT_VERSION)"
    return "models/conversion.py" if kind in CONVERSIONS else "weight_cache/versions.py"


def unraised(kind: str, recorded: Mapping[str, Any], measured: Digests, now: Mapping[str, int]) -> str:
    """What is wrong with a kind whose digests changed though no version was raised; "" if nothing is.

    Args:
        kind: the kind.
        recorded: what the file of digests holds.
        measured: what is stored now.
        now: the present versions.
    """
    old = recorded["digests"].get(kind)
    if old is None:
        return ""
    if now[kind] < old["version"]:
        return f"the version of {kind} went down from {old['version']} to {now[kind]}: set it back in {table(kind)}"
    for raised in (kind, FORMAT):
        if now[raised] > recorded["digests"].get(raised, {"version": 0})["version"]:
            return ""
    if recorded["ttnn"] != ttnn_version():
        return ""
    both = {case for case in old["cases"] if case in measured.get(kind, {})}
    changed = {c for c in both if measured[kind][c]["bytes"] != old["cases"][c]["bytes"]}
    if changed:
        return (
            f"the stored bytes of {kind} have changed ({', '.join(sorted(changed))}), and stores filled before would "
            f"be read as current: raise its version in {table(kind)}, then run {COMMAND}"
        )
    changed = {c for c in both if measured[kind][c] != old["cases"][c]}
    if changed:
        return (
            f"what is declared of {kind} has changed ({', '.join(sorted(changed))}: sources, shapes, placement or "
            f"packing) though its bytes have not, and every store would be filled anew: take it back, or raise its "
            f"version in {table(kind)}, then run {COMMAND}"
        )
    return ""


def problem(kind: str, recorded: Mapping[str, Any], measured: Digests, now: Mapping[str, int]) -> str:
    """What is wrong with a kind's digests, and what mends it; "" if nothing is."""
    found = unraised(kind, recorded, measured, now)
    if found:
        return found
    if recorded["ttnn"] != ttnn_version():
        return f"the digests are those of ttnn {recorded['ttnn']}, this is {ttnn_version()}: run {COMMAND}"
    old = recorded["digests"].get(kind)
    if old is None:
        return f"{kind} has no digests: run {COMMAND}"
    if old["version"] != now[kind]:
        return f"the version of {kind} was raised from {old['version']} to {now[kind]}: run {COMMAND}"
    if old["cases"] != measured.get(kind):
        return f"the digests of {kind} are not those of the present cases and format: run {COMMAND}"
    return ""


def renewed(recorded: Mapping[str, Any], measured: Digests, now: Mapping[str, int]) -> dict[str, Any]:
    """The new content of the file of digests.

    Raises:
        ValueError: a digest would be overwritten whose version was not raised.
    """
    refused = [text for kind in measured if (text := unraised(kind, recorded, measured, now))]
    if refused:
        raise ValueError("\n".join(refused))
    return {
        "ttnn": ttnn_version(),
        "digests": {kind: {"version": now[kind], "cases": measured[kind]} for kind in sorted(measured)},
    }


def recorded() -> dict[str, Any]:
    """The committed digests."""
    return json.loads(FILE.read_text()) if FILE.exists() else {"ttnn": ttnn_version(), "digests": {}}


def main() -> None:
    """Renew the file of digests."""
    from models.device import cards, open_mesh

    with open_mesh((1, 1), "auto" if cards() else "dry-run"):
        measured = measure()
    try:
        content = renewed(recorded(), measured, present_versions())
    except ValueError as error:
        raise SystemExit(str(error)) from error
    FILE.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
