"""A double of a device: golden execution that lies, stalls, crashes and refuses where a test wants it to.

It is run as `models.conformance.child` is. The variable LIAR has what goes wrong: JSON from names of ops (or `open`) to
`lie`, `stall`, `crash`, `exit`, `refuse` or `nan`. `child` has what the process does wrong around the case gelu, once,
and `pid` a file for its number.
"""

import json
import os
import signal
import sys
import time

FAULTS = json.loads(os.environ.get("LIAR", "{}"))
REFUSAL = (
    "TT_FATAL @ /home/somebody/tt-metal/ttnn/op.cpp:12: false\ninfo:\nthe shape of /home/somebody/x is odd\nbacktrace:"
)


def suffer(fault: str) -> None:
    if fault == "stall":
        time.sleep(600)
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "exit":
        os._exit(3)
    if fault == "refuse":
        raise RuntimeError(REFUSAL)


def opening(mesh, mode, **options):
    """The mock, though the task says hardware."""
    from models.device import open_mesh
    from models.machine.ops import add_hook

    opened = open_mesh(mesh, "golden", **options)

    def around(call, operation, *args, **kwargs):
        name = operation.python_fully_qualified_name
        fault = FAULTS.get(name, "")
        suffer(fault)
        if name == "ttnn.gelu" and FAULTS.get("child") == "rule":
            from models.machine.errors import InputError

            raise InputError("our rule")
        if name == "ttnn.gelu" and FAULTS.get("child") == "dtype":
            import ttnn

            return call(ttnn.typecast, call(operation, *args, **kwargs), ttnn.float32)
        result = call(operation, *args, **kwargs)
        if fault in ("lie", "nan"):
            import ttnn

            result = call(ttnn.multiply, result, 1.1 if fault == "lie" else float("nan"))
        return result

    add_hook(around)
    return opened


def misbehave(fault: str) -> None:
    """What a process does wrong when gelu's turn comes."""
    import torch

    import models.conformance
    from models.conformance.bench import Bench

    if fault == "after-done":
        before = json.loads(sys.argv[1])["cases"].index("gelu")
        known, turns = models.conformance.cases(), iter([False] * before + [True])
        models.conformance.cases = lambda: suffer("crash") if next(turns) else known
    if fault == "no-result":
        save = torch.save
        torch.save = lambda value, path: None if path.name.endswith("gelu.pt") else save(value, path)
    start = Bench.__init__

    def begin(self, mesh, case, **options):
        start(self, mesh, case, **options)
        if case == "gelu" and fault == "nonsense":
            os.write(int(sys.argv[2]), b"hello\n")
        if case == "gelu" and fault == "fork":
            if os.fork():
                os._exit(7)
            time.sleep(600)

    Bench.__init__ = begin


if __name__ == "__main__":
    if "pid" in FAULTS:
        with open(FAULTS["pid"] + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(FAULTS["pid"] + ".part", FAULTS["pid"])
    if "pid" in FAULTS:
        from models.conformance.child import _die_with_the_parent

        _die_with_the_parent(json.loads(sys.argv[1])["parent"])
    suffer(FAULTS.get("open", ""))  # Before what takes seconds to import.
    from models.conformance import child
    from models.machine.host import quiet_ttnn

    quiet_ttnn()
    if "child" in FAULTS and "gelu" in json.loads(sys.argv[1])["cases"]:
        misbehave(FAULTS["child"])
    sys.exit(child.main(sys.argv[1:], opening))
