"""What tells one entry of the store from another: content and configuration, never a path or a time."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from weight_cache.checkpoints.lora import LoraRequest
from weight_cache.digest import ByteProgress, DigestMemory
from weight_cache.manifest import FORMAT_VERSION

if TYPE_CHECKING:
    from models.layers import Module
    from models.parallel import Layout
    from weight_cache.checkpoints.component import Component

# Own code that may decide what a stored tensor holds; libraries go by their version.
_OWN = ("models.", "weight_cache.")


def key_fields(
    module: Module,
    component: Component,
    precision: str,
    loras: Sequence[LoraRequest],
    digests: DigestMemory,
    progress: ByteProgress | None = None,
) -> dict[str, Any]:
    """Everything that a converted set of weights depends on, as plain JSON values.

    Args:
        module: declared, with its precision set.
        component: where its weights come from.
        precision: by name, for people; the dtypes are in the parameters.
        loras: merged into the weights.
        digests: remembers the hashes of files.
        progress: called while files are hashed, as `progress(bytes done, bytes in all)`.

    Raises:
        OSError: a file cannot be read.
    """
    hashes = digests.of([*component.files, *(lora.path for lora in loras)], progress)
    return {
        "format": FORMAT_VERSION,
        "ttnn": importlib.metadata.version("ttnn"),
        "component": component.name,
        "form": component.form,
        "config": {name: value for name, value in component.config.items() if not name.startswith("_")},
        "files": sorted([header_digest(path), hashes[path]] for path in component.files),
        "layout": layout_fields(module.mesh.layout),
        "precision": precision,
        "parameters": parameter_fields(module),
        "loras": [{"sha256": hashes[lora.path], "strength": lora.strength} for lora in loras],
        "code": conversion_code(module, component, bool(loras)),
    }


def entry_key(fields: dict[str, Any]) -> str:
    """64 hex digits: the hash of `key_fields` in one spelling."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def layout_fields(layout: Layout) -> dict[str, Any]:
    """Every field of a layout by name; a field added later changes keys by itself."""
    return json.loads(json.dumps(asdict(layout)))


def parameter_fields(module: Module) -> dict[str, dict[str, Any]]:
    """Per parameter: sources with their shapes, the stored shape, dtype, layout, placement and packing."""
    return {
        name: {
            "sources": {prefix + source: list(shape) for source, shape in parameter.sources.items()},
            "shape": list(parameter.shape),
            "dtype": parameter.dtype.name,
            "layout": parameter.layout.name,
            "sp": parameter.sp,
            "tp": parameter.tp,
            "packing": parameter.packing,
        }
        for name, prefix, parameter in module.parameters()
    }


def header_digest(path: Path) -> str:
    """Hash of a safetensors file's header: names, types, shapes and places of its tensors."""
    with path.open("rb") as file:
        length = file.read(8)
        return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()


def conversion_code(module: Module, component: Component, with_loras: bool) -> str:
    """Hash of the code that turns checkpoint tensors into stored ones, comments and docstrings aside.

    The code is that of every module of this project in which a parameter's `convert`, or anything it refers to, is
    defined. A developer's change of the conversion thus makes a new entry instead of reading a stale one.
    """
    names = {"models.layers.module", "models.parallel.mesh"}
    if component.form != "diffusers":
        names |= {"weight_cache.checkpoints.forms", "weight_cache.checkpoints.names"}
    if with_loras:
        names |= {"weight_cache.checkpoints.lora", "weight_cache.checkpoints.names"}
    seen: set[int] = set()
    for _, _, parameter in module.parameters():
        if parameter.convert is not None:
            names.update(_modules_of(parameter.convert, seen))
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}={_source_digest(name)};".encode())
    return digest.hexdigest()


def _modules_of(value: Any, seen: set[int]) -> Iterator[str]:
    """Names of this project's modules that define `value` and what it refers to."""
    if id(value) in seen:
        return
    if isinstance(value, FunctionType):
        if value.__module__.startswith(_OWN):
            seen.add(id(value))
            yield value.__module__
            for cell in value.__closure__ or ():
                yield from _modules_of(cell.cell_contents, seen)
            for name in value.__code__.co_names:
                target = value.__globals__.get(name)
                if isinstance(target, FunctionType):
                    yield from _modules_of(target, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _modules_of(item, seen)
    elif type(value).__module__.startswith(_OWN):
        yield type(value).__module__


@cache
def _source_digest(module_name: str) -> str:
    tree = ast.parse(inspect.getsource(sys.modules[module_name]))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
