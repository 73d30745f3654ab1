"""Tenstorrent's functional simulator in place of cards: where it is, and what it needs.

The simulator is a library that executes ttnn's kernels on the host, instruction by instruction
(https://github.com/tenstorrent/ttsim). ttnn opens it where the environment names it. Nothing of it is shipped here.
"""

import os
from pathlib import Path

from models.machine.errors import MachineError

VARIABLE = "TT_METAL_SIMULATOR"
SLOW_DISPATCH = "TT_METAL_SLOW_DISPATCH_MODE"
MOCK_CLUSTER = "TT_METAL_MOCK_CLUSTER_DESC_PATH"
DESCRIPTOR = "soc_descriptor.yaml"
SIMULATOR_HINT = (
    "download libttsim_wh.so of a release of github.com/tenstorrent/ttsim, copy ttnn's "
    f"tt_metal/soc_descriptors/wormhole_b0_80_arch.yaml beside it as {DESCRIPTOR}, install Tenstorrent's compiler "
    f"sfpi, and set {VARIABLE} to the library"
)
"""How a machine without cards gets to the simulator."""


def named() -> Path | None:
    """Return the library that the environment names, or None if it names none."""
    value = os.environ.get(VARIABLE)
    return Path(value) if value else None


def problem() -> str | None:
    """Return what stands between this process and the simulator, with its mend, or None if nothing is seen to."""
    library = named()
    if library is None:
        return f"{VARIABLE} names no library; {SIMULATOR_HINT}"
    if library.suffix != ".so" or not library.is_file():
        return f"{VARIABLE}={library} is no library (.so file); {SIMULATOR_HINT}"
    if not (library.parent / DESCRIPTOR).is_file():
        return (
            f"{DESCRIPTOR} is missing beside {library}: copy ttnn's tt_metal/soc_descriptors/wormhole_b0_80_arch.yaml "
            "there under this name"
        )
    if os.environ.get(MOCK_CLUSTER):
        return f"{MOCK_CLUSTER} is set, and ttnn would open that mock: unset it"
    if os.environ.get(SLOW_DISPATCH, "1") != "1":
        return f"{SLOW_DISPATCH} is {os.environ[SLOW_DISPATCH]!r}: the simulator has no dispatch cores; set it to 1"
    return None


def check() -> None:
    """Check what the simulator needs, as far as it can be seen without opening it.

    Raises:
        MachineError: something is missing; the message says what to do.
    """
    found = problem()
    if found is not None:
        raise MachineError(f"mode 'simulator': {found}")


def variables() -> dict[str, str]:
    """Return the environment variables with which ttnn opens the simulator, besides the one that names it."""
    return {SLOW_DISPATCH: "1"}
