"""What the tests of the store share."""

import shutil
from pathlib import Path

import torch
import ttnn

from models.mochi.config import TransformerConfig
from models.mochi.transformer import MochiTransformer
from models.parallel import Layout
from weight_cache.checkpoints.component import Component
from weight_cache.digest import DigestMemory
from weight_cache.entry import Entry
from weight_cache.key import key_fields
from weight_cache.plan import NamedMesh
from weight_cache.precision import set_precision
from weight_cache.store import Store


def declared(mesh, component: Component) -> MochiTransformer:
    return MochiTransformer(TransformerConfig.from_dict(component.config), mesh)


def fields(component: Component, digests: Path, layout: str = "2x4sp0tp1", precision: str = "bf16") -> dict:
    """Key fields without a mesh."""
    model = declared(NamedMesh(Layout.parse(layout)), component)
    set_precision(model, precision)
    return key_fields(model, component, precision, DigestMemory(digests))


def in_memory(mesh, component: Component, precision: str = "bf16") -> MochiTransformer:
    model = declared(mesh, component)
    set_precision(model, precision)
    model.load(component)
    return model


def from_store(mesh, component: Component, cache: Path, **options) -> tuple[MochiTransformer, list[str]]:
    """A model loaded through the store, and the lines that were said."""
    lines: list[str] = []
    model = declared(mesh, component)
    Store(cache).load(model, component, on_message=lines.append, **options)
    return model, lines


def shards(model) -> dict[str, list[tuple[ttnn.DataType, torch.Tensor]]]:
    """Every parameter as every chip holds it."""
    return {
        name: [(part.dtype, ttnn.to_torch(part)) for part in ttnn.get_device_tensors(parameter.tensor.cpu())]
        for name, _, parameter in model.parameters()
    }


def assert_same(actual, expected) -> None:
    """Bit for bit, on every chip."""
    ours, theirs = shards(actual), shards(expected)
    assert ours.keys() == theirs.keys()
    for name, parts in theirs.items():
        assert len(parts) == len(ours[name])
        for (dtype, value), (own_dtype, own_value) in zip(parts, ours[name], strict=True):
            assert dtype == own_dtype, name
            assert torch.equal(value, own_value), name


def only_entry(cache: Path) -> Entry:
    (found,) = Store(cache).entries()
    return Entry(found.path)


def copy_store(filled: Path, target: Path) -> Path:
    """A store that a test may damage; times of change are kept, as a backup would."""
    return Path(shutil.copytree(filled, target))
