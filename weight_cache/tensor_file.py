"""Writing of parameters as ttnn's `.tensorbin` files.

Most parameters of a model have the same shape in every block, and their files differ only in the values. ttnn packs and
writes the first of those that are alike. If its file is a header followed by the values in the order of `_pieces`, the
others are written here under the same header. That is one strided copy from the place of the values, in pieces that
stay in a core's cache while they are hashed and written. ttnn does the same with several buffers as large as the
tensor, which costs several times as much. ttnn writes all of those whose order is another, or whose packing
computes (bfloat8_b, float32).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import ttnn

from models.parallel import TILE
from weight_cache.digest import checksum, new_checksum
from weight_cache.plan import chip_shape, data_bytes

if TYPE_CHECKING:
    import torch

    from models.layers import Parameter
    from models.parallel import Mesh

_FACE = 16
# Size of a core's second-level cache.
_PIECE_BYTES = 1 << 20
_Alike = tuple[tuple[int, ...], int | None, int | None]


class TensorWriter:
    """Writer of the parameters of one mesh. Threads may share it."""

    def __init__(self, mesh: Mesh) -> None:
        """Create a writer that knows no header yet."""
        self._mesh = mesh
        self._headers: dict[_Alike, bytes] = {}

    def write(self, path: Path, parameter: Parameter, host: torch.Tensor) -> str:
        """Write the result of `Parameter.read` to `path`, which must end with `.tensorbin`, and return its checksum.

        Raises:
            ValueError: a split dim is not divisible by its axis.
            OSError, RuntimeError: the file cannot be written.
        """
        alike = (parameter.shape, parameter.sp, parameter.tp)
        only_moves = _only_moves(parameter, host, self._mesh)
        if only_moves and alike in self._headers:
            return self._write_alike(path, self._headers[alike], parameter, host)
        ttnn.dump_tensor(path, parameter.distribute(self._mesh, host))
        if only_moves:
            header = self._header(path, parameter, host)
            if header is not None:
                self._headers[alike] = header
        return checksum(path)

    def _write_alike(self, path: Path, header: bytes, parameter: Parameter, host: torch.Tensor) -> str:
        digest = new_checksum()
        digest.update(header)
        with path.open("wb") as file:
            file.write(header)
            for piece in _pieces(parameter, host, self._mesh):
                digest.update(piece)
                file.write(piece)
        return str(digest.hexdigest())

    def _header(self, path: Path, parameter: Parameter, host: torch.Tensor) -> bytes | None:
        """Return the header of a file written by ttnn, or None if its data is not in `_pieces` order."""
        length = path.stat().st_size - data_bytes(parameter, self._mesh)
        if length < 0:
            return None
        with path.open("rb") as file:
            header = file.read(length)
            same = all(file.read(len(piece)) == piece.tobytes() for piece in _pieces(parameter, host, self._mesh))
        return header if same else None


def _only_moves(parameter: Parameter, host: torch.Tensor, mesh: Mesh) -> bool:
    """Return whether packing computes nothing.

    This holds for bfloat16 matrices, one or several, of which every chip's part is whole tiles.
    """
    import torch

    if parameter.dtype != ttnn.bfloat16 or parameter.layout != ttnn.TILE_LAYOUT or host.dtype != torch.bfloat16:
        return False
    return host.ndim >= 2 and all(size % TILE == 0 for size in chip_shape(parameter, mesh)[-2:])


def _pieces(parameter: Parameter, host: torch.Tensor, mesh: Mesh) -> Iterator[memoryview]:
    """Yield the packed bytes: each distinct shard once, in the order of the chips that hold it first, tile after tile.

    Of several matrices one follows the other.

    A tile's values are in four faces of 16 x 16; faces and values are in row order (tt-metal
    `tech_reports/tensor_layouts/tensor_layouts.md`).
    """
    import torch

    shards = [host]
    for axis, dim in sorted(((mesh.sp, parameter.sp), (mesh.tp, parameter.tp)), key=lambda pair: pair[0].index):
        if dim is not None:
            shards = [part for shard in shards for part in shard.chunk(axis.size, dim)]
    matrices = (shard[index] for shard in shards for index in product(*map(range, shard.shape[:-2])))
    for matrix in matrices:
        # View [R, C] as [R / 32, C / 32, 2, 2, 16, 16].
        faces = matrix.unflatten(1, (-1, TILE // _FACE, _FACE)).unflatten(0, (-1, TILE // _FACE, _FACE))
        tiles = faces.permute(0, 3, 1, 4, 2, 5)
        row_bytes = matrix.shape[1] * TILE * matrix.element_size()
        for piece in tiles.split(max(1, _PIECE_BYTES // row_bytes)):
            yield memoryview(piece.contiguous().flatten().view(torch.uint8).numpy())
