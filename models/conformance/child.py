"""The process that runs cases on one mesh, and says on a pipe how far it is.

    python -m models.conformance.child '{"mode": "golden", "mesh": "1x1", ...}' DESCRIPTOR

Each line on the pipe is a JSON object with an `event`: `opened`, `start` (of a case), `ran` (with its seconds),
`refused` (with ttnn's error), `skipped` (with our own rule), `done`, `closed`. Results go to files, one for each case.
The process ends with the one that started it, whatever ends that one.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from models.machine.errors import InputError
from models.machine.host import quiet_ttnn

_PR_SET_PDEATHSIG = 1

Open = Callable[..., AbstractContextManager[Any]]


def main(arguments: Sequence[str], opening: Open | None = None) -> int:
    """Run the cases that the task names.

    Args:
        arguments: the task as JSON (mode, mesh, layout, plain, links, topology, chunks, system, tokens, folder, cases),
            and a descriptor.
        opening: opens the mesh in place of `models.device.open_mesh`.
    """
    task = json.loads(arguments[0])
    _die_with_the_parent(task.get("parent"))
    pipe = os.fdopen(int(arguments[1]), "w", buffering=1)
    os.set_inheritable(pipe.fileno(), False)

    def tell(event: str, **more: Any) -> None:
        print(json.dumps({"event": event, **more}), file=pipe)

    quiet_ttnn()
    import torch

    from models.conformance import cases
    from models.conformance.bench import Bench
    from models.device import open_mesh
    from models.layers import Chunks
    from models.machine.ways import Ways
    from models.parallel import Layout, Mesh

    start = perf_counter()
    topology = task.get("topology")
    ring = None if topology is None else topology == "ring"
    chunks = Chunks.parse(task["chunks"]) if task.get("chunks") else None
    with (opening or open_mesh)(task["mesh"], task["mode"], system=task.get("system"), ring=ring) as opened:
        ways = Ways(frozenset(task.get("plain", ())), task.get("links"), topology == "line")
        mesh = Mesh(opened.device, Layout.parse(task["layout"], opened.shape), ways)
        tell("opened", seconds=perf_counter() - start, links=[mesh.sp.links, mesh.tp.links])
        for name in task["cases"]:
            case = cases()[name]
            tell("start", case=name)
            start = perf_counter()
            bench = Bench(mesh, name, opened=opened, tokens=task["tokens"], chunks=chunks)
            try:
                outputs = case.run(bench)
                actual = [bench.actual(output) for output in outputs]
            except InputError as error:
                tell("skipped", case=name, seconds=perf_counter() - start, error=_first_line(error))
                mesh.free_buffers()
                continue
            except Exception as error:
                tell("refused", case=name, seconds=perf_counter() - start, error=_first_line(error))
                mesh.free_buffers()
                continue
            tell("ran", case=name, seconds=perf_counter() - start)
            exact = None
            if task["mode"] == "golden" or case.kind == "shape":
                exact = [bench.expected(output) for output in outputs]
            del outputs
            torch.save({"actual": actual, "exact": exact}, Path(task["folder"], f"{task['mode']}-{name}.pt"))
            mesh.free_buffers()
            tell("done", case=name)
        mesh.release()
    tell("closed")
    return 0


def _die_with_the_parent(parent: int | None) -> None:
    """Have the kernel end this process when the one that started it is gone: a card serves one process at a time.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if parent is not None and os.getppid() != parent:
        os._exit(1)  # It was gone before the kernel was asked.


def _first_line(error: Exception) -> str:
    """Return the line that says what went wrong: ttnn puts it behind `info:`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    after = [line for before, line in pairwise(lines) if before == "info:"]
    return f"{type(error).__name__}: {(after or lines)[0]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
