"""Golden values through sockets between two meshes.

Source: wheel, `ttnn/cpp/ttnn/operations/experimental/ccl/send_recv_async`, kernels `sender_writer.cpp` and
`receiver_inplace_writer.cpp`. Each connection carries the sender's whole shard page by page, in order, through the
socket's queue into the receiver's tensor. `send_direct_async` has no golden: see `models.mock.limits`.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import ttnn

from models.mock.golden.errors import golden_error

if TYPE_CHECKING:
    from models.mock.golden.store import Store

SEND, RECEIVE = "ttnn.experimental.send_async", "ttnn.experimental.recv_async"


@dataclass
class _Pair:
    """Two connected sockets and the values sent but not yet received.

    The sockets are kept alive so that no other object gets their `id`.
    """

    sockets: tuple[Any, Any]
    routes: list[tuple[tuple[int, ...], tuple[int, ...]]]
    under_way: deque[list[torch.Tensor]] = field(default_factory=deque)


_pairs: dict[int, _Pair] = {}
_original: dict[str, Callable[..., Any]] = {}


def attach() -> None:
    """Record every pair of sockets that is created."""
    original = _original["create_socket_pair"] = ttnn.create_socket_pair

    @functools.wraps(original)
    def create_socket_pair(*args, **kwargs):
        sockets = original(*args, **kwargs)
        routes = [
            (tuple(c.sender_core.device_coord), tuple(c.receiver_core.device_coord))
            for c in sockets[0].get_connection_config()
        ]
        pair = _Pair(sockets, routes)
        _pairs.update({id(socket): pair for socket in sockets})
        return sockets

    ttnn.create_socket_pair = create_socket_pair


def detach() -> None:
    """Restore ttnn's function and forget all sockets."""
    ttnn.create_socket_pair = _original.pop("create_socket_pair")
    _pairs.clear()


def send(store: Store, call: Callable, operation: Any, args: tuple, kwargs: dict) -> Any:
    """Send the sender's values as they are now."""
    tensor, socket = args
    values = list(store.get(tensor, SEND))
    result = call(operation, *args, **kwargs)
    _of(socket, SEND).under_way.append(values)
    return result


def receive(store: Store, call: Callable, operation: Any, args: tuple, kwargs: dict) -> Any:
    """Write the values that were sent first to the connected chips.

    The other chips get NaN, because their values are undefined.
    """
    tensor, socket = args
    pair = _of(socket, RECEIVE)
    if not pair.under_way:
        raise golden_error(RECEIVE, "nothing was sent through this socket: golden execution wants the sender first")
    result = call(operation, *args, **kwargs)
    sent = pair.under_way.popleft()
    sender_columns = pair.sockets[0].get_mesh_device().shape[1]
    rows, columns = tensor.device().shape
    shards = [torch.full(tuple(tensor.shape), float("nan"))] * (rows * columns)
    for (from_row, from_column), (row, column) in pair.routes:
        shards[row * columns + column] = sent[from_row * sender_columns + from_column]
    store.put(tensor, shards)
    return result


def _of(socket: Any, op: str) -> _Pair:
    pair = _pairs.get(id(socket))
    if pair is None:
        raise golden_error(op, "the socket is not of a pair made by ttnn.create_socket_pair")
    return pair
