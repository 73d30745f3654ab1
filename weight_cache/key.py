"""What tells one entry of the store from another: content, configuration and versions of the conversion.

Never a path or a time, never source text, and no name of a class, function, field or attribute: code may be moved and
renamed without converting anything anew. What else the key holds (packing, placement, dtypes) is pinned by
`tests/weight_cache/test_key.py`: whoever changes it raises a version, so that older entries are known to be outdated.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from weight_cache.checkpoints.component import header_bytes
from weight_cache.checkpoints.held import HeldFile
from weight_cache.digest import ByteProgress, DigestMemory
from weight_cache.manifest import FORMAT_VERSION, content_hash
from weight_cache.versions import FORMS, ttnn_version

if TYPE_CHECKING:
    from models.layers import Module, Parameter
    from weight_cache.checkpoints.component import Component


def key_fields(
    module: Module,
    component: Component,
    precision: str,
    digests: DigestMemory,
    progress: ByteProgress | None = None,
) -> dict[str, Any]:
    """Return everything that a converted set of weights depends on, as plain JSON values.

    Args:
        module: declared, with its precision set.
        component: where its weights come from.
        precision: by name, for people; the dtypes are in the parameters.
        digests: remembers the hashes of files.
        progress: called while files are hashed, as `progress(bytes done, bytes in all)`.

    Raises:
        OSError: a file cannot be read.
        ValueError: two parameters have one name in the store, see `stored_name`.
    """
    held = component.held_files
    hashes = digests.of(held, progress)
    return {
        "format": FORMAT_VERSION,
        "ttnn": ttnn_version(),
        "component": component.name,
        "form": component.form,
        "config": {name: value for name, value in component.config.items() if not name.startswith("_")},
        "files": sorted([header_digest(file), hashes[file.path]] for file in held),
        "layout": str(module.mesh.layout),
        "precision": precision,
        "parameters": parameter_fields(module),
        "conversions": conversion_versions(module, component.form),
    }


def entry_key(fields: dict[str, Any]) -> str:
    """Return 64 hex digits: the hash of `key_fields` in one spelling."""
    return content_hash(fields)


def conversion_versions(module: Module, form: str) -> dict[str, int]:
    """Return name -> version of the kinds of conversion that a set of weights goes through.

    Args:
        module: declared.
        form: of the checkpoint component, see `weight_cache.versions.FORMS`.
    """
    kinds = {parameter.conversion for _, _, parameter in module.parameters() if parameter.conversion is not None}
    kinds |= {FORMS[form]}
    return {kind.name: kind.version for kind in sorted(kinds, key=lambda kind: kind.name)}


def stored_name(prefix: str, parameter: Parameter) -> str:
    """Name a parameter in the store by its first checkpoint tensor and its kind of conversion.

    The name of the attribute that holds the parameter plays no part, so that it may be renamed.

    Args:
        prefix: of the parameter's checkpoint names, as `Module.parameters` gives it.
        parameter: the parameter.
    """
    kind = "" if parameter.conversion is None else f".{parameter.conversion.name}"
    return f"{prefix}{next(iter(parameter.sources))}{kind}"


def stored_parameters(module: Module) -> list[tuple[str, str, Parameter]]:
    """Return (name in the store, prefix of checkpoint names, parameter) of all parameters, in order of declaration.

    Raises:
        ValueError: two parameters have one name.
    """
    found = [(stored_name(prefix, parameter), prefix, parameter) for _, prefix, parameter in module.parameters()]
    names = [name for name, _, _ in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two parameters are stored as {twice}: give them different kinds of conversion")
    return found


def parameter_fields(module: Module) -> dict[str, dict[str, Any]]:
    """Return what is declared of each parameter, by its name in the store.

    That is its sources with their shapes, the stored shape, dtype, layout, placement, kind of conversion and packing.

    Raises:
        ValueError: two parameters have one name.
    """
    return {
        name: {
            "sources": {prefix + source: list(shape) for source, shape in parameter.sources.items()},
            "shape": list(parameter.shape),
            "dtype": parameter.dtype.name,
            "layout": parameter.layout.name,
            "sp": parameter.sp,
            "tp": parameter.tp,
            "conversion": None if parameter.conversion is None else parameter.conversion.name,
            "packing": parameter.packing,
        }
        for name, prefix, parameter in stored_parameters(module)
    }


def header_digest(file: HeldFile) -> str:
    """Return the hash of a weight file's header: names, types, shapes and places of its tensors."""
    header = bytearray(header_bytes(file))
    file.read(0, header)
    return hashlib.sha256(header).hexdigest()
