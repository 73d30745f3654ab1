"""When ttnn's timeout fires: a double of an op that raises what ttnn raises."""

import pytest
import ttnn

from models.machine.errors import MachineError
from models.machine.ops import add_hook, remove_hook
from models.machine.watchdog import Watchdog, operation_seconds

HANG = "TT_THROW @ system_memory_manager.cpp:627\ninfo:\nTIMEOUT: device timeout, potential hang detected"


@pytest.fixture
def stalled():
    """Ops do nothing, and `ttnn.synchronize_device` would raise: here `ttnn.add` does."""

    def around(call, operation, *args, **kwargs):
        if operation is ttnn.add:
            raise RuntimeError(HANG)

    add_hook(around)
    yield
    remove_hook(around)


def test_the_report_names_op_step_and_profile_line(stalled):
    watchdog = Watchdog(active=True, replays=True)
    with pytest.raises(MachineError) as error, watchdog.watching("denoise"):  # noqa: PT012
        ttnn.experimental.neighbor_pad_async()
        watchdog.step = 3
        ttnn.silu()
        ttnn.add()
    text = str(error.value)
    assert "\n" not in text
    for words in (
        "no progress any more (denoise, step 4)",
        "the last op sent was ttnn.add: no other op computes this",
        "may have been ttnn.experimental.neighbor_pad_async: avoid it with --plain halo",
        'in the machine profile: "plain": ["halo"]',
        "the step was a replay",
        "tt-smi -r",
    ):
        assert words in text


def test_outside_of_replays_and_before_any_op(stalled):
    watchdog = Watchdog(active=True)
    with pytest.raises(MachineError, match=r"\(decode\); the last op sent was ttnn.add") as error:  # noqa: SIM117
        with watchdog.watching("decode"):
            ttnn.add()
    assert "replay" not in str(error.value)
    with pytest.raises(MachineError, match="no op was sent"), Watchdog(active=True).watching("encode"):
        raise RuntimeError(HANG)


def test_other_errors_and_other_modes_pass(stalled):
    with pytest.raises(RuntimeError, match="Out of Memory") as error, Watchdog(active=True).watching("decode"):
        raise RuntimeError("Out of Memory: ...")
    assert not isinstance(error.value, MachineError)
    with pytest.raises(RuntimeError, match="TIMEOUT"), Watchdog(active=False).watching("decode"):
        ttnn.add()


def test_the_limit_grows_with_the_largest_op():
    assert operation_seconds(32, 3072, 44_520) == 120
    one, wide = operation_seconds(1, 3072), operation_seconds(1, 8 * 3072)
    assert wide == pytest.approx(8 * one)
    assert operation_seconds(8, 8 * 3072) == pytest.approx(one)
    assert 120 < one < 600
