"""A double of a device: golden execution that lies, stalls, crashes and refuses where a test wants it to.

It is run as `models.conformance.child` is. The variable LIAR has what goes wrong: JSON from names of ops (or `open`) to
`lie`, `stall`, `crash`, `exit`, `refuse` or `nan`.
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
        fault = FAULTS.get(operation.python_fully_qualified_name, "")
        suffer(fault)
        result = call(operation, *args, **kwargs)
        if fault in ("lie", "nan"):
            import ttnn

            result = call(ttnn.multiply, result, 1.1 if fault == "lie" else float("nan"))
        return result

    add_hook(around)
    return opened


if __name__ == "__main__":
    suffer(FAULTS.get("open", ""))  # Before what takes seconds to import.
    from models.conformance import child
    from models.machine.host import quiet_ttnn

    quiet_ttnn()
    sys.exit(child.main(sys.argv[1:], opening))
