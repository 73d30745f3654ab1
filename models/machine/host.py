"""This computer: its cards, the cluster that this process is bound to, and the logs of ttnn."""

import contextlib
import errno
import gc
import os
import pwd
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal

from loguru import logger

from models.machine.errors import MachineError
from models.machine.paths import MENDS

CARD_DIRECTORY = Path("/dev/tenstorrent")
"""Directory in which the Tenstorrent kernel driver lists its cards."""
OPEN_FILES, FILE_BYTES = 256, 64 << 20
"""Files that ttnn opens at once, and the largest that it writes, with room: kernels, caches, video."""


def cards(directory: Path | None = None) -> list[str]:
    """Return the device nodes of the Tenstorrent cards in this machine, in numeric order; empty if there are none.

    Args:
        directory: directory to search; `CARD_DIRECTORY` by default.
    """
    directory = CARD_DIRECTORY if directory is None else directory
    if not directory.is_dir():
        return []
    nodes = [entry for entry in directory.iterdir() if entry.name.isdigit()]
    return [str(node) for node in sorted(nodes, key=lambda node: int(node.name))]


def refuse_cards(*, beside_cards: bool, directory: Path | None = None) -> None:
    """Refuse to continue with a mock on a machine that has cards, unless `beside_cards` is set.

    Raises:
        RuntimeError: there are cards, and the mock was not requested by name.
    """
    found = cards(directory)
    if found and not beside_cards:
        raise RuntimeError(
            f"{len(found)} Tenstorrent card(s) present ({', '.join(found)}), so a mock mesh is refused "
            "unless asked for by name; open the mesh in mode 'hardware', or name mode 'golden' or 'dry-run'"
        )


def log_level(level: str) -> dict[str, str]:
    """Return the environment variable that sets the level of ttnn's C++ log, or nothing if the user has set one."""
    return {} if os.environ.get("TT_LOGGER_LEVEL") else {"TT_LOGGER_LEVEL": level}


@contextlib.contextmanager
def environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for a block; None unsets one.

    ttnn reads them at the first device query. Child processes started after the block do not inherit them.
    """
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def wait_passively() -> None:
    """Have OpenMP's threads sleep while they wait, unless the user wants otherwise or torch has read the setting.

    Golden matrices are small, and threads that spin while they wait take the cores from whatever else runs: on a busy
    machine a demo took 178 s so, and 40 s with this.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def collect_rarely() -> None:
    """Have Python look for garbage in cycles less often, for programs that import torch and ttnn.

    Their imports make a million objects that stay, and by its defaults Python looks at all of them again and again.
    What a run leaves in cycles is still found, a little later.
    """
    gc.set_threshold(50_000, 20, 100)


def ensure_home() -> None:
    """Set HOME where the environment lacks it: ttnn reads it at import, and ends the process with a fault without it.

    Raises:
        MachineError: this user has no home directory either.
    """
    if os.environ.get("HOME"):
        return
    try:
        os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise MachineError(
            f"HOME is not set, and user {os.getuid()} has no home directory: set HOME to a folder that can be written"
        ) from None


def check_limits() -> None:
    """See that this process may open as many files as ttnn does, and write ones as large; raise a low limit if it may.

    ttnn says of a limit that it meets only that some file is missing.

    Raises:
        MachineError: a limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_below(soft, OPEN_FILES) and not _is_below(hard, OPEN_FILES):
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
    elif _is_below(hard, OPEN_FILES):
        raise MachineError(f"this process may open {hard} files, and ttnn needs {OPEN_FILES}: {MENDS[errno.EMFILE]}")
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if _is_below(most, FILE_BYTES):
        raise MachineError(
            f"this process may write files of {most} bytes, and ttnn needs {FILE_BYTES}: {MENDS[errno.EFBIG]}"
        )


def _is_below(limit: int, least: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < least


def quiet_ttnn() -> ModuleType:
    """Import ttnn without the configuration that it logs at import, and return it.

    A program that imports ttnn elsewhere calls this first. The log stays if the user has set TT_LOGGER_LEVEL. Later log
    lines of ttnn (its warnings) are never suppressed.
    """
    ensure_home()
    silence = "ttnn" not in sys.modules and not os.environ.get("TT_LOGGER_LEVEL")
    if silence:
        logger.disable("ttnn")
    try:
        import ttnn
    finally:
        if silence:
            logger.enable("ttnn")
    return ttnn


# What ttnn has seen in this process: one of `_CLUSTERS`, or nothing yet.
_bound: list[str] = []
_CLUSTERS = {
    "cards": ("has opened real cards", "the cards"),
    "simulator": ("has opened the simulator", "the simulator"),
    "mock": ("has a mock cluster", "the mock"),
}


def bind_process(cluster: Literal["cards", "simulator", "mock"]) -> None:
    """Bind this process to the cards, the simulator or a mock cluster: ttnn keeps to the first one that it sees.

    Raises:
        RuntimeError: the process is bound to another one.
    """
    if _bound and _bound[0] != cluster:
        raise RuntimeError(
            f"this process {_CLUSTERS[_bound[0]][0]} and ttnn stays bound to it; open {_CLUSTERS[cluster][1]} in "
            "another one"
        )
    if not _bound:
        _bound.append(cluster)
