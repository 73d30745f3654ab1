"""Modules and parameters: each parameter declares its placement, and loading is strict.

A parameter says which checkpoint tensors it is made of, their shapes, how they become one host tensor, and how that
tensor is placed on the mesh. Loading walks the tree once and reads one parameter at a time, so the host never holds
more than one parameter.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from math import prod
from typing import Protocol

import ttnn

from models.conversion import Conversion
from models.machine.errors import InputError
from models.parallel import Mesh, gather

# Largest number of bfloat16.
LARGEST = (2 - 2**-7) * 2.0**127


class TensorSource(Protocol):
    """The source of the weights: a checkpoint component, or a plain mapping in tests.

    One that also has `where(key)`, which names a tensor's file, is quoted in messages.
    """

    def keys(self):
        """Return the names of all tensors."""

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading it."""

    def tensor(self, key: str):
        """Read one tensor to the host."""


class PartOf:
    """The tensors of a source whose names begin with `prefix`, under their whole names."""

    def __init__(self, source: TensorSource, prefix: str) -> None:
        self._source, self._prefix = source, prefix

    def keys(self):
        """Return the names of the part's tensors."""
        return [key for key in self._source.keys() if key.startswith(self._prefix)]  # noqa: SIM118 (not a mapping)

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading it."""
        return self._source.shape(key)

    def tensor(self, key: str):
        """Read one tensor to the host."""
        return self._source.tensor(key)

    def where(self, key: str) -> str:
        """Return the file that holds a tensor, or "" where the source does not know."""
        return file_of(self._source, key)


class Parameter:
    """A tensor of the model: ``sources`` in the checkpoint -> ``convert`` -> the mesh.

    Args:
        sources: checkpoint names relative to the owning module, each with the shape it must have there.
        convert: host function of the source tensors (float32, in order) giving the tensor to upload; the identity
            for a single source by default.
        sp, tp: dim split over the SP / TP axis, None for replicated.
        dtype, layout: as stored on the device.
        moves_only: ``convert`` moves values and computes nothing, so that it may work in the checkpoint's own type.
        conversion: the kind of ``convert`` and its version, from the table in `models.conversion`.
        packing: what ``convert`` does differently from other parameters of its kind, where sources, stored shape and
            placement do not tell. Kind, version and packing are part of a stored set's key.

    Raises:
        ValueError: ``convert`` without its kind, or a kind without ``convert``.
    """

    def __init__(
        self,
        sources: dict[str, tuple[int, ...]],
        convert: Callable | None = None,
        *,
        sp: int | None = None,
        tp: int | None = None,
        dtype: ttnn.DataType = ttnn.bfloat16,
        layout: ttnn.Layout = ttnn.TILE_LAYOUT,
        moves_only: bool = False,
        conversion: Conversion | None = None,
        packing: str = "",
    ) -> None:
        if (convert is None) != (conversion is None):
            raise ValueError(
                f"parameter made of {', '.join(sources)}: convert and conversion go together; "
                "declare the kind of conversion in models.conversion"
            )
        self.sources = sources
        self.convert = convert
        self.sp = sp
        self.tp = tp
        self.dtype = dtype
        self.layout = layout
        self.moves_only = moves_only
        self.conversion = conversion
        self.packing = packing
        self._tensor: ttnn.Tensor | None = None

    @property
    def tensor(self) -> ttnn.Tensor:
        """The device tensor.

        Raises:
            RuntimeError: the parameter has not been loaded.
        """
        if self._tensor is None:
            raise RuntimeError(f"parameter made of {', '.join(self.sources)} was used before it was loaded")
        return self._tensor

    def whole(self, mesh: Mesh) -> ttnn.Tensor:
        """The device tensor, gathered over SP if it is sharded there; it stays sharded over TP."""
        return self.tensor if self.sp is None else gather(self.tensor, dim=self.sp, over=mesh.sp)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape over all shards, as `read` gives it."""
        import torch

        # Arithmetic on the meta device imports half of torch's compiler, so that small tensors are cheaper for real.
        small = sum(map(prod, self.sources.values())) < 1 << 18
        parts = [torch.zeros(shape, device="cpu" if small else "meta") for shape in self.sources.values()]
        return tuple(self._converted(parts).shape)

    def read(self, source: TensorSource, prefix: str):
        """Read the sources and convert them: a host ``torch.Tensor`` over all shards, which may be a view of them.

        Raises:
            InputError: a value is not finite, or too large for bfloat16, before or after the conversion.
        """
        parts = [source.tensor(prefix + name) for name in self.sources]
        for name, part in zip(self.sources, parts, strict=True):
            _check_values(part, _place(source, prefix + name))
        if not (self.moves_only and len({part.dtype for part in parts}) == 1 and parts[0].is_floating_point()):
            parts = [part.float() for part in parts]
        made = self._converted(parts)
        if not self.moves_only and self.convert is not None:
            _check_values(made, f"what is made of {', '.join(_place(source, prefix + name) for name in self.sources)}")
        return made

    def distribute(self, mesh: Mesh, host) -> ttnn.Tensor:
        """Make of what `read` gave the ttnn host tensor, one shard per chip, that `put` takes."""
        return mesh.distribute(host, dtype=self.dtype, layout=self.layout, sp=self.sp, tp=self.tp)

    def put(self, mesh: Mesh, tensor: ttnn.Tensor) -> None:
        """Send a distributed host tensor to the mesh, in place of what was there."""
        self.release()
        self._tensor = ttnn.to_device(tensor, mesh.device)

    def load(self, mesh: Mesh, source: TensorSource, prefix: str) -> None:
        """Read the sources, convert and upload."""
        self.put(mesh, self.distribute(mesh, self.read(source, prefix)))

    def allocate(self, mesh: Mesh) -> None:
        """Take the device memory that `load` would fill, without any weights: for dry runs."""
        shape = list(self.shape)
        for axis, dim in ((mesh.sp, self.sp), (mesh.tp, self.tp)):
            if dim is not None:
                shape[dim] //= axis.size
        self._tensor = ttnn.allocate_tensor_on_device(ttnn.Shape(shape), self.dtype, self.layout, mesh.device)

    def _converted(self, parts: list):
        return self.convert(*parts) if self.convert is not None else parts[0]

    def release(self) -> None:
        """Free the device memory."""
        if self._tensor is not None:
            ttnn.deallocate(self._tensor)
            self._tensor = None


def _check_values(value, name: str) -> None:
    """Check a host tensor of any type; one pass at the speed of memory.

    Raises:
        InputError: a value is not finite in bfloat16.
    """
    if not value.is_floating_point() or not value.numel():
        return
    least, most = (value.float() if value.element_size() == 1 else value).aminmax()
    if not -LARGEST <= least.item() <= most.item() <= LARGEST:
        raise InputError(
            f"{name} holds values that are not finite, or too large for bfloat16: the file is damaged or of a training "
            "that failed; download it again"
        )


def file_of(source: TensorSource, key: str) -> str:
    """Return the file that holds a tensor, or "" where the source does not know."""
    where = getattr(source, "where", None)
    return "" if where is None else where(key)


def _place(source: TensorSource, key: str) -> str:
    file = file_of(source, key)
    return f"{file}: {key}" if file else key


class Module:
    """A part of the model. Its attributes that are modules, lists of modules or parameters form a tree.

    `prefix` is the place of the module's sources in the checkpoint, relative to its parent. It is "" if the module only
    groups others. `part` names a module that is not the main one of those that share a checkpoint's component.
    """

    prefix: str = ""
    part: str = ""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def parameters(self, prefix: str = "") -> Iterator[tuple[str, str, Parameter]]:
        """Yield (path of attributes, checkpoint prefix, parameter) for the whole tree, in order of definition."""
        yield from self._walk("", prefix + self.prefix)

    def _walk(self, path: str, prefix: str) -> Iterator[tuple[str, str, Parameter]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield path + name, prefix, value
                continue
            for index, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, Module):
                    step = f"{name}.{index}" if isinstance(value, list) else name
                    yield from child._walk(f"{path}{step}.", prefix + child.prefix)

    def part_of(self, source: TensorSource) -> TensorSource:
        """Return the tensors of a checkpoint component that belong to this module, under the names it uses.

        By default these are all tensors of the component.
        """
        return source

    def load(self, source: TensorSource, *, on_parameter: Callable[[int, int], None] | None = None) -> None:
        """Load every parameter from `source`. `part_of(source)` must hold exactly the tensors of the model.

        Raises:
            ValueError: tensors are missing, unexpected, or of another shape; the message gives their full names.
        """
        source = self.part_of(source)
        parameters = list(self.parameters())
        check_sources(parameters, source)
        for index, (_, prefix, parameter) in enumerate(parameters):
            parameter.load(self.mesh, source, prefix)
            if on_parameter is not None:
                on_parameter(index + 1, len(parameters))

    def allocate(self) -> None:
        """Allocate the device memory of all parameters without loading weights, for dry runs."""
        for _, _, parameter in self.parameters():
            parameter.allocate(self.mesh)

    def release(self) -> None:
        """Free the device memory of all parameters."""
        for _, _, parameter in self.parameters():
            parameter.release()


def check_sources(parameters: list[tuple[str, str, Parameter]], source: TensorSource) -> None:
    """Check that `source` holds exactly the tensors that the parameters are made of.

    Raises:
        ValueError: tensors are missing, unexpected, or of another shape.
    """
    wanted = {prefix + name: shape for _, prefix, p in parameters for name, shape in p.sources.items()}
    present = set(source.keys())
    missing = sorted(set(wanted) - present)
    unexpected = sorted(present - set(wanted))
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
    for key, shape in wanted.items():
        if key in present and tuple(source.shape(key)) != tuple(shape):
            problems.append(f"{key} has shape {tuple(source.shape(key))}, the model needs {tuple(shape)}")
            break
    if problems:
        raise InputError(f"weights do not fit the model: {'; '.join(problems)}; check config.json and the files")


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
