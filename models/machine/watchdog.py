"""The watchdog: a limit on the time of one op, and what is said when ttnn finds that chips make no progress.

ttnn reads the limit when it first looks for devices. Then, whenever the host waits for the chips, it ends the wait with
an error if their dispatch cores have not begun a new command for so long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from models.machine.errors import MachineError
from models.machine.ops import add_hook, remove_hook
from models.machine.systems import systems
from models.machine.ways import advice, names_of

_TIMEOUT = "TIMEOUT: device timeout"
_LEAST_SECONDS = 120.0
_MARGIN = 200
LARGEST_TOKENS = 100_800  # 1280x720, 163 frames


def operation_seconds(chips: int, width: int, tokens: int = LARGEST_TOKENS) -> float:
    """Return a limit on the time of one op: far above that of attention in one block, the largest op.

    The margin is on the time at the matrix engine's peak, of which ttnn's attention reaches about a half. The least
    limit leaves room for all other ops.

    Args:
        chips: that share the tokens and the heads.
        width: of all heads together.
        tokens: visual tokens of the video.
    """
    architecture = systems()["n150"].architecture
    flops = 4 * tokens * (tokens + 256) * width / chips
    return max(_LEAST_SECONDS, _MARGIN * flops / architecture.peak_flops(64, "HiFi2"))


class Watchdog:
    """Remembers where a run is, and says it when the chips stop.

    Attributes:
        step: denoising steps that are done.
        replays: whether steps are recorded and replayed.
    """

    def __init__(self, *, active: bool, replays: bool = False) -> None:
        """Create a watchdog; one that is not active does nothing."""
        self.active = active
        self.replays = replays
        self.step = 0
        self._last: str | None = None
        self._avoidable: str | None = None

    @contextmanager
    def watching(self, stage: str) -> Iterator[None]:
        """Watch a stage of a run.

        Raises:
            MachineError: ttnn's operation timeout fired.
        """
        if not self.active:
            yield
            return
        self.step = 0
        add_hook(self._remember)
        try:
            yield
        except RuntimeError as error:
            if _TIMEOUT not in str(error):
                raise
            raise MachineError(self.report(stage)) from error
        finally:
            remove_hook(self._remember)

    def report(self, stage: str) -> str:
        """Say in one line where the chips stopped, and what to do."""
        where = f"{stage}, step {self.step + 1}" if stage == "denoise" else stage
        text = f"the chips make no progress any more ({where})"
        if self._last is None:
            text += "; no op was sent"
        else:
            text += f"; the last op sent was {self._last}: {advice(self._last)}"
        if self._avoidable not in (None, self._last):
            assert self._avoidable is not None
            text += f"; ttnn sends ahead, so it may have been {self._avoidable}: {advice(self._avoidable)}"
        if self._avoidable is not None:
            names = ", ".join(f'"{name}"' for name in names_of(self._avoidable))
            text += f'; in the machine profile: "plain": [{names}]'
        if self.replays and stage == "denoise" and self.step >= 2:
            text += "; the step was a replay, whose ops are not seen: --no-capture shows more"
        return f"{text}; reset the cards (tt-smi -r) first; mochi-tt selftest --profile tries every op"

    def _remember(self, call: Callable[..., Any], operation: Any, *args: Any, **kwargs: Any) -> Any:
        self._last = operation.python_fully_qualified_name
        if names_of(self._last):
            self._avoidable = self._last
        return call(operation, *args, **kwargs)
