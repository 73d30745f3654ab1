"""A sequence of ops that is sent to the chips once and replayed from their memory: ttnn's trace capture.

A replay repeats the captured ops on the captured addresses. So the program must read changing inputs from tensors that
keep their addresses, and must leave its results in such tensors. Each replay creates again the tensors that the program
itself creates.
"""

from __future__ import annotations

from collections.abc import Callable

import ttnn

_QUEUE = 0


class Replay[T]:
    """A runner of a program. If `capture` is set, its second call records the program and later calls replay it."""

    def __init__(self, device: ttnn.MeshDevice, *, capture: bool) -> None:
        """Create a replay; nothing is captured yet.

        Args:
            device: the mesh that all of the program's ops run on. For `capture` it was opened with a trace region.
            capture: whether the mesh can capture; if not, every call sends the ops.
        """
        self._device = device
        self._capture = capture
        self._compiled = False
        self._trace: ttnn.MeshTraceId | None = None
        self._result: T | None = None

    def __call__(self, program: Callable[[], T]) -> T:
        """Run `program`, which sends the same ops each time.

        A replay returns the tensors that the program was captured with; they hold new values.
        """
        if not self._capture or not self._compiled:
            self._compiled = True  # Capture needs programs that are compiled and on the chips.
            return program()
        if self._trace is None:
            self._trace, self._result = self._record(program)
        ttnn.execute_trace(self._device, self._trace, cq_id=_QUEUE, blocking=False)
        assert self._result is not None
        return self._result

    def _record(self, program: Callable[[], T]) -> tuple[ttnn.MeshTraceId, T]:
        trace = ttnn.begin_trace_capture(self._device, cq_id=_QUEUE)
        try:
            result = program()
        except BaseException:
            ttnn.end_trace_capture(self._device, trace, cq_id=_QUEUE)
            ttnn.release_trace(self._device, trace)
            raise
        ttnn.end_trace_capture(self._device, trace, cq_id=_QUEUE)
        return trace, result

    @property
    def is_captured(self) -> bool:
        """Whether calls replay."""
        return self._trace is not None

    def finish(self) -> None:
        """Wait for a replay to end, because the next replay begins with the same semaphores."""
        if self._trace is not None:
            ttnn.synchronize_device(self._device)

    def release(self) -> None:
        """Free the captured ops."""
        if self._trace is not None:
            ttnn.release_trace(self._device, self._trace)
            self._trace = self._result = None
